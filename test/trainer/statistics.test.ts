import fc from 'fast-check';
import { expect, test } from 'vitest';
import { lengthStatistics, meanOf, shareOf } from '../../src/trainer/statistics.js';

test('a share has the interval of Wilson', () => {
  // 81 of 263: worked in Newcombe 1998, table I, method 3.
  const { value, low, high } = shareOf(81, 263);
  expect(value).toBeCloseTo(0.308, 4);
  expect([low, high].map((x) => x.toFixed(4))).toEqual(['0.2553', '0.3662']);
  expect(shareOf(0, 20).high.toFixed(4)).toBe('0.1611');
  expect(shareOf(0, 0)).toEqual({ value: Number.NaN, low: 0, high: 1 });
});

test('a mean has the normal interval, and that of a share where nothing varies', () => {
  const { value, low, high } = meanOf([0, 0.5, 1, 0.5]);
  expect(value).toBe(0.5);
  // Standard error sqrt(1/6) / 2.
  expect(high - value).toBeCloseTo(1.959964 * Math.sqrt(1 / 6) * 0.5, 5);
  expect(low).toBeCloseTo(1 - high, 12);
  expect(meanOf(new Array(20).fill(0))).toEqual(shareOf(0, 20));
  expect(meanOf([])).toEqual(shareOf(0, 0));
});

test('intervals hold their value and stay inside 0 and 1', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1 }), (values) => {
      const { value, low, high } = meanOf(values);
      expect(low).toBeLessThanOrEqual(value + 1e-12);
      expect(high).toBeGreaterThanOrEqual(value - 1e-12);
      expect(low).toBeGreaterThanOrEqual(0);
      expect(high).toBeLessThanOrEqual(1);
    }),
  );
});

test('lengths: mean, quantiles and the longest; zeros without any', () => {
  const lengths = Array.from({ length: 100 }, (_, i) => 100 - i);
  expect(lengthStatistics(lengths)).toEqual({ mean: 50.5, p10: 11, p50: 51, p90: 91, max: 100 });
  expect(lengthStatistics([])).toEqual({ mean: 0, p10: 0, p50: 0, p90: 0, max: 0 });
});
