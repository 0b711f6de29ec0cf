import { describe, expect, test } from 'vitest';
import { crossEntropy, crossEntropyFromHidden, type DType, linear, scope, Tensor } from '../../src/index.js';
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
} from '../support/ops.js';

countTensors();

const OP = 'crossEntropyFromHidden';

function targetsOf(tokens: number, vocab: number): Int32Array {
  return Int32Array.from({ length: tokens }, (_, i) => (i * 7919 + 1) % vocab);
}

test('crossEntropyFromHidden of hidden states that are words gives the head’s own logits', () => {
  scope(() => {
    // hidden = (1, 0) and (0, 1) pick the columns of the weight: logits log(1, 2, 5) and log(1, 1, 2).
    const hidden = values([2, 2], 1, 0, 0, 1);
    const weight = values([3, 2], 0, 0, Math.log(2), 0, Math.log(5), Math.log(2));
    const { loss, logprobs } = crossEntropyFromHidden(hidden, weight, Int32Array.of(1, 2));
    const [first, second] = read(logprobs);
    expect(first).toBeCloseTo(Math.log(2 / 8), 6);
    expect(second).toBeCloseTo(Math.log(2 / 4), 6);
    expect(read(loss)[0]).toBeCloseTo(-Math.log(1 / 8) / 2, 6);
  });
});

test('crossEntropyFromHidden is crossEntropy of linear, results and gradients, at ragged sizes', () => {
  for (const [tokens, size, vocab] of [
    [1, 1, 1],
    [5, 7, 33],
    [70, 45, 515],
  ]) {
    scope(() => {
      const make = (device: 'cpu' | 'cuda') => {
        const leaf = (shape: number[], seed: number) =>
          Tensor.from(random(shape, seed).dataSync(), { shape, device, requiresGrad: true });
        return [leaf([tokens, size], 1), leaf([vocab, size], 2), leaf([vocab], 3)] as const;
      };
      const targets = targetsOf(tokens, vocab);
      const options = { labelSmoothing: 0.1, zLoss: 0.01, temperature: 0.8, softcap: 20 };
      const [h, w, b] = make(device);
      const fused = crossEntropyFromHidden(h, w, targets, { ...options, bias: b });
      fused.loss.backward();
      const [h2, w2, b2] = make('cpu');
      const plain = crossEntropy(linear(h2, w2, { bias: b2 }), targets, options);
      plain.loss.backward();
      for (const [a, c] of [
        [fused.perToken, plain.perToken],
        [fused.logprobs, plain.logprobs],
        [fused.entropies, plain.entropies],
        [taken(h), taken(h2)],
        [taken(w), taken(w2)],
        [taken(b), taken(b2)],
      ]) {
        const want = read(c);
        const largest = Math.max(1e-3, ...want.map(Math.abs));
        for (const [i, x] of read(a).entries()) expect(Math.abs(x - want[i])).toBeLessThan(2e-5 * largest);
      }
    });
  }
});

test('crossEntropyFromHidden agrees with differences in every input and output', () => {
  scope(() => {
    const inputs = [random([4, 5], 1), random([9, 5], 2), random([9], 3)];
    const lossMask = Tensor.from(Uint8Array.of(1, 0, 1, 1), { device });
    for (const part of ['loss', 'perToken', 'logprobs', 'entropies'] as const) {
      const fn = (h: Tensor, w: Tensor, b: Tensor) =>
        crossEntropyFromHidden(h, w, targetsOf(4, 9), { bias: b, lossMask, labelSmoothing: 0.2, zLoss: 0.1 })[
          part
        ];
      expect(gradCheck(fn, inputs), part).toBeLessThan(1e-3);
    }
  });
});

test('crossEntropyFromHidden computes the gradients that are wanted, and keeps those of the head in float32', () => {
  scope(() => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as DType[]) {
      for (const wanted of [0b001, 0b010, 0b100, 0b111]) {
        const make = (shape: number[], seed: number, bit: number): Tensor =>
          Tensor.from(random(shape, seed).dataSync() as Float32Array, {
            shape,
            dtype,
            device,
            requiresGrad: (wanted & bit) !== 0,
          });
        const [hidden, weight, bias] = [make([4, 3], 1, 1), make([6, 3], 2, 2), make([6], 3, 4)];
        crossEntropyFromHidden(hidden, weight, targetsOf(4, 6), { bias }).loss.backward();
        const had = [hidden, weight, bias].map(({ grad }) => grad !== null);
        expect(had).toEqual([1, 2, 4].map((bit) => (wanted & bit) !== 0));
        for (const { grad } of [hidden, weight, bias]) grad?.dispose();
      }
    }
  });
});

test('crossEntropyFromHidden gives the same bits on any number of threads, and a row alone its own', () => {
  scope(() => {
    const weight = random([700, 40], 2);
    const hidden = random([260, 40], 1);
    const targets = targetsOf(260, 700);
    expectSameOnThreads(() => {
      const leaves = [hidden, weight].map((t) =>
        Tensor.from(t.dataSync(), { shape: t.shape, device, requiresGrad: true }),
      );
      const { loss, logprobs, entropies } = crossEntropyFromHidden(leaves[0], leaves[1], targets);
      loss.backward();
      return [loss, logprobs, entropies, ...leaves.map(taken)];
    });
    const all = crossEntropyFromHidden(hidden, weight, targets);
    const part = crossEntropyFromHidden(hidden.slice(0, 100, 109), weight, targets.slice(100, 109));
    expect(bitsOf(part.logprobs)).toEqual(bitsOf(all.logprobs.slice(0, 100, 109)));
    expect(bitsOf(part.perToken)).toEqual(bitsOf(all.perToken.slice(0, 100, 109)));
  });
});

test('crossEntropyFromHidden keeps what backward needs when the caller disposes and changes theirs', () => {
  scope(() => {
    const weight = Tensor.from(random([6, 3], 2).dataSync(), { shape: [6, 3], device, requiresGrad: true });
    const gradient = (spoil: boolean) => {
      const hidden = random([4, 3], 1);
      const targets = targetsOf(4, 6);
      const { loss, perToken } = crossEntropyFromHidden(hidden, weight, targets);
      if (spoil) {
        targets.fill(5);
        hidden.dispose();
        perToken.dispose();
      }
      loss.backward();
      const result = taken(weight);
      weight.grad = null;
      return read(result);
    };
    expect(gradient(true)).toEqual(gradient(false));
  });
});

describe('crossEntropyFromHidden refuses', () => {
  test('a target outside the vocabulary at the read, unless it is masked', async () => {
    using hidden = random([2, 3], 1);
    using weight = random([4, 3], 2);
    using lossMask = Tensor.from(Uint8Array.of(1, 0), { device });
    const bad = crossEntropyFromHidden(hidden, weight, Int32Array.of(0, 4));
    await expectLate(bad.loss, 'ERR_VARLEN_INDEX', OP);
    bad[Symbol.dispose]();
    using masked = crossEntropyFromHidden(hidden, weight, Int32Array.of(0, 4), { lossMask });
    expect(Number.isFinite(read(masked.loss)[0])).toBe(true);
  });

  test('shapes and dtypes that do not fit', () => {
    const [hidden, weight, wide, half, short] = [
      random([2, 3], 1),
      random([4, 3], 2),
      random([4, 5], 2),
      random([4, 3], 2, 'float16'),
      random([3], 3),
    ];
    const ids = Int32Array.of(0, 1);
    expectRefused(() => crossEntropyFromHidden(hidden, wide, ids), 'ERR_VARLEN_SHAPE', 'weight', OP);
    expectRefused(() => crossEntropyFromHidden(hidden, half, ids), 'ERR_VARLEN_DTYPE', 'weight', OP);
    expectRefused(
      () => crossEntropyFromHidden(hidden, weight, ids, { bias: short }),
      'ERR_VARLEN_SHAPE',
      'bias',
      OP,
    );
    for (const tensor of [hidden, weight, wide, half, short]) tensor.dispose();
  });
});
