import { describe, expect, test } from 'vitest';
import {
  type HiddenBatch,
  lengthHash,
  type PolicyLossConfig,
  type PolicyLossFromHiddenOptions,
  policyLossFromHidden,
  type SequenceScales,
  scope,
  Tensor,
} from '../../src/index.js';
import { gradCheck, policyLossFromHiddenReference } from '../../src/testing/index.js';
import { device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

const OP = 'policyLossFromHidden';

function planOf(lengths: number[], seqScale: number[], activeTokens = 3): SequenceScales {
  return {
    seqScale: Float32Array.from(seqScale),
    lengthHash: lengthHash(lengths),
    entropyScale: 1 / activeTokens,
  };
}

const PPO: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
};

/** Example E2 of rl-objectives: three sequences of one token, V = 4, D = 2. */
function exampleE2() {
  const leaf = (shape: number[], ...data: number[]) =>
    Tensor.from(Float32Array.from(data), { shape, device, requiresGrad: true });
  return {
    hidden: leaf([3, 2], 1, 0.5, -0.5, 1, 0.25, -1),
    weight: leaf([4, 2], 0.2, -0.1, 0.4, 0.3, -0.3, 0.5, 0.1, 0),
    bias: leaf([4], 0, 0.1, -0.1, 0.05),
    targetIds: Int32Array.of(1, 2, 0),
    cuSeqlens: Int32Array.of(0, 1, 2, 3),
    oldLogprobs: values([3], -1.2, -1.1, -1.3),
    advantages: Float32Array.of(1, -0.5, 0.5),
  };
}
const E2_PLAN = planOf([1, 1, 1], [0.5, 0.5, 0.25]);

function expectClose(got: readonly number[], want: readonly number[], tolerance = 2e-7): void {
  expect(got).toHaveLength(want.length);
  for (const [i, value] of want.entries()) {
    expect(Math.abs(got[i] - value), `${i}: ${got[i]} for ${value}`).toBeLessThanOrEqual(tolerance);
  }
}

test('policyLossFromHidden gives the numbers of example E2', async () => {
  const batch = exampleE2();
  const out = policyLossFromHidden(
    batch,
    E2_PLAN,
    { ...PPO, entropy: { coef: 0.01 } },
    { temperature: 0.8, perTokenLoss: true, sumSquares: true },
  );
  out.loss.backward();
  expectClose(read(out.logprobs), [-0.89134303, -0.93219783, -1.09817452]);
  expectClose(read(out.entropies), [1.31660355, 1.3240343, 1.32550526]);
  expectClose(read(out.dLogprobs), [0, 0.29567565, -0.15295431]);
  expectClose(read(out.loss), [-0.51049913]);
  const gradients = [batch.hidden, batch.weight, batch.bias].map(({ grad }) => read(grad));
  expectClose(gradients[0], [0.00034425, 0.00005562, -0.12382411, 0.08990139, -0.00767795, 0.03784775]);
  expectClose(
    gradients[1],
    [-0.00329672, 0.06969579, 0.05936342, -0.14019036, -0.10714367, 0.20221628, 0.05107697, -0.13172171],
  );
  expectClose(gradients[2], [-0.18463183, -0.04670622, 0.2467069, -0.01536884]);
  const stats = await out.stats.data();
  expect(stats.activeTokens).toBe(3);
  expect(stats.clipFracHigh).toBeCloseTo(1 / 3, 12);
  expect(stats.loss).toBeCloseTo(-0.51049913, 6);
  expect(stats.ratioMax).toBeCloseTo(1.36159522, 6);
  expect(stats.ratioMin).toBeCloseTo(1.18270261, 6);
  expect(stats.ratioMean).toBeCloseTo((1.36159522 + 1.18270261 + 1.22363445) / 3, 6);
  expect(stats.entropy).toBeCloseTo((1.31660355 + 1.3240343 + 1.32550526) / 3, 6);
  // p of the first row, squared and summed.
  const z = [0.1875, 0.8125, -0.1875, 0.1875]; // (h W^T + b) / 0.8
  const sum = z.reduce((s, x) => s + Math.exp(x), 0);
  expect(read(out.sumSquares)[0]).toBeCloseTo(
    z.reduce((s, x) => s + (Math.exp(x) / sum) ** 2, 0),
    6,
  );
  out[Symbol.dispose]();
  for (const tensor of [batch.hidden, batch.weight, batch.bias]) {
    tensor.grad?.dispose();
    tensor.dispose();
  }
  batch.oldLogprobs.dispose();
});

test('policyLossFromHidden agrees with the float64 reference, a softcap and gradients included', () => {
  scope(() => {
    const batch = exampleE2();
    const lossMask = Tensor.from(Uint8Array.of(1, 0, 1), { device });
    const plan = planOf([1, 0, 1], [0.5, 0, 0.25], 2);
    const config: PolicyLossConfig = { ...PPO, entropy: { coef: 0.1 } };
    const options = { temperature: 0.8, softcap: 1.5 };
    const out = policyLossFromHidden({ ...batch, lossMask }, plan, config, options);
    out.loss.backward();
    const want = policyLossFromHiddenReference(
      {
        ...batch,
        hidden: read(batch.hidden),
        weight: read(batch.weight),
        bias: read(batch.bias),
        oldLogprobs: read(batch.oldLogprobs),
        lossMask: Uint8Array.of(1, 0, 1),
        seqScale: plan.seqScale,
        vocabSize: 4,
      },
      config,
      { ...options, entropyScale: plan.entropyScale },
    );
    expectClose(read(out.loss), [want.loss]);
    expectClose(read(taken(batch.hidden)), Array.from(want.dHidden));
    expectClose(read(taken(batch.weight)), Array.from(want.dWeight));
    expectClose(read(taken(batch.bias)), Array.from(want.dBias));
  });
});

test('policyLossFromHidden keeps digits of a log-probability near 0 that the logits have lost', () => {
  scope(() => {
    const batch = {
      hidden: values([1, 1], 1),
      weight: values([2, 1], 112, 100), // a float32 near 112 has steps of 8e-6
      targetIds: Int32Array.of(0),
      cuSeqlens: Int32Array.of(0, 1),
      oldLogprobs: values([1], -1e-3),
      advantages: Float32Array.of(1),
    };
    const [logprob] = read(policyLossFromHidden(batch, planOf([1], [1], 1), PPO).logprobs);
    expect(Math.abs(logprob / -Math.log1p(Math.exp(-12)) - 1)).toBeLessThan(0.02);
  });
});

/** Random sequences of these lengths, every fourth token masked. */
function randomBatch(
  lengths: number[],
  size: number,
  vocab: number,
): { batch: HiddenBatch; plan: SequenceScales } {
  const tokens = lengths.reduce((sum, n) => sum + n, 0);
  const bits = Uint8Array.from({ length: tokens }, (_, t) => (t % 4 === 2 ? 0 : 1));
  const cuSeqlens = new Int32Array(lengths.length + 1);
  for (const [i, n] of lengths.entries()) cuSeqlens[i + 1] = cuSeqlens[i] + n;
  const active = lengths.map((_, i) =>
    bits.subarray(cuSeqlens[i], cuSeqlens[i + 1]).reduce((a, b) => a + b, 0),
  );
  const batch = {
    hidden: random([tokens, size], 1),
    weight: random([vocab, size], 2, 'float32', size ** -0.5),
    targetIds: Int32Array.from({ length: tokens }, (_, t) => (t * 7919) % vocab),
    cuSeqlens,
    oldLogprobs: Tensor.from(new Float32Array(tokens).fill(-Math.log(vocab)), { device }),
    lossMask: Tensor.from(bits, { device }),
    advantages: Float32Array.from(lengths, (_, i) => (i % 2 === 0 ? 1 : -0.5)),
    advantagesPer: 'sequence' as const,
  };
  return {
    batch,
    plan: planOf(
      active,
      lengths.map((_, i) => 0.1 + 0.02 * i),
      tokens,
    ),
  };
}

test('policyLossFromHidden agrees with differences in the hidden states, the head and its outputs', () => {
  scope(() => {
    const { batch, plan } = randomBatch([5, 3], 4, 9);
    const config: PolicyLossConfig = {
      ratio: { level: 'token' },
      clip: { kind: 'none' },
      entropy: { coef: 0.5 },
    };
    for (const part of ['loss', 'logprobs', 'entropies'] as const) {
      const fn = (hidden: Tensor, weight: Tensor) =>
        policyLossFromHidden({ ...batch, hidden, weight }, plan, config, { temperature: 0.7, softcap: 4 })[
          part
        ];
      expect(gradCheck(fn, [batch.hidden, batch.weight]), part).toBeLessThan(1e-3);
    }
  });
});

test('policyLossFromHidden gives the same bits on any number of threads', () => {
  scope(() => {
    const { batch, plan } = randomBatch([150, 0, 90], 24, 300);
    expectSameOnThreads(() => {
      const leaves = [batch.hidden, batch.weight].map((t) =>
        Tensor.from(t.dataSync(), { shape: t.shape, device, requiresGrad: true }),
      );
      const [hidden, weight] = leaves;
      const out = policyLossFromHidden({ ...batch, hidden, weight }, plan, {
        ...PPO,
        entropy: { coef: 0.01 },
      });
      out.loss.backward();
      return [out.loss, out.logprobs, out.entropies, out.dLogprobs, ...leaves.map(taken)];
    });
  });
});

/** Gradients of a policy over 1200 words of which most are as good as impossible. CPU: the kernel that has it. */
function sharpGradients(tileFilter: number): { hidden: Float32Array; weight: Float32Array; coef: number } {
  return scope(() => {
    const [tokens, size, words] = [120, 24, 1200];
    const leaf = (shape: number[], seed: number, scale: number) =>
      Tensor.from(random(shape, seed, 'float32', scale).dataSync(), {
        shape,
        device: 'cpu',
        requiresGrad: true,
      });
    const hidden = leaf([tokens, size], 1, 1);
    const weight = leaf([words, size], 2, size ** -0.5);
    const bias = Tensor.from(
      Float32Array.from({ length: words }, (_, v) => (v < 200 ? 0 : -30)),
      { device: 'cpu' },
    );
    const batch: HiddenBatch = {
      hidden,
      weight,
      bias,
      targetIds: Int32Array.from({ length: tokens }, (_, t) => (t * 7919) % 200),
      cuSeqlens: Int32Array.of(0, 70, tokens),
      advantages: Float32Array.of(1, -0.5),
    };
    const config: PolicyLossConfig = { ratio: { level: 'none' }, clip: { kind: 'none' } };
    const out = policyLossFromHidden(batch, planOf([70, 50], [0.1, 0.12]), config, { tileFilter });
    out.loss.backward();
    return {
      hidden: taken(hidden).dataSync() as Float32Array,
      weight: taken(weight).dataSync() as Float32Array,
      coef: Math.max(...read(out.dLogprobs).map(Math.abs)),
    };
  });
}

test('policyLossFromHidden leaves small tiles of the gradient out when told to', () => {
  const exact = sharpGradients(0);
  for (const tileFilter of [2 ** -12, 2 ** -6]) {
    const filtered = sharpGradients(tileFilter);
    expect(filtered.weight).not.toEqual(exact.weight);
    // Each of 120 tokens and of 1200 words moves a sum by less than this, times a value below 4 or 1.
    const limit = tileFilter * exact.coef;
    const moved = (a: Float32Array, b: Float32Array) =>
      a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i])), 0);
    expect(moved(filtered.weight, exact.weight)).toBeLessThan(limit * 120 * 4);
    expect(moved(filtered.hidden, exact.hidden)).toBeLessThan(limit * 1200 * 1);
  }
  // A threshold that nothing is below changes no bit.
  expect(sharpGradients(1e-30)).toEqual(exact);
});

test('policyLossFromHidden leaves the weight’s gradient out when told to', () => {
  const batch = exampleE2();
  const out = policyLossFromHidden(batch, E2_PLAN, PPO, { weightGrad: false });
  out.loss.backward();
  expect(batch.weight.grad).toBeNull();
  expect(batch.hidden.grad).not.toBeNull();
  out[Symbol.dispose]();
  for (const tensor of [batch.hidden, batch.weight, batch.bias]) {
    tensor.grad?.dispose();
    tensor.dispose();
  }
  batch.oldLogprobs.dispose();
});

describe('policyLossFromHidden refuses', () => {
  const refused = (
    change: Partial<Record<keyof HiddenBatch, unknown>>,
    config: PolicyLossConfig,
    options: PolicyLossFromHiddenOptions,
    code: Parameters<typeof expectRefused>[1],
    argument: string,
  ) => {
    const batch = exampleE2();
    expectRefused(
      () => policyLossFromHidden(wrong({ ...batch, ...change }), E2_PLAN, config, options),
      code,
      argument,
      OP,
    );
    for (const tensor of [batch.hidden, batch.weight, batch.bias, batch.oldLogprobs]) tensor.dispose();
  };

  test('what does not fit together', () => {
    refused({}, PPO, { temperature: 0 }, 'ERR_VARLEN_RANGE', 'temperature');
    refused({}, PPO, { softcap: Number.NaN }, 'ERR_VARLEN_RANGE', 'softcap');
    refused({}, PPO, wrong({ weightgrad: false }), 'ERR_VARLEN_OPTION', 'weightgrad');
    refused({}, PPO, wrong({ weightGrad: 1 }), 'ERR_VARLEN_TYPE', 'weightGrad');
    refused({}, PPO, wrong({ tileFilter: true }), 'ERR_VARLEN_TYPE', 'tileFilter');
    refused({}, PPO, { tileFilter: -1 }, 'ERR_VARLEN_RANGE', 'tileFilter');
    refused({}, PPO, { tileFilter: 1 }, 'ERR_VARLEN_RANGE', 'tileFilter');
    refused({}, PPO, { tileFilter: Number.NaN }, 'ERR_VARLEN_RANGE', 'tileFilter');
    refused({ oldLogprobs: undefined }, PPO, {}, 'ERR_VARLEN_MISSING_INPUT', 'oldLogprobs');
    refused({ targetIds: Int32Array.of(0) }, PPO, {}, 'ERR_VARLEN_SHAPE', 'targetIds');
    refused({ cuSeqlens: Int32Array.of(0, 1, 2, 4) }, PPO, {}, 'ERR_VARLEN_CU_SEQLENS', 'cuSeqlens');
    refused({ hidden: null }, PPO, {}, 'ERR_VARLEN_TYPE', 'hidden');
    refused({ advantagesPer: 'row' }, PPO, {}, 'ERR_VARLEN_OPTION', 'advantagesPer');
    refused({ rolloutSupport: 'half' }, PPO, {}, 'ERR_VARLEN_OPTION', 'rolloutSupport');
    const corrected: PolicyLossConfig = { ...PPO, rolloutCorrection: { mode: 'token-truncate' } };
    refused({ rolloutSupport: 'truncated' }, corrected, {}, 'ERR_VARLEN_TRUNCATED_SUPPORT', 'keptLogMass');
    refused({ rolloutLogprobs: undefined }, corrected, {}, 'ERR_VARLEN_MISSING_INPUT', 'rolloutLogprobs');
  });

  test('at the read: a target outside the vocabulary, a hidden state without numbers, another plan', async () => {
    const late = async (change: object, plan: SequenceScales, code: Parameters<typeof expectLate>[1]) => {
      const batch = { ...exampleE2(), ...change };
      const out = policyLossFromHidden(batch, plan, PPO);
      await expectLate(out.loss, code, OP);
      out[Symbol.dispose]();
      for (const tensor of [batch.hidden, batch.weight, batch.bias, batch.oldLogprobs]) tensor.dispose();
    };
    await late({ targetIds: Int32Array.of(1, 4, 0) }, E2_PLAN, 'ERR_VARLEN_INDEX');
    await late({ targetIds: Int32Array.of(1, -1, 0) }, E2_PLAN, 'ERR_VARLEN_INDEX');
    await late({}, planOf([1, 2, 1], [0.5, 0.5, 0.25]), 'ERR_VARLEN_PLAN_MISMATCH');
    const nan = exampleE2();
    nan.hidden.dispose();
    const hidden = values([3, 2], 1, 0.5, Number.NaN, 1, 0.25, -1);
    const out = policyLossFromHidden({ ...nan, hidden }, E2_PLAN, PPO);
    await expectLate(out.loss, 'ERR_VARLEN_NON_FINITE', OP);
    out[Symbol.dispose]();
    for (const tensor of [hidden, nan.weight, nan.bias, nan.oldLogprobs]) tensor.dispose();
  });
});
