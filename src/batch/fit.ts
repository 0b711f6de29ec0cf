/** Fits a rank's groups to the number of steps that all ranks have agreed on. */
import { argumentError } from '../errors.js';
import { checkPolicy, headroomStarts, runsFrom } from './grouping.js';
import { rangeError } from './limits.js';
import { packInto } from './packed-window.js';
import { type GroupOptions, groupCost, sortWindow, viewWindow, type WindowView } from './window-view.js';

/** A window cut into exactly the agreed number of steps. */
export interface FittedSteps {
  /** One entry per step, descending by cost (ties: smallest index first); null is an IDLE step. */
  readonly steps: (number[] | null)[];
  /** Indices that wait for a later round, ascending. */
  readonly carry: number[];
}

/** Orders groups by descending cost, ties by their smallest index. */
function byCost(view: WindowView, groups: readonly number[][]): number[][] {
  const keyed = groups.map((group) => {
    let first = Infinity;
    for (const index of group) if (index < first) first = index;
    return { group, cost: groupCost(view, group), first };
  });
  keyed.sort((a, b) => b.cost - a.cost || a.first - b.first);
  return keyed.map(({ group }) => group);
}

/** Keeps `target` groups: those with the oldest carried sample first, then the costliest. */
function keepSome(
  view: WindowView,
  groups: number[][],
  target: number,
  ages?: ArrayLike<number>,
): FittedSteps {
  const age = (group: number[]): number =>
    ages === undefined ? 0 : group.reduce((oldest, index) => Math.max(oldest, ages[index]), 0);
  // The sort is stable, so equal ages stay in the order of descending cost.
  const ranked = byCost(view, groups)
    .map((group) => ({ group, age: age(group) }))
    .sort((a, b) => b.age - a.age);
  return {
    steps: byCost(
      view,
      ranked.slice(0, target).map(({ group }) => group),
    ),
    carry: ranked
      .slice(target)
      .flatMap(({ group }) => group)
      .sort((a, b) => a - b),
  };
}

/** Where to cut a group in two so that the costlier part is as cheap as it can be. */
function bestCut(view: WindowView, group: readonly number[]): number {
  const { mode, multiple } = view.limits;
  const allowed = (count: number): boolean => count < multiple || count % multiple === 0;
  const size = group.length;
  const rightLargest = new Float64Array(size);
  for (let i = size - 1, largest = 0; i >= 0; i--)
    rightLargest[i] = largest = Math.max(largest, view.costs[group[i]]);
  const total = groupCost(view, group);
  let best = 0;
  let bestWorst = Infinity;
  let leftSum = 0;
  let leftLargest = 0;
  for (let cut = 1; cut < size; cut++) {
    leftSum += view.costs[group[cut - 1]];
    leftLargest = Math.max(leftLargest, view.costs[group[cut - 1]]);
    if (!allowed(cut) || !allowed(size - cut)) continue;
    const worst =
      mode === 'padded'
        ? Math.max(cut * leftLargest, (size - cut) * rightLargest[cut])
        : Math.max(leftSum, total - leftSum);
    if (worst < bestWorst) {
      bestWorst = worst;
      best = cut;
    }
  }
  return best;
}

/**
 * Splits the costliest group that can be split until there are `target` groups. A part of a
 * feasible group is feasible, so this always succeeds while there are `target` samples.
 */
function splitUpTo(view: WindowView, groups: readonly number[][], target: number): number[][] {
  const result = groups.map((group) => ({ group, cost: groupCost(view, group) }));
  while (result.length < target) {
    let costliest = -1;
    for (let i = 0; i < result.length; i++) {
      if (result[i].group.length < 2) continue;
      if (costliest < 0 || result[i].cost > result[costliest].cost) costliest = i;
    }
    const { group } = result[costliest];
    const sorted =
      view.limits.mode === 'padded'
        ? [...group].sort((a, b) => view.lengths[a] - view.lengths[b] || a - b)
        : group;
    const cut = bestCut(view, sorted);
    const parts = [sorted.slice(0, cut), sorted.slice(cut)];
    result.splice(costliest, 1, ...parts.map((part) => ({ group: part, cost: groupCost(view, part) })));
  }
  return result.map(({ group }) => group);
}

/** The search for a cost bound stops at this share of it: far below what one sample weighs. */
const COST_RESOLUTION = 1e-3;

/**
 * Cuts the sorted window anew under the smallest bound on a step's cost that still gives at most
 * `target` groups: ranks whose steps all cost the same wait for each other least.
 */
function repartition(view: WindowView, target: number): number[][] | undefined {
  const order = sortWindow(view);
  let best = headroomStarts(view, order, view.limits.cost, target);
  if (best === undefined) return undefined;
  let low = 0; // a bound below the costliest samples still evens out the rest: those are alone
  let high = 0;
  for (const group of runsFrom(order, best)) high = Math.max(high, groupCost(view, group));
  high = Math.min(high, view.limits.cost);
  while (high - low > COST_RESOLUTION * high) {
    const middle = (low + high) / 2;
    const starts = headroomStarts(view, order, middle, target);
    if (starts === undefined) low = middle;
    else {
      high = middle;
      best = starts;
    }
  }
  return runsFrom(order, best);
}

/** How {@link fitView} may change the groups. */
export interface FitOptions {
  readonly carryAges?: ArrayLike<number> | undefined;
  /**
   * Which groups may be formed anew: those of the default rule always, to even out their costs; the
   * reference's when they are too few; a user's own never, they are split.
   */
  readonly regroup: 'always' | 'too-few' | 'never';
}

/** What a grouping rule lets the fit do. */
export function regroupOf(policy: unknown): FitOptions['regroup'] {
  if (typeof policy === 'function') return 'never';
  return policy === 'odb' ? 'too-few' : 'always';
}

/** At most `target` groups in place of the given ones, or undefined to keep those. */
function formAnew(
  view: WindowView,
  { length }: readonly number[][],
  target: number,
  regroup: FitOptions['regroup'],
): number[][] | undefined {
  if (regroup === 'never' || (regroup === 'too-few' && length === target)) return undefined;
  if (view.limits.mode === 'padded') return repartition(view, target);
  return length < target ? packInto(view, target) : undefined; // a placement into as many bins is the same
}

/** {@link fitToSteps} on a checked view. */
export function fitView(
  view: WindowView,
  groups: number[][],
  target: number,
  options: FitOptions,
): FittedSteps {
  if (groups.length > target) return keepSome(view, groups, target, options.carryAges);
  const n = groups.reduce((sum, group) => sum + group.length, 0);
  if (n <= target) {
    const alone = groups.flat().map((index) => [index]);
    const single: (number[] | null)[] = byCost(view, alone);
    while (single.length < target) single.push(null);
    return { steps: single, carry: [] };
  }
  const anew = formAnew(view, groups, target, options.regroup);
  return { steps: byCost(view, splitUpTo(view, anew ?? groups, target)), carry: [] };
}

/**
 * Exactly `target` steps from the groups of a window: nothing is lost and nothing comes twice, every
 * step stays feasible, and a rank with samples emits at least one when `target >= 1`.
 *
 * More groups than steps: the rest is carried. Otherwise the window is cut anew (padded: under the
 * smallest cost of a step that suffices; packed, when groups are missing: longest-first into `target`
 * bins) and, when steps are still missing, the costliest groups are split. Groups of `'odb'` stay as
 * they are when none is missing.
 * Fewer samples than steps: single samples, then IDLE entries.
 *
 * Throws `ERR_VARLEN_RANGE` when `target` is not a non-negative integer, `ERR_VARLEN_INDEX` when
 * `groups` do not hold every non-empty sample exactly once, and what `groupWindow` throws.
 *
 * @example
 * const { steps, carry } = fitToSteps(groupWindow(lengths, options), lengths, 4, options);
 */
export function fitToSteps(
  groups: number[][],
  lengths: ArrayLike<number>,
  target: number,
  options: GroupOptions,
): FittedSteps {
  if (!Number.isSafeInteger(target) || target < 0) {
    throw rangeError('fitToSteps', 'target', target, 'a non-negative integer');
  }
  const view = viewWindow('fitToSteps', lengths, options);
  checkPolicy('fitToSteps', view.limits, options.groupingPolicy ?? 'headroom');
  const { carryAges } = options;
  if (carryAges !== undefined && carryAges.length !== lengths.length) {
    const problem = `must have one entry per sample; got ${carryAges.length}, expected ${lengths.length}`;
    throw argumentError('ERR_VARLEN_SHAPE', 'fitToSteps', 'carryAges', problem);
  }
  checkPartition('fitToSteps', groups, view);
  return fitView(view, groups, target, { carryAges, regroup: regroupOf(options.groupingPolicy) });
}

/** Checks that the groups hold every sample of non-zero length exactly once. */
export function checkPartition(op: string, groups: readonly (readonly number[])[], view: WindowView): void {
  const n = view.lengths.length;
  const seen = new Uint8Array(n);
  for (const group of groups) {
    if (group.length === 0) {
      throw argumentError('ERR_VARLEN_INDEX', op, 'groups', 'must not be empty; got an empty group');
    }
    for (const index of group) {
      if (!Number.isInteger(index) || index < 0 || index >= n || seen[index] === 1) {
        const problem = `must hold every sample exactly once; got index ${index} ${seen[index] === 1 ? 'twice' : `of ${n}`}`;
        throw argumentError('ERR_VARLEN_INDEX', op, 'groups', problem);
      }
      seen[index] = 1;
    }
  }
  for (let i = 0; i < n; i++) {
    if (seen[i] === 0 && view.lengths[i] > 0) {
      const problem = `must hold every sample exactly once; sample ${i} is in none`;
      throw argumentError('ERR_VARLEN_INDEX', op, 'groups', problem);
    }
  }
}
