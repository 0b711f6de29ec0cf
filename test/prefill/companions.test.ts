import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { minCloudTokens, segmentBias } from '../../src/prefill/index.js';
import { thrown } from '../support/thrown.js';

describe('segmentBias', () => {
  test('half of the imbalance of three images', () => {
    const masses = [0.5, 0.2, 0.1];
    const bias = segmentBias(masses);
    expect(Array.from(bias, (b) => Number(b.toFixed(4)))).toEqual([-0.3143, 0.1438, 0.4904]);
    const weighted = masses.map((mass, i) => mass * Math.exp(bias[i]));
    const total = weighted.reduce((a, b) => a + b, 0);
    expect(weighted.map((w) => Number((w / total).toFixed(3)))).toEqual([0.481, 0.304, 0.215]);
  });

  test('full strength evens the masses out, none changes nothing, and the bias is bounded', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0.01, max: 1, noNaN: true }), { minLength: 1, maxLength: 9 }),
        (masses) => {
          const even = segmentBias(masses, { strength: 1, maxBias: 100 });
          const weighted = masses.map((mass, i) => mass * Math.exp(even[i]));
          for (const w of weighted) expect(w).toBeCloseTo(weighted[0], 9);
          expect(segmentBias(masses, { strength: 0 }).every((b) => b === 0)).toBe(true);
          expect(segmentBias(masses, { strength: 1, maxBias: 0.1 }).every((b) => Math.abs(b) <= 0.1)).toBe(
            true,
          );
        },
      ),
    );
  });

  test('an image without mass gets no bias; what is no mass is ERR_VARLEN_RANGE', () => {
    expect(segmentBias([0, 1])[0]).toBe(0);
    for (const bad of [-1, Number.NaN, Infinity]) {
      expect(thrown(() => segmentBias([bad]))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
    }
  });
});

describe('minCloudTokens', () => {
  const times = { devicePrefill: 6, cloudFirstToken: 0.8, tokenSpacing: 0.05, catchUp: 0.002 };

  test('is the smallest number that leaves no gap', () => {
    expect(minCloudTokens(times)).toBe(109);
    const gap = (k: number) => 6 + k * 0.002 - (0.8 + k * 0.05);
    expect(gap(109)).toBeLessThanOrEqual(0);
    expect(gap(108)).toBeGreaterThan(0);
  });

  test('is 0 when the device is first, and Infinity when it never catches up', () => {
    expect(minCloudTokens({ ...times, devicePrefill: 0.5 })).toBe(0);
    expect(minCloudTokens({ ...times, catchUp: 0.05 })).toBe(Infinity);
    expect(thrown(() => minCloudTokens({ ...times, catchUp: -1 }))).toMatchObject({
      code: 'ERR_VARLEN_RANGE',
    });
  });
});
