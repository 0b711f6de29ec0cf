import type { ProcessGroup } from '../../dist/process-group.js';
import { argumentError } from '../../errors.js';
import { checkInteger, readLengths } from './packing.js';
import { partition } from './partition.js';

/** Options of {@link microBatches}. */
export interface MicroBatchOptions {
  /** Ranks that must cut their batches into the same number. None: this rank alone. */
  group?: ProcessGroup;
  /** The number of micro-batches is rounded up to a multiple of this, at least 1. Default 1. */
  multipleOf?: number;
  /** At least so many micro-batches. Default 1. */
  min?: number;
  /** Work of one sequence of `length` tokens. Default `24576 * length + length ** 2`: a 7B model's. */
  costOf?: (length: number) => number;
}

/**
 * One batch cut into micro-batches of nearly equal cost, as lists of indices.
 *
 * Their number is `ceil(total tokens / maxTokens)`, raised to `min`, then to the largest of the group's
 * ranks, then up to a multiple of `multipleOf`. The costliest stand in the middle and the lightest at
 * both ends, where a pipeline fills and drains. Balance is by cost, so that one micro-batch may pass
 * `maxTokens` slightly when its sequences are short; leave that margin in `maxTokens`.
 * With a group every rank must call this, and a promise is returned.
 *
 * ```ts
 * microBatches([400, 300, 200, 100], 500); // [[0, 3], [1, 2]]
 * ```
 *
 * @param lengths tokens per sequence, `[numSequences]`, at least one sequence
 * @param maxTokens tokens per micro-batch that the count aims at
 * @throws VarlenInputError `ERR_VARLEN_RANGE` when a length is above `maxTokens` (`details.index`) or
 * when there are fewer sequences than micro-batches
 */
export function microBatches(
  lengths: ArrayLike<number>,
  maxTokens: number,
  options?: MicroBatchOptions & { group?: never },
): number[][];
export function microBatches(
  lengths: ArrayLike<number>,
  maxTokens: number,
  options: MicroBatchOptions & { group: ProcessGroup },
): Promise<number[][]>;
export function microBatches(
  lengths: ArrayLike<number>,
  maxTokens: number,
  options: MicroBatchOptions = {},
): number[][] | Promise<number[][]> {
  const { group, multipleOf = 1, min = 1, costOf = (length) => 24576 * length + length * length } = options;
  const op = 'microBatches';
  checkInteger(op, 'maxTokens', maxTokens, 1);
  checkInteger(op, 'options.multipleOf', multipleOf, 1);
  checkInteger(op, 'options.min', min, 1);
  const tokens = readLengths(op, lengths);
  const longest = tokens.reduce((best, length, i) => (length > tokens[best] ? i : best), 0);
  if (tokens[longest] > maxTokens) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      `lengths[${longest}]`,
      `is above maxTokens; got ${tokens[longest]}, expected at most ${maxTokens}`,
      { index: longest },
    );
  }

  const total = tokens.reduce((sum, length) => sum + length, 0);
  const wanted = Math.max(min, Math.min(tokens.length, Math.ceil(total / maxTokens)));
  const cut = (count: number): number[][] => {
    const rounded = Math.ceil(count / multipleOf) * multipleOf;
    if (rounded > tokens.length) {
      const problem = `has too few sequences; got ${tokens.length}, expected one for each of ${rounded} micro-batches`;
      throw argumentError('ERR_VARLEN_RANGE', op, 'lengths', problem);
    }
    return lightAtBothEnds(Array.from(tokens, costOf), rounded);
  };
  if (group === undefined) return cut(wanted);
  return group.allReduce(Int32Array.of(wanted), 'max').then(([count]) => cut(count));
}

function lightAtBothEnds(costs: number[], count: number): number[][] {
  const parts = partition(costs, count).map((indices) => ({
    indices,
    cost: indices.reduce((sum, i) => sum + costs[i], 0),
  }));
  parts.sort((a, b) => b.cost - a.cost || b.indices[0] - a.indices[0]);
  // Falling ranks 0 2 4 .. backwards, then 1 3 5 ..: the two costliest end up side by side in the middle.
  const even = parts.filter((_, rank) => rank % 2 === 0).reverse();
  const odd = parts.filter((_, rank) => rank % 2 === 1);
  return [...even, ...odd].map((part) => part.indices);
}
