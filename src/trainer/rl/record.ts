/** The record of an update, over all ranks. */
import type { RolloutEntry } from '../../batch/index.js';
import type { PolicyLossStats } from '../../ops/index.js';
import type { Run, Stopwatch } from '../run.js';
import { lengthStatistics, sum } from '../statistics.js';
import type { Verdict } from '../tasks/task.js';
import { passCount } from './passes.js';
import type { Updated } from './update.js';

/** The rollouts of an update, and what they cost. */
export interface Rollouts {
  readonly entries: readonly RolloutEntry[];
  /** Of each entry. */
  readonly verdicts: readonly Verdict[];
  /** Policy that the update trains. */
  readonly version: number;
  /** Tokens generated since the last update, and those of them that were thrown away. */
  readonly generatedTokens: number;
  readonly wastedTokens: number;
  readonly bubbleRatio: number;
}

/** Writes it down; all ranks together. */
export async function recordUpdate(
  run: Run,
  { entries, verdicts, version, generatedTokens, wastedTokens, bubbleRatio }: Rollouts,
  { rollouts, groups, flat, parts, outcomes, learningRate, gradientNorm }: Updated,
  watch: Stopwatch,
): Promise<void> {
  const { ranks } = run;
  const { rl } = run.options.recipe;
  const stats = outcomes.map((outcome) => outcome.stats);
  const perToken = (value: (stat: PolicyLossStats) => number) =>
    sum(stats.map((stat) => value(stat) * stat.activeTokens));
  const rows = sum(parts.map(({ batch }) => batch.totalTokens));
  // Before the update: the first pass alone, in which the trainer has the weights of the generator.
  const first = outcomes.slice(0, parts.length);
  const ages = entries.flatMap(({ versions }) => Array.from(versions, (drawn) => version - drawn));
  const local = {
    count: entries.length,
    reward: sum(entries.map(({ reward }) => reward!)),
    format: sum(verdicts.map(({ formatReward }) => formatReward)),
    truncated: entries.filter(({ truncated }) => truncated).length,
    loss: sum(stats.map(({ loss }) => loss)) / ranks.size,
    policyLoss: sum(stats.map(({ pgLoss }) => pgLoss)) / ranks.size,
    klLoss: sum(stats.map(({ klLoss }) => klLoss)) / ranks.size,
    active: sum(stats.map(({ activeTokens }) => activeTokens)),
    clippedLow: perToken(({ clipFracLow }) => clipFracLow),
    clippedHigh: perToken(({ clipFracHigh }) => clipFracHigh),
    entropy: perToken(({ entropy }) => entropy),
    approxKl: perToken(({ approxKl }) => approxKl),
    advantage: perToken(({ advMean }) => advMean),
    advantageSquare: perToken(({ advMean, advStd }) => advStd ** 2 + advMean ** 2),
    referenceKl: sum(outcomes.map(({ referenceKl }) => referenceKl)),
    mismatch: sum(first.map(({ mismatch }) => mismatch.sum)),
    current: sum(first.map(({ mismatch }) => mismatch.tokens)),
    groups,
    flat,
    generated: generatedTokens,
    wasted: wastedTokens,
    age: sum(ages),
    sampled: ages.length,
    tokens: rows - sum(parts.map(({ batch }) => batch.numPadTokens)),
    rows,
    parts: parts.length,
    idle: rollouts.length === 0 ? 1 : 0,
  };
  const summed = await ranks.sum(Float64Array.from(Object.values(local)));
  const all = Object.fromEntries(Object.keys(local).map((key, i) => [key, summed[i]])) as typeof local;
  const share = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);
  const mean = (total: number) => share(total, all.active);
  const spread = mean(all.advantageSquare) - mean(all.advantage) ** 2;
  run.record({
    phase: 'rl',
    step: run.step,
    reward: all.reward / all.count,
    formatReward: all.format / all.count,
    loss: all.loss,
    policyLoss: all.policyLoss,
    klLoss: all.klLoss,
    learningRate,
    gradientNorm,
    passes: passCount(rl),
    clipLowFraction: mean(all.clippedLow),
    clipHighFraction: mean(all.clippedHigh),
    entropy: mean(all.entropy),
    approxKl: mean(all.approxKl),
    referenceKl: rl.klCoef === 0 ? null : mean(all.referenceKl),
    mismatch: {
      mean: share(all.mismatch, all.current),
      max: await ranks.max(Math.max(0, ...first.map(({ mismatch }) => mismatch.max))),
    },
    staleness: {
      mean: share(all.age, all.sampled),
      max: await ranks.max(ages.reduce((a, b) => Math.max(a, b), 0)),
    },
    advantages: { mean: mean(all.advantage), std: Math.sqrt(Math.max(0, spread)) },
    groups: all.groups,
    flatGroups: all.flat,
    lengths: lengthStatistics((await ranks.gather(entries.map(({ tokens }) => tokens.length))).flat()),
    truncated: all.truncated / all.count,
    generatedTokens: all.generated,
    wastedTokens: all.wasted,
    tokens: all.tokens,
    microBatches: all.parts,
    idleRanks: all.idle,
    paddingRatio: all.rows === 0 ? 0 : 1 - all.tokens / all.rows,
    machine: { ...run.machine('rl', watch, all.tokens + all.generated), bubbleRatio },
  });
}
