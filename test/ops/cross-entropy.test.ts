import { describe, expect, test } from 'vitest';
import { crossEntropy, type DType, scope, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
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
  wrong,
} from '../support/ops.js';

countTensors();

const OP = 'crossEntropy';
const ids = (...targets: number[]) => Int32Array.from(targets);
const mask = (...bits: number[]) => Tensor.from(Uint8Array.from(bits), { device });

function expectClose(got: readonly number[], want: readonly number[], tolerance = 1e-6): void {
  expect(got).toHaveLength(want.length);
  for (const [i, value] of want.entries()) expect(Math.abs(got[i] - value)).toBeLessThanOrEqual(tolerance);
}

test('crossEntropy of logits log(1), log(2), log(5) is minus the log of the shares', () => {
  scope(() => {
    const row = [0, Math.log(2), Math.log(5)];
    const logits = Tensor.from(Float32Array.from([...row, ...row]), {
      shape: [2, 3],
      device,
      requiresGrad: true,
    });
    const { loss, perToken, logprobs, entropies } = crossEntropy(logits, ids(1, 2));
    expect(loss.shape).toEqual([]);
    expectClose(read(perToken), [-Math.log(1 / 4), -Math.log(5 / 8)]);
    expectClose(read(logprobs), [Math.log(1 / 4), Math.log(5 / 8)]);
    const entropy = -[1 / 8, 1 / 4, 5 / 8].reduce((sum, p) => sum + p * Math.log(p), 0);
    expectClose(read(entropies), [entropy, entropy]);
    expectClose(read(loss), [-(Math.log(1 / 4) + Math.log(5 / 8)) / 2]);
    loss.backward();
    expectClose(
      read(taken(logits)),
      [1, 2 - 8, 5, 1, 2, 5 - 8].map((x) => x / 16),
    );
  });
});

// rl-objectives section 16, the literal of prime-rl: log-probabilities -0.1 and -0.2 around a masked token.
test('crossEntropy is the mean of minus log-probabilities over the tokens that count', () => {
  scope(() => {
    const logits = values([3, 2], ...[-0.1, -3, -0.2].flatMap((l) => [l, Math.log(1 - Math.exp(l))]));
    expectClose(read(crossEntropy(logits, ids(0, 0, 0), { lossMask: mask(1, 0, 1) }).loss), [0.15]);
  });
});

// specs of keypoint distillation: weights of the second step and the log-probabilities of its tokens.
test('crossEntropy weighs tokens and divides by the weights, or not', () => {
  scope(() => {
    const logprobs = [-0.2, -2, -0.3];
    // Two words: the target's logit is log(p), the other's log(1 - p).
    const logits = values([3, 2], ...logprobs.flatMap((l) => [l, Math.log(1 - Math.exp(l))]));
    const options = { weights: values([3], 0.8, 0.1, 0.95) };
    expectClose(read(crossEntropy(logits, ids(0, 0, 0), { ...options, normalize: 'none' }).loss), [0.645]);
    expectClose(read(crossEntropy(logits, ids(0, 0, 0), options).loss), [0.34864865]);
    expectClose(read(crossEntropy(logits, ids(0, 0, 0), { ...options, scale: 2 }).loss), [2 * 0.34864865]);
  });
});

test('crossEntropy agrees with differences under every option', () => {
  scope(() => {
    const logits = random([4, 9], 1);
    const weights = values([4], 0.5, 2, 1, 0);
    for (const options of [
      {},
      { weights },
      { labelSmoothing: 0.3 },
      { labelSmoothing: 1 },
      { zLoss: 0.1 },
      { temperature: 0.6, logitScale: 1.5 },
      {
        softcap: 2,
        labelSmoothing: 0.1,
        zLoss: 0.05,
        temperature: 1.4,
        normalize: 'none',
        scale: 0.3,
      } as const,
    ]) {
      for (const part of ['loss', 'perToken', 'logprobs', 'entropies'] as const) {
        const error = gradCheck((x) => crossEntropy(x, ids(0, 8, 3, 1), options)[part], [logits]);
        expect(error, `${part} of ${JSON.stringify(Object.keys(options))}`).toBeLessThan(1e-3);
      }
    }
  });
});

test('crossEntropy reads no masked row, and gives it zeros', () => {
  scope(() => {
    const clean = random([4, 20], 1);
    const data = clean.dataSync() as Float32Array;
    for (const row of [1, 3]) data.fill(Number.NaN, row * 20, row * 20 + 20);
    const logits = Tensor.from(data, { shape: [4, 20], device, requiresGrad: true });
    const kept = Tensor.from(clean.dataSync(), { shape: [4, 20], device, requiresGrad: true });
    const options = {
      lossMask: mask(1, 0, 1, 1),
      weights: values([4], 1, Number.NaN, 0.5, 0),
      labelSmoothing: 0.1,
    };
    const dirty = crossEntropy(logits, ids(3, -100, 19, 99), options);
    const same = crossEntropy(kept, ids(3, 0, 19, 0), options);
    for (const part of ['loss', 'perToken', 'logprobs', 'entropies'] as const) {
      expect(bitsOf(dirty[part])).toEqual(bitsOf(same[part]));
    }
    dirty.loss.backward();
    same.loss.backward();
    const gradient = read(taken(logits));
    expect(gradient).toEqual(read(taken(kept)));
    expect(gradient.slice(20, 40).every((x) => x === 0)).toBe(true);
    expect(gradient.slice(0, 20).reduce((sum, x) => sum + x, 0)).toBeCloseTo(0, 6);
  });
});

test('crossEntropy of nothing is 0, and so is its gradient', () => {
  scope(() => {
    const logits = Tensor.from(new Float32Array(6).fill(Number.NaN), {
      shape: [2, 3],
      device,
      requiresGrad: true,
    });
    const { loss } = crossEntropy(logits, ids(0, 0), { lossMask: mask(0, 0) });
    loss.backward();
    expect(read(loss)).toEqual([0]);
    expect(read(taken(logits))).toEqual([0, 0, 0, 0, 0, 0]);
    const empty = Tensor.from(new Float32Array(0), { shape: [0, 3], device });
    expect(read(crossEntropy(empty, ids()).loss)).toEqual([0]);
  });
});

test('crossEntropy does not change with a constant on a row, however negative', () => {
  scope(() => {
    const data = random([2, 30], 5).dataSync() as Float32Array;
    const rounded = data.map((x) => Math.round(x * 256) / 256); // exact beside 8192
    const loss = (shift: number) =>
      read(
        crossEntropy(
          Tensor.from(
            rounded.map((x) => x + shift),
            { shape: [2, 30], device },
          ),
          ids(1, 7),
        ).perToken,
      );
    for (const shift of [1, 8192, -8192]) expectClose(loss(shift), loss(0), 1e-6);
  });
});

test('crossEntropy gives a row the same bits on any number of threads, beside any rows, in every dtype', () => {
  scope(() => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as DType[]) {
      const logits = random([37, 2500], 1, dtype);
      const targets = Int32Array.from({ length: 37 }, (_, i) => i * 60);
      expectSameOnThreads(() => {
        const { loss, perToken, logprobs } = crossEntropy(logits, targets);
        return [loss, perToken, logprobs];
      });
      const alone = crossEntropy(logits.slice(0, 30, 31), targets.slice(30, 31));
      expect(bitsOf(alone.perToken)).toEqual(bitsOf(crossEntropy(logits, targets).perToken.slice(0, 30, 31)));
    }
  });
});

describe('crossEntropy refuses', () => {
  test('targets outside the vocabulary and weights that are negative, at the read', async () => {
    using logits = random([2, 3], 1);
    for (const target of [-1, 3]) {
      const result = crossEntropy(logits, ids(0, target));
      await expectLate(result.loss, 'ERR_VARLEN_INDEX', OP);
      result[Symbol.dispose]();
    }
    for (const weight of [-1, Number.NaN, Infinity]) {
      using weights = values([2], 1, weight);
      const result = crossEntropy(logits, ids(0, 1), { weights });
      await expectLate(result.loss, 'ERR_VARLEN_WEIGHT', OP);
      result[Symbol.dispose]();
    }
  });

  test('numbers out of range, wrong shapes, types and options', () => {
    const logits = random([2, 3], 1);
    const short = mask(1);
    const call = (options: object) => () => crossEntropy(logits, ids(0, 1), wrong(options));
    for (const [options, argument] of [
      [{ temperature: 0 }, 'temperature'],
      [{ temperature: Number.NaN }, 'temperature'],
      [{ softcap: -1 }, 'softcap'],
      [{ labelSmoothing: 1.1 }, 'labelSmoothing'],
      [{ labelSmoothing: -0.1 }, 'labelSmoothing'],
      [{ zLoss: -1 }, 'zLoss'],
      [{ logitScale: Infinity }, 'logitScale'],
      [{ scale: Number.NaN }, 'scale'],
    ] as const) {
      expectRefused(call(options), 'ERR_VARLEN_RANGE', argument, OP);
    }
    expectRefused(() => crossEntropy(logits, ids(0)), 'ERR_VARLEN_SHAPE', 'targetIds', OP);
    expectRefused(call({ lossMask: short }), 'ERR_VARLEN_SHAPE', 'lossMask', OP);
    expectRefused(call({ weights: short }), 'ERR_VARLEN_DTYPE', 'weights', OP);
    expectRefused(call({ weights: [1, 1] }), 'ERR_VARLEN_TYPE', 'weights', OP);
    expectRefused(call({ normalize: 'mean' }), 'ERR_VARLEN_OPTION', 'normalize', OP);
    expectRefused(call({ ignoreIndex: -100 }), 'ERR_VARLEN_OPTION', 'ignoreIndex', OP);
    expectRefused(() => crossEntropy(wrong(null), ids(0)), 'ERR_VARLEN_TYPE', 'logits', OP);
    short.dispose();
    logits.dispose();
  });
});
