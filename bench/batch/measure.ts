/** What the batcher's benches share: interleaved timing, one result line, synthetic lengths. */
import { SeededRandom } from '../../src/seeded-random.js';

/** One line of `npm run bench -- --targets`. */
export interface TargetResult {
  readonly id: string;
  readonly what: string;
  readonly comparedWith: string;
  readonly measured: number;
  readonly target: number;
  readonly unit: string;
  readonly ok: boolean;
}

/** A result that must not exceed its target. */
export function atMost(target: number, line: Omit<TargetResult, 'target' | 'ok'>): TargetResult {
  return { ...line, target, ok: line.measured <= target };
}

/** A result that must reach its target. */
export function atLeast(target: number, line: Omit<TargetResult, 'target' | 'ok'>): TargetResult {
  return { ...line, target, ok: line.measured >= target };
}

/** Best times of several calls, whose slices are interleaved so that noise of the machine hits all alike. */
export function bestInterleavedMs(calls: readonly (() => void)[], slices = 60): number[] {
  const best = calls.map(() => Infinity);
  for (let slice = 0; slice < slices; slice++) {
    calls.forEach((call, i) => {
      const started = performance.now();
      call();
      best[i] = Math.min(best[i], performance.now() - started);
    });
  }
  return best;
}

/** Log-normal lengths of the given mean and coefficient of variation, cut at `cap`. */
export function logNormal(n: number, mean: number, cv: number, cap: number, seed: number): Int32Array {
  const sigma = Math.sqrt(Math.log(1 + cv * cv));
  const mu = Math.log(mean) - (sigma * sigma) / 2;
  const random = new SeededRandom(seed, 77);
  return Int32Array.from({ length: n }, () =>
    Math.max(1, Math.min(cap, Math.round(Math.exp(mu + sigma * random.normal())))),
  );
}

/** The data sets of the simulation; their means are assumptions (only the CVs are published). */
export const dataSets: Readonly<Record<string, (n: number, seed: number) => Int32Array>> = {
  ultrachat: (n, seed) => logNormal(n, 1200, 0.48, 4096, seed),
  llava: (n, seed) => logNormal(n, 500, 0.29, 2048, seed),
  sharegpt4o: (n, seed) => logNormal(n, 1800, 1.0, 16384, seed),
  mmmix: (n, seed) => {
    const random = new SeededRandom(seed, 78);
    const draw = (mean: number, sigma: number): number =>
      Math.exp(Math.log(mean) - (sigma * sigma) / 2 + sigma * random.normal());
    return Int32Array.from({ length: n }, () => {
      const short = random.uniform() < 0.42;
      return Math.max(1, Math.round(short ? draw(190, 0.35) : draw(1040, 0.45)));
    });
  },
};
