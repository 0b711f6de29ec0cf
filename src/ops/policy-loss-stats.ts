/**
 * What a policy loss counted, as sums with their denominators, so that the statistics of micro-batches and
 * ranks merge exactly (`mergeStats`). Means are over active tokens; everything is 0 where there is none.
 */
export interface PolicyLossStats {
  /** The loss in float64: `pgLoss + klLoss - entropyBonus`. */
  readonly loss: number;
  /** The part of the surrogate. */
  readonly pgLoss: number;
  /** The part of the KL penalty, coefficient included. */
  readonly klLoss: number;
  /** Coefficient times the scaled sum of entropies. */
  readonly entropyBonus: number;
  /** Mean entropy; 0 when the call knew no entropies. */
  readonly entropy: number;
  readonly activeTokens: number;
  readonly activeSeqs: number;
  /** Share of tokens whose upper, lower, dual bound was chosen. */
  readonly clipFracHigh: number;
  readonly clipFracLow: number;
  readonly clipFracDual: number;
  /** Mean of `-x` and of `exp(x) - x - 1`, x the clamped log ratio of a token to the old policy. */
  readonly approxKl: number;
  readonly approxKl3: number;
  /** The token's ratio `exp(x)`, whatever the level of the surrogate. */
  readonly ratioMin: number;
  readonly ratioMax: number;
  readonly ratioMean: number;
  /** Effective share of tokens, `(sum r)^2 / (N sum r^2)`. */
  readonly essFraction: number;
  /** Advantages over active tokens; the deviation has the divisor N. */
  readonly advMean: number;
  readonly advStd: number;
  readonly advMin: number;
  readonly advMax: number;
  /** Rollout-correction weights; 1 without a correction. */
  readonly rolloutWeightMean: number;
  readonly rolloutWeightMax: number;
  /** Share of tokens whose ratio to the rollout left the correction's bounds. */
  readonly oobFraction: number;
  /** Active tokens that counted for nothing under `nonFinite: 'drop'`. */
  readonly droppedTokens: number;
  /** Groups without spread, as the caller's advantage estimator counted them. */
  readonly zeroStdGroups: number;
  /** Active tokens per active sequence. */
  readonly lengthMin: number;
  readonly lengthMax: number;
  readonly lengthMean: number;
  readonly lengthHarmonicMean: number;
  /** Per group, when asked for, in the order of first appearance. */
  readonly groups?: readonly GroupStats[];
  /** The sums behind the numbers above; `mergeStats` adds them. */
  readonly sums: Readonly<PolicyLossSums>;
}

/** One group of responses to one prompt. */
export interface GroupStats {
  readonly groupId: number;
  readonly activeSeqs: number;
  readonly tokens: number;
  readonly meanLength: number;
  readonly meanReward: number;
}

/** Sums over active tokens (`*Sum`, counts) and extremes. */
export interface PolicyLossSums {
  pgLoss: number;
  klLoss: number;
  entropyBonus: number;
  activeTokens: number;
  activeSeqs: number;
  inverseLengthSum: number;
  lengthMin: number;
  lengthMax: number;
  clippedHigh: number;
  clippedLow: number;
  clippedDual: number;
  logRatioSum: number;
  kl3Sum: number;
  ratioSum: number;
  ratioSquareSum: number;
  ratioMin: number;
  ratioMax: number;
  advSum: number;
  advSquareSum: number;
  advMin: number;
  advMax: number;
  rolloutWeightSum: number;
  rolloutWeightMax: number;
  outOfBounds: number;
  dropped: number;
  entropySum: number;
  zeroStdGroups: number;
}

/** The sums in the order of `Sums` in native/core/loss/stats.h; `zeroStdGroups` is the caller's. */
export const SUM_NAMES: readonly (keyof PolicyLossSums)[] = [
  'pgLoss',
  'klLoss',
  'entropyBonus',
  'activeTokens',
  'activeSeqs',
  'inverseLengthSum',
  'lengthMin',
  'lengthMax',
  'clippedHigh',
  'clippedLow',
  'clippedDual',
  'logRatioSum',
  'kl3Sum',
  'ratioSum',
  'ratioSquareSum',
  'ratioMin',
  'ratioMax',
  'advSum',
  'advSquareSum',
  'advMin',
  'advMax',
  'rolloutWeightSum',
  'rolloutWeightMax',
  'outOfBounds',
  'dropped',
  'entropySum',
];

const MINIMA: readonly string[] = ['lengthMin', 'ratioMin', 'advMin'];
const MAXIMA: readonly string[] = ['lengthMax', 'ratioMax', 'advMax', 'rolloutWeightMax'];

/** The statistics that follow from sums. */
export function statsOf(sums: PolicyLossSums, groups?: readonly GroupStats[]): PolicyLossStats {
  const { activeTokens: tokens, activeSeqs: seqs } = sums;
  const mean = (sum: number): number => (tokens === 0 ? 0 : sum / tokens);
  const advMean = mean(sums.advSum);
  const extreme = (value: number): number => (tokens === 0 ? 0 : value);
  return Object.freeze({
    loss: sums.pgLoss + sums.klLoss - sums.entropyBonus,
    pgLoss: sums.pgLoss,
    klLoss: sums.klLoss,
    entropyBonus: sums.entropyBonus,
    entropy: mean(sums.entropySum),
    activeTokens: tokens,
    activeSeqs: seqs,
    clipFracHigh: mean(sums.clippedHigh),
    clipFracLow: mean(sums.clippedLow),
    clipFracDual: mean(sums.clippedDual),
    approxKl: mean(-sums.logRatioSum),
    approxKl3: mean(sums.kl3Sum),
    ratioMin: extreme(sums.ratioMin),
    ratioMax: extreme(sums.ratioMax),
    ratioMean: mean(sums.ratioSum),
    essFraction: sums.ratioSquareSum === 0 ? 0 : sums.ratioSum ** 2 / (tokens * sums.ratioSquareSum),
    advMean,
    // A constant advantage may round to a negative variance; max() would hide a NaN.
    advStd: Math.sqrt(Math.abs(mean(sums.advSquareSum) - advMean ** 2)),
    advMin: extreme(sums.advMin),
    advMax: extreme(sums.advMax),
    rolloutWeightMean: mean(sums.rolloutWeightSum),
    rolloutWeightMax: extreme(sums.rolloutWeightMax),
    oobFraction: mean(sums.outOfBounds),
    droppedTokens: sums.dropped,
    zeroStdGroups: sums.zeroStdGroups,
    lengthMin: extreme(sums.lengthMin),
    lengthMax: extreme(sums.lengthMax),
    lengthMean: seqs === 0 ? 0 : tokens / seqs,
    lengthHarmonicMean: seqs === 0 ? 0 : seqs / sums.inverseLengthSum,
    ...(groups === undefined ? {} : { groups }),
    sums: Object.freeze({ ...sums }),
  });
}

function mergeGroups(a: readonly GroupStats[], b: readonly GroupStats[]): GroupStats[] {
  const merged = new Map<number, GroupStats>(a.map((group) => [group.groupId, group]));
  for (const group of b) {
    const known = merged.get(group.groupId);
    if (known === undefined) {
      merged.set(group.groupId, group);
      continue;
    }
    const activeSeqs = known.activeSeqs + group.activeSeqs;
    const tokens = known.tokens + group.tokens;
    const rewards = known.meanReward * known.activeSeqs + group.meanReward * group.activeSeqs;
    merged.set(group.groupId, {
      groupId: group.groupId,
      activeSeqs,
      tokens,
      meanLength: activeSeqs === 0 ? 0 : tokens / activeSeqs,
      meanReward: activeSeqs === 0 ? 0 : rewards / activeSeqs,
    });
  }
  return [...merged.values()];
}

/**
 * The statistics of two disjoint parts of a step together. Sums add, so that the order of merging matters
 * only in the last bits of float64; extremes and counts are exact.
 *
 * @example
 * ```ts
 * const step = parts.reduce((a, b) => mergeStats(a, b));
 * ```
 */
export function mergeStats(a: PolicyLossStats, b: PolicyLossStats): PolicyLossStats {
  const sums: PolicyLossSums = { ...a.sums };
  for (const key of Object.keys(sums) as (keyof PolicyLossSums)[]) {
    const other = b.sums[key];
    if (MINIMA.includes(key)) sums[key] = Math.min(sums[key], other);
    else if (MAXIMA.includes(key)) sums[key] = Math.max(sums[key], other);
    else sums[key] += other;
  }
  const groups =
    a.groups === undefined && b.groups === undefined
      ? undefined
      : mergeGroups(a.groups ?? [], b.groups ?? []);
  return statsOf(sums, groups);
}
