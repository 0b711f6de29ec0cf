import { describe, expect, test } from 'vitest';
import { rope, ropeTable, scope, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

const frequencies = (rotaryDim: number): Float64Array =>
  Float64Array.from({ length: rotaryDim / 2 }, (_, i) => 10000 ** ((-2 * i) / rotaryDim));
const tableOf = (positions: number, rotaryDim: number): Tensor =>
  Tensor.from(ropeTable(frequencies(rotaryDim), positions), { shape: [positions, rotaryDim], device });

test('rope turns the pairs of either layout', () => {
  scope(() => {
    const x = values([1, 1, 5], 1, 2, 3, 4, 5);
    const table = values([1, 4], 0, 1, 1, 0); // a quarter turn, and none
    expect(read(rope(x, table, Int32Array.of(0)))).toEqual([-3, 2, 1, 4, 5]);
    expect(read(rope(x, table, Int32Array.of(0), { interleaved: true }))).toEqual([-2, 1, 3, 4, 5]);
  });
});

test('ropeTable holds cosines, then sines, times the factor', () => {
  const table = ropeTable(Float64Array.of(1, 0.5), 3, 2);
  const turn = (angle: number): number[] => [2 * Math.cos(angle), 2 * Math.sin(angle)];
  const [[c1, s1], [c2, s2]] = [turn(2), turn(1)];
  expect(Array.from(table.subarray(8))).toEqual([c1, c2, s1, s2].map(Math.fround));
});

test('rope makes scores depend on distances alone', () => {
  scope(() => {
    const table = tableOf(64, 8);
    const [q, k] = [random([1, 1, 8], 1), random([1, 1, 8], 2)];
    const score = (i: number, j: number): number => {
      const [a, b] = [read(rope(q, table, Int32Array.of(i))), read(rope(k, table, Int32Array.of(j)))];
      return a.reduce((sum, value, d) => sum + value * b[d], 0);
    };
    expect(score(17, 5)).toBeCloseTo(score(42, 30), 5);
    expect(Math.abs(score(17, 5) - score(17, 6))).toBeGreaterThan(1e-3);
  });
});

test('rope agrees with differences, in both layouts and with dimensions that pass through', () => {
  scope(() => {
    const table = tableOf(20, 6);
    const positions = Int32Array.of(0, 3, 19, 1);
    const inTensor = Tensor.from(positions, { device });
    const x = random([4, 2, 8], 1);
    expect(gradCheck((a) => rope(a, table, positions), [x])).toBeLessThan(1e-3);
    expect(gradCheck((a) => rope(a, table, inTensor, { interleaved: true }), [x])).toBeLessThan(1e-3);
    expectSameOnThreads(() => [rope(random([500, 4, 8], 2), table, new Int32Array(500).fill(7))]);
  });
});

test('rope reads rows of a wider matrix where they stand', () => {
  scope(() => {
    const table = tableOf(4, 4);
    const both = random([3, 4, 4], 1);
    const [left, positions] = [both.slice(1, 0, 2), Int32Array.of(0, 1, 2)];
    expect(read(rope(left, table, positions))).toEqual(
      read(rope(left.to('float32').copy(), table, positions)),
    );
  });
});

describe('rope refuses', () => {
  test('positions past the table, early or late', async () => {
    using table = tableOf(8, 4);
    using x = random([2, 1, 4], 1);
    for (const bad of [-1, 8]) {
      expectRefused(() => rope(x, table, Int32Array.of(0, bad)), 'ERR_VARLEN_INDEX', 'positionIds', 'rope');
      using late = Tensor.from(Int32Array.of(0, bad), { device });
      await expectLate(rope(x, table, late), 'ERR_VARLEN_INDEX', 'rope');
    }
  });

  test('tables that do not fit, a wrong number of positions, wrong types', () => {
    scope(() => {
      const x = random([2, 1, 4], 1);
      const [wide, odd, table] = [tableOf(8, 6), random([8, 3], 1), tableOf(8, 4)];
      const two = Int32Array.of(0, 1);
      expectRefused(() => rope(x, wide, two), 'ERR_VARLEN_SHAPE', 'table', 'rope');
      expectRefused(() => rope(x, odd, two), 'ERR_VARLEN_SHAPE', 'table', 'rope');
      expectRefused(() => rope(x, table, Int32Array.of(0)), 'ERR_VARLEN_SHAPE', 'positionIds', 'rope');
      expectRefused(() => rope(wrong(0), table, two), 'ERR_VARLEN_TYPE', 'x', 'rope');
      expectRefused(() => rope(x, wrong(0), two), 'ERR_VARLEN_TYPE', 'table', 'rope');
      const interleaved = wrong(1);
      expectRefused(() => rope(x, table, two, { interleaved }), 'ERR_VARLEN_TYPE', 'interleaved', 'rope');
      expectRefused(() => ropeTable(wrong([1]), 2), 'ERR_VARLEN_TYPE', 'frequencies', 'ropeTable');
      expectRefused(() => ropeTable(Float64Array.of(1), -1), 'ERR_VARLEN_RANGE', 'positions', 'ropeTable');
      expectRefused(
        () => ropeTable(Float64Array.of(1), 1, wrong('2')),
        'ERR_VARLEN_TYPE',
        'factor',
        'ropeTable',
      );
    });
  });
});
