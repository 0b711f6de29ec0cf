/** What a round tells the outside: its metrics, and the samples that it read and left unread. */
import type { RoundMetrics } from './metrics.js';
import type { DroppedSample } from './options.js';
import type { Emission, Round } from './round.js';

/** What one round adds to the metrics. */
export interface RoundReport {
  readonly metrics: RoundMetrics;
  /** Length and carry age of every sample that left. */
  readonly lengths: readonly number[];
  readonly ages: readonly number[];
}

/** Sums a round up; `alignMs` is what this rank waited in its gathers. */
export function describeRound<S>(
  { window, groups, headers, fitted, global }: Round<S>,
  { order }: Emission,
  { epoch, round, alignMs }: { epoch: number; round: number; alignMs: number },
): RoundReport {
  const emitted = Array.from(order, (canonical) => global[canonical]);
  const lengths: number[] = [];
  const ages: number[] = [];
  for (const canonical of order) {
    for (const index of fitted.steps[canonical] ?? []) {
      lengths.push(window.items[index].length);
      ages.push(window.items[index].carryAge);
    }
  }
  const largest = emitted.reduce((sum, { maxCost }) => sum + maxCost, 0);
  const mean = emitted.reduce((sum, { cost }) => sum + cost, 0) / headers.length;
  const carried = fitted.carry.map((index) => window.items[index]);
  return {
    lengths,
    ages,
    metrics: Object.freeze({
      epoch,
      round,
      target: order.length,
      windowSamples: window.items.length,
      freshSamples: window.fresh,
      groups: groups.length,
      idleSteps: Array.from(order).filter((canonical) => fitted.steps[canonical] === null).length,
      carried: carried.length,
      maxCarryAge: carried.reduce((oldest, { carryAge }) => Math.max(oldest, carryAge + 1), 0),
      globalSamples: emitted.reduce((sum, { samples }) => sum + samples, 0),
      globalTokens: emitted.reduce((sum, { tokens }) => sum + tokens, 0),
      straggler: mean > 0 ? largest / mean - 1 : 0,
      windowFillMs: window.fillMs,
      alignMs,
    }),
  };
}

/** Names what was read and stays unread: only a quota and the end of a non-join pass leave anything. */
export function reportDropped<S>(
  { window, fitted }: Round<S>,
  { order, quotaMet }: Emission,
  onDrop: ((dropped: DroppedSample) => void) | undefined,
): void {
  if (onDrop === undefined) return;
  const reason: DroppedSample['reason'] = quotaMet ? 'quota' : 'pass-end';
  const emitted = new Set(Array.from(order).flatMap((canonical) => fitted.steps[canonical] ?? []));
  window.items.forEach(({ id, length }, index) => {
    if (!emitted.has(index)) onDrop({ id, reason, length });
  });
}
