import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type DpoOptions, dpoFromSums, dpoLoss } from '../../../src/rl/index.js';
import { cuSeqlensOf } from '../../support/arbitraries.js';
import { numRuns } from '../../support/num-runs.js';
import { normals } from '../../support/random.js';
import { thrown } from '../../support/thrown.js';
import { centralDifferences, expectSlopes } from './central-differences.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;
const pair = { chosen: Int32Array.of(0), rejected: Int32Array.of(1) };
const sums = { sums: Float64Array.of(-10, -12), refSums: Float64Array.of(-11, -11.5) };

describe('a pair', () => {
  test('gives the worked example', () => {
    const { loss, dSums, margins, accuracy } = dpoFromSums(sums, pair, { beta: 0.1 });
    expect(loss).toBeCloseTo(0.620957048, 9);
    expect(dSums[0]).toBeCloseTo(-0.046257015, 9);
    expect(dSums[1]).toBe(-dSums[0]);
    expect(margins[0]).toBeCloseTo(0.15, 14);
    expect(accuracy).toBe(1);
  });

  test.each([
    ['label smoothing', { loss: { kind: 'sigmoid', labelSmoothing: 0.1 } }, 0.620957048 + 0.1 * 0.15],
    ['hinge', { loss: { kind: 'hinge' } }, 0.85],
    ['ipo', { loss: { kind: 'ipo' } }, (1.5 - 5) ** 2],
  ] as const)('%s', (_, options, wanted) => {
    expect(dpoFromSums(sums, pair, { beta: 0.1, ...options }).loss).toBeCloseTo(wanted, 9);
  });

  test('past the hinge has no gradient', () => {
    const far = { sums: Float64Array.of(0, -30), refSums: new Float64Array(2) };
    const { loss, dSums } = dpoFromSums(far, pair, { beta: 0.1, loss: { kind: 'hinge' } });
    expect(loss).toBe(0);
    expect(dSums).toEqual(new Float64Array(2));
  });

  test('does not overflow at any margin', () => {
    const far = { sums: Float64Array.of(-1e6, 0), refSums: new Float64Array(2) };
    const worst = dpoFromSums(far, pair, { beta: 1 });
    expect(worst.loss).toBe(1e6);
    expect(worst.dSums).toEqual(Float64Array.of(-1, 1));
    const best = dpoFromSums(far, { chosen: pair.rejected, rejected: pair.chosen }, { beta: 1 });
    expect(best.loss).toBe(0);
  });
});

describe('packed log-probabilities', () => {
  const lengths = [3, 0, 2, 4];
  const cuSeqlens = cuSeqlensOf(lengths);
  const lossMask = Uint8Array.of(1, 0, 1, 1, 1, 0, 1, 1, 1);
  const logprobs = Float64Array.from(normals(9, 1), (x) => -Math.abs(x) - 0.1);
  const refLogprobs = Float64Array.from(normals(9, 2), (x) => -Math.abs(x) - 0.1);
  // The empty sequence is in a pair, and sequence 2 in two.
  const pairs = { chosen: Int32Array.of(0, 2, 1), rejected: Int32Array.of(2, 3, 3) };

  const variants: [string, DpoOptions][] = (
    [
      { kind: 'sigmoid' },
      { kind: 'sigmoid', labelSmoothing: 0.2 },
      { kind: 'hinge' },
      { kind: 'ipo' },
    ] as const
  ).flatMap((loss) =>
    [false, true].flatMap((lengthNormalize) =>
      (['mean', 'sum'] as const).map((reduction): [string, DpoOptions] => {
        const options = { beta: 0.3, loss, lengthNormalize, reduction };
        return [JSON.stringify(options), options];
      }),
    ),
  );

  test.each(variants)('have the gradient of central differences with %s', (_, options) => {
    const at = (values: Float64Array) =>
      dpoLoss({ cuSeqlens, lossMask, logprobs: values, refLogprobs }, pairs, options).loss;
    const { dLogprobs } = dpoLoss({ cuSeqlens, lossMask, logprobs, refLogprobs }, pairs, options);
    const wanted = centralDifferences(logprobs, at);
    expectSlopes(dLogprobs, wanted);
    for (const [t, active] of lossMask.entries()) if (active === 0) expect(dLogprobs[t]).toBe(0);
  });

  test('agree with the sums', () => {
    const options = { beta: 0.2, lengthNormalize: true };
    const active = Int32Array.of(2, 0, 2, 3);
    const sumOf = (values: Float64Array) =>
      Float64Array.from(lengths, (_, i) => {
        let sum = 0;
        for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) if (lossMask[t]) sum += values[t];
        return sum;
      });
    const sequences = { sums: sumOf(logprobs), refSums: sumOf(refLogprobs), lengths: active };
    const fromSums = dpoFromSums(sequences, pairs, options);
    const packed = dpoLoss({ cuSeqlens, lossMask, logprobs, refLogprobs }, pairs, options);
    expect(packed.loss).toBe(fromSums.loss);
    expect(packed.margins).toEqual(fromSums.margins);
    expect(packed.dLogprobs[0]).toBe(Math.fround(fromSums.dSums[0]));
  });

  test('ignore whatever stands at masked tokens', () => {
    fc.assert(
      fc.property(fc.constantFrom(NaN, Infinity, -Infinity, 1e4), (garbage) => {
        const spoil = (values: Float64Array) => values.map((x, t) => (lossMask[t] === 0 ? garbage : x));
        const clean = dpoLoss({ cuSeqlens, lossMask, logprobs, refLogprobs }, pairs, { beta: 0.1 });
        const spoiled = { cuSeqlens, lossMask, logprobs: spoil(logprobs), refLogprobs: spoil(refLogprobs) };
        expect(dpoLoss(spoiled, pairs, { beta: 0.1 })).toEqual(clean);
      }),
      numRuns(0.01),
    );
  });

  test('without pairs are 0', () => {
    const none = { chosen: new Int32Array(0), rejected: new Int32Array(0) };
    const result = dpoLoss({ cuSeqlens, logprobs, refLogprobs }, none, { beta: 1 });
    expect(result).toEqual({
      loss: 0,
      margins: new Float64Array(0),
      accuracy: 0,
      dLogprobs: new Float32Array(9),
    });
  });

  test('with the policy at its reference lose log 2 on each pair', () => {
    const { loss, accuracy } = dpoLoss({ cuSeqlens, logprobs, refLogprobs: logprobs }, pairs, { beta: 1 });
    expect(loss).toBeCloseTo(Math.LN2, 14);
    expect(accuracy).toBe(0);
  });

  test('refuse what cannot be computed', () => {
    const batch = { cuSeqlens, logprobs, refLogprobs };
    const options = { beta: 0.1 };
    expect(code(() => dpoLoss({ cuSeqlens, logprobs }, pairs, options))).toBe('ERR_VARLEN_MISSING_INPUT');
    expect(code(() => dpoFromSums(sums, pair, { beta: 1, lengthNormalize: true }))).toBe(
      'ERR_VARLEN_MISSING_INPUT',
    );
    expect(code(() => dpoLoss(batch, pairs, { beta: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => dpoLoss(batch, { ...pairs, chosen: Int32Array.of(0, 1, 4) }, options))).toBe(
      'ERR_VARLEN_RANGE',
    );
    expect(code(() => dpoLoss(batch, { ...pairs, chosen: Int32Array.of(0) }, options))).toBe(
      'ERR_VARLEN_SHAPE',
    );
    expect(code(() => dpoLoss({ ...batch, logprobs: logprobs.with(0, NaN) }, pairs, options))).toBe(
      'ERR_VARLEN_NON_FINITE',
    );
    expect(code(() => dpoLoss({ ...batch, cuSeqlens: Int32Array.of(1, 9) }, pairs, options))).toBe(
      'ERR_VARLEN_CU_SEQLENS',
    );
    expect(code(() => dpoLoss(batch, pairs, { beta: 1, loss: { kind: 'kto' } as never }))).toBe(
      'ERR_VARLEN_OPTION',
    );
    const smooth = { kind: 'sigmoid', labelSmoothing: 0.5 } as const;
    expect(code(() => dpoLoss(batch, pairs, { beta: 1, loss: smooth }))).toBe('ERR_VARLEN_RANGE');
    const stray = { kind: 'ipo', labelSmoothing: 0.1 } as never;
    expect(code(() => dpoLoss(batch, pairs, { beta: 1, loss: stray }))).toBe('ERR_VARLEN_OPTION');
  });
});
