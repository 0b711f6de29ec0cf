import { describe, expect, test } from 'vitest';
import {
  type PolicyLossConfig,
  policyLoss,
  policyLossFromLogits,
  policyLossFromLogitsBackward,
  scope,
  Tensor,
} from '../../src/index.js';
import { policyLossFromLogitsReference } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
} from '../support/ops.js';
import { batchWithout, nameOf, planOf, type Responses, RULES, workedBatch } from '../support/policy-loss.js';

countTensors();

const OP = 'policyLossFromLogits';
const VOCAB = 11;
const targets = Int32Array.of(3, 0, 10, 5, 5, 1, 2, 9, 4, 7);
const bonus = { coef: 0.2 };
const config: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.5, clipHigh: 0.5 },
  kl: { kind: 'k3', coef: 0.1 },
  entropy: bonus,
};

/** The worked batch with log-probabilities near those of the random logits. */
function responses(): Responses {
  const batch = workedBatch();
  for (const [t, old] of batch.oldLogprobs.entries()) {
    batch.oldLogprobs[t] = Math.fround(-2.4 + 0.3 * old);
    batch.refLogprobs[t] = Math.fround(-2.3 + 0.2 * old);
  }
  return batch;
}

function closest(got: readonly number[], want: ArrayLike<number>, relative: number): void {
  const largest = Array.from(want).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  expect(got.length).toBe(want.length);
  got.forEach((value, i) => {
    expect(Math.abs(value - want[i]), `element ${i}`).toBeLessThanOrEqual(relative * largest);
  });
}

test('uniform logits have the log-probability and entropy of a uniform choice', () => {
  scope(() => {
    const batch = { logits: values([2, 4], 5, 5, 5, 5, -9, -9, -9, -9), targetIds: Int32Array.of(1, 2) };
    const plain: PolicyLossConfig = { ratio: { level: 'none' }, clip: { kind: 'none' } };
    const one = { ...workedBatch(), cuSeqlens: [0, 2], lossMask: [1, 1], seqScale: [0.5] };
    const out = policyLossFromLogits(
      { ...batch, cuSeqlens: Int32Array.of(0, 2), advantages: Float32Array.of(1), advantagesPer: 'sequence' },
      planOf(one),
      plain,
      { entropies: true, sumSquares: true },
    );
    expect(read(out.logprobs)).toEqual([-Math.log(4), -Math.log(4)].map(Math.fround));
    for (const entropy of read(out.entropies)) expect(entropy).toBeCloseTo(Math.log(4), 6);
    expect(read(out.sumSquares)).toEqual([0.25, 0.25]);
    expect(read(out.loss)[0]).toBeCloseTo(Math.log(4), 6);
    const gradient = read(policyLossFromLogitsBackward(out.saved, values([], 1)));
    [0.125, -0.375, 0.125, 0.125, 0.125, 0.125, -0.375, 0.125].forEach((want, i) => {
      expect(gradient[i]).toBeCloseTo(want, 6);
    });
  });
});

describe.each(['float32', 'bfloat16', 'float16'] as const)('%s logits', (dtype) => {
  test('agree with the float64 reference, forward and backward, for every rule', () => {
    for (const rule of RULES) {
      scope(() => {
        const own = { ...config, ...rule };
        const logits = random([10, VOCAB], 3, dtype);
        const batch = responses();
        const plan = planOf(batch);
        const want = policyLossFromLogitsReference(
          { ...batch, logits: read(logits), targetIds: targets, vocabSize: VOCAB },
          own,
          { temperature: 0.8, entropyScale: plan.entropyScale },
        );
        const given = { ...batchWithout(batch, own), logits, targetIds: targets };
        const out = policyLossFromLogits(given, plan, own, { temperature: 0.8 });
        closest(read(out.logprobs), want.logprobs, 1e-6);
        closest(read(out.entropies!), want.entropies, 2e-6);
        closest(read(out.dLogprobs), want.dLogprobs, 4e-6);
        expect(Math.abs(read(out.loss)[0] - want.loss), nameOf(rule)).toBeLessThan(2e-6 * 4);
        const dLogits = policyLossFromLogitsBackward(out.saved, values([], 1));
        expect(dLogits.dtype).toBe(dtype);
        closest(read(dLogits), want.dLogits, dtype === 'float32' ? 4e-6 : 2 ** -8);
      });
    }
  });
});

test('the loss has the bits of policyLoss on its own log-probabilities', () => {
  scope(() => {
    const batch = responses();
    const { entropy: _, ...own } = config;
    const rest = batchWithout(batch, own);
    const given = { ...rest, logits: random([10, VOCAB], 4), targetIds: targets };
    const fused = policyLossFromLogits(given, planOf(batch), own);
    const composed = policyLoss({ ...rest, logprobs: fused.logprobs }, planOf(batch), own);
    expect(bitsOf(fused.dLogprobs)).toEqual(bitsOf(composed.dLogprobs));
    expect(fused.stats.dataSync()).toEqual(composed.stats.dataSync());
  });
});

test('backward of the tape, of the twin and in place give the same bits, and rows that add up to zero', () => {
  scope(() => {
    const batch = responses();
    const detached = random([10, VOCAB], 5);
    const logits = Tensor.from(detached.dataSync(), { shape: [10, VOCAB], device, requiresGrad: true });
    const rest = { ...batchWithout(batch, config), targetIds: targets };
    const tracked = policyLossFromLogits({ ...rest, logits }, planOf(batch), config);
    tracked.loss.backward(values([], 0.5));
    const byTape = taken(logits);
    const plain = policyLossFromLogits({ ...rest, logits: detached }, planOf(batch), config);
    const twin = policyLossFromLogitsBackward(plain.saved, values([], 0.5));
    expect(bitsOf(twin)).toEqual(bitsOf(byTape));
    const place = policyLossFromLogitsBackward(plain.saved, values([], 0.5), { dLogits: detached });
    expect(place).toBe(detached);
    expect(bitsOf(detached)).toEqual(bitsOf(byTape));
    const gradient = read(twin);
    for (let t = 0; t < 10; t++) {
      const row = gradient.slice(t * VOCAB, (t + 1) * VOCAB);
      expect(Math.abs(row.reduce((a, b) => a + b, 0))).toBeLessThan(1e-7);
    }
    expect(gradient.slice(7 * VOCAB, 8 * VOCAB)).toEqual(new Array(VOCAB).fill(0)); // masked
    const overwrite = () => policyLossFromLogitsBackward(tracked.saved, values([], 1), { dLogits: logits });
    expectRefused(() => scope(overwrite), 'ERR_VARLEN_INCOMPATIBLE', 'dLogits', `${OP}Backward`);
  });
});

test('rows that are apart are read where they are', () => {
  scope(() => {
    const batch = responses();
    const wide = random([10, VOCAB + 3], 6);
    const logits = wide.slice(1, 1, VOCAB + 1);
    const rest = { ...batchWithout(batch, config), targetIds: targets };
    const apart = policyLossFromLogits({ ...rest, logits }, planOf(batch), config);
    const copy = Tensor.from(Float32Array.from(read(logits)), { shape: [10, VOCAB], device });
    const dense = policyLossFromLogits({ ...rest, logits: copy }, planOf(batch), config);
    expect(bitsOf(apart.dLogprobs)).toEqual(bitsOf(dense.dLogprobs));
    const one = values([], 1);
    expect(bitsOf(policyLossFromLogitsBackward(apart.saved, one))).toEqual(
      bitsOf(policyLossFromLogitsBackward(dense.saved, one)),
    );
  });
});

test('every number of threads gives the same bits', () => {
  expectSameOnThreads(() => {
    const batch = responses();
    const given = { ...batchWithout(batch, config), logits: random([10, 5000], 7), targetIds: targets };
    const out = policyLossFromLogits(given, planOf(batch), config);
    return [out.loss, out.dLogprobs, out.logprobs, policyLossFromLogitsBackward(out.saved, values([], 1))];
  });
});

describe('refusals', () => {
  const call = (change: object, options?: object): ReturnType<typeof policyLossFromLogits> => {
    const batch = responses();
    const given = { ...batchWithout(batch, config), logits: random([10, VOCAB], 8), targetIds: targets };
    return policyLossFromLogits({ ...given, ...change }, planOf(batch), config, options);
  };

  test('at the call', () => {
    const refused = (
      code: Parameters<typeof expectRefused>[1],
      argument: string,
      change: object,
      options?: object,
    ): void => expectRefused(() => scope(() => call(change, options)), code, argument, OP);
    refused('ERR_VARLEN_RANGE', 'temperature', {}, { temperature: 0 });
    refused('ERR_VARLEN_RANGE', 'temperature', {}, { temperature: Number.NaN });
    refused('ERR_VARLEN_SHAPE', 'targetIds', { targetIds: new Int32Array(9) });
    refused('ERR_VARLEN_DTYPE', 'targetIds', { targetIds: new Float32Array(10) });
    refused('ERR_VARLEN_TYPE', 'logits', { logits: new Float32Array(10) });
    refused('ERR_VARLEN_OPTION', 'logprobs', { logprobs: 1 });
    refused('ERR_VARLEN_INDEX', 'targetIds', {
      targetIds: new Int32Array(10).fill(VOCAB),
      lossMask: undefined,
    });
  });

  test('at the read, of a target outside the vocabulary on an active row alone', async () => {
    for (const onDevice of [false, true]) {
      const ids = targets.slice();
      ids[7] = -5; // masked
      const wrap = () => (onDevice ? Tensor.from(ids, { device }) : ids);
      scope(() => {
        expect(Number.isFinite(read(call({ targetIds: wrap() }).loss)[0])).toBe(true);
      });
      ids[2] = VOCAB;
      const loss = scope(() => call({ targetIds: wrap() }).loss);
      await expectLate(loss, 'ERR_VARLEN_INDEX', OP);
    }
  });
});
