import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Aggregation,
  advantageReweighting,
  estimateAdvantages,
  type KlKind,
  loptiPasses,
  type PolicyLossConfig,
  planAggregation,
  planAggregationAcross,
  presets,
  type ResponseArrays,
} from '../../src/rl/index.js';
import {
  customSurrogate,
  type EquationScales,
  policyLossEquation,
  policyLossEquationGradient,
} from '../../src/testing/index.js';
import { thrown } from '../support/thrown.js';
import { batches, none, ppo, RULES, token } from './batches.js';
import { acrossRanks, resolved } from './ranks.js';
import * as e1 from './worked-example.js';

const tokenMean: Aggregation = { mode: 'token-mean' };

/** Group advantages of E1 in float64: the printed losses have nine digits. */
const grpoInFloat64 = Float64Array.of(
  0.5 / (Math.SQRT1_2 + 1e-6),
  -0.5 / (Math.SQRT1_2 + 1e-6),
  -0.25 / (Math.SQRT1_2 / 2 + 1e-6),
  0.25 / (Math.SQRT1_2 / 2 + 1e-6),
  0,
);

const batch: ResponseArrays = {
  cuSeqlens: e1.cuSeqlens,
  lossMask: e1.lossMask,
  logprobs: e1.logprobs,
  oldLogprobs: e1.oldLogprobs,
  refLogprobs: e1.refLogprobs,
  rolloutLogprobs: e1.rolloutLogprobs,
  advantages: grpoInFloat64,
};

function planOf(aggregation: Aggregation, of: ResponseArrays = batch): EquationScales {
  const lengths = of === batch ? e1.lengths : lengthsOf(of);
  const groupIds = of === batch ? e1.groupIds : new Int32Array(lengths.length);
  return planAggregation({ lengths, groupIds }, { aggregation });
}

function lengthsOf({ cuSeqlens, lossMask }: ResponseArrays): Int32Array {
  return Int32Array.from({ length: cuSeqlens.length - 1 }, (_, i) => {
    const span = lossMask?.slice(cuSeqlens[i], cuSeqlens[i + 1]);
    return span === undefined ? cuSeqlens[i + 1] - cuSeqlens[i] : span.filter((m) => m !== 0).length;
  });
}

/** Loss and gradient; scales are float32, which is worth 6e-8 of each. */
function evaluate(
  config: PolicyLossConfig,
  aggregation: Aggregation = tokenMean,
  of: ResponseArrays = batch,
): { loss: number; gradient: Float64Array; perTokenLoss: Float64Array } {
  const scales = planOf(aggregation, of);
  const { loss, perTokenLoss } = policyLossEquation(of, scales, config);
  return { loss, perTokenLoss, gradient: policyLossEquationGradient(of, scales, config) };
}

function expectNear(got: number, expected: number, tolerance: number): void {
  expect(Math.abs(got - expected), `${got} is not ${expected}`).toBeLessThanOrEqual(tolerance);
}

describe('worked example, PPO 0.2 / 0.28: loss and gradient of every aggregation', () => {
  const rows: [string, Aggregation, number, number[]][] = [
    [
      'token-mean',
      tokenMean,
      -0.010447844,
      [-0.0868303, -0.0643255, 0.0785673, 0.1295356, 0.0785673, -0.0825954, -0.0785672, -0.0476534],
    ],
    [
      'seq-mean-token-mean',
      { mode: 'seq-mean-token-mean' },
      0.029761338,
      [-0.0976841, -0.0723662, 0.0589255, 0.0971517, 0.0589255, -0.0619466, -0.0589254, -0.0357401],
    ],
    [
      'seq-mean-token-sum',
      { mode: 'seq-mean-token-sum' },
      -0.023507648,
      [-0.1953682, -0.1447323, 0.1767764, 0.2914551, 0.1767764, -0.1858397, -0.1767762, -0.1072202],
    ],
    [
      'norm C=8',
      { mode: 'seq-mean-token-sum-norm', normConstant: 8 },
      -0.002938456,
      [-0.024421, -0.0180915, 0.0220971, 0.0364319, 0.0220971, -0.02323, -0.022097, -0.0134025],
    ],
    [
      'delta-l alpha 0',
      { mode: 'delta-l', alpha: 0, normConstant: 8 },
      -0.002938456,
      [-0.024421, -0.0180915, 0.0220971, 0.0364319, 0.0220971, -0.02323, -0.022097, -0.0134025],
    ],
    [
      'group-mean-token-mean',
      { mode: 'group-mean-token-mean' },
      -0.042244572,
      [-0.0781473, -0.0578929, 0.0707106, 0.116582, 0.0707106, -0.0929199, -0.0883881, -0.0536101],
    ],
    [
      'delta-l alpha 0.75',
      { mode: 'delta-l', alpha: 0.75, normConstant: 8 },
      0.003244837,
      [-0.0234966, -0.0174067, 0.0156858, 0.0258616, 0.0156858, -0.01649, -0.0156858, -0.0095139],
    ],
    [
      'delta-l alpha 1',
      { mode: 'delta-l', alpha: 1, normConstant: 8 },
      0.006868001,
      [-0.0225425, -0.0166999, 0.0135982, 0.0224196, 0.0135982, -0.0142954, -0.0135982, -0.0082477],
    ],
  ];
  test.each(rows)('%s', (_name, aggregation, loss, entries) => {
    const got = evaluate({ ratio: token, clip: ppo }, aggregation);
    expectNear(got.loss, loss, 1e-8);
    [0, 1, 2, 3, 4, 6, 8, 9].forEach((t, k) => {
      expectNear(got.gradient[t], entries[k], 7e-8);
    });
    expect(got.gradient[5]).toBe(0); // clipped from below
    expect(got.gradient[7]).toBe(0); // masked
  });
});

describe('worked example, other objectives', () => {
  const seqMean: Aggregation = { mode: 'seq-mean-token-mean' };
  const sapo = { kind: 'sapo' } as const;
  const gspo = (level: 'sequence' | 'sequence-token') => ({ ratio: { level }, clip: ppo }) as const;
  const withKl = (kind: KlKind): PolicyLossConfig => ({ ratio: token, clip: ppo, kl: { kind, coef: 0.05 } });
  const seqs = (values: number[]): Record<number, number> =>
    Object.fromEntries(
      [
        [0, 0],
        [1, 0],
        [2, 1],
        [3, 1],
        [4, 1],
        [5, 2],
        [6, 3],
        [8, 3],
        [9, 3],
      ].map(([t, i]) => [t, values[i]]),
    );
  const rows: [string, PolicyLossConfig, Aggregation, number, Record<number, number>][] = [
    [
      'a ratio without clip',
      { ratio: token, clip: none },
      tokenMean,
      -0.047148854,
      { 0: -0.0868303, 5: 0.0261527 },
    ],
    [
      'REINFORCE',
      { ratio: { level: 'none' }, clip: none },
      tokenMean,
      0.019641677,
      { 0: -0.0785673, 2: 0.0785673, 5: 0.0785672, 9: -0.0785672 },
    ],
    [
      'dual c=1.5',
      { ratio: token, clip: { ...ppo, kind: 'dual', dualClip: 1.5 } },
      tokenMean,
      -0.022132474,
      { 0: -0.0868303, 3: 0, 5: 0 },
    ],
    [
      'two-sided 1.5',
      { ratio: token, clip: { ...ppo, kind: 'two-sided', delta: 1.5 } },
      tokenMean,
      -0.022132474,
      { 3: 0 },
    ],
    [
      'CISPO [0, 1.28]',
      { ratio: token, clip: { kind: 'cispo', low: 0, high: 1.28 } },
      tokenMean,
      -0.034769039,
      { 3: 0.1005662, 5: 0.0261527 },
    ],
    [
      'SAPO',
      { ratio: token, clip: sapo },
      tokenMean,
      -0.155909766,
      { 0: -0.0865906, 1: -0.0637999, 3: 0.1156002, 5: 0.0231898, 6: -0.0825412, 9: -0.0458556 },
    ],
    [
      'VESPO',
      { ratio: token, clip: { kind: 'vespo' } },
      tokenMean,
      0.129588063,
      seqs([-0.0855793, 0.0962081, 0.0110035, -0.0947337]),
    ],
    ['GSPO', gspo('sequence'), seqMean, 0.029950013, seqs([-0.0840775, 0.0696122, 0, -0.0507176])],
    [
      'GSPO-token',
      gspo('sequence-token'),
      seqMean,
      0.029950013,
      seqs([-0.0840775, 0.0696122, 0, -0.0507176]),
    ],
    [
      'GMPO',
      { ratio: { level: 'sequence' }, clip: { kind: 'gmpo', clipLow: 0.4, clipHigh: 0.4 } },
      seqMean,
      0.007025684,
      { 5: 0 },
    ],
    ['PPO + 0.05 k1', withKl('k1'), tokenMean, -0.014892288, { 5: 0.0055556 }],
    ['PPO + 0.05 k2', withKl('k2'), tokenMean, -0.008795066, { 5: -0.0033333 }],
    ['PPO + 0.05 k3', withKl('k3'), tokenMean, -0.008501664, { 5: -0.0045673 }],
    [
      'token TIS [0, 2]',
      { ratio: token, clip: ppo, rolloutCorrection: { mode: 'token-truncate' } },
      tokenMean,
      -0.015693077,
      {},
    ],
  ];
  test.each(rows)('%s', (_name, config, aggregation, loss, entries) => {
    const got = evaluate(config, aggregation);
    expectNear(got.loss, loss, 1.2e-8);
    for (const [t, slope] of Object.entries(entries)) expectNear(got.gradient[Number(t)], slope, 7e-8);
  });

  test('a straight-through KL has the value of its kind and the slope of k2', () => {
    for (const kind of ['k1', 'abs', 'k3'] as const) {
      const plain = evaluate(withKl(kind));
      const through = evaluate(withKl(`${kind}+`));
      expectNear(through.loss, plain.loss, 1e-15);
      const k2 = evaluate(withKl('k2')).gradient;
      through.gradient.forEach((slope, t) => {
        expectNear(slope, k2[t], 1e-11);
      });
    }
  });

  test('advantage reweighting', () => {
    const tokenWeights = advantageReweighting(batch);
    const weighted = evaluate({ ratio: token, clip: ppo }, tokenMean, { ...batch, tokenWeights });
    expectNear(weighted.loss, -0.021664007, 1e-8);
    expectNear(weighted.gradient[0], -0.0750773, 7e-8);
    expectNear(weighted.gradient[3], 0.0938648, 7e-8);
  });

  test('the two passes of Lopti add up to the unsplit loss', () => {
    const losses = loptiPasses(batch).map(
      (pass) => evaluate({ ratio: token, clip: ppo }, tokenMean, { ...batch, ...pass }).loss,
    );
    expectNear(losses[0], 0.096124016, 1.2e-8);
    expectNear(losses[1], -0.10657186, 1.2e-8);
    expectNear(losses[0] + losses[1], -0.010447844, 1e-8);
  });
});

/** A batch of one row per sequence from the values of other programs' tests. */
function rowsOf(
  rows: Partial<Record<'logprobs' | 'oldLogprobs' | 'refLogprobs' | 'rolloutLogprobs', number[][]>> & {
    logprobs: number[][];
  },
  advantages: number[][],
): ResponseArrays {
  const cuSeqlens = Int32Array.from([
    0,
    ...rows.logprobs.map((_, i) => rows.logprobs.slice(0, i + 1).flat().length),
  ]);
  const fields = Object.entries(rows).map(([name, values]) => [name, Float64Array.from(values.flat())]);
  return {
    cuSeqlens,
    ...Object.fromEntries(fields),
    advantages: Float64Array.from(advantages.flat()),
    advantagesPer: 'token',
  };
}

describe('values that public tests of other programs state', () => {
  const old = [-1, -1, -1];
  const logprobs = [0.5, 1, 1.5].map((ratio) => -1 + Math.log(ratio));
  const base = rowsOf({ logprobs: [logprobs], oldLogprobs: [old] }, [[1, -1, 2]]);
  const clip = { kind: 'ppo', clipLow: 0.2, clipHigh: 0.2 } as const;

  test('PPO on ratios 0.5, 1, 1.5', () => {
    const { perTokenLoss, loss } = evaluate({ ratio: token, clip }, tokenMean, base);
    [-0.5, 1, -2.4].forEach((value, t) => {
      expectNear(perTokenLoss[t], value, 1e-12);
    });
    expectNear(loss, -0.6333, 5e-5);
  });

  test('importance weights of the rollout, plain, truncated, and of the sequence', () => {
    const withRollout = { ...base, rolloutLogprobs: Float64Array.of(-0.5, -1.5, -0.8) };
    const loss = (level: 'token' | 'sequence', high: number): number =>
      evaluate(
        { ratio: { level }, clip, rolloutCorrection: { mode: `${level}-truncate`, high } },
        tokenMean,
        withRollout,
      ).loss;
    expectNear(loss('token', 100), -0.2065, 5e-5);
    expectNear(loss('token', 0.8), -0.4744, 5e-5);
    expectNear(loss('sequence', 0.8), -0.4846, 5e-5);
    const { perTokenLoss } = evaluate(
      { ratio: token, clip, rolloutCorrection: { mode: 'token-truncate', high: 0.8 } },
      tokenMean,
      withRollout,
    );
    [-0.3033, 0.8, -1.92].forEach((value, t) => {
      expectNear(perTokenLoss[t], value, 5e-5);
    });
  });

  test('GSPO on the same, and on two rows', () => {
    const one = evaluate({ ratio: { level: 'sequence' }, clip }, tokenMean, base);
    expectNear(one.loss, -0.6057, 5e-5);
    const two = rowsOf({ logprobs: [logprobs, logprobs], oldLogprobs: [old, [-2, -2, -2]] }, [
      [1, -1, 2],
      [1, -1, 2],
    ]);
    expectNear(evaluate({ ratio: { level: 'sequence' }, clip }, tokenMean, two).loss, -0.4912, 5e-5);
    // -A rho where nothing is clipped: the ratios themselves.
    const open = evaluate({ ratio: { level: 'sequence' }, clip: { kind: 'none' } }, tokenMean, two);
    expectNear(open.perTokenLoss[0], -0.9086, 5e-5);
    expectNear(open.perTokenLoss[3], -2.4697, 5e-5);
  });

  test('dual clip', () => {
    const at = (ratios: number[], advantages: number[]): ResponseArrays =>
      rowsOf({ logprobs: [ratios.map((ratio) => Math.log(ratio))], oldLogprobs: [ratios.map(() => 0)] }, [
        advantages,
      ]);
    const config = (dualClip: number): PolicyLossConfig => ({
      ratio: token,
      clip: { ...clip, kind: 'dual', dualClip },
    });
    const first = evaluate(config(3), tokenMean, at([0.5, 1, 10], [1, -1, -4]));
    [-0.5, 1, 12].forEach((value, t) => {
      expectNear(first.perTokenLoss[t], value, 1e-12);
    });
    expectNear(first.loss, 4.1667, 5e-5);
    const second = evaluate(config(1.5), tokenMean, at([2, 2, 0.5], [2, -2, 2]));
    [-2.4, 3, -1].forEach((value, t) => {
      expectNear(second.perTokenLoss[t], value, 1e-12);
    });
  });

  const klValues = (kind: KlKind, more: object, logprob = -1, refs = [0, -15, -30]): Float64Array => {
    const rows = rowsOf(
      { logprobs: [refs.map(() => logprob)], refLogprobs: [refs], oldLogprobs: [refs.map(() => logprob)] },
      [refs.map(() => 0)],
    );
    return evaluate(
      { ratio: token, clip: none, kl: { kind, coef: 1, inputClamp: 100, ...more } },
      { mode: 'token-sum' },
      rows,
    ).perTokenLoss;
  };

  test.each([
    ['k1', [-1, 14, 29]],
    ['k2', [0.5, 98, 420.5]],
    ['k3', [0.7183, 13, 28]],
  ] as const)('KL estimate %s', (kind, expected) => {
    klValues(kind, {}).forEach((value, t) => {
      expectNear(value, expected[t], 6e-5);
    });
    klValues(kind, { outputClamp: 10 }).forEach((value, t) => {
      expectNear(value, Math.min(expected[t], 10), 6e-5);
    });
  });

  test('a clamped KL has a value and no slope, also under a differentiable weight', () => {
    const rows = rowsOf({ logprobs: [[-3, -1]], refLogprobs: [[0, 0]], oldLogprobs: [[-3, -1]] }, [[0, 0]]);
    const at = (importance: 'none' | 'differentiable'): ReturnType<typeof evaluate> =>
      evaluate(
        { ratio: token, clip: none, kl: { kind: 'k3', coef: 1, inputClamp: 2, importance } },
        { mode: 'token-sum' },
        rows,
      );
    const plain = at('none');
    expectNear(plain.perTokenLoss[0], 4.389056, 5e-7);
    expect(plain.gradient[0]).toBe(0);
    const weighted = at('differentiable');
    expect(weighted.gradient[0]).toBe(0);
    expectNear(weighted.gradient[1], -1, 1e-9);
  });
});

const rule = fc.constantFrom(...RULES);

describe('properties of the equation', () => {
  test('a larger advantage scales the gradient, for every rule but dro', () => {
    const others = rule.filter(({ clip: { kind } }) => kind !== 'dro');
    fc.assert(
      fc.property(others, batches, fc.constantFrom(0.5, 2, 3), (config, one, factor) => {
        const scaled = { ...one, advantages: one.advantages!.map((a) => a * factor) };
        const gradient = evaluate(config, tokenMean, one).gradient;
        evaluate(config, tokenMean, scaled).gradient.forEach((slope, t) => {
          expectNear(slope, factor * gradient[t], 1e-8 * (1 + Math.abs(slope)));
        });
      }),
    );
  });

  test('at ratio 1 every rule of a ratio has gradient -A s', () => {
    const kinds = rule.filter(({ clip: { kind } }) => kind !== 'vespo' && kind !== 'dro');
    fc.assert(
      fc.property(kinds, batches, (config, one) => {
        const same = { ...one, logprobs: one.oldLogprobs! };
        const { seqScale } = planOf({ mode: 'seq-mean-token-mean' }, same);
        const { gradient } = evaluate(config, { mode: 'seq-mean-token-mean' }, same);
        for (let i = 0; i < seqScale.length; i++) {
          for (let t = one.cuSeqlens[i]; t < one.cuSeqlens[i + 1]; t++) {
            // The sigmoid of SAPO at 1 has the slope of the ratio itself.
            expectNear(gradient[t], -one.advantages![i] * seqScale[i], 1e-9);
          }
        }
      }),
    );
  });

  test('passes of Lopti sum to the unsplit gradient, token level', () => {
    const local = rule.filter(({ ratio, clip: { kind } }) => ratio.level !== 'sequence' && kind !== 'gmpo');
    fc.assert(
      fc.property(local, batches, fc.constantFrom(0.3, 0.2, -0.25), (config, one, eta) => {
        const withKl = { ...config, kl: { kind: 'k3', coef: 0.1 } } as const;
        const whole = evaluate(withKl, tokenMean, one).gradient;
        const [a, b] = loptiPasses(one, { eta }).map(
          (pass) => evaluate(withKl, tokenMean, { ...one, ...pass }).gradient,
        );
        whole.forEach((slope, t) => {
          expectNear(a[t] + b[t], slope, 1e-9);
        });
      }),
    );
  });

  test('an empty or fully masked sequence, and what stands at masked positions, change nothing', () => {
    fc.assert(
      fc.property(rule, batches, fc.constantFrom(Number.NaN, Infinity, -1e4, 1e4), (config, one, junk) => {
        const n = one.logprobs!.length;
        const longer = (values: ArrayLike<number>): Float64Array =>
          Float64Array.of(...Array.from(values), junk, junk);
        const padded: ResponseArrays = {
          cuSeqlens: Int32Array.of(...one.cuSeqlens, n, n + 2),
          lossMask: Uint8Array.from({ length: n + 2 }, (_, t) => (t < n ? 1 : 0)),
          logprobs: longer(one.logprobs!),
          oldLogprobs: longer(one.oldLogprobs!),
          refLogprobs: longer(one.refLogprobs!),
          rolloutLogprobs: longer(one.rolloutLogprobs!),
          advantages: Float64Array.of(...one.advantages!, 1, 1),
          advantagesPer: 'sequence',
        };
        const full: PolicyLossConfig = {
          ...config,
          kl: { kind: 'k3', coef: 0.1 },
          rolloutCorrection: { mode: 'token-truncate' },
        };
        const clean = evaluate(full, tokenMean, one);
        const dirty = evaluate(full, tokenMean, padded);
        expect(dirty.loss).toBe(clean.loss);
        expect([...dirty.gradient]).toEqual([...clean.gradient, 0, 0]);
      }),
    );
  });

  test('a surrogate of ones own gives the gradient that differences find', () => {
    const softplus = (x: number, a: number): readonly [number, number] => [
      -a * Math.log1p(Math.exp(x)),
      -a / (1 + Math.exp(-x)),
    ];
    fc.assert(
      fc.property(batches, fc.constantFrom('token' as const, 'sequence' as const), (one, level) => {
        const config = { ratio: { level }, kl: { kind: 'k3', coef: 0.1 } } as const;
        const scales = planOf(tokenMean, one);
        const got = customSurrogate(one, scales, softplus, config);
        one.logprobs!.forEach((_, t) => {
          const at = (offset: number): number => {
            const logprobs = Float64Array.from(one.logprobs!);
            logprobs[t] += offset;
            return customSurrogate({ ...one, logprobs }, scales, softplus, config).loss;
          };
          expectNear(got.dLogprobs[t], (at(1e-5) - at(-1e-5)) / 2e-5, 1e-9);
        });
      }),
      { numRuns: 30 },
    );
  });

  test('a surrogate of ones own that is a plain ratio is the rule without clip', () => {
    fc.assert(
      fc.property(batches, fc.constantFrom('token' as const, 'sequence' as const), (one, level) => {
        const plain = (x: number, a: number): readonly [number, number] => [
          -a * Math.exp(x),
          -a * Math.exp(x),
        ];
        const scales = planOf(tokenMean, one);
        const config = { ratio: { level }, rolloutCorrection: { mode: 'token-mask' } } as const;
        const got = customSurrogate(one, scales, plain, config);
        expectNear(got.loss, policyLossEquation(one, scales, { ...config, clip: none }).loss, 1e-14);
        const slopes = policyLossEquationGradient(one, scales, { ...config, clip: none });
        slopes.forEach((slope, t) => {
          expectNear(got.dLogprobs[t], slope, 1e-9);
        });
      }),
    );
  });
});

describe('one rank and one micro-batch, or three ranks and uneven micro-batches', () => {
  const rows = [3, 1, 4, 1, 5, 2, 6];
  const ends = Int32Array.from([0, ...rows.map((_, i) => rows.slice(0, i + 1).reduce((a, b) => a + b, 0))]);
  const total = ends[rows.length];
  const wave = (scale: number, shift: number): Float64Array =>
    Float64Array.from({ length: total }, (_, t) => -1 + scale * Math.sin(3 * t + shift));
  const whole: ResponseArrays = {
    cuSeqlens: ends,
    lossMask: Uint8Array.from({ length: total }, (_, t) => (t % 7 === 3 ? 0 : 1)),
    logprobs: wave(0.4, 0),
    oldLogprobs: wave(0.4, 0.4),
    refLogprobs: wave(0.3, 1),
    rolloutLogprobs: wave(0.41, 0.5),
    advantages: Float64Array.from(rows, (_, i) => Math.cos(i)),
    advantagesPer: 'sequence',
  };
  const lengths = lengthsOf(whole);
  const groupIds = Int32Array.from(rows, (_, i) => i % 2);

  /** Sequences `start .. end - 1` as a batch of their own. */
  function part(start: number, end: number): ResponseArrays {
    const [from, to] = [ends[start], ends[end]];
    const tokens = (values: Float64Array): Float64Array => values.slice(from, to);
    return {
      cuSeqlens: ends.slice(start, end + 1).map((offset) => offset - from),
      lossMask: whole.lossMask!.slice(from, to),
      logprobs: tokens(whole.logprobs as Float64Array),
      oldLogprobs: tokens(whole.oldLogprobs as Float64Array),
      refLogprobs: tokens(whole.refLogprobs as Float64Array),
      rolloutLogprobs: tokens(whole.rolloutLogprobs as Float64Array),
      advantages: whole.advantages!.slice(start, end),
      advantagesPer: 'sequence',
    };
  }

  /** Micro-batches of each rank, as ends of sequences; the second rank has none, one micro-batch is empty. */
  const ranks = [[0, 1, 1, 3], [3], [3, 5, 7]];
  const aggregations: Aggregation[] = [
    tokenMean,
    { mode: 'token-sum' },
    { mode: 'seq-mean-token-sum' },
    { mode: 'seq-mean-token-mean' },
    { mode: 'group-mean-token-mean' },
    { mode: 'seq-mean-token-sum-norm', normConstant: 8 },
    { mode: 'delta-l', alpha: 0.75, normConstant: 8 },
    { mode: 'inverse-variance', law: { kind: 'ar1', rho: 0.9 }, normConstant: 8 },
  ];
  const config: PolicyLossConfig = {
    ratio: { level: 'sequence' },
    clip: ppo,
    kl: { kind: 'k3', coef: 0.1 },
    rolloutCorrection: { mode: 'token-truncate' },
  };

  test.each(aggregations)('$mode', async (aggregation) => {
    const options = { aggregation, worldSize: 3, groupsAreLocal: false, numGroups: 2 } as const;
    for (const gradReduction of ['sum', 'mean'] as const) {
      const single = planAggregation({ lengths, groupIds }, { aggregation });
      const expected = policyLossEquation(whole, single, config);
      const gradient = policyLossEquationGradient(whole, single, config);
      const results = resolved(
        await acrossRanks(3, async (rank, allReduceSum) => {
          const cuts = ranks[rank];
          const [first, last] = [cuts[0], cuts[cuts.length - 1]];
          const input = { lengths: lengths.slice(first, last), groupIds: groupIds.slice(first, last) };
          const plan = await planAggregationAcross(input, { ...options, gradReduction }, allReduceSum);
          let loss = 0;
          const slopes: number[] = [];
          for (let k = 1; k < cuts.length; k++) {
            const micro = plan.slice(cuts[k - 1] - first, cuts[k] - first);
            loss += policyLossEquation(part(cuts[k - 1], cuts[k]), micro, config).loss;
            slopes.push(...policyLossEquationGradient(part(cuts[k - 1], cuts[k]), micro, config));
          }
          return { loss, slopes };
        }),
      );
      const divisor = gradReduction === 'mean' ? 3 : 1;
      const loss = results.reduce((sum, result) => sum + result.loss, 0) / divisor;
      const slopes = results.flatMap((result) => result.slopes);
      if (gradReduction === 'sum') {
        expect(slopes).toEqual([...gradient]);
        expectNear(loss, expected.loss, 1e-12 * Math.abs(expected.loss));
      } else {
        // Weights are rounded to float32 after the factor 3.
        slopes.forEach((slope, t) => {
          expectNear(slope / 3, gradient[t], 2 ** -23 * Math.abs(gradient[t]));
        });
        expectNear(
          loss,
          expected.loss,
          2 ** -22 * expected.perTokenLoss.reduce((sum, x) => sum + Math.abs(x), 0),
        );
      }
    }
  });
});

describe('what is refused', () => {
  const scales = planOf(tokenMean);
  test.each<[string, object, object, string]>([
    ['a plan for other lengths', { lossMask: undefined }, {}, 'ERR_VARLEN_PLAN_MISMATCH'],
    ['no old policy', { oldLogprobs: undefined }, {}, 'ERR_VARLEN_MISSING_INPUT'],
    [
      'no reference policy',
      { refLogprobs: undefined },
      { kl: { kind: 'k1', coef: 1 } },
      'ERR_VARLEN_MISSING_INPUT',
    ],
    [
      'no rollout policy',
      { rolloutLogprobs: undefined },
      { rolloutCorrection: { mode: 'token-mask' } },
      'ERR_VARLEN_MISSING_INPUT',
    ],
    [
      'a sequence ratio under CISPO',
      {},
      { ratio: { level: 'sequence' }, clip: { kind: 'cispo', low: 0, high: 1 } },
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ...['tv', 'kl'].map((form): [string, object, object, string] => [
      `a sequence ratio under DPPO-${form}`,
      {},
      { ratio: { level: 'sequence' }, clip: { kind: `dppo-${form}`, deltaLow: 0.1, deltaHigh: 0.1 } },
      'ERR_VARLEN_INCOMPATIBLE',
    ]),
    [
      'a sequence ratio under VESPO',
      {},
      { ratio: { level: 'sequence' }, clip: { kind: 'vespo' } },
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['a soft gate of temperature 0', {}, { clip: { kind: 'sapo', tauPositive: 0 } }, 'ERR_VARLEN_RANGE'],
    [
      'a lower bound of DPPO below 0',
      {},
      { clip: { kind: 'dppo-kl', deltaLow: -0.1, deltaHigh: 0.1 } },
      'ERR_VARLEN_RANGE',
    ],
    ['offsets that fall', { cuSeqlens: Int32Array.of(0, 2, 5, 4, 10, 10) }, {}, 'ERR_VARLEN_CU_SEQLENS'],
    ['offsets of another element type', { cuSeqlens: Float64Array.of(0, 10) }, {}, 'ERR_VARLEN_DTYPE'],
    [
      'a rollout of truncated support without its kept mass',
      { rolloutLogprobs: new Float64Array(10).fill(-1), rolloutSupport: 'truncated' },
      { rolloutCorrection: { mode: 'token-mask' } },
      'ERR_VARLEN_TRUNCATED_SUPPORT',
    ],
    [
      'advantages per token under GMPO',
      { advantages: new Float64Array(10) },
      { ratio: { level: 'sequence' }, clip: { kind: 'gmpo', clipLow: 0.4, clipHigh: 0.4 } },
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['advantages of another number', { advantages: new Float64Array(3) }, {}, 'ERR_VARLEN_SHAPE'],
  ])('%s', (_name, more, config, code) => {
    const bad = Object.fromEntries(
      Object.entries({ ...batch, ...more }).filter(([, value]) => value !== undefined),
    ) as unknown as ResponseArrays;
    const lossConfig = { ratio: token, clip: ppo, ...config } as PolicyLossConfig;
    expect(thrown(() => policyLossEquation(bad, scales, lossConfig))).toMatchObject({ code });
  });

  test('a surrogate that is no function, or a level without a ratio', () => {
    const call = (surrogate: unknown, level: string): unknown =>
      thrown(() => customSurrogate(batch, scales, surrogate as never, { ratio: { level } } as never));
    expect(call(1, 'token')).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
    expect(call(() => [0, 0], 'none')).toMatchObject({ code: 'ERR_VARLEN_INCOMPATIBLE' });
  });
});

test('recipes run end to end on the worked example', () => {
  const input = {
    rewards: e1.rewards,
    groupIds: e1.groupIds,
    cuSeqlens: e1.cuSeqlens,
    lossMask: e1.lossMask,
  };
  for (const [name, make] of Object.entries(presets)) {
    const { aggregation, config, advantages } = (
      make as (options: object) => ReturnType<typeof presets.grpo>
    )(name === 'drGrpo' || name === 'deltaL' ? { normConstant: 8 } : {});
    const { advantages: values, per } = estimateAdvantages(input, advantages);
    const full = { ...batch, advantages: values, advantagesPer: per };
    const plan = planAggregation({ lengths: e1.lengths, groupIds: e1.groupIds }, { aggregation });
    const { loss } = policyLossEquation(full, plan, config);
    const gradient = policyLossEquationGradient(full, plan, config);
    expect(Number.isFinite(loss), name).toBe(true);
    expect(
      gradient.some((slope) => slope !== 0),
      name,
    ).toBe(true);
    expect(gradient[7], name).toBe(0);
  }
});
