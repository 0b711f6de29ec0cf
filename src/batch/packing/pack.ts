import { argumentError } from '../../errors.js';
import { bestFitCrop } from './bestfit-crop.js';
import { bestFitDecreasing } from './bfd.js';
import { bestFitDecreasingSplit } from './bfd-split.js';
import { firstFit, firstFitShuffled } from './ff.js';
import { firstFitDecreasing } from './ffd.js';
import { greedyKnapsack } from './knapsack.js';
import { binsOf, checkInteger, nonEmpty, type Packing, readLengths } from './packing.js';
import { sequential } from './sequential.js';
import { wrapped } from './wrapped.js';

/** How sequences are laid into bins; {@link pack} says what each does. */
export type PackAlgo = (typeof packAlgos)[number];

/** Every {@link PackAlgo}, for help texts and tests. */
export const packAlgos = [
  'bfd',
  'ffd',
  'ff',
  'ff-shuffle',
  'knapsack',
  'sequential',
  'wrapped',
  'bestfit-crop',
  'bfd-split',
] as const;

/** What {@link pack} may be told besides the algorithm. */
export interface PackOptions {
  /**
   * A sequence above the capacity: `'error'` refuses it, `'truncate'` keeps its first `capacity` tokens.
   * The algorithms that cut (`'wrapped'`, `'bfd-split'`, `'bestfit-crop'`) take any length and ignore this.
   * Default `'error'`.
   */
  oversize?: 'error' | 'truncate';
  /** Decides the order of `'ff-shuffle'`; an integer. Default 0. */
  seed?: number;
  /** Documents that `'bestfit-crop'` chooses among, at least 1. Default 1000. */
  buffer?: number;
}

/**
 * Bins of sequence indices, each bin at most `capacity` tokens; empty sequences are left out.
 *
 * | algorithm | rule |
 * |---|---|
 * | `'bfd'` | longest first, into the bin with the least sufficient space (best fit decreasing) |
 * | `'ffd'` | longest first, into the first bin with room |
 * | `'ff'`, `'ff-shuffle'` | given or random order, into the first bin with room |
 * | `'knapsack'` | bin after bin, always the longest remaining that fits |
 * | `'sequential'` | given order, new bin when the next does not fit |
 * | `'wrapped'` | one long text cut every `capacity` tokens |
 * | `'bestfit-crop'` | full rows; crops the shortest document when none fits, **discards** the cropped tail |
 * | `'bfd-split'` | `'bfd'` over pieces of at most `capacity` tokens |
 *
 * An index appears in several bins when its sequence was cut: {@link packPieces} says where.
 * All are deterministic and run in O(n) or O(n log n).
 *
 * ```ts
 * pack([3, 4, 1], 4, 'bfd'); // [[1], [0, 2]]
 * ```
 *
 * @param lengths tokens per sequence, `[numSequences]`
 * @param capacity tokens per bin, at least 1
 * @throws VarlenInputError `ERR_VARLEN_RANGE` for a capacity below 1, a length that is no integer, or a
 * sequence over the capacity (`details.index`); `ERR_VARLEN_OPTION` for an unknown word
 */
export function pack(
  lengths: ArrayLike<number>,
  capacity: number,
  algo: PackAlgo = 'bfd',
  options: PackOptions = {},
): number[][] {
  return binsOf(packPieces(lengths, capacity, algo, options));
}

/**
 * The packing of {@link pack} as flat arrays, with the place of each piece in its sequence.
 *
 * ```ts
 * const { offsets, items, starts, lengths } = packPieces([5, 2], 4, 'bfd-split');
 * // offsets [0, 1, 3], items [0, 1, 0], starts [0, 0, 4], lengths [4, 2, 1]
 * ```
 */
export function packPieces(
  lengths: ArrayLike<number>,
  capacity: number,
  algo: PackAlgo = 'bfd',
  options: PackOptions = {},
): Packing {
  const { oversize = 'error', seed = 0, buffer = 1000 } = options;
  checkInteger('pack', 'capacity', capacity, 1);
  checkInteger('pack', 'options.buffer', buffer, 1);
  if (!Number.isSafeInteger(seed)) {
    const problem = `must be an integer; got ${String(seed)}, expected a safe integer`;
    throw argumentError('ERR_VARLEN_RANGE', 'pack', 'options.seed', problem);
  }
  checkWord('options.oversize', oversize, ['error', 'truncate']);

  const tokens = readLengths('pack', lengths);
  const items = nonEmpty(tokens);
  switch (algo) {
    case 'wrapped':
      return wrapped(tokens, items, capacity);
    case 'bestfit-crop':
      return bestFitCrop(tokens, items, capacity, buffer);
    case 'bfd-split':
      return bestFitDecreasingSplit(tokens, items, capacity);
  }

  if (oversize === 'truncate') truncate(tokens, capacity);
  else checkSizes(tokens, capacity);
  switch (algo) {
    case 'bfd':
      return bestFitDecreasing(tokens, items, capacity);
    case 'ffd':
      return firstFitDecreasing(tokens, items, capacity);
    case 'ff':
      return firstFit(tokens, items, capacity);
    case 'ff-shuffle':
      return firstFitShuffled(tokens, items, capacity, seed);
    case 'knapsack':
      return greedyKnapsack(tokens, items, capacity);
    case 'sequential':
      return sequential(tokens, items, capacity);
    default:
      checkWord('algo', algo, packAlgos);
      return algo satisfies never;
  }
}

function truncate(lengths: Int32Array, capacity: number): void {
  for (let i = 0; i < lengths.length; i++) lengths[i] = Math.min(lengths[i], capacity);
}

function checkSizes(lengths: Int32Array, capacity: number): void {
  for (let i = 0; i < lengths.length; i++) {
    if (lengths[i] <= capacity) continue;
    throw argumentError(
      'ERR_VARLEN_RANGE',
      'pack',
      `lengths[${i}]`,
      `does not fit a bin; got ${lengths[i]}, expected at most ${capacity}`,
      { index: i },
    );
  }
}

function checkWord(argument: string, value: string, words: readonly string[]): void {
  if (words.includes(value)) return;
  const expected = words.map((word) => `'${word}'`).join(', ');
  const problem = `is not known; got '${String(value)}', expected one of ${expected}`;
  throw argumentError('ERR_VARLEN_OPTION', 'pack', argument, problem);
}
