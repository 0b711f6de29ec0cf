import { describe, expect, test } from 'vitest';
import { fitToSteps } from '../../src/batch/fit.js';
import { groupWindow } from '../../src/batch/grouping.js';

const padded = (tokens: number) => ({ mode: 'padded' as const, budget: { paddedTokens: tokens } });
const asLengths = (lengths: number[], groups: (number[] | null)[]) =>
  groups.map((group) => group?.map((i) => lengths[i]) ?? null);

describe('groupWindow, padded', () => {
  test('follows the worked example of seven lengths under 8192 tokens', () => {
    const lengths = [100, 200, 500, 1000, 2000, 4000, 8000];
    expect(asLengths(lengths, groupWindow(lengths, { ...padded(8192), groupingPolicy: 'odb' }))).toEqual([
      [100, 200, 500],
      [1000, 2000],
      [4000],
      [8000],
    ]);
    expect(asLengths(lengths, groupWindow(lengths, padded(8192)))).toEqual([
      [100, 200, 500, 1000],
      [2000, 4000],
      [8000],
    ]);
  });

  test('follows the worked example of eight lengths under 2048 tokens', () => {
    const lengths = [100, 150, 200, 250, 300, 400, 512, 900];
    expect(asLengths(lengths, groupWindow(lengths, { ...padded(2048), groupingPolicy: 'odb' }))).toEqual([
      [100, 150, 200, 250, 300],
      [400, 512],
      [900],
    ]);
    expect(asLengths(lengths, groupWindow(lengths, padded(2048)))).toEqual([
      [100],
      [150, 200, 250, 300, 400],
      [512, 900],
    ]);
  });
});

describe('fitToSteps', () => {
  test('cuts the worked example of two ranks anew instead of splitting the last groups', () => {
    const a = [100, 200, 300, 400, 500, 600, 700, 800];
    const b = [150, 150, 150, 1200, 1300, 1400];
    const groupsA = groupWindow(a, padded(2048));
    const groupsB = groupWindow(b, padded(2048));
    expect(asLengths(a, groupsA)).toEqual([
      [100, 200, 300],
      [400, 500, 600],
      [700, 800],
    ]);
    expect(asLengths(b, groupsB)).toEqual([[150, 150, 150], [1200], [1300], [1400]]);
    const fittedA = fitToSteps(groupsA, a, 4, { ...padded(2048), costOf: (length) => length });
    expect(asLengths(a, fittedA.steps)).toEqual([[600, 700], [400, 500], [100, 200, 300], [800]]);
    expect(fittedA.carry).toEqual([]);
    const fittedB = fitToSteps(groupsB, b, 4, { ...padded(2048), costOf: (length) => length });
    const paddedCost = (lengths: number[]) => lengths.length * Math.max(...lengths);
    const costs = (lengths: number[], steps: (number[] | null)[]) =>
      steps.map((step) => paddedCost(step!.map((i) => lengths[i])));
    const costsA = costs(a, fittedA.steps);
    const costsB = costs(b, fittedB.steps);
    expect(costsA).toEqual([1400, 1000, 900, 800]);
    expect(costsB).toEqual([1400, 1300, 1200, 450]);
    // Both ranks sorted by cost: 1400 + 1300 + 1200 + 800.
    expect(costsA.reduce((sum, cost, i) => sum + Math.max(cost, costsB[i]), 0)).toBe(4700);
  });
});
