import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  advantageReweighting,
  clipCovMask,
  composeTokenWeights,
  klCovMask,
  loptiPasses,
  lowProbabilityMask,
  offPolicySequenceMask,
  type ResponseArrays,
  topEntropyMask,
  topEntropyMaskAcross,
} from '../../../src/rl/index.js';
import { thrown } from '../../support/thrown.js';
import { acrossRanks, resolved } from '../ranks.js';
import * as e1 from '../worked-example.js';

const i32 = (...values: number[]): Int32Array => Int32Array.from(values);
const f64 = (...values: number[]): Float64Array => Float64Array.from(values);
const batch: ResponseArrays = e1;

describe('advantage reweighting', () => {
  test('the worked example', () => {
    const expected = [
      0.864643, 0.810364, 0.971451, 0.724625, 0.848976, 0.901096, 0.911406, 0, 0.985369, 0.740601,
    ];
    const weights = advantageReweighting(batch);
    expected.forEach((value, t) => {
      expect(Math.abs(weights[t] - value)).toBeLessThan(6e-7);
    });
  });

  test('a factor for negative advantages', () => {
    const advantages = f64(1, -1, 0, 1, 1);
    const plain = advantageReweighting(batch);
    const weights = advantageReweighting({ ...batch, advantages }, { negativeFactor: 0.5 });
    for (let t = 0; t < 10; t++) expect(weights[t]).toBeCloseTo(plain[t] * (t >= 2 && t < 5 ? 0.5 : 1), 6);
  });

  test('alpha 0 leaves every active token at 1', () => {
    expect([...advantageReweighting(batch, { alpha: 0 })]).toEqual([...e1.lossMask]);
  });
});

describe('lopti', () => {
  const tokens = (mask: ArrayLike<number>): number[] =>
    Array.from(mask, (value, t) => (value === 0 ? -1 : t)).filter((t) => t >= 0);

  test('the worked example: unlikely tokens first, and masked ones in neither pass', () => {
    const [first, second] = loptiPasses(batch);
    expect(tokens(first.tokenWeights)).toEqual([1, 3, 4, 9]);
    expect(tokens(second.tokenWeights)).toEqual([0, 2, 5, 6, 8]);
    expect(tokens(first.klMask)).toEqual([1, 3, 4, 9]);
    expect(tokens(second.klMask)).toEqual([0, 2, 5, 6, 8]);
  });

  test('a negative threshold reverses the order', () => {
    const [first, second] = loptiPasses(batch, { eta: 0.5 });
    expect(loptiPasses(batch, { eta: -0.5 })).toEqual([second, first]);
  });

  test('weights that are there already are split with their tokens', () => {
    const tokenWeights = advantageReweighting(batch);
    const [first, second] = loptiPasses({ ...batch, tokenWeights });
    for (let t = 0; t < 10; t++) {
      expect(first.tokenWeights[t] + second.tokenWeights[t]).toBe(tokenWeights[t]);
      expect(first.tokenWeights[t] * second.tokenWeights[t]).toBe(0);
    }
  });

  test('a KL mask that is there already is split too', () => {
    const klMask = Uint8Array.of(1, 0, 1, 0, 1, 1, 1, 1, 1, 1);
    const [first, second] = loptiPasses({ ...batch, klMask });
    expect(tokens(first.klMask)).toEqual([4, 9]);
    expect(tokens(second.klMask)).toEqual([0, 2, 5, 6, 8]);
  });

  test('a portion splits at a quantile of the active probabilities', () => {
    // Nine active tokens; a third of the way from the lowest to the highest lies between the 3rd and 4th.
    const [first] = loptiPasses(batch, { portion: 1 / 3 });
    expect(tokens(first.tokenWeights)).toEqual([1, 3, 9]);
    const [all] = loptiPasses(batch, { portion: 1 });
    expect(tokens(all.tokenWeights)).toEqual([0, 1, 2, 3, 4, 5, 6, 9]); // all below the maximum
  });

  test('every active token is in exactly one pass', () => {
    const cases = fc.array(fc.double({ min: -8, max: 0, noNaN: true }), { minLength: 1, maxLength: 20 });
    const where = fc.oneof(
      fc.record({ eta: fc.double({ min: 0.01, max: 1, noNaN: true }) }),
      fc.record({ portion: fc.double({ min: 0.01, max: 1, noNaN: true }) }),
    );
    fc.assert(
      fc.property(cases, where, (old, options) => {
        const one = { cuSeqlens: i32(0, old.length), oldLogprobs: Float64Array.from(old) };
        const [a, b] = loptiPasses(one, options);
        a.tokenWeights.forEach((weight, t) => {
          expect(weight + b.tokenWeights[t]).toBe(1);
        });
        const least = (mask: Float32Array): number[] => old.filter((_, t) => mask[t] === 1);
        const top = Math.max(...least(a.tokenWeights), -Infinity);
        expect(
          least(b.tokenWeights).every((value) => Math.fround(Math.exp(value)) >= Math.fround(Math.exp(top))),
        ).toBe(true);
      }),
    );
  });
});

describe('top entropy', () => {
  const entropies = f64(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2);
  const lossMask = Uint8Array.from(entropies, (_, t) => (t < 10 ? 1 : 0));
  const rows = { cuSeqlens: i32(0, 6, 12), lossMask, entropies };
  const kept = (threshold: number, of: ResponseArrays = rows): number[] =>
    [...topEntropyMask(of, { threshold })].map((value, t) => value * (t + 1)).filter((t) => t > 0);

  test('the values that a public test states', () => {
    expect(kept(0.8)).toEqual([9, 10]);
    expect(kept(0.5)).toEqual([6, 7, 8, 9, 10]);
    expect(kept(0)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(kept(1)).toEqual([10]);
    expect(kept(0.5, { ...rows, lossMask: new Uint8Array(12) })).toEqual([]);
  });

  test('the quantile is that of a sorted list, negative values and ties included', () => {
    const values = fc.array(fc.oneof(fc.float({ noNaN: true, min: -4, max: 4 }), fc.constantFrom(0, -0, 1)), {
      minLength: 1,
      maxLength: 30,
    });
    fc.assert(
      fc.property(values, fc.double({ min: 0, max: 1, noNaN: true }), (list, threshold) => {
        const sorted = [...list].sort((a, b) => a - b);
        const place = threshold * (list.length - 1);
        const [below, above] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
        const least = below + (above - below) * (place - Math.floor(place));
        const got = topEntropyMask(
          { cuSeqlens: i32(0, list.length), entropies: f64(...list) },
          { threshold },
        );
        expect([...got]).toEqual(list.map((value) => (value >= least ? 1 : 0)));
      }),
    );
  });

  test('ranks share one quantile, also one without tokens', async () => {
    const parts = [
      rows,
      { cuSeqlens: i32(0), entropies: f64() },
      { cuSeqlens: i32(0, 3), entropies: f64(0.95, 0.05, 2) },
    ];
    const joined = {
      cuSeqlens: i32(0, 15),
      lossMask: Uint8Array.of(...lossMask, 1, 1, 1),
      entropies: f64(...entropies, 0.95, 0.05, 2),
    };
    const masks = resolved(
      await acrossRanks(3, (rank, allReduceSum) =>
        topEntropyMaskAcross(parts[rank], { threshold: 0.8 }, allReduceSum),
      ),
    );
    expect(masks.flatMap((mask) => [...mask])).toEqual([...topEntropyMask(joined, { threshold: 0.8 })]);
  });

  test('bad input on one rank ends the wait of the others', async () => {
    const results = await acrossRanks(2, (rank, allReduceSum) =>
      topEntropyMaskAcross(rank === 0 ? rows : { cuSeqlens: i32(0, 1) }, { threshold: 0.5 }, allReduceSum),
    );
    const codes = results.map((result) => result.status === 'rejected' && result.reason.code);
    expect(codes).toEqual(['ERR_VARLEN_PEER_ABORTED', 'ERR_VARLEN_MISSING_INPUT']);
  });
});

describe('masks of tokens and sequences', () => {
  test('unlikely tokens go alone, or take their answer along', () => {
    const one = { cuSeqlens: i32(0, 2, 4), oldLogprobs: f64(-5, -5.01, -0.1, -0.2) };
    expect([...lowProbabilityMask(one)]).toEqual([1, 0, 1, 1]);
    expect([...lowProbabilityMask(one, { level: 'sequence' })]).toEqual([0, 0, 1, 1]);
    expect([...lowProbabilityMask(one, { threshold: -0.15 })]).toEqual([0, 0, 1, 0]);
    const masked = { ...one, lossMask: Uint8Array.of(1, 0, 1, 1) };
    expect([...lowProbabilityMask(masked, { level: 'sequence' })]).toEqual([1, 0, 1, 1]);
  });

  test('a bad answer that the policy has left is dropped: the values that a public test states', () => {
    const one: ResponseArrays = {
      cuSeqlens: i32(0, 1, 2, 4),
      logprobs: f64(-3, -3, -3, -3),
      rolloutLogprobs: f64(-1, -2.5, -2, 0),
      advantages: f64(1, -1, -1),
    };
    expect([...offPolicySequenceMask(one, { delta: 1 })]).toEqual([1, 1, 0, 0]);
    const unreported = { ...one, rolloutLogprobs: f64(-1, -2.5, Number.NaN, -2.5) };
    expect([...offPolicySequenceMask(unreported, { delta: 1 })]).toEqual([1, 1, 1, 1]);
  });

  const covariant: ResponseArrays = {
    cuSeqlens: i32(0, 2, 4, 8),
    lossMask: Uint8Array.of(1, 1, 1, 1, 1, 1, 1, 0),
    logprobs: f64(-0.1, -4, -0.2, -3, -1, -2, -0.5, 99),
    advantages: f64(3, -3, 0),
  };

  test('KL-Cov takes the largest covariances', () => {
    expect([...klCovMask(covariant, { share: 0.3 })]).toEqual(
      [0, 0, 0, 1, 0, 0, 0, 0].map((_, t) => (t === 0 || t === 3 ? 1 : 0)),
    );
    expect(klCovMask(covariant).reduce((a, b) => a + b, 0)).toBe(1); // at least one
    expect(klCovMask(covariant, { share: 0 }).every((value) => value === 0)).toBe(true);
  });

  test('Clip-Cov drops as many as asked among its candidates, decided by the seed', () => {
    const masks = [0, 1, 2, 3, 4, 5].map((seed) => [
      ...clipCovMask(covariant, { seed, low: 1, high: 9, share: 0.2 }),
    ]);
    for (const mask of masks) {
      expect(mask[7]).toBe(0); // masked
      const dropped = [0, 1, 2, 3, 4, 5, 6].filter((t) => mask[t] === 0);
      expect(dropped.length).toBe(1);
      expect([0, 3]).toContain(dropped[0]);
    }
    expect(new Set(masks.map(String)).size).toBe(2);
    expect([...clipCovMask(covariant, { seed: 2, low: 1, high: 9, share: 0.2 })]).toEqual(masks[2]);
    expect([...clipCovMask(covariant, { seed: 0, low: 100, high: 200 })]).toEqual([...covariant.lossMask!]);
  });

  test('weights multiply', () => {
    const product = composeTokenWeights(Float32Array.of(0.5, 2, 3), Uint8Array.of(1, 0, 1), f64(1, 1, 0.5));
    expect([...product]).toEqual([0.5, 0, 1.5]);
    expect([...composeTokenWeights(Float32Array.of(0.1))]).toEqual([Math.fround(0.1)]);
  });
});

describe('what is refused', () => {
  const old = { cuSeqlens: i32(0, 2), oldLogprobs: f64(-1, -2) };
  const cov = { cuSeqlens: i32(0, 2), logprobs: f64(-1, -2), advantages: f64(1) };
  const nan = { ...old, oldLogprobs: f64(-1, Number.NaN) };
  test.each<[string, () => unknown, string]>([
    ['alpha above 1', () => advantageReweighting(old, { alpha: 1.1 }), 'ERR_VARLEN_RANGE'],
    ['no old policy', () => advantageReweighting({ cuSeqlens: i32(0, 2) }), 'ERR_VARLEN_MISSING_INPUT'],
    [
      'a factor without advantages',
      () => advantageReweighting(old, { negativeFactor: 2 }),
      'ERR_VARLEN_MISSING_INPUT',
    ],
    ['NaN at an active token', () => advantageReweighting(nan), 'ERR_VARLEN_NON_FINITE'],
    [
      'an old policy of another length',
      () => loptiPasses({ ...old, oldLogprobs: f64(-1) }),
      'ERR_VARLEN_SHAPE',
    ],
    ['a threshold of 0', () => loptiPasses(old, { eta: 0 }), 'ERR_VARLEN_RANGE'],
    ['a threshold above 1', () => loptiPasses(old, { eta: 1.5 }), 'ERR_VARLEN_RANGE'],
    [
      'two ways to split',
      () => loptiPasses(old, { eta: 0.5, portion: 0.5 } as never),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['NaN under lopti', () => loptiPasses(nan), 'ERR_VARLEN_NON_FINITE'],
    ['no threshold', () => topEntropyMask(old, {} as never), 'ERR_VARLEN_TYPE'],
    ['a quantile above 1', () => topEntropyMask(old, { threshold: 1.5 }), 'ERR_VARLEN_RANGE'],
    ['no entropies', () => topEntropyMask(old, { threshold: 0.5 }), 'ERR_VARLEN_MISSING_INPUT'],
    ['an unknown level', () => lowProbabilityMask(old, { level: 'word' as never }), 'ERR_VARLEN_OPTION'],
    ['a positive threshold', () => lowProbabilityMask(old, { threshold: 1 }), 'ERR_VARLEN_RANGE'],
    ['no delta', () => offPolicySequenceMask(cov, {} as never), 'ERR_VARLEN_TYPE'],
    [
      'advantages per token',
      () =>
        offPolicySequenceMask({ ...cov, rolloutLogprobs: f64(-1, -1), advantages: f64(1, 1) }, { delta: 1 }),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['no seed', () => clipCovMask(cov, {} as never), 'ERR_VARLEN_RANGE'],
    ['a share above 1', () => klCovMask(cov, { share: 2 }), 'ERR_VARLEN_RANGE'],
    [
      'advantages that could be either',
      () => klCovMask({ cuSeqlens: i32(0, 0, 2), logprobs: f64(-1, -2), advantages: f64(1, 2) }),
      'ERR_VARLEN_MISSING_INPUT',
    ],
    ['no weights', () => composeTokenWeights(), 'ERR_VARLEN_MISSING_INPUT'],
    [
      'weights of two lengths',
      () => composeTokenWeights(Float32Array.of(1), Float32Array.of(1, 1)),
      'ERR_VARLEN_SHAPE',
    ],
    ['a negative weight', () => composeTokenWeights(Float32Array.of(-1)), 'ERR_VARLEN_WEIGHT'],
    ['a weight that is NaN', () => composeTokenWeights(Float32Array.of(Number.NaN)), 'ERR_VARLEN_WEIGHT'],
    ['a plain array of weights', () => composeTokenWeights([1] as never), 'ERR_VARLEN_TYPE'],
  ])('%s', (_name, call, code) => {
    expect(thrown(call)).toMatchObject({ code });
  });
});
