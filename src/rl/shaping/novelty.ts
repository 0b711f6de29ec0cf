/** Rewards of agents that explore (EMPO2): for states seen rarely, and for whole rollouts of many steps. */
import { checkInteger, readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkFloats, checkNumber } from '../check-arrays.js';
import { groupIndex } from '../group-index.js';

/** Options of {@link noveltyRewards}. */
export interface NoveltyOptions {
  /** Numbers per embedding. */
  dim: number;
  /** Cosine from which two states count as similar, in [-1, 1]. */
  similarity: number;
}

/**
 * `1 / (count + 1)` for each state, `[numStates]`, where `count` is how many stored states are similar to
 * it: 1 for a state like no other. A vector of zeros is similar to nothing.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @param states `[numStates, dim]`, embeddings of the states to reward
 * @param memory `[numStored, dim]`, embeddings of the states stored so far; add the new ones afterwards
 *
 * @example
 * const memory = Float32Array.of(1, 0, 2, 0);
 * noveltyRewards(Float32Array.of(3, 0, 0, 1), memory, { dim: 2, similarity: 0.9 }); // [1/3, 1]
 */
export function noveltyRewards(
  states: Float32Array | Float64Array,
  memory: Float32Array | Float64Array,
  options: NoveltyOptions,
): Float64Array {
  const op = 'noveltyRewards';
  const { dim, similarity } = readOptions(op, options, ['dim', 'similarity']);
  checkInteger(op, 'dim', dim, 1);
  checkNumber(op, 'similarity', similarity, { min: -1, max: 1 });
  const units = unitVectors(op, 'states', states, dim);
  const stored = unitVectors(op, 'memory', memory, dim);
  return Float64Array.from({ length: units.length / dim }, (_, s) => {
    let count = 0;
    for (let m = 0; m < stored.length; m += dim) {
      let cosine = 0;
      for (let d = 0; d < dim; d++) cosine += units[s * dim + d] * stored[m + d];
      if (cosine >= similarity) count += 1;
    }
    return 1 / (count + 1);
  });
}

/** Vectors of length 1; one of zeros becomes NaN, which is similar to nothing. */
function unitVectors(
  op: string,
  argument: string,
  vectors: Float32Array | Float64Array,
  dim: number,
): Float64Array {
  checkFloats(op, argument, vectors);
  if (vectors.length % dim !== 0) {
    const problem = `has the wrong length; got ${vectors.length}, expected a multiple of dim = ${dim}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, argument, problem);
  }
  const units = new Float64Array(vectors.length);
  for (let start = 0; start < vectors.length; start += dim) {
    let square = 0;
    for (let d = start; d < start + dim; d++) {
      checkNumber(op, `${argument}[${d}]`, vectors[d]);
      square += vectors[d] ** 2;
    }
    for (let d = start; d < start + dim; d++) units[d] = vectors[d] / Math.sqrt(square);
  }
  return units;
}

/** Sums of {@link sumRollouts}. */
export interface RolloutSums {
  /** `[numRollouts]`, in the order of their first steps. */
  readonly rolloutIds: Int32Array;
  /** `[numRollouts]`, sum of the rewards of its steps. */
  readonly sums: Float64Array;
  /** `[numSteps]`, place of each step's rollout in `sums`. */
  readonly rolloutOf: Int32Array;
}

/**
 * Rewards of whole rollouts from those of their steps. Advantages are taken over the sums (groups of
 * rollouts of one task) and handed to each step with {@link perStep}.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE` and `ERR_VARLEN_RANGE`.
 *
 * @param stepRewards `[numSteps]`, finite
 * @param rolloutIds `[numSteps]`, equal value = same rollout
 *
 * @example
 * sumRollouts(Float32Array.of(0, 1, 2), Int32Array.of(4, 9, 4)).sums; // [2, 1]
 */
export function sumRollouts(stepRewards: Float32Array | Float64Array, rolloutIds: Int32Array): RolloutSums {
  const op = 'sumRollouts';
  checkFloats(op, 'stepRewards', stepRewards);
  checkArray(op, 'rolloutIds', rolloutIds, 'Int32Array', stepRewards.length);
  const { groupOf, numGroups } = groupIndex(rolloutIds);
  const sums = new Float64Array(numGroups);
  const names = new Int32Array(numGroups);
  groupOf.forEach((rollout, step) => {
    checkNumber(op, `stepRewards[${step}]`, stepRewards[step]);
    sums[rollout] += stepRewards[step];
    names[rollout] = rolloutIds[step];
  });
  return Object.freeze({ rolloutIds: names, sums, rolloutOf: groupOf });
}

/**
 * One value per step from one per rollout, `[numSteps]`.
 *
 * Throws `ERR_VARLEN_DTYPE` and `ERR_VARLEN_RANGE`.
 *
 * @param values `[numRollouts]`, such as the advantages of the rollouts
 * @param rolloutOf `[numSteps]`, of {@link sumRollouts}
 *
 * @example
 * perStep(Float32Array.of(0.5, -0.5), Int32Array.of(0, 1, 0)); // [0.5, -0.5, 0.5]
 */
export function perStep(values: Float32Array | Float64Array, rolloutOf: Int32Array): Float32Array {
  const op = 'perStep';
  checkFloats(op, 'values', values);
  checkArray(op, 'rolloutOf', rolloutOf, 'Int32Array');
  return Float32Array.from(rolloutOf, (rollout, step) => {
    checkInteger(op, `rolloutOf[${step}]`, rollout, 0, values.length - 1);
    return values[rollout];
  });
}
