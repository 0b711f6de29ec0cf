import { describe, expect, test } from 'vitest';
import {
  correctionMean,
  planAggregation,
  type ResponseArrays,
  type RolloutCorrection,
  rolloutWeights,
} from '../../src/rl/index.js';
import { thrown } from '../support/thrown.js';
import * as e1 from './worked-example.js';

const batch: ResponseArrays = e1;

function expectClose(got: ArrayLike<number>, expected: readonly number[], tolerance: number): void {
  expect(got.length).toBe(expected.length);
  expected.forEach((value, t) => {
    expect(Math.abs(got[t] - value), `at ${t}: ${got[t]} is not ${value}`).toBeLessThanOrEqual(tolerance);
  });
}

/** One sequence whose ratios of old to rollout are the given ones. */
function ratios(...values: number[]): ResponseArrays {
  return {
    cuSeqlens: Int32Array.of(0, values.length),
    oldLogprobs: Float64Array.from(values, () => -1),
    rolloutLogprobs: Float64Array.from(values, (ratio) => -1 - Math.log(ratio)),
  };
}

describe('worked example', () => {
  test('token weights and log ratios of sequences', () => {
    const { weights, sequenceLogRatio, tokens, sum } = rolloutWeights(batch, { mode: 'token-truncate' });
    const expected = [1.020201, 1, 1, 0.904837, 1.051271, 1.051271, 0.951229, 0, 1, 1.051271];
    expectClose(weights, expected, 6e-7);
    expectClose(sequenceLogRatio, [0.02, -0.05, 0.05, 0, 0], 1e-15);
    expect(tokens).toBe(9);
    expect(sum).toBeCloseTo(
      weights.reduce((a, b) => a + b, 0),
      12,
    );
  });

  test('a mean over the whole step divides every weight', () => {
    const correction = { mode: 'token-truncate' } as const;
    const { sum, weights } = rolloutWeights(batch, correction);
    const plan = planAggregation(
      { lengths: e1.lengths, correctionSum: sum },
      { aggregation: { mode: 'token-mean' } },
    );
    const mean = correctionMean(plan);
    expect(mean).toBeCloseTo(sum / 9, 14);
    const normal = rolloutWeights(batch, { ...correction, batchNormalize: { mean } });
    expectClose(
      normal.weights,
      [...weights].map((weight) => weight / mean),
      1e-15,
    );
    expectClose(
      rolloutWeights(batch, { ...correction, batchNormalize: true }).weights,
      [...normal.weights],
      1e-15,
    );
    expect(normal.weights.reduce((a, b) => a + b, 0) / 9).toBeCloseTo(1, 14);
  });
});

describe('modes', () => {
  test('bounds that a public test states', () => {
    const capped = rolloutWeights(ratios(0.1, 1, 3), { mode: 'token-truncate', high: 2 });
    expectClose(capped.weights, [0.1, 1, 2], 1e-15);
    expect(capped.outOfBounds / capped.tokens).toBe(1 / 3);
    const both = rolloutWeights(ratios(0.1, 1, 3), { mode: 'token-truncate', low: 0.5, high: 2 });
    expectClose(both.weights, [0.5, 1, 2], 1e-15);
    expect(both.outOfBounds / both.tokens).toBe(2 / 3);
  });

  test('weights that a public test states', () => {
    const one: ResponseArrays = {
      cuSeqlens: Int32Array.of(0, 3),
      oldLogprobs: Float64Array.of(-1, -1, -1),
      rolloutLogprobs: Float64Array.of(-0.5, -1.5, -0.8),
    };
    expectClose(rolloutWeights(one, { mode: 'token-truncate' }).weights, [0.6065, 1.6487, 0.8187], 5e-5);
  });

  test.each<[RolloutCorrection, number[], number]>([
    [{ mode: 'token-mask' }, [0, 1, 3], 1],
    [{ mode: 'token-mask', low: 0.05, high: 2 }, [0.1, 1, 0], 1],
    [{ mode: 'sequence-truncate' }, [0.3, 0.3, 0.3], 0],
    [{ mode: 'sequence-truncate', low: 0.4 }, [0.4, 0.4, 0.4], 3],
    [{ mode: 'sequence-mask' }, [0, 0, 0], 3],
    [{ mode: 'sequence-mask', low: 0.2 }, [0.3, 0.3, 0.3], 0],
    [{ mode: 'sequence-geo-mask' }, [0, 0, 0], 3],
    [{ mode: 'sequence-geo-mask', low: 0.6, high: 0.7 }, [0.1, 1, 3], 0],
  ])('%o of ratios 0.1, 1, 3', (correction, expected, outOfBounds) => {
    const got = rolloutWeights(ratios(0.1, 1, 3), correction);
    expectClose(got.weights, expected, 1e-14);
    expect(got.outOfBounds).toBe(outOfBounds);
  });

  test('a sequence is an exponential of a sum, not a sum of exponentials', () => {
    const one = ratios(2, 2, 2);
    expectClose(rolloutWeights(one, { mode: 'sequence-truncate', high: 100 }).weights, [8, 8, 8], 1e-12);
    const long = ratios(...new Array(400).fill(Math.E ** 10));
    expect(rolloutWeights(long, { mode: 'sequence-truncate' }).weights[0]).toBe(2);
    expect(rolloutWeights(long, { mode: 'sequence-mask' }).weights[0]).toBe(0);
  });

  test('a log ratio is bounded by 20', () => {
    const one = { ...ratios(1), rolloutLogprobs: Float64Array.of(-Infinity) };
    const { weights } = rolloutWeights(one, { mode: 'token-truncate', high: 1e12 });
    expect(weights[0]).toBe(Math.exp(20));
  });

  test('what the engine did not report weighs 1, in every mode', () => {
    const one = {
      ...ratios(0.1, 1, 1),
      rolloutLogprobs: Float64Array.of(-1 - Math.log(0.1), Number.NaN, -1),
    };
    for (const mode of [
      'token-truncate',
      'token-mask',
      'sequence-truncate',
      'sequence-mask',
      'sequence-geo-mask',
    ] as const) {
      expect(rolloutWeights(one, { mode }).weights[1]).toBe(1);
    }
    expect(thrown(() => rolloutWeights(one, { mode: 'token-mask', missing: 'error' }))).toMatchObject({
      code: 'ERR_VARLEN_NON_FINITE',
      details: { argument: 'rolloutLogprobs[1]' },
    });
  });

  test('masked positions may hold anything', () => {
    const lossMask = Uint8Array.of(1, 0, 1);
    const one = { ...ratios(0.5, 1, 2), lossMask };
    const junk = { ...one, oldLogprobs: Float64Array.of(-1, Number.NaN, -1) };
    for (const mode of ['token-truncate', 'sequence-geo-mask'] as const) {
      expect(rolloutWeights(junk, { mode })).toEqual(rolloutWeights(one, { mode }));
    }
  });

  test('truncated sampling needs the kept mass, which is added to the reported values', () => {
    const truncated = { ...ratios(0.5, 2), rolloutSupport: 'truncated' } as const;
    expect(thrown(() => rolloutWeights(truncated, { mode: 'token-truncate' }))).toMatchObject({
      code: 'ERR_VARLEN_TRUNCATED_SUPPORT',
    });
    const keptLogMass = Float64Array.of(Math.log(0.5), Math.log(0.8));
    const { weights } = rolloutWeights({ ...truncated, keptLogMass }, { mode: 'token-truncate', high: 9 });
    expectClose(weights, [1, 2.5], 1e-14);
  });

  test('an empty batch, and all weights 0, leave nothing to divide by', () => {
    const empty = rolloutWeights(ratios(), { mode: 'token-mask', batchNormalize: true });
    expect(empty).toMatchObject({ sum: 0, tokens: 0, outOfBounds: 0 });
    const zero = rolloutWeights(ratios(99, 99), { mode: 'token-mask', batchNormalize: true });
    expect([...zero.weights]).toEqual([0, 0]);
    expect(correctionMean({ totals: { correctionSum: 0, tokens: 0 } })).toBe(1);
  });
});

test.each<[string, object, object, string]>([
  ['bypass, which has no weights', {}, { mode: 'bypass' }, 'ERR_VARLEN_INCOMPATIBLE'],
  ['an unknown mode', {}, { mode: 'tis' }, 'ERR_VARLEN_OPTION'],
  ['no mode', {}, null as never, 'ERR_VARLEN_TYPE'],
  ['crossed bounds', {}, { mode: 'token-mask', low: 2, high: 1 }, 'ERR_VARLEN_RANGE'],
  ['a mean of 0', {}, { mode: 'token-mask', batchNormalize: { mean: 0 } }, 'ERR_VARLEN_RANGE'],
  ['no rollout', { rolloutLogprobs: undefined }, { mode: 'token-mask' }, 'ERR_VARLEN_MISSING_INPUT'],
  [
    'NaN in the old policy',
    { oldLogprobs: Float64Array.of(Number.NaN) },
    { mode: 'token-mask' },
    'ERR_VARLEN_NON_FINITE',
  ],
  ['an unknown support', { rolloutSupport: 'half' }, { mode: 'token-mask' }, 'ERR_VARLEN_OPTION'],
])('%s is refused', (_name, more, correction, code) => {
  const bad = { ...ratios(1), ...more } as ResponseArrays;
  expect(thrown(() => rolloutWeights(bad, correction as never))).toMatchObject({ code });
});
