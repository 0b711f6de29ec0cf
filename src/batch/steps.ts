/** Aligned steps of one rank: what they are before and after their loss scale is known. */
import type { GlobalStep } from '../dist/align.js';
import { lossScale, type StepInfo } from '../dist/step-info.js';
import type { Accumulated } from './accumulate.js';
import { approxTokens } from './approx-tokens.js';
import type { ResolvedOptions } from './options.js';
import type { Item } from './reader.js';
import type { DrainMark, RoundStart } from './state.js';
import type { WindowView } from './window-view.js';

/** Where a consumer stands after a step, with all that a checkpoint needs. */
export interface Marker {
  readonly base: RoundStart;
  readonly epoch: number;
  readonly round: number;
  readonly stepInRound: number;
  readonly emittedSamples: number;
  readonly emittedTokens: number;
  readonly carry: readonly string[];
  readonly digest: string | null;
  readonly drain: DrainMark | null;
  /** First pass after the run; null between runs. */
  readonly endEpoch: number | null;
  readonly dropped: number;
}

/** Facts that do not depend on other steps. */
type StepFacts = Omit<StepInfo, 'lossScale' | 'skipOptimizer' | 'accumulationIndex' | 'accumulationSteps'>;

/** A step that waits for the rest of its optimizer step. */
export interface DraftStep<S> {
  readonly items: readonly Item<S>[];
  readonly facts: StepFacts;
  readonly global: GlobalStep;
  readonly globalWeight: number;
  /** Ranks that a mean reduction divides by. */
  readonly ranks: number;
  /** Position after this step. */
  readonly after: Marker;
  /** Taken before the run was resumed. */
  readonly replayed: boolean;
  /** This rank's iterator has ended before it (`join: 'shadow'`). */
  readonly shadowed: boolean;
}

/** A step that is ready to be collated. */
export interface PlannedStep<S> extends Omit<DraftStep<S>, 'facts'> {
  readonly info: StepInfo;
}

type AnyOptions = ResolvedOptions<never, never>;

/** Completes a step whose optimizer step is known. */
export function completeStep<S>(
  { step, index, count, weight }: Accumulated<DraftStep<S>>,
  options: Pick<AnyOptions, 'lossScaling' | 'localLoss' | 'reduction'>,
): PlannedStep<S> {
  const { items, facts, global, globalWeight, ranks, after, replayed, shadowed } = step;
  const { lossScaling, localLoss, reduction } = options;
  const { localWeight, idle } = facts;
  const scale =
    lossScaling === 'none'
      ? Number(!idle)
      : lossScale({ localWeight, globalWeight: weight, worldSize: ranks, localLoss, reduction });
  // Field by field: a spread of so many is the slowest thing in a round.
  const info = Object.freeze({
    step: facts.step,
    round: facts.round,
    epoch: facts.epoch,
    idle,
    localSamples: facts.localSamples,
    globalSamples: facts.globalSamples,
    localTokens: facts.localTokens,
    globalTokens: facts.globalTokens,
    localWeight,
    globalWeight: facts.globalWeight,
    lossScale: scale,
    skipOptimizer: weight === 0,
    localCost: facts.localCost,
    maxCost: facts.maxCost,
    minCost: facts.minCost,
    paddedTokens: facts.paddedTokens,
    emittedSamples: facts.emittedSamples,
    emittedTokens: facts.emittedTokens,
    overBudget: facts.overBudget,
    accumulationIndex: index,
    accumulationSteps: count,
    isLast: facts.isLast,
  } satisfies StepInfo);
  return { items, global, globalWeight, ranks, after, replayed, shadowed, info };
}

/** What a step's loss is averaged over, on this rank. */
export function weightOf(items: readonly Item<unknown>[], lossScaling: AnyOptions['lossScaling']): number {
  switch (lossScaling) {
    case 'samples':
    case 'none':
      return items.length;
    case 'tokens':
    case 'approx':
      return tokensOf(items);
    case 'exact':
      return items.reduce((sum, { weight }) => sum + weight, 0);
  }
}

export function tokensOf(items: readonly Item<unknown>[]): number {
  return items.reduce((sum, { length }) => sum + length, 0);
}

/** Tokens that a step computes on, padding included. */
export function computedTokens(
  items: readonly Item<unknown>[],
  { limits, collateOptions, idleShape }: Pick<AnyOptions, 'limits' | 'collateOptions' | 'idleShape'>,
): number {
  const roundUp = (tokens: number): number =>
    Math.ceil(tokens / collateOptions.multiple) * collateOptions.multiple;
  if (items.length === 0) return idleShape === 'empty' ? 0 : limits.mode === 'packed' ? 1 : roundUp(1);
  if (limits.mode === 'packed') return roundUp(tokensOf(items));
  return items.length * roundUp(items.reduce((most, { length }) => Math.max(most, length), 0));
}

/**
 * Estimated tokens per step under `lossScaling: 'approx'`. The reference lists groups ascending by
 * length; steps and groups are put in that order to be matched.
 */
export function approxWeights(
  steps: readonly (readonly number[] | null)[],
  groups: readonly (readonly number[])[],
  view: WindowView,
): Map<readonly number[], number> {
  const longest = (group: readonly number[]): number =>
    group.reduce((most, index) => Math.max(most, view.lengths[index]), 0);
  const ascending = (all: readonly (readonly number[])[]): (readonly number[])[] =>
    [...all].sort((a, b) => longest(a) - longest(b));
  const aligned = ascending(steps.filter((step) => step !== null));
  const unaligned = ascending(groups);
  const estimates = approxTokens(
    aligned.map((group) => group.length),
    unaligned.map((group) => group.length),
    unaligned.map((group) => group.reduce((sum, index) => sum + view.lengths[index], 0)),
  );
  return new Map(aligned.map((group, i) => [group, estimates[i]]));
}

/** Moves the costliest aligned step to the front, so that memory runs out at once or never. */
export function costliestFirst(order: Int32Array, global: readonly GlobalStep[]): void {
  let costliest = 0;
  order.forEach((canonical, i) => {
    if (global[canonical].maxCost > global[order[costliest]].maxCost) costliest = i;
  });
  [order[0], order[costliest]] = [order[costliest], order[0]];
}

/**
 * Samples per rank when `excess` of them leave a step: one at a time from the rank with the most,
 * ties from the highest rank. All ranks compute the same.
 */
export function trimmedCounts(samplesByRank: readonly number[], excess: number): number[] {
  const counts = [...samplesByRank];
  for (let removed = 0; removed < excess; removed++) {
    let most = 0;
    for (let rank = 1; rank < counts.length; rank++) if (counts[rank] >= counts[most]) most = rank;
    counts[most]--;
  }
  return counts;
}
