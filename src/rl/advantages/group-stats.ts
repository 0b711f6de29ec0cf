/** Statistics of the rewards of each group, over its scored and active answers. */
import { argumentError } from '../../errors.js';
import { groupIndex } from '../group-index.js';

/** Moments of one group. */
export interface GroupMoments {
  /** Scored and active members. */
  readonly n: number;
  readonly mean: number;
  /** Sample deviation, divisor n - 1; 0 when n < 2. */
  readonly std: number;
  readonly min: number;
  readonly max: number;
}

/**
 * A spread this small, relative to the largest value, is float noise of equal rewards. A test for
 * `std == 0` would miss it and turn the noise into advantages of size 1.
 */
const NO_SPREAD = 1e-6;

/** True when rewards between `min` and `max` are all the same. */
export function hasNoSpread(min: number, max: number): boolean {
  return max - min <= NO_SPREAD * Math.max(1, Math.abs(max));
}

/** Groups of a batch. */
export interface Groups {
  /** `[numSeqs]`, index into `moments`. */
  readonly groupOf: Int32Array;
  readonly moments: readonly GroupMoments[];
}

/** Two-pass moments of the members with `counts[i] = 1`. */
export function groupMoments(groupIds: Int32Array, rewards: ArrayLike<number>, counts: Uint8Array): Groups {
  const { groupOf, numGroups } = groupIndex(groupIds);
  const n = new Int32Array(numGroups);
  const mean = new Float64Array(numGroups);
  const squares = new Float64Array(numGroups);
  const min = new Float64Array(numGroups).fill(Infinity);
  const max = new Float64Array(numGroups).fill(-Infinity);
  for (let i = 0; i < groupOf.length; i++) {
    if (counts[i] === 0) continue;
    const g = groupOf[i];
    n[g] += 1;
    mean[g] += rewards[i];
    min[g] = Math.min(min[g], rewards[i]);
    max[g] = Math.max(max[g], rewards[i]);
  }
  for (let g = 0; g < numGroups; g++) if (n[g] > 0) mean[g] /= n[g];
  for (let i = 0; i < groupOf.length; i++) {
    if (counts[i] === 1) squares[groupOf[i]] += (rewards[i] - mean[groupOf[i]]) ** 2;
  }
  const moments = Array.from(n, (count, g) => ({
    n: count,
    mean: mean[g],
    std: count > 1 ? Math.sqrt(squares[g] / (count - 1)) : 0,
    min: min[g],
    max: max[g],
  }));
  return { groupOf, moments };
}

/** How a group without a usable baseline is treated: `undefined` when it has one. */
export function degenerate(
  op: string,
  group: GroupMoments,
  singleton: 'zero' | 'raw' | 'error',
): 'zero' | 'raw' | undefined {
  if (group.n > 1) return hasNoSpread(group.min, group.max) ? 'zero' : undefined;
  if (singleton !== 'error') return singleton;
  const problem = 'hold a group with a single scored answer; got 1, expected at least 2';
  throw argumentError('ERR_VARLEN_SINGLETON_GROUP', op, 'groupIds', problem);
}
