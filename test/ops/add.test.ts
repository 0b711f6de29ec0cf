import { describe, expect, test } from 'vitest';
import { add, scope, type Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { countTensors, expectRefused, random, read, values, wrong } from '../support/ops.js';

countTensors();

test('add sums element by element, scalars included', () => {
  scope(() => {
    expect(read(add(values([2, 2], 1, 2, 3, 4), values([2, 2], 10, 20, 30, 40)))).toEqual([11, 22, 33, 44]);
    expect(read(add(values([], 1), values([], 2)))).toEqual([3]);
  });
});

test('add agrees with differences, however often its inputs are used', () => {
  scope(() => {
    const inputs = [random([3, 4], 1), random([3, 4], 2)];
    expect(gradCheck((a, b) => add(a, b), inputs)).toBeLessThan(1e-3);
    const tangled = (a: Tensor, b: Tensor): Tensor => {
      const c = add(a, b);
      return add(add(c, c), add(add(a, c), b));
    };
    expect(gradCheck(tangled, inputs)).toBeLessThan(1e-3);
  });
});

describe('add refuses', () => {
  test('shapes and dtypes that differ, and wrong types', () => {
    scope(() => {
      const [a, tall, half] = [random([4, 2], 1), random([2, 4], 2), random([4, 2], 2, 'bfloat16')];
      expectRefused(() => add(a, tall), 'ERR_VARLEN_SHAPE', 'b', 'add');
      expectRefused(() => add(a, half), 'ERR_VARLEN_DTYPE', 'b', 'add');
      expectRefused(() => add(wrong(0), a), 'ERR_VARLEN_TYPE', 'a', 'add');
      expectRefused(() => add(a, wrong(0)), 'ERR_VARLEN_TYPE', 'b', 'add');
    });
  });
});
