import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { progressiveMask, progressiveSchedule, stepDifficulty, weightedNll } from '../../../src/rl/index.js';
import { chooseAdvances } from '../../../src/rl/preference/progressive-schedule.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';
import { centralDifferences, expectSlopes } from './central-differences.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('weightedNll', () => {
  const tokens = {
    cuSeqlens: Int32Array.of(0, 3),
    logprobs: Float64Array.of(-0.2, -2, -0.3),
    weights: Float64Array.of(0.8, 0.1, 0.95),
  };

  test('gives the worked example, as a mean by weight and as a sum', () => {
    expect(weightedNll(tokens).loss).toBeCloseTo(0.34864865, 8);
    expect(weightedNll(tokens, { normalize: 'none' }).loss).toBeCloseTo(0.645, 14);
  });

  test('has the gradient of central differences, 0 where masked', () => {
    const lossMask = Uint8Array.of(1, 0, 1);
    for (const normalize of ['none', 'weight-sum'] as const) {
      const at = (logprobs: Float64Array) => weightedNll({ ...tokens, lossMask, logprobs }, { normalize });
      const wanted = centralDifferences(tokens.logprobs, (logprobs) => at(logprobs).loss);
      expectSlopes(at(tokens.logprobs).dLogprobs, wanted);
      expect(at(tokens.logprobs).dLogprobs[1]).toBe(0);
    }
    const spoiled = {
      ...tokens,
      lossMask,
      logprobs: tokens.logprobs.with(1, NaN),
      weights: tokens.weights.with(1, -1),
    };
    expect(weightedNll(spoiled)).toEqual(weightedNll({ ...tokens, lossMask }));
  });

  test('without weight is 0', () => {
    const { loss, dLogprobs } = weightedNll({ ...tokens, weights: new Float64Array(3) });
    expect(Object.is(loss, 0)).toBe(true);
    expect(dLogprobs.every((slope) => slope === 0)).toBe(true);
  });

  test('refuses negative weights and log-probabilities that are none', () => {
    expect(code(() => weightedNll({ ...tokens, weights: Float64Array.of(1, -1, 1) }))).toBe(
      'ERR_VARLEN_WEIGHT',
    );
    expect(code(() => weightedNll({ ...tokens, weights: Float64Array.of(1, NaN, 1) }))).toBe(
      'ERR_VARLEN_WEIGHT',
    );
    expect(code(() => weightedNll({ ...tokens, logprobs: Float64Array.of(1, -Infinity, 1) }))).toBe(
      'ERR_VARLEN_NON_FINITE',
    );
    expect(code(() => weightedNll(tokens, { normalize: 'mean' as never }))).toBe('ERR_VARLEN_OPTION');
  });
});

describe('stepDifficulty', () => {
  const logprobs = Float64Array.of(-0.5, -1, -0.2, -2, -0.3);
  const weights = Float64Array.of(0.9, 0.2, 0.8, 0.1, 0.95);
  const offsets = Int32Array.of(0, 2, 5);

  test('gives the worked example with softmax weighting', () => {
    const difficulty = stepDifficulty(logprobs, weights, offsets, { weighting: 'softmax' });
    expect(difficulty[0]).toBeCloseTo(0.66590611, 8);
    expect(difficulty[1]).toBeCloseTo(0.57993889, 8);
  });

  test('is the weighted mean otherwise', () => {
    const [first, second] = stepDifficulty(logprobs, weights, offsets);
    expect(first).toBeCloseTo((0.9 * 0.5 + 0.2) / 1.1, 14);
    expect(second).toBeCloseTo(0.645 / 1.85, 14);
  });

  test('of nothing is 0, and lies between the easiest and the hardest token', () => {
    expect(stepDifficulty(logprobs, weights, Int32Array.of(0, 0, 5))[0]).toBe(0);
    expect(stepDifficulty(logprobs, new Float64Array(5), offsets)).toEqual(new Float64Array(2));
    const numbers = fc.array(
      fc.tuple(fc.double({ min: -9, max: 0, noNaN: true }), fc.double({ min: 1e-3, max: 5, noNaN: true })),
      {
        minLength: 1,
        maxLength: 9,
      },
    );
    fc.assert(
      fc.property(
        numbers,
        fc.constantFrom('softmax' as const, 'proportional' as const),
        (list, weighting) => {
          const [d] = stepDifficulty(
            Float64Array.from(list, ([p]) => p),
            Float64Array.from(list, ([, w]) => w),
            Int32Array.of(0, list.length),
            { weighting },
          );
          expect(d).toBeGreaterThanOrEqual(Math.min(...list.map(([p]) => -p)) - 1e-12);
          expect(d).toBeLessThanOrEqual(Math.max(...list.map(([p]) => -p)) + 1e-12);
        },
      ),
      numRuns(0.05),
    );
  });

  test('refuses steps that do not cover the tokens', () => {
    expect(code(() => stepDifficulty(logprobs, weights, Int32Array.of(0, 4)))).toBe('ERR_VARLEN_CU_SEQLENS');
    expect(code(() => stepDifficulty(logprobs, weights.with(0, -1), offsets))).toBe('ERR_VARLEN_WEIGHT');
  });
});

describe('progressiveMask', () => {
  const steps = { stepOffsets: Int32Array.of(0, 2, 3, 5, 6), cuSteps: Int32Array.of(0, 3, 4) };

  test.each([
    [0, [0, 0, 0, 0, 0, 0]],
    [1, [0, 0, 0, 1, 1, 1]],
    [2, [0, 0, 1, 1, 1, 1]],
    [3, [1, 1, 1, 1, 1, 1]],
    [9, [1, 1, 1, 1, 1, 1]],
  ])('at stage %i trains the last steps', (stage, mask) => {
    expect(progressiveMask(steps, stage)).toEqual(Uint8Array.from(mask));
  });

  test('follows the first trained step of each rationale', () => {
    expect(progressiveMask(steps, Int32Array.of(1, 1))).toEqual(Uint8Array.of(0, 0, 1, 1, 1, 0));
  });

  test('refuses steps that are not there', () => {
    expect(code(() => progressiveMask(steps, -1))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => progressiveMask(steps, Int32Array.of(4, 0)))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => progressiveMask(steps, Int32Array.of(0)))).toBe('ERR_VARLEN_SHAPE');
    expect(code(() => progressiveMask({ ...steps, cuSteps: Int32Array.of(0, 3) }, 1))).toBe(
      'ERR_VARLEN_CU_SEQLENS',
    );
  });
});

describe('the choice of rationales that grow', () => {
  /** `-(budget left) + diversity * sum over clusters sqrt(chosen)`; -Infinity over the budget. */
  function objective(
    chosen: readonly number[],
    costs: Float64Array,
    clusters: Int32Array,
    budget: number,
    diversity: number,
  ) {
    const cost = chosen.reduce((sum, i) => sum + costs[i], 0);
    const counts = new Map<number, number>();
    for (const i of chosen) counts.set(clusters[i], (counts.get(clusters[i]) ?? 0) + 1);
    const spread = [...counts.values()].reduce((sum, n) => sum + Math.sqrt(n), 0);
    return cost > budget + 1e-9 ? -Infinity : cost - budget + diversity * spread;
  }

  test('gives the worked example: greedy, and within its guarantee of the best', () => {
    const costs = Float64Array.of(3, 2, 2, 4);
    const clusters = Int32Array.of(0, 0, 1, 1);
    const chosen = chooseAdvances(costs, clusters, 5, 1);
    expect(chosen.toSorted()).toEqual([1, 2]);
    expect(objective(chosen, costs, clusters, 5, 1)).toBe(1);
    expect(objective([0, 2], costs, clusters, 5, 1)).toBe(2);
  });

  test('stays in the budget and within 1 - 1/sqrt(e) of the best, of all choices of up to 8', () => {
    const items = fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.nat(2)), { maxLength: 8 });
    fc.assert(
      fc.property(items, fc.nat(20), fc.constantFrom(0, 0.5, 3), (list, budget, diversity) => {
        const costs = Float64Array.from(list, ([cost]) => cost);
        const clusters = Int32Array.from(list, ([, cluster]) => cluster);
        const value = (chosen: number[]) => budget + objective(chosen, costs, clusters, budget, diversity);
        let best = 0;
        for (let bits = 0; bits < 2 ** list.length; bits++) {
          best = Math.max(best, value([...list.keys()].filter((i) => (bits >> i) & 1)));
        }
        const mine = value(chooseAdvances(costs, clusters, budget, diversity));
        expect(mine).toBeGreaterThanOrEqual((1 - 1 / Math.sqrt(Math.E)) * best - 1e-9);
      }),
      numRuns(0.05),
    );
  });
});

describe('progressiveSchedule', () => {
  test('has the budgets of the worked example', () => {
    const input = {
      difficulties: new Float64Array(20).fill(1),
      cuSteps: Int32Array.of(0, 10, 20),
      clusters: Int32Array.of(0, 1),
    };
    const stages = progressiveSchedule(input, { stages: 10, initial: 2 });
    const budgets = [0, 1, 2, 5, 10].map((stage) => Number(stages[stage].budget.toFixed(5)));
    expect(budgets).toEqual([2, 2.56921, 3.60997, 8.36396, 20]);
    expect(stages[0].firstTrainedStep).toEqual(Int32Array.of(9, 9));
    expect(stages[10].firstTrainedStep).toEqual(Int32Array.of(0, 0));
  });

  test('only grows, keeps its budget, and trains everything at the end', () => {
    const rationales = fc.array(
      fc.tuple(fc.array(fc.double({ min: 0, max: 5, noNaN: true }), { maxLength: 5 }), fc.nat(2)),
      {
        maxLength: 8,
      },
    );
    fc.assert(
      fc.property(
        rationales,
        fc.integer({ min: 1, max: 6 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.constantFrom(0, 1),
        (list, stages, part, diversity) => {
          const difficulties = Float64Array.from(list.flatMap(([d]) => d));
          const cuSteps = Int32Array.of(
            0,
            ...list.map((_, i) => list.slice(0, i + 1).reduce((n, [d]) => n + d.length, 0)),
          );
          const total = difficulties.reduce((a, b) => a + b, 0);
          const input = { difficulties, cuSteps, clusters: Int32Array.from(list, ([, c]) => c) };
          const plan = progressiveSchedule(input, { stages, initial: part * total, diversity });
          expect(plan).toHaveLength(stages + 1);
          plan.forEach(({ stage, firstTrainedStep, budget, used }, s) => {
            expect(stage).toBe(s);
            expect(used).toBeLessThanOrEqual(budget);
            // What is said to be used is the difficulty of what is trained.
            const trained = list.reduce(
              (sum, [d], i) => sum + d.slice(firstTrainedStep[i]).reduce((a, b) => a + b, 0),
              0,
            );
            expect(Math.abs(trained - used)).toBeLessThan(1e-9);
            firstTrainedStep.forEach((first, i) => {
              expect(first).toBeLessThanOrEqual(
                s === 0 ? list[i][0].length : plan[s - 1].firstTrainedStep[i],
              );
              // Nothing that still fits is left out.
              if (first > 0 && s < stages)
                expect(used + list[i][0][first - 1]).toBeGreaterThan(budget - 1e-9);
            });
          });
          expect(plan[stages].firstTrainedStep.every((first) => first === 0)).toBe(true);
        },
      ),
      numRuns(0.05),
    );
  });

  test('refuses an initial budget over the sum, no stages, and negative difficulties', () => {
    const input = {
      difficulties: Float64Array.of(1, 2),
      cuSteps: Int32Array.of(0, 2),
      clusters: Int32Array.of(0),
    };
    expect(code(() => progressiveSchedule(input, { stages: 2, initial: 4 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => progressiveSchedule(input, { stages: 0, initial: 1 }))).toBe('ERR_VARLEN_RANGE');
    const negative = { ...input, difficulties: Float64Array.of(-1, 2) };
    expect(code(() => progressiveSchedule(negative, { stages: 2, initial: 0 }))).toBe('ERR_VARLEN_RANGE');
    const clusters = Int32Array.of(0, 1);
    expect(code(() => progressiveSchedule({ ...input, clusters }, { stages: 2, initial: 0 }))).toBe(
      'ERR_VARLEN_SHAPE',
    );
  });
});
