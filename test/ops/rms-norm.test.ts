import { describe, expect, test } from 'vitest';
import { add, addRmsNorm, rmsNorm, scope, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import {
  countTensors,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

test('rmsNorm divides by the root of the mean square', () => {
  scope(() => {
    const x = values([1, 4], 1, 1, 3, 1); // mean square 3
    const weight = values([4], 1, 2, 0.5, -1);
    expect(read(rmsNorm(x, weight, { eps: 1 }))).toEqual([0.5, 1, 0.75, -0.5]);
    expect(read(rmsNorm(x, weight, { eps: 1, weightOffset: 1 }))).toEqual([1, 1.5, 2.25, 0]);
  });
});

test('addRmsNorm normalises the sum and returns it', () => {
  scope(() => {
    const { out, sum } = addRmsNorm(values([1, 2], 1, 2), values([1, 2], 2, 2), values([2], 1, 1), {
      eps: 0,
    });
    expect(read(sum)).toEqual([3, 4]);
    expect(read(out)[0]).toBeCloseTo(3 / Math.sqrt(12.5), 6);
  });
});

test('addRmsNorm gives the bits of an addition and a norm', () => {
  scope(() => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      const [x, residual, weight] = [
        random([9, 33], 1, dtype),
        random([9, 33], 2, dtype),
        random([33], 3, dtype),
      ];
      const fused = addRmsNorm(x, residual, weight);
      const sum = add(x, residual);
      expect(bitsOf(fused.sum)).toEqual(bitsOf(sum));
      expect(bitsOf(fused.out)).toEqual(bitsOf(rmsNorm(sum, weight)));
    }
  });
});

test('rmsNorm and addRmsNorm agree with differences, through either result and both', () => {
  scope(() => {
    const inputs = [random([3, 2, 9], 1), random([3, 2, 9], 2), random([9], 3)];
    const [x, , weight] = inputs;
    expect(gradCheck((a, w) => rmsNorm(a, w), [x, weight])).toBeLessThan(1e-3);
    expect(gradCheck((a, w) => rmsNorm(a, w, { weightOffset: 1 }), [x, weight])).toBeLessThan(1e-3);
    expect(gradCheck((a, r, w) => addRmsNorm(a, r, w).out, inputs)).toBeLessThan(1e-3);
    expect(gradCheck((a, r) => addRmsNorm(a, r, weight).sum, inputs.slice(0, 2))).toBeLessThan(1e-3);
    const both = (a: Tensor, r: Tensor, w: Tensor): Tensor => {
      const { out, sum } = addRmsNorm(a, r, w);
      return add(out, sum);
    };
    expect(gradCheck(both, inputs)).toBeLessThan(1e-3);
  });
});

test('the gradient that two inputs share is not changed by what one of them receives besides', () => {
  scope(() => {
    const inputs = [random([4, 6], 1), random([4, 6], 2), random([6], 3)];
    // x and residual are used again, by others: their sums must not meet in one memory.
    const twice = (a: Tensor, r: Tensor, w: Tensor): Tensor => {
      const [x, residual] = [add(a, a), add(r, a)];
      const { out, sum } = addRmsNorm(x, residual, w);
      return add(add(out, x), add(sum, add(residual, x)));
    };
    expect(gradCheck(twice, inputs)).toBeLessThan(1e-3);
    const viewed = (a: Tensor, r: Tensor, w: Tensor): Tensor => {
      const { out } = addRmsNorm(a.view([2, 12]).view([4, 6]), r.view([24]).view([4, 6]), w);
      return add(add(out, a), r);
    };
    expect(gradCheck(viewed, inputs)).toBeLessThan(1e-3);
  });
});

test('rmsNorm gives the same bits for any number of threads', () => {
  scope(() => {
    const data = random([2000, 24], 1).dataSync() as Float32Array;
    expectSameOnThreads(() => {
      const x = Tensor.from(data, { shape: [2000, 24], device, requiresGrad: true });
      const weight = Tensor.from(data.subarray(0, 24), { device, requiresGrad: true });
      const out = rmsNorm(x, weight);
      out.backward(random([2000, 24], 2));
      return [out, taken(x), taken(weight)];
    });
  });
});

describe('rmsNorm refuses', () => {
  test('shapes that do not fit, numbers out of range and wrong types', () => {
    scope(() => {
      const [x, weight, other] = [random([2, 4], 1), random([4], 2), random([4, 2], 3)];
      const op = 'rmsNorm';
      expectRefused(() => rmsNorm(wrong(1), weight), 'ERR_VARLEN_TYPE', 'x', op);
      expectRefused(() => rmsNorm(x, wrong([])), 'ERR_VARLEN_TYPE', 'weight', op);
      expectRefused(() => addRmsNorm(x, wrong(2), weight), 'ERR_VARLEN_TYPE', 'residual', op);
      expectRefused(() => rmsNorm(other, weight), 'ERR_VARLEN_SHAPE', 'weight', op);
      const tall = random([3, 4], 3);
      expectRefused(() => addRmsNorm(x, tall, weight), 'ERR_VARLEN_SHAPE', 'residual', op);
      for (const eps of [-1, Number.NaN, Infinity]) {
        expectRefused(() => rmsNorm(x, weight, { eps }), 'ERR_VARLEN_RANGE', 'eps', op);
      }
      const weightOffset = wrong(0.5);
      expectRefused(() => rmsNorm(x, weight, { weightOffset }), 'ERR_VARLEN_RANGE', 'weightOffset', op);
      expectRefused(() => rmsNorm(x, weight, wrong({ epsilon: 1 })), 'ERR_VARLEN_OPTION', 'epsilon', op);
    });
  });
});
