/** A window as numbers: what grouping, packing and fitting read. */
import { argumentError } from '../errors.js';
import { type LimitOptions, type Limits, rangeError, resolveLimits } from './limits.js';

/** Options of {@link groupWindow} and `fitToSteps`. Arrays have one entry per sample. */
export interface GroupOptions extends LimitOptions {
  /**
   * Padded mode: `'headroom'` (default) bounds a group by its own longest member; `'odb'` is the
   * rule of the reference implementation of online dynamic batching, bit for bit, for comparison.
   */
  groupingPolicy?: 'headroom' | 'odb';
  /** Vision patches per sample. Default 0. */
  patches?: ArrayLike<number>;
  /** Sort by these instead of the lengths (length jitter). Padded `'headroom'` only. */
  sortKeys?: ArrayLike<number>;
  /** Rounds each sample has been carried; `fitToSteps` keeps the oldest first. Default 0. */
  carryAges?: ArrayLike<number>;
}

/** A window with its per-sample numbers, as the grouping rules read it. */
export interface WindowView {
  readonly limits: Limits;
  readonly lengths: ArrayLike<number>;
  readonly costs: Float64Array;
  readonly patches: ArrayLike<number> | undefined;
  readonly sortKeys: ArrayLike<number> | undefined;
}

/** Checks the numbers of a window and computes the costs. */
export function viewWindow(op: string, lengths: ArrayLike<number>, options: GroupOptions): WindowView {
  return viewWithLimits(op, lengths, resolveLimits(op, options), options);
}

/** {@link viewWindow} with limits that were resolved before. */
export function viewWithLimits(
  op: string,
  lengths: ArrayLike<number>,
  limits: Limits,
  options: Pick<GroupOptions, 'patches' | 'sortKeys'>,
): WindowView {
  const { patches, sortKeys } = options;
  const n = lengths.length;
  for (const [argument, array] of [
    ['patches', patches],
    ['sortKeys', sortKeys],
  ] as const) {
    if (array === undefined || array.length === n) continue;
    const problem = `must have one entry per sample; got ${array.length}, expected ${n}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, argument, problem);
  }
  const costs = new Float64Array(n);
  const { costOf } = limits;
  for (let i = 0; i < n; i++) {
    const length = lengths[i];
    if (!Number.isSafeInteger(length) || length < 0) {
      throw rangeError(op, `lengths[${i}]`, length, 'a non-negative integer');
    }
    if (length === 0) continue;
    const cost = costOf(length);
    if (!(cost > 0 && cost < Infinity))
      throw rangeError(op, `costOf(${length})`, cost, 'a positive finite number');
    costs[i] = cost;
  }
  for (let i = 0; patches !== undefined && i < n; i++) {
    if (Number.isSafeInteger(patches[i]) && patches[i] >= 0) continue;
    throw rangeError(op, `patches[${i}]`, patches[i], 'a non-negative integer');
  }
  for (let i = 0; sortKeys !== undefined && i < n; i++) {
    if (Number.isFinite(sortKeys[i])) continue;
    throw rangeError(op, `sortKeys[${i}]`, sortKeys[i], 'a finite number');
  }
  return { limits, lengths, costs, patches, sortKeys };
}

/** Cost of a group: padded `count * cost(longest)`, packed the sum of its members' costs. */
export function groupCost(view: WindowView, group: ArrayLike<number>): number {
  let sum = 0;
  let largest = 0;
  for (let i = 0; i < group.length; i++) {
    const cost = view.costs[group[i]];
    sum += cost;
    if (cost > largest) largest = cost;
  }
  return view.limits.mode === 'padded' ? group.length * largest : sum;
}

/** True when the group keeps every budget, or is a single sample. */
export function isFeasible(view: WindowView, group: ArrayLike<number>): boolean {
  const { limits } = view;
  if (group.length <= 1) return group.length === 1;
  if (group.length > limits.maxBatchSize) return false;
  if (group.length >= limits.multiple && group.length % limits.multiple !== 0) return false;
  let sum = 0;
  let longest = 0;
  let patches = 0;
  for (let i = 0; i < group.length; i++) {
    const length = view.lengths[group[i]];
    sum += length;
    if (length > longest) longest = length;
    patches += view.patches?.[group[i]] ?? 0;
  }
  return (
    sum <= limits.packedTokens &&
    group.length * longest <= limits.paddedTokens &&
    patches <= limits.patches &&
    groupCost(view, group) <= limits.cost * (1 + 1e-12) // sums of costs round differently by order
  );
}

/** Indices of the non-empty samples, ascending by length (or sort key), ties in window order. */
export function sortWindow(view: WindowView): Int32Array {
  const { lengths, sortKeys } = view;
  const n = lengths.length;
  if (sortKeys !== undefined) {
    const order = Array.from({ length: n }, (_, i) => i).filter((i) => lengths[i] > 0);
    return Int32Array.from(order.sort((a, b) => sortKeys[a] - sortKeys[b] || a - b));
  }
  // One number holds length and index: the native sort of a Float64Array needs no comparator.
  const keys = new Float64Array(n);
  let count = 0;
  let longest = 0;
  for (let i = 0; i < n; i++) {
    if (lengths[i] > longest) longest = lengths[i];
    if (lengths[i] > 0) keys[count++] = lengths[i] * n + i;
  }
  if (longest >= Number.MAX_SAFE_INTEGER / (n + 1)) {
    const order = Array.from({ length: n }, (_, i) => i).filter((i) => lengths[i] > 0);
    return Int32Array.from(order.sort((a, b) => lengths[a] - lengths[b] || a - b));
  }
  const used = keys.subarray(0, count).sort();
  const order = new Int32Array(count);
  // Keys are below 2^53, so the quotient cannot round up to the next integer; `%` is far slower.
  for (let i = 0; i < count; i++) order[i] = used[i] - Math.floor(used[i] / n) * n;
  return order;
}
