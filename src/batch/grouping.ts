/**
 * Groups a window of samples by their real lengths, under the budgets of {@link LimitOptions}.
 *
 * Padded mode sorts by length and cuts runs from the longest down; packed mode spreads the samples
 * over as few bins as the budget allows, all of about the same cost.
 */
import { argumentError } from '../errors.js';
import type { Limits } from './limits.js';
import { packWindow } from './packed-window.js';
import { type GroupOptions, sortWindow, viewWindow, type WindowView } from './window-view.js';

/**
 * Start of the run of `order` that ends before `end` and is as long as the budgets allow, with
 * `cost` in place of the limit's own (the fit searches for a smaller one).
 */
function runStart(view: WindowView, order: Int32Array, end: number, cost: number): number {
  const { limits, lengths, costs, patches } = view;
  if (patches === undefined && view.sortKeys === undefined && limits.packedTokens === Infinity) {
    // The run's last member is its longest: the count follows from it by division.
    const last = order[end - 1];
    const room = Math.min(limits.paddedTokens / lengths[last], limits.maxBatchSize, cost / costs[last], end);
    const count = Math.max(1, Math.floor(room));
    return end - (count > limits.multiple ? count - (count % limits.multiple) : count);
  }
  let start = end - 1;
  let longest = lengths[order[start]];
  let largest = costs[order[start]];
  let sum = longest;
  let patchSum = patches?.[order[start]] ?? 0;
  while (start > 0) {
    const next = order[start - 1];
    const count = end - start + 1;
    const newLongest = Math.max(longest, lengths[next]); // differs from `longest` under jitter only
    const newLargest = Math.max(largest, costs[next]);
    const newPatches = patchSum + (patches?.[next] ?? 0);
    if (
      count * newLongest > limits.paddedTokens ||
      count > limits.maxBatchSize ||
      count * newLargest > cost ||
      sum + lengths[next] > limits.packedTokens ||
      newPatches > limits.patches
    ) {
      break;
    }
    longest = newLongest;
    largest = newLargest;
    patchSum = newPatches;
    sum += lengths[next];
    start--;
  }
  const count = end - start;
  return count > limits.multiple ? start + (count % limits.multiple) : start;
}

/**
 * The default rule: from the longest sample down, each group takes as many as its own longest
 * member leaves room for. Returns the start of each run in `order`, last run first, or undefined
 * when there are more than `atMost`.
 */
export function headroomStarts(
  view: WindowView,
  order: Int32Array,
  cost: number = view.limits.cost,
  atMost: number = Infinity,
): number[] | undefined {
  const starts: number[] = [];
  for (let end = order.length; end > 0; end = starts[starts.length - 1]) {
    if (starts.length >= atMost) return undefined;
    starts.push(runStart(view, order, end, cost));
  }
  return starts;
}

/** The groups of {@link headroomStarts}, ascending by length. */
export function runsFrom(order: Int32Array, starts: readonly number[]): number[][] {
  const groups: number[][] = [];
  for (let run = starts.length - 1; run >= 0; run--) {
    const start = starts[run];
    const group = new Array<number>((run === 0 ? order.length : starts[run - 1]) - start);
    for (let i = 0; i < group.length; i++) group[i] = order[start + i];
    groups.push(group);
  }
  return groups;
}

/**
 * The reference's rule: the size limit of a group comes from the shortest member of the group closed
 * before it, so it lags one group, and the first group is always a single sample.
 */
function odbRuns(view: WindowView, order: Int32Array): number[][] {
  const { limits, lengths, patches } = view;
  const groups: number[][] = [];
  let running: number[] = [];
  let runningPatches = 0;
  let limit = 0;
  const close = (): void => {
    groups.push(running.reverse());
    running = [];
    runningPatches = 0;
  };
  for (let i = order.length - 1; i >= 0; i--) {
    const current = order[i];
    const currentPatches = patches?.[current] ?? 0;
    if (running.length > 0 && runningPatches + currentPatches > limits.patches) close();
    running.push(current);
    runningPatches += currentPatches;
    if (running.length < limit) continue;
    limit = Math.max(Math.floor(limits.paddedTokens / lengths[current]), 1);
    if (limits.patches < Infinity && currentPatches > 0) {
      limit = Math.min(limit, Math.max(Math.floor(limits.patches / currentPatches), 1));
    }
    close();
  }
  if (running.length > 0) close();
  return groups.reverse();
}

/** Refuses limits that the reference's rule does not know: it would silently break them. */
export function checkPolicy(op: string, limits: Limits, policy: unknown): void {
  if (policy !== 'headroom' && policy !== 'odb') {
    const problem = `must be 'headroom' or 'odb'; got ${String(policy)}`;
    throw argumentError('ERR_VARLEN_OPTION', op, 'groupingPolicy', problem);
  }
  if (policy !== 'odb') return;
  const unknown =
    limits.mode === 'packed'
      ? "mode 'packed'"
      : limits.packedTokens < Infinity
        ? 'budget.packedTokens'
        : limits.cost < Infinity
          ? 'budget.cost'
          : limits.maxBatchSize < Infinity
            ? 'maxBatchSize'
            : limits.multiple > 1
              ? 'batchSizeMultiple'
              : undefined;
  if (unknown === undefined) return;
  const problem = `'odb' does not know ${unknown}; expected 'headroom'`;
  throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'groupingPolicy', problem);
}

/** {@link groupWindow} on a checked view. */
export function groupView(view: WindowView, policy: 'headroom' | 'odb' = 'headroom'): number[][] {
  if (view.limits.mode === 'packed') return packWindow(view);
  const order = sortWindow(view);
  return policy === 'odb' ? odbRuns(view, order) : runsFrom(order, headroomStarts(view, order)!);
}

/**
 * Groups of window indices, each feasible as one step; a sample that alone exceeds a budget is a
 * group of its own. Samples of length 0 are in no group.
 *
 * Padded groups ascend by length, inside and among each other. Packed bins keep the window order
 * inside; their number is the smallest that the longest-first placement finds.
 *
 * Throws `ERR_VARLEN_RANGE`, `_SHAPE`, `_OPTION`, `_MISSING_INPUT` or `_INCOMPATIBLE`.
 *
 * @example
 * groupWindow([100, 200, 500, 1000, 2000, 4000, 8000], { mode: 'padded', budget: { paddedTokens: 8192 } });
 * // [[0, 1, 2, 3], [4, 5], [6]]
 */
export function groupWindow(lengths: ArrayLike<number>, options: GroupOptions): number[][] {
  const view = viewWindow('groupWindow', lengths, options);
  const policy = options.groupingPolicy ?? 'headroom';
  checkPolicy('groupWindow', view.limits, policy);
  return groupView(view, policy);
}
