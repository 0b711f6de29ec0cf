/** Moments over the active tokens of all ranks, and what is whitened with them. */
import { argumentError } from '../../errors.js';
import type { Collective } from '../collective.js';

/** `[numValues]` values, each counted as often as `counts` says. */
export interface Counted {
  readonly values: Float64Array;
  readonly counts: ArrayLike<number>;
}

/** Mean, and variance with divisor n - 1 (0 below two values), in two rounds: exact where one would cancel. */
export function* moments({
  values,
  counts,
}: Counted): Collective<{ n: number; mean: number; variance: number }> {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < values.length; i++) {
    if (counts[i] === 0) continue;
    sum += counts[i] * values[i];
    count += counts[i];
  }
  const [total, n] = yield Float64Array.of(sum, count);
  const mean = n === 0 ? 0 : total / n;
  let squares = 0;
  for (let i = 0; i < values.length; i++) {
    if (counts[i] !== 0) squares += counts[i] * (values[i] - mean) ** 2;
  }
  const [totalSquares] = yield Float64Array.of(squares);
  return { n, mean, variance: n < 2 ? 0 : totalSquares / (n - 1) };
}

/** Added to the variance before the root. */
const WHITEN_EPS = 1e-8;

/** `(A - mean) / sqrt(var + 1e-8)` over counted values; the others stay. */
export function* whitened(op: string, counted: Counted): Collective<Float64Array> {
  const { n, mean, variance } = yield* moments(counted);
  if (n === 1) {
    const problem = 'hold a single active token; got 1, expected at least 2 to whiten';
    throw argumentError('ERR_VARLEN_WHITEN_SINGLE', op, 'advantages', problem);
  }
  const scale = 1 / Math.sqrt(variance + WHITEN_EPS);
  return counted.values.map((value, i) => (counted.counts[i] === 0 ? value : (value - mean) * scale));
}
