import type { Device } from '../../tensor/index.js';

/** How the benches measure, and the line in which each of them reports. */

/** What a bench is told. */
export interface BenchOptions {
  readonly device: Device;
  /** A tenth of the time and only the first case. */
  readonly quick: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** One measurement beside what it is compared with, both from the same run. */
export interface BenchLine {
  readonly op: string;
  readonly impl: string;
  readonly device: string;
  readonly dtype: string;
  readonly shape: string;
  readonly medianUs: number;
  readonly p10Us: number;
  readonly p90Us: number;
  readonly runs: number;
  /** Bytes that must be read and written once, per second, in GB. */
  readonly gbps: number | null;
  /** Arithmetic that the result needs, per second, in TFLOP. */
  readonly tflops: number | null;
  /** Of the device's peak in bench/peaks.json; null where it has none. */
  readonly rooflineFraction: number | null;
  readonly comparedWith: string;
  /** Median time of the comparison over ours: above 1 is faster. */
  readonly ratio: number;
}

/** A bench checks its results once, then reports. */
export type Bench = (options: BenchOptions) => AsyncIterable<BenchLine>;

/** Times of repeated runs, in microseconds. */
export interface Times {
  readonly medianUs: number;
  readonly p10Us: number;
  readonly p90Us: number;
  readonly runs: number;
}

/** The quantiles of a bench line. */
export function summarize(timesUs: readonly number[]): Times {
  const sorted = [...timesUs].sort((a, b) => a - b);
  const quantile = (q: number): number =>
    round(sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]);
  return { medianUs: quantile(0.5), p10Us: quantile(0.1), p90Us: quantile(0.9), runs: sorted.length };
}

/** Three significant digits. */
export function round(value: number): number {
  return Number(value.toPrecision(3));
}

/**
 * Runs the candidates by turns until `seconds` have passed, at least three times each: what else the
 * machine does then slows all of them alike.
 */
export async function takeTurns(
  candidates: readonly (() => Promise<void>)[],
  seconds: number,
  signal?: AbortSignal,
): Promise<Times[]> {
  const times = candidates.map((): number[] => []);
  for (const run of candidates) await run(); // first touch of memory, growth of caches
  const end = performance.now() + 1000 * seconds;
  while (times[0].length < 3 || performance.now() < end) {
    for (const [i, run] of candidates.entries()) {
      signal?.throwIfAborted();
      const start = performance.now();
      await run();
      times[i].push(1000 * (performance.now() - start));
    }
  }
  return times.map(summarize);
}
