import { describe, expect, test } from 'vitest';
import { type DType, linear, scope, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import {
  countTensors,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

test('linear multiplies by the transposed weight and adds the bias', () => {
  scope(() => {
    const x = values([2, 3], 1, 2, 3, -1, 0, 1);
    const weight = values([2, 3], 1, 0, -1, 2, 1, 0);
    expect(read(linear(x, weight))).toEqual([-2, 4, -2, -2]);
    expect(read(linear(x, weight, { bias: values([2], 10, 20) }))).toEqual([8, 24, 8, 18]);
  });
});

test('linear agrees with differences in every input, for any leading dimensions', () => {
  scope(() => {
    const weight = random([5, 7], 2);
    const bias = random([5], 3);
    for (const shape of [[7], [4, 7], [2, 3, 7]]) {
      const inputs = [random(shape, 1), weight, bias];
      expect(gradCheck((x, w, b) => linear(x, w, { bias: b }), inputs)).toBeLessThan(1e-3);
      expect(gradCheck((x, w) => linear(x, w), inputs.slice(0, 2))).toBeLessThan(1e-3);
    }
  });
});

test('linear computes the gradients that are wanted, and keeps those of parameters in float32', () => {
  scope(() => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as DType[]) {
      for (const wanted of [0b001, 0b010, 0b100, 0b111]) {
        const make = (shape: number[], seed: number, bit: number): Tensor => {
          const data = random(shape, seed).dataSync() as Float32Array;
          return Tensor.from(data, { shape, dtype, device, requiresGrad: (wanted & bit) !== 0 });
        };
        const [x, weight, bias] = [make([4, 3], 1, 1), make([2, 3], 2, 2), make([2], 3, 4)];
        linear(x, weight, { bias }).backward(random([4, 2], 4, dtype));
        const had = [x, weight, bias].map(({ grad }) => grad !== null);
        expect(had).toEqual([1, 2, 4].map((bit) => (wanted & bit) !== 0));
        for (const { grad } of [x, weight, bias]) {
          if (grad !== null) expect(grad.dtype).toBe('float32');
          grad?.dispose();
        }
      }
    }
  });
});

test('linear gives a row the same bits whatever rows are beside it', () => {
  scope(() => {
    const weight = random([40, 33], 2);
    const x = random([300, 33], 1);
    const all = linear(x, weight);
    for (const [start, end] of [
      [0, 1],
      [17, 19],
      [100, 299],
    ]) {
      const part = linear(x.slice(0, start, end), weight);
      expect(bitsOf(part)).toEqual(bitsOf(all.slice(0, start, end)));
    }
    expectSameOnThreads(() => [linear(x, weight)]);
  });
});

describe('linear refuses', () => {
  test('shapes that do not fit, wrong dtypes, types and options', () => {
    scope(() => {
      const [x, weight] = [random([4, 3], 1), random([2, 3], 2)];
      const op = 'linear';
      expectRefused(() => linear(wrong(null), weight), 'ERR_VARLEN_TYPE', 'x', op);
      expectRefused(() => linear(x, wrong('w')), 'ERR_VARLEN_TYPE', 'weight', op);
      const wide = random([2, 4], 2);
      expectRefused(() => linear(x, wide), 'ERR_VARLEN_SHAPE', 'weight', op);
    });
    scope(() => {
      const [x, weight, short, half] = [
        random([4, 3], 1),
        random([2, 3], 2),
        random([3], 3),
        random([2], 3, 'float16'),
      ];
      const op = 'linear';
      expectRefused(() => linear(x, weight, { bias: short }), 'ERR_VARLEN_SHAPE', 'bias', op);
      expectRefused(() => linear(x, weight, { bias: half }), 'ERR_VARLEN_DTYPE', 'bias', op);
      const strided = weight.slice(1, 0, 2);
      expectRefused(() => linear(strided, weight), 'ERR_VARLEN_LAYOUT', 'x', op);
      const one = values([], 1);
      expectRefused(() => linear(one, weight), 'ERR_VARLEN_SHAPE', 'x', op);
      expectRefused(() => linear(x, weight, wrong({ biass: 1 })), 'ERR_VARLEN_OPTION', 'biass', op);
    });
  });
});
