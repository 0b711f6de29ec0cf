import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { approxTokens } from '../../src/batch/approx-tokens.js';
import { lossScale } from '../../src/dist/step-info.js';
import { numRuns, runTimeout } from '../support/num-runs.js';
import { thrown } from '../support/thrown.js';

describe('lossScale', () => {
  test('follows the worked example of 30 and 10 tokens, and of a third rank that is idle', () => {
    const scales = (weights: number[]) =>
      weights.map((localWeight) => lossScale({ localWeight, globalWeight: 40, worldSize: weights.length }));
    expect(scales([30, 10])).toEqual([1.5, 0.5]);
    expect((1.5 * 2 + 0.5 * 4) / 2).toBe(2.5);
    expect(scales([30, 10, 0])).toEqual([2.25, 0.75, 0]);
    expect((2.25 * 2 + 0.75 * 4) / 3).toBe(2.5);
  });

  test('gives the reference check values', () => {
    expect(lossScale({ localWeight: 20, globalWeight: 100, worldSize: 4 })).toBeCloseTo(0.8, 15);
    expect(lossScale({ localWeight: 2, globalWeight: 8, worldSize: 4 })).toBe(1);
  });

  test(
    'makes every kind of local loss and reduction the mean over all weight',
    () => {
      const rank = fc.record({
        n: fc.integer({ min: 0, max: 5000 }),
        mean: fc.double({ min: 0.01, max: 20, noNaN: true }),
      });
      const property = fc.property(
        fc.array(rank, { minLength: 1, maxLength: 9 }),
        fc.constantFrom('mean' as const, 'sum' as const),
        fc.constantFrom('mean' as const, 'sum' as const),
        (ranks, localLoss, reduction) => {
          const globalWeight = ranks.reduce((sum, { n }) => sum + n, 0);
          const scaled = ranks.reduce((sum, { n, mean }) => {
            const loss = n === 0 ? 0 : localLoss === 'mean' ? mean : n * mean;
            return (
              sum +
              loss *
                lossScale({ localWeight: n, globalWeight, worldSize: ranks.length, localLoss, reduction })
            );
          }, 0);
          const reduced = reduction === 'mean' ? scaled / ranks.length : scaled;
          const flat =
            globalWeight === 0 ? 0 : ranks.reduce((sum, { n, mean }) => sum + n * mean, 0) / globalWeight;
          expect(Math.abs(reduced - flat)).toBeLessThanOrEqual(1e-12 * Math.abs(flat));
        },
      );
      fc.assert(property, numRuns(0.1));
    },
    runTimeout(0.1, 3),
  );

  test.each([
    ['localWeight', { localWeight: -1 }],
    ['localWeight', { localWeight: Number.NaN }],
    ['globalWeight', { globalWeight: Infinity }],
    ['worldSize', { worldSize: 0 }],
    ['worldSize', { worldSize: 1.5 }],
  ])('refuses a bad %s', (argument, more) => {
    const error = thrown(() => lossScale({ localWeight: 1, globalWeight: 2, worldSize: 2, ...more }));
    expect(error).toMatchObject({ code: 'ERR_VARLEN_RANGE', details: { argument } });
  });
});

test('approxTokens follows the worked example of two groups split into three steps', () => {
  expect(approxTokens([3, 1, 1], [3, 2], [300, 900])).toEqual([300, 450, 450]);
  expect(approxTokens([3, 2], [3, 2], [300, 900])).toEqual([300, 900]);
});
