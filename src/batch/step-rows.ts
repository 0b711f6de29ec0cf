/** What gather B says about a rank's steps: samples, tokens, weight and cost of each. */
import { type RoundHeader, STEP_WORDS } from '../dist/align.js';
import type { ResolvedOptions } from './options.js';
import type { Item } from './reader.js';
import { approxWeights, tokensOf, weightOf } from './steps.js';
import { groupCost, type WindowView } from './window-view.js';

type Weighting = Pick<ResolvedOptions<never, never>, 'lossScaling'>;

/** One step as `[STEP_WORDS]` numbers. */
export function stepRow(
  step: readonly number[],
  items: readonly Item<unknown>[],
  view: WindowView,
  { lossScaling }: Weighting,
): [samples: number, tokens: number, weight: number, cost: number] {
  const own = step.map((index) => items[index]);
  return [own.length, tokensOf(own), weightOf(own, lossScaling), groupCost(view, step)];
}

/** All steps, `[STEP_WORDS * steps.length]`; zeros for an IDLE one. */
export function stepRows(
  steps: readonly (readonly number[] | null)[],
  items: readonly Item<unknown>[],
  view: WindowView,
  groups: readonly (readonly number[])[],
  headers: readonly RoundHeader[],
  options: Weighting,
): Float64Array {
  const rows = new Float64Array(STEP_WORDS * steps.length);
  // The reference estimates only when some rank's groups were changed by the alignment.
  const estimate =
    options.lossScaling === 'approx' && headers.some((header) => header.steps !== steps.length);
  const estimates = estimate ? approxWeights(steps, groups, view) : undefined;
  steps.forEach((step, i) => {
    if (step === null) return;
    rows.set(stepRow(step, items, view, options), STEP_WORDS * i);
    if (estimates !== undefined) rows[STEP_WORDS * i + 2] = estimates.get(step)!;
  });
  return rows;
}
