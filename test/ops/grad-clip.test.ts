import { describe, expect, test } from 'vitest';
import { gradClip, scope } from '../../src/index.js';
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

test('gradClip scales all gradients by their common norm, and leaves small ones alone', () => {
  scope(() => {
    const gradients = [values([1], 3), values([2, 1], 0, 4)];
    expect(read(gradClip(gradients, { maxNorm: 10 }))).toEqual([5]);
    expect(gradients.flatMap(read)).toEqual([3, 0, 4]);
    expect(read(gradClip(gradients))).toEqual([5]);
    for (const [i, want] of [0.6, 0, 0.8].entries()) expect(gradients.flatMap(read)[i]).toBeCloseTo(want, 6);
  });
});

test('gradClip measures norms whose squares float32 cannot hold, and leaves what is not finite', () => {
  scope(() => {
    expect(read(gradClip([values([2], 3e30, 4e30)]))[0]).toBeCloseTo(5e30, -24);
    const broken = values([2], 1, Infinity);
    expect(read(gradClip([broken]))).toEqual([Infinity]);
    expect(read(broken)).toEqual([1, Infinity]);
    expect(read(gradClip([]))).toEqual([0]);
  });
});

test('gradClip gives the same bits for any number of threads', () => {
  scope(() => {
    expectSameOnThreads(() => {
      const gradients = [random([70_000], 1), random([33], 2), random([100, 100], 3)];
      return [gradClip(gradients), ...gradients];
    });
  });
});

describe('gradClip refuses', () => {
  test('limits out of range, other dtypes, and a tensor given twice', () => {
    scope(() => {
      const [a, half] = [random([3], 1), random([3], 1, 'float16')];
      expectRefused(() => gradClip([a], { maxNorm: -1 }), 'ERR_VARLEN_RANGE', 'maxNorm', 'gradClip');
      expectRefused(() => gradClip([a], { maxNorm: Number.NaN }), 'ERR_VARLEN_RANGE', 'maxNorm', 'gradClip');
      expectRefused(() => gradClip([half]), 'ERR_VARLEN_DTYPE', 'gradients', 'gradClip');
      expectRefused(() => gradClip([a, a]), 'ERR_VARLEN_INCOMPATIBLE', 'gradients', 'gradClip');
      expectRefused(() => gradClip(wrong(a)), 'ERR_VARLEN_TYPE', 'gradients', 'gradClip');
      expectRefused(() => gradClip([a, wrong(null)]), 'ERR_VARLEN_TYPE', 'gradients[1]', 'gradClip');
    });
  });
});
