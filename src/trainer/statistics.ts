/** Means, quantiles and intervals of what a run measures. */

/** A measured share with its 95 % confidence interval. */
export interface Estimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/** 97.5 % quantile of the standard normal distribution. */
const Z = 1.959963984540054;

/** A share of successes: Wilson's interval (1927), which stays inside 0..1. */
export function shareOf(successes: number, trials: number): Estimate {
  if (trials === 0) return { value: Number.NaN, low: 0, high: 1 };
  const p = successes / trials;
  const zz = (Z * Z) / trials;
  const middle = (p + zz / 2) / (1 + zz);
  const half = (Z / (1 + zz)) * Math.sqrt((p * (1 - p)) / trials + zz / (4 * trials));
  return { value: p, low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

/**
 * A mean of independent values in 0..1, such as one mean per puzzle: the normal interval, cut to 0..1.
 * Samples of one puzzle are not independent of each other; their mean per puzzle is of the others.
 */
export function meanOf(values: readonly number[]): Estimate {
  const { length } = values;
  const mean = sum(values) / Math.max(1, length);
  const squares = sum(values.map((value) => (value - mean) ** 2));
  // Nothing varies: all right or all wrong says something, but not that the interval is a point.
  if (squares === 0) return shareOf(mean * length, length);
  const half = Z * Math.sqrt(squares / (length - 1) / length);
  return { value: mean, low: Math.max(0, mean - half), high: Math.min(1, mean + half) };
}

/** The sum, added up from the first to the last. */
export function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

/** How the lengths of responses are spread, in tokens. */
export interface LengthStatistics {
  readonly mean: number;
  readonly p10: number;
  readonly p50: number;
  readonly p90: number;
  readonly max: number;
}

/** Statistics of lengths; zeros when there are none. */
export function lengthStatistics(lengths: readonly number[]): LengthStatistics {
  const sorted = [...lengths].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return {
    mean: sorted.length === 0 ? 0 : sum(sorted) / sorted.length,
    p10: at(0.1),
    p50: at(0.5),
    p90: at(0.9),
    max: sorted[sorted.length - 1] ?? 0,
  };
}
