import type { TargetResult } from '../batch/measure.js';
import * as plan from './plan.bench.js';

const ID = 'loss.plan';

/** The host side of the losses has targets at or below `only`. */
export function hasRlTargets(only: string): boolean {
  return only === ID || only.startsWith(`${ID}.`) || ID.startsWith(`${only}.`);
}

/** Measures them: all, or those at or below `only`. */
export function* measureRlTargets(only: string | undefined): Generator<TargetResult> {
  if (only !== undefined && !hasRlTargets(only)) return;
  for (const result of plan.run()) {
    const wanted = only === undefined || result.id === only || result.id.startsWith(`${only}.`);
    if (wanted) yield result;
  }
}
