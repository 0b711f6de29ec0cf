/** The emitted steps of a round, with every fact about them that does not depend on other rounds. */
import type { ResolvedOptions } from './options.js';
import type { Emission, Round } from './round.js';
import type { RoundStart } from './state.js';
import { computedTokens, type DraftStep, type Marker, tokensOf, weightOf } from './steps.js';
import { groupCost } from './window-view.js';

/** Where a round stands in its run. */
export interface RoundPlace {
  readonly rank: number;
  readonly size: number;
  readonly start: RoundStart;
  /** What the positions after all steps of the round have in common. */
  readonly marker: Omit<Marker, 'stepInRound' | 'emittedSamples' | 'emittedTokens'>;
  /** Steps at the front that were taken before the run was resumed. */
  readonly taken: number;
  /** The round holds the last step of the run. */
  readonly isLast: boolean;
}

/** The round's steps in the order of their emission. */
export function draftSteps<S>(
  round: Round<S>,
  { order }: Emission,
  { rank, size, start, marker, taken, isLast }: RoundPlace,
  options: ResolvedOptions<S, never>,
): DraftStep<S>[] {
  const { window, view, fitted, global } = round;
  const { divisor, join, lossScaling } = options;
  const alive = lastSteps(round, order);
  let { emittedSamples, emittedTokens } = start;
  return Array.from(order, (canonical, i) => {
    const sums = global[canonical];
    const step = fitted.steps[canonical] ?? [];
    const items = step.map((index) => window.items[index]);
    emittedSamples += sums.samples;
    emittedTokens += sums.tokens;
    return {
      items,
      global: sums,
      globalWeight: sums.weight,
      ranks: divisor === 'active' ? Math.max(1, alive.filter((last) => last >= i).length) : size,
      replayed: i < taken,
      shadowed: join === 'shadow' && alive[rank] < i,
      after: { ...marker, stepInRound: i + 1, emittedSamples, emittedTokens },
      facts: {
        step: start.step + i,
        round: start.round,
        epoch: start.epoch,
        idle: items.length === 0,
        localSamples: items.length,
        globalSamples: sums.samples,
        localTokens: tokensOf(items),
        globalTokens: sums.tokens,
        localWeight: weightOf(items, lossScaling),
        globalWeight: sums.weight,
        localCost: groupCost(view, step),
        maxCost: sums.maxCost,
        minCost: sums.minCost,
        paddedTokens: computedTokens(items, options),
        emittedSamples,
        emittedTokens,
        overBudget: items.some(({ overBudget }) => overBudget),
        isLast: isLast && i === order.length - 1,
      },
    };
  });
}

/** Per rank, the last of the emitted steps that it has data for, or Infinity while it has more to come. */
function lastSteps<S>({ headers, decision, global }: Round<S>, order: Int32Array): number[] {
  return headers.map((header, rank) => {
    if (!(header.exhausted || decision.draining) || header.steps > decision.target) return Infinity;
    return order.findLastIndex((canonical) => global[canonical].samplesByRank[rank] > 0);
  });
}
