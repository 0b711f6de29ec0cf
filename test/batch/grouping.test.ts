import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fitToSteps } from '../../src/batch/fit.js';
import { groupWindow } from '../../src/batch/grouping.js';
import { defaultCost } from '../../src/batch/limits.js';
import type { GroupOptions } from '../../src/batch/window-view.js';
import { numRuns, runTimeout } from '../support/num-runs.js';
import { thrown } from '../support/thrown.js';

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

/** The reference's rule as the specification words it, on plain lists. */
function odbByTheBook(lengths: number[], budget: number, patches: number[], maxPatches: number): number[][] {
  const sorted = lengths.map((length, i) => ({ length, i })).filter(({ length }) => length > 0);
  sorted.sort((a, b) => a.length - b.length || a.i - b.i);
  let limit = 0;
  let running: typeof sorted = [];
  const groups: number[][] = [];
  for (const x of sorted.reverse()) {
    const held = running.reduce((sum, { i }) => sum + patches[i], 0);
    if (maxPatches > 0 && running.length > 0 && held + patches[x.i] > maxPatches) {
      groups.push(running.map(({ i }) => i));
      running = [];
    }
    running.push(x);
    if (running.length >= limit) {
      limit = Math.max(Math.floor(budget / x.length), 1);
      if (maxPatches > 0 && patches[x.i] > 0)
        limit = Math.min(limit, Math.max(Math.floor(maxPatches / patches[x.i]), 1));
      groups.push(running.map(({ i }) => i));
      running = [];
    }
  }
  if (running.length > 0) groups.push(running.map(({ i }) => i));
  return groups.reverse().map((group) => group.reverse());
}

const window = fc.array(fc.record({ length: fc.nat(60), patches: fc.nat(6), age: fc.nat(2) }), {
  maxLength: 40,
});
const limits = fc.record({
  mode: fc.constantFrom('padded' as const, 'packed' as const),
  tokens: fc.integer({ min: 1, max: 200 }),
  cost: fc.option(fc.integer({ min: 1, max: 200 }), { nil: undefined }),
  patches: fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
  maxBatchSize: fc.option(fc.integer({ min: 1, max: 6 }), { nil: undefined }),
  batchSizeMultiple: fc.option(fc.integer({ min: 1, max: 4 }), { nil: undefined }),
});

function optionsOf(
  given: typeof limits extends fc.Arbitrary<infer T> ? T : never,
  patches: number[],
): GroupOptions {
  const { mode, tokens, cost, patches: maxPatches, maxBatchSize, batchSizeMultiple } = given;
  return {
    mode,
    budget: {
      ...(mode === 'padded' ? { paddedTokens: tokens } : { packedTokens: tokens }),
      ...(cost === undefined ? {} : { cost }),
      ...(maxPatches === undefined ? {} : { patches: maxPatches }),
    },
    // Without a patch budget the patches stay away, which takes the short cut of the walk.
    ...(maxPatches === undefined ? {} : { patches }),
    ...(maxBatchSize === undefined ? {} : { maxBatchSize }),
    ...(batchSizeMultiple === undefined ? {} : { batchSizeMultiple }),
  };
}

/** Fails when a group of several samples breaks a budget. */
function checkFeasible(
  group: number[],
  lengths: number[],
  { mode, budget, patches, maxBatchSize, batchSizeMultiple = 1 }: GroupOptions,
): void {
  if (group.length === 1) return;
  const own = group.map((i) => lengths[i]);
  const sum = own.reduce((a, b) => a + b, 0);
  const longest = Math.max(...own);
  const cost =
    mode === 'padded'
      ? own.length * defaultCost(longest)
      : own.reduce((total, length) => total + defaultCost(length), 0);
  const within =
    (mode === 'padded' ? own.length * longest <= budget.paddedTokens! : sum <= budget.packedTokens!) &&
    cost <= (budget.cost ?? Infinity) + 1e-9 &&
    group.reduce((total, i) => total + (patches?.[i] ?? 0), 0) <= (budget.patches ?? Infinity) &&
    own.length <= (maxBatchSize ?? Infinity) &&
    (own.length < batchSizeMultiple || own.length % batchSizeMultiple === 0);
  if (!within) throw new Error(`infeasible group [${own}]`);
}

const sortedFlat = (groups: readonly (readonly number[] | null)[]) =>
  groups.flatMap((group) => group ?? []).sort((a, b) => a - b);

describe('groups of any window', () => {
  test(
    "equal an independent reading of the reference's rule",
    () => {
      const property = fc.property(
        window,
        fc.integer({ min: 1, max: 300 }),
        fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
        (samples, tokens, maxPatches) => {
          const lengths = samples.map(({ length }) => length);
          const patches = samples.map((one) => one.patches);
          const budget = {
            paddedTokens: tokens,
            ...(maxPatches === undefined ? {} : { patches: maxPatches }),
          };
          const groups = groupWindow(lengths, { mode: 'padded', groupingPolicy: 'odb', budget, patches });
          expect(groups).toEqual(odbByTheBook(lengths, tokens, patches, maxPatches ?? 0));
          for (const group of groups)
            if (maxPatches === undefined) checkFeasible(group, lengths, { mode: 'padded', budget, patches });
        },
      );
      fc.assert(property, numRuns(0.12));
    },
    runTimeout(0.12, 3),
  );

  test(
    'hold every non-empty sample once, within every budget',
    () => {
      const property = fc.property(window, limits, (samples, given) => {
        const lengths = samples.map(({ length }) => length);
        const options = optionsOf(
          given,
          samples.map(({ patches }) => patches),
        );
        const groups = groupWindow(lengths, options);
        expect(sortedFlat(groups)).toEqual([...lengths.keys()].filter((i) => lengths[i] > 0));
        for (const group of groups) checkFeasible(group, lengths, options);
      });
      fc.assert(property, numRuns(0.12));
    },
    runTimeout(0.12, 3),
  );

  test(
    'are never more under headroom than under the reference rule when only tokens count',
    () => {
      const property = fc.property(
        fc.array(fc.integer({ min: 1, max: 500 }), { maxLength: 60 }),
        fc.integer({ min: 1, max: 2000 }),
        (lengths, tokens) => {
          const headroom = groupWindow(lengths, padded(tokens)).length;
          expect(headroom).toBeLessThanOrEqual(
            groupWindow(lengths, { ...padded(tokens), groupingPolicy: 'odb' }).length,
          );
        },
      );
      fc.assert(property, numRuns(0.05));
    },
    runTimeout(0.05, 3),
  );
});

describe('any fit of any window', () => {
  test(
    'has exactly the target of steps, feasible, descending by cost, with nothing lost',
    () => {
      const property = fc.property(window, limits, fc.nat(50), (samples, given, target) => {
        const lengths = samples.map(({ length }) => length);
        const options = {
          ...optionsOf(
            given,
            samples.map(({ patches }) => patches),
          ),
          carryAges: samples.map(({ age }) => age),
        };
        const groups = groupWindow(lengths, options);
        const { steps, carry } = fitToSteps(groups, lengths, target, options);
        expect(steps.length).toBe(target);
        expect([...sortedFlat(steps), ...carry].sort((a, b) => a - b)).toEqual(sortedFlat(groups));
        for (const step of steps) if (step !== null) checkFeasible(step, lengths, options);
        if (groups.length <= target) expect(carry).toEqual([]);
        const n = sortedFlat(groups).length;
        expect(steps.filter((step) => step === null).length).toBe(Math.max(0, target - n));
        const cost = (step: number[] | null) => {
          const costs = (step ?? []).map((i) => defaultCost(lengths[i]));
          return step === null
            ? 0
            : given.mode === 'padded'
              ? step.length * Math.max(...costs)
              : costs.reduce((a, b) => a + b, 0);
        };
        for (let i = 1; i < steps.length; i++)
          expect(cost(steps[i])).toBeLessThanOrEqual(cost(steps[i - 1]) + 1e-9);
        // What is carried is no older than what is kept, group by group.
        if (carry.length > 0 && target > 0) {
          const oldest = Math.max(...samples.map(({ age }, i) => (lengths[i] > 0 ? age : 0)));
          const kept = steps.flatMap((step) => step ?? []).map((i) => samples[i].age);
          expect(Math.max(...kept)).toBe(oldest);
        }
      });
      fc.assert(property, numRuns(0.12));
    },
    runTimeout(0.12, 3),
  );

  test('evens out the costs even when no group is missing, and around a sample that is costly alone', () => {
    const sizes = (lengths: number[], policy: 'headroom' | 'odb' = 'headroom') => {
      const options = { ...padded(1000), groupingPolicy: policy };
      const groups = groupWindow(lengths, options);
      return fitToSteps(groups, lengths, groups.length, options).steps.map((step) => step!.length);
    };
    const alike = new Array<number>(13).fill(100); // by headroom 10 and 3
    expect(sizes(alike)).toEqual([7, 6]);
    expect(sizes([...alike, 900])).toEqual([1, 7, 6]);
    expect(sizes([...alike, 2000])).toEqual([1, 7, 6]);
    expect(sizes(alike, 'odb')).toEqual([10, 2, 1]); // the reference's groups are left as they are
  });

  test('carries the cheapest groups, never the longest samples', () => {
    const lengths = [100, 100, 100, 900, 900];
    const { steps, carry } = fitToSteps([[0], [1, 2], [3], [4]], lengths, 2, padded(1000));
    expect(steps).toEqual([[3], [4]]);
    expect(carry).toEqual([0, 1, 2]);
    expect(
      fitToSteps([[0], [1, 2], [3], [4]], lengths, 2, { ...padded(1000), carryAges: [1, 0, 0, 0, 0] }).steps,
    ).toEqual([[3], [0]]);
  });
});

describe('bad input', () => {
  const group = (lengths: unknown, options: unknown) => () =>
    groupWindow(lengths as number[], options as GroupOptions);
  test.each<[string, () => unknown, string]>([
    ['NaN for a length', group([1, Number.NaN], padded(8)), 'ERR_VARLEN_RANGE'],
    ['a negative length', group([-1], padded(8)), 'ERR_VARLEN_RANGE'],
    ['a fraction of a length', group([1.5], padded(8)), 'ERR_VARLEN_RANGE'],
    ['an infinite length', group([Infinity], padded(8)), 'ERR_VARLEN_RANGE'],
    ['a length of 2^53', group([2 ** 53], padded(8)), 'ERR_VARLEN_RANGE'],
    ['a bigint length', group([1n], padded(8)), 'ERR_VARLEN_RANGE'],
    ['too few patches', group([1, 2], { ...padded(8), patches: [1] }), 'ERR_VARLEN_SHAPE'],
    ['negative patches', group([1], { ...padded(8), patches: [-1] }), 'ERR_VARLEN_RANGE'],
    ['a NaN sort key', group([1], { ...padded(8), sortKeys: [Number.NaN] }), 'ERR_VARLEN_RANGE'],
    ['a cost that is not positive', group([1], { ...padded(8), costOf: () => 0 }), 'ERR_VARLEN_RANGE'],
    ['no budget', group([1], {}), 'ERR_VARLEN_MISSING_INPUT'],
    ['an empty budget', group([1], { budget: {} }), 'ERR_VARLEN_MISSING_INPUT'],
    [
      'a packed budget in padded mode',
      group([1], { mode: 'padded', budget: { packedTokens: 8 } }),
      'ERR_VARLEN_MISSING_INPUT',
    ],
    ['an unknown budget', group([1], { budget: { packedTokens: 8, tokens: 8 } }), 'ERR_VARLEN_OPTION'],
    ['an unknown mode', group([1], { mode: 'flat', budget: { packedTokens: 8 } }), 'ERR_VARLEN_OPTION'],
    ['an unknown policy', group([1], { ...padded(8), groupingPolicy: 'best' }), 'ERR_VARLEN_OPTION'],
    [
      'the reference rule in packed mode',
      group([1], { budget: { packedTokens: 8 }, groupingPolicy: 'odb' }),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    [
      'the reference rule with a batch size',
      group([1], { ...padded(8), groupingPolicy: 'odb', maxBatchSize: 2 }),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    [
      'two token budgets in packed mode',
      group([1], { budget: { packedTokens: 8, paddedTokens: 8 } }),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['a target of -1', () => fitToSteps([[0]], [1], -1, padded(8)), 'ERR_VARLEN_RANGE'],
    ['groups that miss a sample', () => fitToSteps([[0]], [1, 1], 1, padded(8)), 'ERR_VARLEN_INDEX'],
    ['groups that repeat a sample', () => fitToSteps([[0], [0]], [1], 1, padded(8)), 'ERR_VARLEN_INDEX'],
    ['an empty group', () => fitToSteps([[], [0]], [1], 1, padded(8)), 'ERR_VARLEN_INDEX'],
    ['an index out of range', () => fitToSteps([[0], [7]], [1], 1, padded(8)), 'ERR_VARLEN_INDEX'],
    ['too few ages', () => fitToSteps([[0]], [1], 1, { ...padded(8), carryAges: [] }), 'ERR_VARLEN_SHAPE'],
  ])('%s is a typed error', (_, call, code) => {
    expect(thrown(call)).toMatchObject({ code });
  });

  test.each<unknown>([
    Number.NaN,
    Infinity,
    -0,
    -1,
    0,
    1.5,
    2 ** 53,
    8n,
    '8',
    null,
    Symbol('8'),
    {},
    {
      valueOf: () => {
        throw new Error('no');
      },
    },
  ])('a budget of %s is a RANGE error that names it', (value) => {
    expect(thrown(group([1], { budget: { packedTokens: value } }))).toMatchObject({
      code: 'ERR_VARLEN_RANGE',
      details: { argument: 'budget.packedTokens' },
    });
  });
});
