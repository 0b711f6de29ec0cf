import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type ClipRule,
  type KlKind,
  mergeStats,
  type PolicyLossConfig,
  type PolicyLossStats,
  planAggregation,
  policyLoss,
  policyLossBackward,
  type ResponseBatch,
  scope,
  Tensor,
  type VarlenError,
} from '../../src/index.js';
import { policyLossReference } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import { countTensors, expectRefused, read, taken, values, wrong } from '../support/ops.js';
import {
  batchOf,
  CLIPS,
  lengthsOf,
  nameOf,
  planOf,
  type Responses,
  RULES,
  randomResponses,
  rulesAtLevels,
  workedBatch,
} from '../support/policy-loss.js';
import { rejected } from '../support/thrown.js';

countTensors();

const ppo: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
};

/** Mulberry32. */
function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Within `relative` of the largest value that was added up: `term`, and the rest of `want`. */
function expectClose(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  relative: number,
  term: ArrayLike<number> = want,
): void {
  let largest = 0;
  for (let i = 0; i < want.length; i++) {
    largest = Math.max(largest, Math.abs(term[i]), Math.abs(want[i] - term[i]));
  }
  expect(got.length).toBe(want.length);
  for (let i = 0; i < want.length; i++) {
    expect(Math.abs(got[i] - want[i]), `element ${i}`).toBeLessThanOrEqual(relative * largest + 1e-12);
  }
}

describe('the worked batch', () => {
  const groupIds = Int32Array.of(0, 0, 1, 1, 1);
  const lengths = lengthsOf(workedBatch());

  test.each([
    [{ mode: 'token-mean' }, -0.010447844, -0.0868303],
    [{ mode: 'seq-mean-token-mean' }, 0.029761338, -0.0976841],
    [{ mode: 'seq-mean-token-sum' }, -0.023507648, -0.1953682],
    [{ mode: 'seq-mean-token-sum-norm', normConstant: 8 }, -0.002938456, -0.024421],
    [{ mode: 'group-mean-token-mean' }, -0.042244572, -0.0781473],
    [{ mode: 'delta-l', alpha: 0.75, normConstant: 8 }, 0.003244837, -0.0234966],
    [{ mode: 'delta-l', alpha: 1, normConstant: 8 }, 0.006868001, -0.0225425],
  ] as const)('gives its loss and gradient under %o', (aggregation, loss, first) => {
    scope(() => {
      const plan = planAggregation({ lengths, groupIds }, { aggregation });
      const out = policyLoss(batchOf(workedBatch(), ppo), plan, ppo);
      expect(read(out.loss)[0]).toBeCloseTo(loss, 7);
      const gradient = read(out.dLogprobs);
      expect(gradient[0]).toBeCloseTo(first, 6);
      expect([gradient[5], gradient[7]]).toEqual([0, 0]);
    });
  });

  test('gives its statistics', async () => {
    const responses = workedBatch();
    const batch = batchOf(responses, ppo);
    const groups = { groupIds, rewards: [1, 0, 0.5, 1, 0] };
    const out = policyLoss(batch, planOf(responses), ppo, { groups, zeroStdGroups: 3 });
    const stats = await out.stats.data();
    const near = (value: number) => expect.closeTo(value, 6);
    expect(stats).toMatchObject({
      loss: near(-0.010447844),
      approxKl: near(0.1277778),
      approxKl3: near(0.0792551),
      ratioMax: near(1.6487213),
      ratioMin: near(0.3328711),
      essFraction: near(0.8862201),
      lengthHarmonicMean: near(1.8461538),
      activeTokens: 9,
      activeSeqs: 4,
      lengthMin: 1,
      lengthMax: 3,
      lengthMean: 2.25,
      clipFracLow: near(1 / 9),
      clipFracHigh: 0,
      clipFracDual: 0,
      klLoss: 0,
      entropyBonus: 0,
      rolloutWeightMean: 1,
      rolloutWeightMax: 1,
      oobFraction: 0,
      droppedTokens: 0,
      zeroStdGroups: 3,
    });
    expect(stats.groups).toEqual([
      { groupId: 0, activeSeqs: 2, tokens: 5, meanLength: 2.5, meanReward: 0.5 },
      { groupId: 1, activeSeqs: 2, tokens: 4, meanLength: 2, meanReward: 0.75 },
    ]);
    out[Symbol.dispose]();
    for (const value of Object.values(batch)) if (value instanceof Tensor) value.dispose();
  });
});

const penalties: readonly (PolicyLossConfig['kl'] | undefined)[] = [
  undefined,
  ...(['k1', 'abs', 'k2', 'k3', 'k1+', 'abs+', 'k3+'] as KlKind[]).map((kind, i) => ({
    kind,
    coef: 0.2,
    importance: (['none', 'detached', 'differentiable'] as const)[i % 3],
  })),
  { kind: 'k3', coef: 0.2, inputClamp: 0.4, outputClamp: 0.06 },
];
const corrections: readonly (PolicyLossConfig['rolloutCorrection'] | undefined)[] = [
  undefined,
  { mode: 'token-truncate', low: 0.5 },
  { mode: 'token-mask', batchNormalize: true },
  { mode: 'sequence-truncate', batchNormalize: { mean: 1.3 } },
  { mode: 'sequence-mask' },
  { mode: 'sequence-geo-mask', low: 0.8, high: 1.2 },
  { mode: 'bypass' },
];

describe.each(RULES.map((rule) => [nameOf(rule), rule] as const))('%s', (_, rule) => {
  // phi = exp(lambda + k w - lambda e^w) raises what the sum w of up to 40 log ratios was rounded by
  // to k - lambda e^w times that: up to 25 before phi itself is nothing.
  const relative = rule.clip.kind === 'vespo' ? 1.6e-5 : 4e-6;

  test('agrees with the float64 reference for every penalty and correction', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(40), { minLength: 1, maxLength: 5 }),
        fc.nat(2 ** 31),
        fc.constantFrom(...penalties),
        fc.constantFrom(...corrections),
        (lengths, seed, kl, rolloutCorrection) => {
          scope(() => {
            const responses = randomResponses(lengths, seeded(seed));
            const withoutKl: PolicyLossConfig = {
              ...rule,
              ...(rolloutCorrection === undefined ? {} : { rolloutCorrection }),
            };
            const config: PolicyLossConfig = { ...withoutKl, ...(kl === undefined ? {} : { kl }) };
            const want = policyLossReference(responses, config);
            const surrogate = policyLossReference(responses, withoutKl);
            const batch = batchOf(responses, config);
            const out = policyLoss(batch, planOf(responses), config, { perTokenLoss: true });
            expectClose(read(out.dLogprobs), want.dLogprobs, relative, surrogate.dLogprobs);
            expectClose(read(out.perTokenLoss), want.perTokenLoss, relative, surrogate.perTokenLoss);
          });
        },
      ),
      { numRuns: 12 },
    );
  });

  test('gives the bits of the whole batch to its micro-batches, and statistics that merge to its own', () => {
    scope(() => {
      const responses = randomResponses([30, 0, 1100, 7, 16, 33], seeded(5));
      const config: PolicyLossConfig = { ...rule, kl: { kind: 'k3', coef: 0.1 } };
      const plan = planAggregation(
        { lengths: lengthsOf(responses) },
        { aggregation: { mode: 'token-mean' } },
      );
      responses.seqScale = Array.from(plan.seqScale);
      const whole = policyLoss(batchOf(responses, config), plan, config);
      const gradient = bitsOf(whole.dLogprobs);
      const parts: PolicyLossStats[] = [];
      for (const [start, end] of [
        [0, 2],
        [2, 3],
        [3, 6],
      ]) {
        const part = partOf(responses, start, end);
        const out = policyLoss(batchOf(part, config), plan.slice(start, end), config);
        const bytes = [responses.cuSeqlens[start] * 4, responses.cuSeqlens[end] * 4];
        expect(gradient.subarray(...bytes).equals(bitsOf(out.dLogprobs))).toBe(true);
        parts.push(out.stats.dataSync());
      }
      const merged = parts.reduce((a, b) => mergeStats(a, b));
      const all = whole.stats.dataSync();
      for (const [name, value] of Object.entries(all.sums)) {
        const got = merged.sums[name as keyof typeof merged.sums];
        expect(Math.abs(got - value), name).toBeLessThanOrEqual(1e-12 * (1 + Math.abs(value)));
      }
    });
  });

  test('gives no bit of what stands at masked positions away', () => {
    scope(() => {
      const responses = randomResponses([30, 5], seeded(6));
      const config: PolicyLossConfig = { ...rule, kl: { kind: 'k3', coef: 0.1 } };
      const plan = planOf(responses);
      const clean = bitsOf(policyLoss(batchOf(responses, config), plan, config).dLogprobs);
      for (const garbage of [Number.NaN, Infinity, -1e4]) {
        const dirty = structuredClone(responses);
        for (const [t, mask] of responses.lossMask.entries()) {
          if (mask === 1) continue;
          dirty.logprobs[t] = dirty.oldLogprobs[t] = dirty.refLogprobs[t] = garbage;
          dirty.tokenWeights[t] = garbage;
        }
        const got = policyLoss(batchOf(dirty, config), plan, config);
        expect(bitsOf(got.dLogprobs).equals(clean)).toBe(true);
      }
    });
  });
});

/** Sequences `start .. end - 1`. */
function partOf(all: Responses, start: number, end: number): Responses {
  const [first, last] = [all.cuSeqlens[start], all.cuSeqlens[end]];
  const tokens = (array: number[]): number[] => array.slice(first, last);
  return {
    cuSeqlens: all.cuSeqlens.slice(start, end + 1).map((offset) => offset - first),
    logprobs: tokens(all.logprobs),
    oldLogprobs: tokens(all.oldLogprobs),
    refLogprobs: tokens(all.refLogprobs),
    rolloutLogprobs: tokens(all.rolloutLogprobs),
    lossMask: tokens(all.lossMask),
    klMask: tokens(all.klMask),
    tokenWeights: tokens(all.tokenWeights),
    advantages: all.advantages.slice(start, end),
    seqScale: all.seqScale.slice(start, end),
  };
}

test('a surrogate of the caller stands in for a rule in the reference', () => {
  const responses = workedBatch();
  const plain = policyLossReference(responses, { ...ppo, clip: { kind: 'none' } });
  const own = policyLossReference(responses, ppo, (x, a) => [-a * Math.exp(x), -a * Math.exp(x)]);
  expect(own).toEqual(plain);
});

describe('backward', () => {
  test.each(['float32', 'bfloat16', 'float16'] as const)('brings the scaled gradient to %s', (dtype) => {
    scope(() => {
      const responses = workedBatch();
      const logprobs = Tensor.from(Float32Array.from(responses.logprobs), {
        dtype,
        device,
        requiresGrad: true,
      });
      const batch = { ...batchOf(responses, ppo), logprobs };
      const out = policyLoss(batch, planOf(responses), ppo);
      const want = read(out.dLogprobs).map((g) => 0.5 * g);
      const direct = policyLossBackward(out.saved, values([], 0.5));
      expect(direct.dtype).toBe(dtype);
      out.loss.backward(values([], 0.5));
      const got = read(taken(logprobs));
      expectClose(got, want, dtype === 'float32' ? 0 : 2 ** -8);
      expectClose(read(direct), got, 0);
    });
  });

  test('adds the gradients of two micro-batches up', () => {
    scope(() => {
      const responses = workedBatch();
      const whole = values([10], ...responses.logprobs);
      const logprobs = Tensor.from(Float32Array.from(responses.logprobs), { device, requiresGrad: true });
      const batch = { ...batchOf(responses, ppo), logprobs };
      for (let part = 0; part < 2; part++) policyLoss(batch, planOf(responses), ppo).loss.backward();
      const once = policyLoss({ ...batch, logprobs: whole }, planOf(responses), ppo);
      expectClose(
        read(taken(logprobs)),
        read(once.dLogprobs).map((g) => 2 * g),
        0,
      );
    });
  });
});

test('kept mass corrects a rollout whose support was cut off, as if its log-probabilities had been whole', () => {
  scope(() => {
    const responses = randomResponses([9, 4], seeded(8));
    const config: PolicyLossConfig = { ...ppo, rolloutCorrection: { mode: 'token-truncate', high: 3 } };
    const plan = planOf(responses);
    const whole = batchOf(responses, config);
    const kept = Float32Array.from({ length: 13 }, (_, t) => -0.0625 * (t % 4));
    const cut = read(whole.rolloutLogprobs).map((logprob, t) => logprob - kept[t]);
    const batch = {
      ...whole,
      rolloutLogprobs: Tensor.from(Float32Array.from(cut), { device }),
      rolloutSupport: 'truncated' as const,
      keptLogMass: Tensor.from(kept, { device }),
    };
    const want = read(policyLoss(whole, plan, config).dLogprobs);
    expectClose(read(policyLoss(batch, plan, { ...config, allowPositive: true }).dLogprobs), want, 1e-5);
  });
});

describe('refusals at the call', () => {
  const refused = (
    code: ConstructorParameters<typeof VarlenError>[0],
    argument: string,
    change: { batch?: object; config?: object; plan?: object; options?: object },
  ): void => {
    scope(() => {
      const responses = workedBatch();
      const config = { ...ppo, ...change.config } as PolicyLossConfig;
      const batch = { ...batchOf(responses, ppo), ...change.batch } as ResponseBatch;
      const plan = { ...planOf(responses), ...change.plan };
      const call = () => policyLoss(batch, plan, config, change.options as undefined);
      expectRefused(call, code, argument, 'policyLoss');
    });
  };
  const clip = (rule: ClipRule, level = 'token') => ({ config: { clip: rule, ratio: { level } } });

  test('of offsets, lengths and kinds', () => {
    const cu = (...offsets: number[]) => ({ batch: { cuSeqlens: Int32Array.from(offsets) } });
    refused('ERR_VARLEN_CU_SEQLENS', 'cuSeqlens', cu(0, 2, 5, 6, 10, 9));
    refused('ERR_VARLEN_CU_SEQLENS', 'cuSeqlens', cu(0, 2, 5, 6, 9, 9));
    refused('ERR_VARLEN_DTYPE', 'cuSeqlens', { batch: { cuSeqlens: new Float32Array(6) } });
    refused('ERR_VARLEN_SHAPE', 'advantages', { batch: { advantages: new Float32Array(4) } });
    refused('ERR_VARLEN_SHAPE', 'tokenWeights', { batch: { tokenWeights: new Float32Array(4) } });
    refused('ERR_VARLEN_SHAPE', 'groups.rewards', {
      options: { groups: { groupIds: new Int32Array(5), rewards: [] } },
    });
    scope(() => {
      refused('ERR_VARLEN_SHAPE', 'oldLogprobs', {
        batch: { oldLogprobs: values([9], ...new Array(9).fill(-1)) },
      });
      refused('ERR_VARLEN_DTYPE', 'lossMask', {
        batch: { lossMask: values([10], ...new Array(10).fill(1)) },
      });
    });
    refused('ERR_VARLEN_TYPE', 'logprobs', { batch: { logprobs: new Float32Array(10) } });
    refused('ERR_VARLEN_OPTION', 'losMask', { batch: { losMask: 1 } });
    refused('ERR_VARLEN_OPTION', 'perToken', { options: { perToken: true } });
    refused('ERR_VARLEN_OPTION', 'advantagesPer', { batch: { advantagesPer: 'group' } });
    refused('ERR_VARLEN_TYPE', 'plan.seqScale', { plan: { seqScale: [1] } });
    refused('ERR_VARLEN_TYPE', 'plan.lengthHash', { plan: { lengthHash: 'none' } });
    refused('ERR_VARLEN_PLAN_MISMATCH', 'plan', { plan: { seqScale: new Float32Array(4) } });
  });

  test('of inputs that are missing or would be ignored', () => {
    refused('ERR_VARLEN_MISSING_INPUT', 'oldLogprobs', { batch: { oldLogprobs: undefined } });
    refused('ERR_VARLEN_MISSING_INPUT', 'refLogprobs', { config: { kl: { kind: 'k3', coef: 0.1 } } });
    refused('ERR_VARLEN_MISSING_INPUT', 'rolloutLogprobs', {
      config: { rolloutCorrection: { mode: 'token-mask' } },
    });
    refused('ERR_VARLEN_INCOMPATIBLE', 'oldLogprobs', {
      config: { ratio: { level: 'token', onPolicy: true } },
    });
    scope(() => {
      const rolloutLogprobs = values([10], ...new Array(10).fill(-1));
      const batch = { rolloutLogprobs };
      refused('ERR_VARLEN_INCOMPATIBLE', 'oldLogprobs', {
        batch,
        config: { rolloutCorrection: { mode: 'bypass' } },
      });
      refused('ERR_VARLEN_TRUNCATED_SUPPORT', 'keptLogMass', {
        batch: { rolloutLogprobs, rolloutSupport: 'truncated' },
        config: { rolloutCorrection: { mode: 'token-mask' } },
      });
      refused('ERR_VARLEN_INCOMPATIBLE', 'keptLogMass', { batch: { keptLogMass: rolloutLogprobs } });
    });
  });

  test('of numbers out of range, with their path', () => {
    refused('ERR_VARLEN_RANGE', 'clip.clipLow', clip({ kind: 'ppo', clipLow: -0.1, clipHigh: 0.2 }));
    refused('ERR_VARLEN_RANGE', 'clip.clipLow', clip({ kind: 'ppo', clipLow: 1, clipHigh: 0.2 }));
    refused('ERR_VARLEN_RANGE', 'clip.clipHigh', clip({ kind: 'gmpo', clipLow: 0, clipHigh: Number.NaN }));
    refused(
      'ERR_VARLEN_RANGE',
      'clip.dualClip',
      clip({ kind: 'dual', clipLow: 0, clipHigh: 0, dualClip: 1 }),
    );
    refused(
      'ERR_VARLEN_RANGE',
      'clip.delta',
      clip({ kind: 'two-sided', clipLow: 0, clipHigh: 0.3, delta: 1.2 }),
    );
    refused('ERR_VARLEN_RANGE', 'clip.high', clip({ kind: 'cispo', low: 1, high: 0.5 }));
    refused('ERR_VARLEN_RANGE', 'clip.tauNegative', clip({ kind: 'sapo', tauNegative: 0 }));
    refused('ERR_VARLEN_RANGE', 'clip.cap', clip({ kind: 'dppo-tv', deltaLow: 0, deltaHigh: 0, cap: 0 }));
    refused('ERR_VARLEN_RANGE', 'clip.positive.k', clip({ kind: 'vespo', positive: { k: 0, lambda: 1 } }));
    refused('ERR_VARLEN_RANGE', 'clip.beta', clip({ kind: 'dro', beta: -1 }));
    refused('ERR_VARLEN_RANGE', 'ratio.logClamp', { config: { ratio: { level: 'token', logClamp: 0 } } });
    refused('ERR_VARLEN_RANGE', 'kl.coef', { config: { kl: { kind: 'k1', coef: -1 } } });
    refused('ERR_VARLEN_RANGE', 'rolloutCorrection.high', {
      config: { rolloutCorrection: { mode: 'token-mask', low: 2, high: 1 } },
    });
    refused('ERR_VARLEN_RANGE', 'rolloutCorrection.batchNormalize.mean', {
      config: { rolloutCorrection: { mode: 'token-mask', batchNormalize: { mean: 0 } } },
    });
    refused('ERR_VARLEN_RANGE', 'entropyScale', { batch: { entropyScale: -1 } });
  });

  test('of words and keys that are unknown, with their path', () => {
    refused('ERR_VARLEN_OPTION', 'clip.kind', clip(wrong({ kind: 'pop' })));
    refused('ERR_VARLEN_OPTION', 'clip.high', clip(wrong({ kind: 'ppo', clipLow: 0, clipHigh: 0, high: 1 })));
    refused('ERR_VARLEN_OPTION', 'ratio.level', { config: { ratio: { level: 'word' } } });
    refused('ERR_VARLEN_OPTION', 'kl.kind', { config: { kl: { kind: 'k4', coef: 1 } } });
    refused('ERR_VARLEN_OPTION', 'nonFinite', { config: { nonFinite: 'ignore' } });
    refused('ERR_VARLEN_OPTION', 'temperature', { config: { temperature: 1 } });
    refused('ERR_VARLEN_TYPE', 'clip', { config: { clip: null } });
    refused('ERR_VARLEN_TYPE', 'allowPositive', { config: { allowPositive: 1 } });
  });

  test('of choices that do not go together', () => {
    const undefinedPairs = rulesAtLevels(CLIPS, false);
    expect(undefinedPairs).toHaveLength(4 * CLIPS.length - RULES.length);
    for (const config of undefinedPairs) refused('ERR_VARLEN_INCOMPATIBLE', 'ratio.level', { config });
    refused('ERR_VARLEN_INCOMPATIBLE', 'entropy', { config: { entropy: { coef: 0.1 } } });
    refused('ERR_VARLEN_INCOMPATIBLE', 'advantages', {
      ...clip({ kind: 'gmpo', clipLow: 0.4, clipHigh: 0.4 }),
      batch: { advantages: new Float32Array(10), advantagesPer: 'token' },
    });
    refused('ERR_VARLEN_INCOMPATIBLE', 'rolloutCorrection.low', {
      config: { rolloutCorrection: { mode: 'bypass', low: 1 } },
    });
    refused('ERR_VARLEN_INCOMPATIBLE', 'advantages', {
      batch: {
        cuSeqlens: Int32Array.of(0, 2, 5, 6, 10, 10, 10, 10, 10, 10, 10),
        advantages: new Float32Array(10),
        advantagesPer: undefined,
      },
      plan: { seqScale: new Float32Array(10) },
    });
  });

  test('of weights on the host that are negative or NaN, when every token counts', () => {
    for (const bad of [-1, Number.NaN]) {
      const tokenWeights = new Float32Array(10).fill(1);
      tokenWeights[3] = bad;
      refused('ERR_VARLEN_WEIGHT', 'tokenWeights', { batch: { tokenWeights, lossMask: undefined } });
    }
  });
});

describe('refusals at the read', () => {
  const codeAtRead = async (
    change: (responses: Responses) => void,
    config: PolicyLossConfig = ppo,
    batch: object = {},
  ): Promise<VarlenError> => {
    const responses = workedBatch();
    change(responses);
    const given = { ...batchOf(responses, config), ...batch };
    const out = policyLoss(given, planOf(workedBatch()), config, { perTokenLoss: true });
    const errors = await Promise.all(
      [out.loss.data(), out.dLogprobs.data(), out.perTokenLoss!.data(), out.stats.data()].map(rejected),
    );
    out[Symbol.dispose]();
    for (const value of Object.values(given)) if (value instanceof Tensor) value.dispose();
    for (const error of errors) expect(error).toMatchObject({ code: (errors[0] as VarlenError).code });
    return errors[0] as VarlenError;
  };

  test('of values that are not finite, with their number and place', async () => {
    const error = await codeAtRead((r) => {
      r.logprobs[3] = Number.NaN;
      r.oldLogprobs[9] = -Infinity;
      r.logprobs[7] = Number.NaN; // masked
    });
    expect(error).toMatchObject({ code: 'ERR_VARLEN_NON_FINITE', details: { count: 2, firstIndex: 3 } });
  });

  test('of a missing rollout log-probability, where that was asked', async () => {
    const config: PolicyLossConfig = { ...ppo, rolloutCorrection: { mode: 'token-mask', missing: 'error' } };
    const error = await codeAtRead((r) => {
      r.rolloutLogprobs[2] = Number.NaN;
    }, config);
    expect(error).toMatchObject({
      code: 'ERR_VARLEN_NON_FINITE',
      details: { argument: 'rolloutLogprobs', firstIndex: 2 },
    });
  });

  test('of positive log-probabilities, weights below zero and lengths of another plan', async () => {
    const positive = await codeAtRead((r) => {
      r.logprobs[2] = 123;
    });
    expect(positive.code).toBe('ERR_VARLEN_LOGPROB_POSITIVE');
    const weight = await codeAtRead((r) => {
      r.tokenWeights[4] = -1;
    });
    expect(weight).toMatchObject({ code: 'ERR_VARLEN_WEIGHT', details: { firstIndex: 4 } });
    const plan = await codeAtRead((r) => {
      r.lossMask[0] = 0;
    });
    expect(plan.code).toBe('ERR_VARLEN_PLAN_MISMATCH');
  });

  test('of offsets in a tensor', async () => {
    const cuSeqlens = Tensor.from(Int32Array.of(0, 2, 5, 6, 10, 9), { device });
    const error = await codeAtRead(() => {}, ppo, { cuSeqlens });
    expect(error.code).toBe('ERR_VARLEN_CU_SEQLENS');
  });
});

test('a batch without sequences, tokens or active tokens has loss zero and statistics of zeros', () => {
  scope(() => {
    for (const lengths of [[], [0, 0], [3, 2]]) {
      const responses = randomResponses(lengths, seeded(1));
      responses.lossMask.fill(0);
      const out = policyLoss(batchOf(responses, ppo), planOf(responses), ppo);
      expect(read(out.loss)).toEqual([0]);
      expect(read(out.dLogprobs)).toEqual(responses.logprobs.map(() => 0));
      const { sums, ...stats } = out.stats.dataSync();
      expect(sums.activeTokens).toBe(0);
      for (const [name, value] of Object.entries(stats))
        expect(Object.is(value, 0) || value === 0, name).toBe(true);
    }
  });
});

test('results go into tensors that the caller brings', () => {
  scope(() => {
    const responses = workedBatch();
    const batch = batchOf(responses, ppo);
    const plan = planOf(responses);
    const want = policyLoss(batch, plan, ppo, { perTokenLoss: true, sequenceLosses: true });
    const loss = Tensor.empty([], { dtype: 'float32', device });
    const dLogprobs = Tensor.empty([10], { dtype: 'float32', device });
    const out = policyLoss(batch, plan, ppo, { out: { loss, dLogprobs } });
    expect(out.loss).toBe(loss);
    expect(bitsOf(dLogprobs)).toEqual(bitsOf(want.dLogprobs));
    expect(read(loss)).toEqual(read(want.loss));
    const perToken = read(want.perTokenLoss);
    expect(read(want.sequenceLosses)[0]).toBeCloseTo(perToken[0] + perToken[1], 6);
    expect(Array.from(want.sequenceTokens!.dataSync() as Int32Array)).toEqual([2, 3, 1, 3, 0]);
  });
});
