import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  constant,
  cosineDecay,
  fitSmoothness,
  linearDecay,
  linearWarmup,
  SuboptimalityWarmup,
  type SuboptimalityWarmupOptions,
  wsd,
} from '../../src/index.js';
import { numRuns } from '../support/num-runs.js';
import { expectRefused } from '../support/ops.js';

const at = (schedule: (step: number) => number, ...steps: number[]): number[] => steps.map(schedule);

describe('schedules', () => {
  test('warm up by (k + 1) / warmup', () => {
    for (const schedule of [
      linearWarmup(4),
      linearDecay({ warmup: 4, total: 8 }),
      cosineDecay({ warmup: 4, total: 8 }),
      wsd({ warmup: 4, stable: 2, decay: 2 }),
    ]) {
      expect(at(schedule, 0, 1, 2, 3, 4)).toEqual([0.25, 0.5, 0.75, 1, 1]);
    }
    expect(at(constant(), 0, 1000)).toEqual([1, 1]);
  });

  test('come down as their names say, and stay there', () => {
    expect(at(linearDecay({ total: 4, minRatio: 0.25 }), 0, 2, 4, 9)).toEqual([1, 0.625, 0.25, 0.25]);
    const cosine = at(cosineDecay({ total: 4, minRatio: 0.2 }), 0, 1, 2, 4, 9);
    const want = [1, 0.2 + 0.4 * (1 + Math.SQRT1_2), 0.6, 0.2, 0.2];
    for (const [i, value] of cosine.entries()) expect(value).toBeCloseTo(want[i], 12);
    expect(at(wsd({ stable: 3, decay: 4 }), 0, 3, 5, 7, 99)).toEqual([1, 1, 0.5, 0, 0]);
    expect(linearDecay({ total: 0 })(0)).toBe(0);
  });

  test('refuse steps that are no counts and ratios outside 0 to 1', () => {
    expectRefused(() => linearWarmup(-1), 'ERR_VARLEN_RANGE', 'warmup', 'linearWarmup');
    expectRefused(() => linearDecay({ total: 1.5 }), 'ERR_VARLEN_RANGE', 'total', 'linearDecay');
    expectRefused(
      () => cosineDecay({ total: 1, minRatio: 2 }),
      'ERR_VARLEN_RANGE',
      'minRatio',
      'cosineDecay',
    );
    expectRefused(() => wsd({ stable: -1, decay: 1 }), 'ERR_VARLEN_RANGE', 'stable', 'wsd');
  });
});

describe('SuboptimalityWarmup', () => {
  const options: SuboptimalityWarmupOptions = { rho: 1, k0: 2, kRho: 1, ema: 0 };

  test.each([
    [10, 0.0166667, 0.0912871],
    [4, 0.0416667, 0.1443376],
    [1, 0.1666667, 0.25],
    [0.25, 0.25, 0.25],
    [-3, 0.25, 0.25],
  ])('gives the rates of the worked table at a gap of %d', (gap, one, half) => {
    expect(new SuboptimalityWarmup(options).rate(gap)).toBeCloseTo(one, 7);
    expect(new SuboptimalityWarmup({ ...options, rho: 0.5 }).rate(gap)).toBeCloseTo(half, 7);
  });

  test('never falls when it is monotone, and stays under maxLr', () => {
    fc.assert(
      fc.property(fc.array(fc.double({ min: -1, max: 50, noNaN: true }), { minLength: 1 }), (losses) => {
        const warmup = new SuboptimalityWarmup({ ...options, ema: 0.5, maxLr: 0.1 });
        const rates = losses.map((loss) => warmup.next(loss));
        for (const [i, rate] of rates.entries()) {
          expect(rate).toBeLessThanOrEqual(0.1);
          if (i > 0) expect(rate).toBeGreaterThanOrEqual(rates[i - 1]);
        }
      }),
      numRuns(0.02),
    );
    const free = new SuboptimalityWarmup({ ...options, monotone: false });
    expect(free.next(1)).toBeGreaterThan(free.next(10));
  });

  test('smooths the loss, and goes on from its state', () => {
    const warmup = new SuboptimalityWarmup({ ...options, ema: 0.9 });
    warmup.next(10);
    expect(warmup.next(0)).toBeCloseTo(warmup.rate(9), 12);
    const copy = new SuboptimalityWarmup({ ...options, ema: 0.9 });
    copy.load(JSON.parse(JSON.stringify(warmup)));
    expect(copy.next(3)).toBe(warmup.next(3));
  });

  test('refuses constants out of range and losses that are not finite', () => {
    for (const name of ['rho', 'k0', 'kRho', 'c', 'maxLr'] as const) {
      const make = () => new SuboptimalityWarmup({ ...options, [name]: 0 });
      expectRefused(make, 'ERR_VARLEN_RANGE', name, 'SuboptimalityWarmup');
    }
    expectRefused(
      () => new SuboptimalityWarmup({ ...options, ema: 1 }),
      'ERR_VARLEN_RANGE',
      'ema',
      'SuboptimalityWarmup',
    );
    const next = () => new SuboptimalityWarmup(options).next(Number.NaN);
    expectRefused(next, 'ERR_VARLEN_RANGE', 'loss', 'SuboptimalityWarmup');
  });

  test('fitSmoothness finds the constants that made the records', () => {
    for (const rho of [0.5, 1, 1.5, 2]) {
      const records = [0.1, 0.5, 1, 3, 7].map((loss) => ({
        loss: loss + 1,
        localSmoothness: 2 + 3 * loss ** rho,
      }));
      const fit = fitSmoothness(records, 1);
      expect(fit.rho).toBe(rho);
      expect(fit.k0).toBeCloseTo(2, 8);
      expect(fit.kRho).toBeCloseTo(3, 8);
    }
    const falling = [1, 2, 3].map((loss) => ({ loss, localSmoothness: 10 - loss }));
    expect(fitSmoothness(falling)).toMatchObject({ k0: 8, kRho: 0 }); // a negative slope is none
    expectRefused(() => fitSmoothness([]), 'ERR_VARLEN_RANGE', 'records', 'fitSmoothness');
    const infinite = [
      { loss: 1, localSmoothness: Infinity },
      { loss: 2, localSmoothness: 1 },
    ];
    expectRefused(() => fitSmoothness(infinite), 'ERR_VARLEN_RANGE', 'records', 'fitSmoothness');
  });
});
