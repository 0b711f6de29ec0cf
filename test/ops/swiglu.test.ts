import { describe, expect, test } from 'vitest';
import { scope, swiglu } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
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

test('swiglu multiplies up by gate times its sigmoid', () => {
  scope(() => {
    const out = read(swiglu(values([4], 0, 200, -200, Math.log(3)), values([4], 5, 2, 2, 4)));
    for (const [i, want] of [0, 400, 0, 3 * Math.log(3)].entries()) expect(out[i]).toBeCloseTo(want, 5);
  });
});

test('swiglu agrees with differences, for any shape', () => {
  scope(() => {
    for (const shape of [[5], [3, 17], [2, 3, 4]]) {
      expect(gradCheck((g, u) => swiglu(g, u), [random(shape, 1), random(shape, 2)])).toBeLessThan(1e-3);
    }
    expectSameOnThreads(() => [swiglu(random([40, 999], 1), random([40, 999], 2))]);
  });
});

describe('swiglu refuses', () => {
  test('shapes and dtypes that differ, and wrong types', () => {
    scope(() => {
      const [gate, tall, half] = [random([4, 2], 1), random([2, 4], 2), random([4, 2], 2, 'float16')];
      expectRefused(() => swiglu(gate, tall), 'ERR_VARLEN_SHAPE', 'up', 'swiglu');
      expectRefused(() => swiglu(gate, half), 'ERR_VARLEN_DTYPE', 'up', 'swiglu');
      expectRefused(() => swiglu(wrong(0), gate), 'ERR_VARLEN_TYPE', 'gate', 'swiglu');
      expectRefused(() => swiglu(gate, wrong(0)), 'ERR_VARLEN_TYPE', 'up', 'swiglu');
      const strided = gate.slice(1, 0, 1);
      expectRefused(() => swiglu(strided, strided), 'ERR_VARLEN_LAYOUT', 'gate', 'swiglu');
    });
  });
});
