import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { partition } from '../../../src/batch/packing/partition.js';
import { SeededRandom } from '../../../src/seeded-random.js';
import { numRuns, runTimeout } from '../../support/num-runs.js';

const sums = (costs: number[], parts: number[][]) =>
  parts.map((part) => part.reduce((sum, i) => sum + costs[i], 0));

describe('worked examples', () => {
  test('five items in two parts: 16 and 14', () => {
    const costs = [8, 7, 6, 5, 4];
    const parts = partition(costs, 2);
    expect(parts).toEqual([
      [1, 3, 4],
      [0, 2],
    ]);
    expect(sums(costs, parts)).toEqual([16, 14]);
  });

  test('six items in three equal parts', () => {
    const costs = [4, 5, 6, 7, 8, 9];
    for (const equalSize of [false, true]) {
      const parts = partition(costs, 3, { equalSize });
      expect(sums(costs, parts)).toEqual([13, 13, 13]);
      expect(parts).toEqual([
        [0, 5],
        [1, 4],
        [2, 3],
      ]);
    }
  });

  test('as many parts as items, one part, and items that cost nothing', () => {
    expect(partition([5, 7], 2)).toEqual([[1], [0]]);
    expect(partition([5, 7], 1)).toEqual([[0, 1]]);
    expect(partition([0, 0, 0], 3).flat().sort()).toEqual([0, 1, 2]);
  });
});

describe('properties', () => {
  // Few distinct values, so that every tie-break is exercised.
  const costLists = fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 1, maxLength: 24 });

  test(
    'equals the plainest Karmarkar-Karp, ties included',
    () => {
      fc.assert(
        fc.property(costLists, fc.integer({ min: 1, max: 8 }), fc.boolean(), (costs, k, equalSize) => {
          fc.pre(costs.length >= k && !(equalSize && costs.length % k !== 0));
          expect(partition(costs, k, { equalSize })).toEqual(plainKarmarkarKarp(costs, k, equalSize));
        }),
        numRuns(0.5),
      );
    },
    runTimeout(0.5, 3),
  );

  test(
    'every index is in exactly one part, no part is empty, equalSize means equal counts',
    () => {
      fc.assert(
        fc.property(costLists, fc.integer({ min: 1, max: 24 }), fc.boolean(), (costs, k, equalSize) => {
          fc.pre(costs.length >= k && !(equalSize && costs.length % k !== 0));
          const parts = partition(costs, k, { equalSize });
          expect(parts).toHaveLength(k);
          expect(parts.flat().sort((a, b) => a - b)).toEqual([...costs.keys()]);
          for (const part of parts) {
            expect(part.length).toBeGreaterThan(0);
            if (equalSize) expect(part).toHaveLength(costs.length / k);
          }
        }),
        numRuns(0.5),
      );
    },
    runTimeout(0.5, 3),
  );

  test('more than 64 parts sort as fewer do', () => {
    const random = new SeededRandom(2);
    const costs = Array.from({ length: 400 }, () => random.below(50));
    expect(partition(costs, 100)).toEqual(plainKarmarkarKarp(costs, 100, false));
  });
});

test('the largest of 8 parts of log-normal samples is within 0.01 % of the mean', () => {
  const random = new SeededRandom(7);
  let worst = 0;
  let total = 0;
  for (let trial = 0; trial < 200; trial++) {
    const costs = Array.from({ length: 256 }, () => {
      const length = Math.max(1, Math.round(Math.exp(Math.log(1300) + 0.6 * random.normal())));
      return length + length ** 2 / 24576;
    });
    const parts = sums(costs, partition(costs, 8));
    const ratio = (Math.max(...parts) * 8) / parts.reduce((a, b) => a + b, 0);
    worst = Math.max(worst, ratio);
    total += ratio;
  }
  expect(total / 200).toBeLessThan(1.0001);
  expect(worst).toBeLessThan(1.001);
});

describe('bad input', () => {
  test.each([
    [[1, 2], 3, {}],
    [[1, 2], 0, {}],
    [[1, 2], 1.5, {}],
    [[1, 2, 3], 2, { equalSize: true }],
    [[1, Number.NaN], 1, {}],
    [[1, -1], 1, {}],
    [[1, Number.POSITIVE_INFINITY], 1, {}],
    [[], 1, {}],
  ])('partition(%j, %s, %j) is refused', (costs, k, options) => {
    expect(() => partition(costs, k, options)).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_RANGE' }));
  });
});

/** The rules of verl's balancer, spelled out with plain lists. */
function plainKarmarkarKarp(costs: number[], k: number, equalSize: boolean): number[][] {
  type Set = { sum: number; items: number[] };
  const larger = (a: Set, b: Set): number => {
    if (a.sum !== b.sum) return b.sum - a.sum;
    if (a.items.length !== b.items.length) return b.items.length - a.items.length;
    for (let i = 0; i < a.items.length; i++) if (a.items[i] !== b.items[i]) return b.items[i] - a.items[i];
    return 0;
  };
  const ascending = [...costs.keys()].sort((a, b) => costs[a] - costs[b] || a - b);
  let states: Set[][] = [];
  const width = equalSize ? k : 1;
  for (let i = 0; i < ascending.length; i += width) {
    const sets = Array.from({ length: k }, (): Set => ({ sum: 0, items: [] }));
    ascending.slice(i, i + width).forEach((item, s) => {
      sets[s] = { sum: costs[item], items: [item] };
    });
    states.push(sets.sort(larger));
  }
  const spread = (sets: Set[]) => sets[0].sum - sets[k - 1].sum;
  while (states.length > 1) {
    states.sort((a, b) => spread(b) - spread(a) || larger(a[0], b[0]));
    const [a, b, ...rest] = states;
    const joined = a.map((set, i) => ({
      sum: set.sum + b[k - 1 - i].sum,
      items: [...set.items, ...b[k - 1 - i].items],
    }));
    states = [joined.sort(larger), ...rest];
  }
  return states[0].map((set) => set.items.sort((x, y) => x - y));
}
