import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  dpoLoss,
  gumbelTopK,
  listwiseFromScores,
  listwiseLoss,
  recommendationLoss,
} from '../../../src/rl/index.js';
import { numRuns } from '../../support/num-runs.js';
import { normals } from '../../support/random.js';
import { thrown } from '../../support/thrown.js';
import { centralDifferences, expectSlopes } from './central-differences.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('a list of scores', () => {
  const scores = Float64Array.of(0.8, 0.5, 0.2, -0.1);
  const one = { cuLists: Int32Array.of(0, 4), winners: Int32Array.of(0) };

  test('gives the worked example', () => {
    const { loss, dScores } = listwiseFromScores(scores, one);
    expect(loss).toBeCloseTo(1.175312292, 9);
    [-0.34563872, 0.13285998, 0.11435365, 0.0984251].forEach((slope, k) => {
      expect(dScores[k]).toBeCloseTo(slope, 8);
    });
  });

  test('several lists are averaged, or weighted', () => {
    const lists = { cuLists: Int32Array.of(0, 2, 4), winners: Int32Array.of(1, 0) };
    const [a, b] = [0, 1].map((g) => {
      const part = scores.subarray(2 * g, 2 * g + 2);
      return listwiseFromScores(part, {
        cuLists: Int32Array.of(0, 2),
        winners: lists.winners.subarray(g, g + 1),
      });
    });
    expect(listwiseFromScores(scores, lists).loss).toBeCloseTo((a.loss + b.loss) / 2, 14);
    const weighted = listwiseFromScores(scores, { ...lists, weights: Float64Array.of(3, 0) });
    expect(weighted.loss).toBeCloseTo(3 * a.loss, 14);
    expect(weighted.dScores.subarray(2).every((slope) => slope === 0)).toBe(true);
  });

  test('slopes sum to 0 and are those of central differences, for any list', () => {
    const list = fc.array(fc.double({ min: -5, max: 5, noNaN: true }), { minLength: 1, maxLength: 8 });
    fc.assert(
      fc.property(list, fc.nat(), fc.constantFrom(0.5, 1, 2), (values, pick, tau) => {
        const lists = {
          cuLists: Int32Array.of(0, values.length),
          winners: Int32Array.of(pick % values.length),
        };
        const at = (u: Float64Array) => listwiseFromScores(u, lists, { tau });
        const { loss, dScores } = at(Float64Array.from(values));
        expect(loss).toBeGreaterThanOrEqual(0);
        expect(Math.abs(dScores.reduce((a, b) => a + b, 0))).toBeLessThan(1e-14);
        const wanted = centralDifferences(Float64Array.from(values), (u) => at(u).loss);
        for (const [k, slope] of wanted.entries()) expect(Math.abs(dScores[k] - slope)).toBeLessThan(1e-8);
      }),
      numRuns(0.02),
    );
  });

  test('far apart scores do not overflow', () => {
    const far = Float64Array.of(-1e6, 1e6);
    const { loss, dScores } = listwiseFromScores(
      far,
      { cuLists: Int32Array.of(0, 2), winners: Int32Array.of(0) },
      { tau: 1 },
    );
    expect(loss).toBe(2e6);
    expect(dScores).toEqual(Float64Array.of(-1, 1));
  });

  test('refuses winners outside, empty lists, NaN and a temperature of 0', () => {
    expect(code(() => listwiseFromScores(scores, { ...one, winners: Int32Array.of(4) }))).toBe(
      'ERR_VARLEN_RANGE',
    );
    const empty = { cuLists: Int32Array.of(0, 0, 4), winners: Int32Array.of(0, 0) };
    expect(code(() => listwiseFromScores(scores, empty))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => listwiseFromScores(scores.with(1, NaN), one))).toBe('ERR_VARLEN_NON_FINITE');
    expect(code(() => listwiseFromScores(scores, one, { tau: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => listwiseFromScores(scores, { ...one, cuLists: Int32Array.of(0, 3) }))).toBe(
      'ERR_VARLEN_CU_SEQLENS',
    );
    expect(code(() => listwiseFromScores(scores, { ...one, weights: Float32Array.of(-1) }))).toBe(
      'ERR_VARLEN_RANGE',
    );
  });
});

describe('a list of packed answers', () => {
  const cuSeqlens = Int32Array.of(0, 2, 5, 6, 9);
  const lossMask = Uint8Array.of(1, 1, 1, 0, 1, 1, 1, 1, 1);
  const logprobs = Float64Array.from(normals(9, 5), (x) => -Math.abs(x));
  const refLogprobs = Float64Array.from(normals(9, 6), (x) => -Math.abs(x));
  const lists = { cuLists: Int32Array.of(0, 3, 4), winners: Int32Array.of(1, 0) };

  test.each([
    ['plain', {}],
    ['with a reference', { refLogprobs }],
  ])('%s has the gradient of central differences', (_, extra) => {
    for (const lengthNormalize of [false, true]) {
      const options = { tau: 1.5, beta: 0.7, lengthNormalize };
      const at = (values: Float64Array) =>
        listwiseLoss({ cuSeqlens, lossMask, logprobs: values, ...extra }, lists, options);
      const { dLogprobs } = at(logprobs);
      const wanted = centralDifferences(logprobs, (values) => at(values).loss);
      expectSlopes(dLogprobs, wanted);
      expect(dLogprobs[3]).toBe(0);
    }
  });

  test('of two answers is DPO', () => {
    const two = { cuSeqlens: Int32Array.of(0, 5, 9), logprobs, refLogprobs };
    const list = listwiseLoss(
      two,
      { cuLists: Int32Array.of(0, 2), winners: Int32Array.of(1) },
      { tau: 1, beta: 0.3 },
    );
    const pair = dpoLoss(two, { chosen: Int32Array.of(1), rejected: Int32Array.of(0) }, { beta: 0.3 });
    expect(list.loss).toBeCloseTo(pair.loss, 14);
    expect(list.dLogprobs[0]).toBeCloseTo(pair.dLogprobs[0], 7);
  });

  test('ignores masked garbage and refuses active garbage', () => {
    const spoiled = { cuSeqlens, lossMask, logprobs: logprobs.with(3, NaN) };
    expect(listwiseLoss(spoiled, lists)).toEqual(listwiseLoss({ cuSeqlens, lossMask, logprobs }, lists));
    expect(code(() => listwiseLoss({ cuSeqlens, logprobs: logprobs.with(3, NaN) }, lists))).toBe(
      'ERR_VARLEN_NON_FINITE',
    );
    expect(code(() => listwiseLoss({ cuSeqlens, logprobs }, lists, { beta: -1 }))).toBe('ERR_VARLEN_RANGE');
  });
});

describe('gumbelTopK', () => {
  test('draws in proportion to exp(score)', () => {
    const scores = Float64Array.of(Math.log(1), Math.log(2), Math.log(5));
    const first = [0, 0, 0];
    const draws = 20_000;
    for (let draw = 0; draw < draws; draw++) first[gumbelTopK(scores, 1, { seed: 4, draw })[0]] += 1;
    [1 / 8, 2 / 8, 5 / 8].forEach((p, i) => {
      // Four standard errors.
      expect(Math.abs(first[i] / draws - p)).toBeLessThan(4 * Math.sqrt((p * (1 - p)) / draws));
    });
  });

  test('draws without replacement: the second of two has its share of what is left', () => {
    const scores = Float64Array.of(0, Math.log(2), Math.log(3));
    const draws = 20_000;
    let hits = 0;
    for (let draw = 0; draw < draws; draw++) {
      const [a, b] = gumbelTopK(scores, 2, { seed: 8, draw });
      if (a === 2 && b === 1) hits += 1;
    }
    const p = (3 / 6) * (2 / 3);
    expect(Math.abs(hits / draws - p)).toBeLessThan(4 * Math.sqrt((p * (1 - p)) / draws));
  });

  test('gives k different indices that can be drawn, the same for the same seed', () => {
    const score = fc.oneof(fc.double({ min: -50, max: 50, noNaN: true }), fc.constant(-Infinity));
    fc.assert(
      fc.property(fc.array(score, { maxLength: 20 }), fc.nat(), fc.nat(), (list, part, seed) => {
        const scores = Float64Array.from(list);
        const drawable = list.filter((x) => x > -Infinity).length;
        const k = part % (drawable + 1);
        const drawn = gumbelTopK(scores, k, { seed });
        expect(new Set(drawn).size).toBe(k);
        expect([...drawn].every((i) => scores[i] > -Infinity)).toBe(true);
        expect(gumbelTopK(scores, k, { seed })).toEqual(drawn);
        expect(code(() => gumbelTopK(scores, drawable + 1, { seed }))).toBe('ERR_VARLEN_RANGE');
      }),
      numRuns(0.05),
    );
  });

  test('at a low temperature takes the best', () => {
    const scores = Float64Array.of(0.1, 0.4, 0.2, 0.3);
    expect(gumbelTopK(scores, 4, { seed: 1, temperature: 1e-6 })).toEqual(Int32Array.of(1, 3, 2, 0));
  });

  test('refuses NaN, infinity and half a draw', () => {
    expect(code(() => gumbelTopK(Float64Array.of(NaN), 1, { seed: 1 }))).toBe('ERR_VARLEN_NON_FINITE');
    expect(code(() => gumbelTopK(Float64Array.of(Infinity), 1, { seed: 1 }))).toBe('ERR_VARLEN_NON_FINITE');
    expect(code(() => gumbelTopK(Float64Array.of(1), 0.5, { seed: 1 }))).toBe('ERR_VARLEN_RANGE');
  });
});

describe('recommendationLoss', () => {
  const numItems = 12;
  const batch = {
    logits: Float64Array.from(normals(3 * numItems, 9)),
    labels: Int32Array.of(2, 11, 0),
    headItems: Int32Array.of(0, 1, 2, 3, 4, 5, 6),
  };
  const options = { seed: 7, step: 3 };

  test('of even scores is log(items) plus half of log(negatives + 1)', () => {
    const even = { ...batch, logits: new Float64Array(3 * numItems) };
    const { loss, dLogits } = recommendationLoss(even, numItems, options);
    expect(loss).toBeCloseTo(Math.log(12) + 0.5 * Math.log(6), 13);
    for (let row = 0; row < 3; row++) {
      const slopes = dLogits.subarray(row * numItems, (row + 1) * numItems);
      expect(Math.abs(slopes.reduce((a, b) => a + b, 0))).toBeLessThan(1e-6);
    }
  });

  test('draws head items other than the label, no item twice, others at another step', () => {
    const { negatives } = recommendationLoss(batch, numItems, options);
    expect(negatives).toHaveLength(15);
    for (let row = 0; row < 3; row++) {
      const drawn = [...negatives.subarray(5 * row, 5 * row + 5)];
      expect(new Set(drawn).size).toBe(5);
      expect(drawn.every((item) => batch.headItems.includes(item) && item !== batch.labels[row])).toBe(true);
    }
    expect(recommendationLoss(batch, numItems, options).negatives).toEqual(negatives);
    expect(recommendationLoss(batch, numItems, { ...options, step: 4 }).negatives).not.toEqual(negatives);
  });

  test('draws the items that the model favours, unless it follows the probabilities', () => {
    const sure = { ...batch, logits: new Float64Array(36).map((_, i) => (i % numItems < 2 ? 12 : 0)) };
    const hits = (drawBy: 'logit' | 'probability') => {
      let count = 0;
      for (let step = 0; step < 200; step++) {
        const { negatives } = recommendationLoss(sure, numItems, { seed: 1, step, negatives: 1, drawBy });
        if (negatives[1] < 2) count += 1; // row 1, whose label is no head item
      }
      return count;
    };
    expect(hits('logit')).toBe(200);
    // Each of the two has probability one half: e^0.5 against five times e^0, 40 % together, +- 5 errors.
    expect(Math.abs(hits('probability') - 79.5)).toBeLessThan(36);
  });

  test('weighs rows by a softmax of their tail scores', () => {
    // Row 1 has the only tail label.
    const { weights } = recommendationLoss(batch, numItems, options);
    expect(weights[1] / weights[0]).toBeCloseTo(Math.E, 14);
    expect(weights.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 14);
    const own = recommendationLoss({ ...batch, tailScores: Float64Array.of(0, 0, 1e4) }, numItems, options);
    expect(own.weights).toEqual(Float64Array.of(0, 0, 1));
    const heads = recommendationLoss({ ...batch, labels: Int32Array.of(0, 1, 2) }, numItems, options);
    expect(heads.weights).toEqual(new Float64Array(3).fill(1 / 3));
  });

  test.each(['probability', 'logit'] as const)('has the gradient of central differences by %s', (utility) => {
    // The draw is a constant of the derivative: a step small enough does not change it.
    const at = (logits: Float64Array) =>
      recommendationLoss({ ...batch, logits }, numItems, { ...options, utility, negatives: 5 });
    const { dLogits, negatives } = at(batch.logits);
    const wanted = centralDifferences(batch.logits, (logits) => {
      const result = at(logits);
      expect(result.negatives).toEqual(negatives);
      return result.loss;
    });
    expectSlopes(dLogits, wanted);
  });

  test('refuses ids that are no items, too few head items, and NaN', () => {
    const bad = (change: object, extra: object = {}) =>
      code(() => recommendationLoss({ ...batch, ...change }, numItems, { ...options, ...extra }));
    expect(bad({ labels: Int32Array.of(0, 12, 1) })).toBe('ERR_VARLEN_RANGE');
    expect(bad({ headItems: Int32Array.of(-1) })).toBe('ERR_VARLEN_RANGE');
    expect(bad({}, { negatives: 7 })).toBe('ERR_VARLEN_RANGE');
    expect(bad({ logits: batch.logits.with(4, NaN) })).toBe('ERR_VARLEN_NON_FINITE');
    expect(bad({ logits: batch.logits.subarray(1) })).toBe('ERR_VARLEN_SHAPE');
    expect(bad({}, { utility: 'rank' })).toBe('ERR_VARLEN_OPTION');
    expect(bad({ tailScores: Float64Array.of(0, NaN, 0) })).toBe('ERR_VARLEN_RANGE');
  });
});
