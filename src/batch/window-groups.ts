/** The groups of a batcher's window, and their fit to the agreed number of steps. */
import { argumentError } from '../errors.js';
import { checkPartition, type FittedSteps, fitView, regroupOf } from './fit.js';
import { groupView } from './grouping.js';
import type { ResolvedOptions } from './options.js';
import type { Item } from './reader.js';
import { isFeasible, viewWithLimits, type WindowView } from './window-view.js';

/** Groups a window by the batcher's rule, or by the user's own, which is checked. */
export function formGroups<S>(
  items: readonly Item<S>[],
  options: Pick<ResolvedOptions<S, never>, 'limits' | 'lengthJitter' | 'groupingPolicy'>,
): { view: WindowView; groups: number[][] } {
  const { limits, lengthJitter, groupingPolicy } = options;
  const lengths = items.map(({ length }) => length);
  const view = viewWithLimits('DynamicBatcher', lengths, limits, {
    ...(limits.patches < Infinity ? { patches: items.map(({ patches }) => patches) } : {}),
    ...(lengthJitter > 0 ? { sortKeys: items.map(({ sortKey }) => sortKey) } : {}),
  });
  if (typeof groupingPolicy !== 'function') return { view, groups: groupView(view, groupingPolicy) };
  const groups: unknown = groupingPolicy(items, limits);
  checkCustomGroups(groups, view);
  return { view, groups };
}

/** Checks what a user's grouping returned. */
function checkCustomGroups(groups: unknown, view: WindowView): asserts groups is number[][] {
  if (!Array.isArray(groups) || !groups.every((group) => Array.isArray(group))) {
    throw argumentError(
      'ERR_VARLEN_TYPE',
      'DynamicBatcher',
      'groupingPolicy',
      'must return arrays of indices',
    );
  }
  checkPartition('DynamicBatcher', groups, view);
  const infeasible = groups.find((group) => !isFeasible(view, group));
  if (infeasible === undefined) return;
  const problem = `must return groups within the budgets; got [${infeasible.join(', ')}]`;
  throw argumentError('ERR_VARLEN_RANGE', 'DynamicBatcher', 'groupingPolicy', problem);
}

/** Exactly `target` steps in canonical order: by cost, or by first arrival with `order: 'none'`. */
export function fitGroups<S>(
  items: readonly Item<S>[],
  view: WindowView,
  groups: number[][],
  target: number,
  options: Pick<ResolvedOptions<S, never>, 'groupingPolicy' | 'order'>,
): FittedSteps {
  const fitted = fitView(view, groups, target, {
    carryAges: items.map(({ carryAge }) => carryAge),
    regroup: regroupOf(options.groupingPolicy),
  });
  if (options.order === 'none') {
    const first = (step: number[] | null): number =>
      step === null ? view.lengths.length : Math.min(...step);
    fitted.steps.sort((a, b) => first(a) - first(b));
  }
  return fitted;
}
