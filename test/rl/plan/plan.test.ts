import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { VarlenError } from '../../../src/errors.js';
import { type Aggregation, activeLengths, keepSequences, planAggregation } from '../../../src/rl/index.js';
import { thrown } from '../../support/thrown.js';
import * as any from '../arbitraries.js';
import * as e1 from '../worked-example.js';

const input = { lengths: e1.lengths, groupIds: e1.groupIds };

function scales(aggregation: Aggregation, lengths: Int32Array = e1.lengths): number[] {
  const groupIds = lengths === e1.lengths ? e1.groupIds : new Int32Array(lengths.length);
  return [...planAggregation({ lengths, groupIds }, { aggregation }).seqScale];
}

function expectClose(got: ArrayLike<number>, expected: readonly number[], relative = 2 ** -23): void {
  expect(got.length).toBe(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs(got[i] - value), `at ${i}: ${got[i]} is not ${value}`).toBeLessThanOrEqual(
      relative * Math.abs(value),
    );
  });
}

describe('worked example: five sequences of 2, 3, 1, 3 and no tokens', () => {
  // Eight digits are printed, so they hold to half a unit in the last.
  const cases: [string, Aggregation, number[]][] = [
    ['token-mean', { mode: 'token-mean' }, [1 / 9, 1 / 9, 1 / 9, 1 / 9]],
    ['token-sum', { mode: 'token-sum' }, [1, 1, 1, 1]],
    ['seq-mean-token-sum', { mode: 'seq-mean-token-sum' }, [0.25, 0.25, 0.25, 0.25]],
    ['seq-mean-token-mean', { mode: 'seq-mean-token-mean' }, [0.125, 0.08333333, 0.25, 0.08333333]],
    [
      'seq-mean-token-sum-norm',
      { mode: 'seq-mean-token-sum-norm', normConstant: 8 },
      [0.03125, 0.03125, 0.03125, 0.03125],
    ],
    ['group-mean-token-mean', { mode: 'group-mean-token-mean' }, [0.1, 0.1, 0.125, 0.125]],
    [
      'delta-l, alpha 0.75',
      { mode: 'delta-l', alpha: 0.75, normConstant: 8 },
      [0.03006709, 0.02218314, 0.05056662, 0.02218314],
    ],
    [
      'delta-l, alpha 1',
      { mode: 'delta-l', alpha: 1, normConstant: 8 },
      [0.02884615, 0.01923077, 0.05769231, 0.01923077],
    ],
  ];
  test.each(cases)('%s', (_name, aggregation, expected) => {
    expectClose(scales(aggregation), [...expected, 0], 2.5e-7);
  });

  test('totals and the plan itself can be inspected', () => {
    const plan = planAggregation(input, { aggregation: { mode: 'token-mean' } });
    expect(plan.totals).toEqual({
      tokens: 9,
      seqs: 4,
      groups: 2,
      weightSum: 0,
      entropyTokens: 9,
      correctionSum: 0,
    });
    expect(plan).toMatchObject({
      scope: 'optimizer-step',
      gradReduction: 'mean',
      worldSize: 1,
      lengthMask: 'base',
      numSeqs: 5,
      activeTokens: 9,
      gradScale: 1,
      entropyScale: 1 / 9,
    });
    expect([...plan.lengths]).toEqual([2, 3, 1, 3, 0]);
    expect(plan).not.toHaveProperty('ids');
    expect(plan.lengthHash).toMatch(/^[0-9a-f]{16}$/);
    expect(Object.isFrozen(plan) && Object.isFrozen(plan.totals) && Object.isFrozen(plan.aggregation)).toBe(
      true,
    );
  });

  test('lengths are counted from offsets and mask', () => {
    expect([...activeLengths(e1)]).toEqual([2, 3, 1, 3, 0]);
    expect([...activeLengths({ cuSeqlens: e1.cuSeqlens })]).toEqual([2, 3, 1, 4, 0]);
    const kept = keepSequences(e1, Uint8Array.of(1, 0, 1, 0, 1));
    expect([...kept]).toEqual([1, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
    expect([...e1.lossMask]).toEqual([1, 1, 1, 1, 1, 1, 1, 0, 1, 1]);
  });
});

/** Aggregated value of per-token losses, as other programs' tests state it. */
function aggregate(aggregation: Aggregation, rows: readonly number[][], groups?: readonly number[]): number {
  const lengths = Int32Array.from(rows, (row) => row.length);
  const groupIds = Int32Array.from(groups ?? rows.map(() => 0));
  const { seqScale } = planAggregation({ lengths, groupIds }, { aggregation });
  return rows.reduce((sum, row, i) => sum + seqScale[i] * row.reduce((a, b) => a + b, 0), 0);
}

describe('values that public tests of other programs state', () => {
  test('token mean of [1, 2] and [4, 5, 6] is 3.6', () => {
    expect(
      aggregate({ mode: 'token-mean' }, [
        [1, 2],
        [4, 5, 6],
      ]),
    ).toBeCloseTo(3.6, 6);
  });

  test('sequence mean of [1, 2] and [3] is 2.25', () => {
    expect(aggregate({ mode: 'seq-mean-token-mean' }, [[1, 2], [3]])).toBe(2.25);
  });

  test('[2, 3] and [9] over a constant of 10 are 0.7', () => {
    const mode = { mode: 'seq-mean-token-sum-norm', normConstant: 10 } as const;
    expect(aggregate(mode, [[2, 3], [9]])).toBeCloseTo(0.7, 7);
  });

  test('four rows in two groups have group mean 4.25', () => {
    const rows = [[1, 2], [3], [5, 6], [7, 8]];
    expect(aggregate({ mode: 'group-mean-token-mean' }, rows, [0, 0, 1, 1])).toBeCloseTo(4.25, 6);
  });

  test('a token sum of 13 is multiplied by the ranks that a mean divides by', () => {
    const lengths = Int32Array.of(2, 1);
    const options = { aggregation: { mode: 'token-sum' }, worldSize: 4 } as const;
    expect([...planAggregation({ lengths }, options).seqScale]).toEqual([4, 4]);
    expect(aggregate({ mode: 'token-sum' }, [[6, 4], [3]])).toBe(13);
  });
});

describe('identities of Delta-L', () => {
  const C = 8192;
  const norm = { mode: 'seq-mean-token-sum-norm', normConstant: C } as const;
  const deltaL = (alpha: number): Aggregation => ({ mode: 'delta-l', alpha, normConstant: C });

  test('alpha 0 is Dr. GRPO', () => {
    fc.assert(
      fc.property(any.activeLengths, (lengths) => {
        expectClose(scales(deltaL(0), lengths), scales(norm, lengths));
      }),
    );
  });

  test('alpha 1 is the sample mean of GRPO times harmonic mean length over C', () => {
    fc.assert(
      fc.property(any.activeLengths, (lengths) => {
        const active = [...lengths].filter((n) => n > 0);
        const harmonic = active.length / active.reduce((sum, n) => sum + 1 / n, 0);
        const grpo = scales({ mode: 'seq-mean-token-mean' }, lengths).map((s) => (s * harmonic) / C);
        expectClose(scales(deltaL(1), lengths), grpo, 3 * 2 ** -24);
      }),
    );
    expect(4 / (1 / 2 + 1 / 3 + 1 + 1 / 3)).toBeCloseTo(1.8461538, 7);
  });

  test('token mean is Dr. GRPO times C over the mean length', () => {
    fc.assert(
      fc.property(any.activeLengths, (lengths) => {
        const active = [...lengths].filter((n) => n > 0);
        const mean = active.reduce((a, b) => a + b, 0) / active.length;
        const expected = scales(norm, lengths).map((s) => (s * C) / mean);
        expectClose(scales({ mode: 'token-mean' }, lengths), expected, 3 * 2 ** -24);
      }),
    );
  });

  test('equal lengths make all means agree, and Delta-L is the token mean times L / C', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4096 }),
        fc.integer({ min: 1, max: 9 }),
        fc.double({ min: 0, max: 2, noNaN: true }),
        (length, count, alpha) => {
          const lengths = new Int32Array(2 * count).fill(length);
          const groupIds = Int32Array.from(lengths, (_, i) => i % 2);
          const of = (aggregation: Aggregation): number[] => [
            ...planAggregation({ lengths, groupIds }, { aggregation }).seqScale,
          ];
          const mean = of({ mode: 'token-mean' });
          expectClose(of({ mode: 'seq-mean-token-mean' }), mean);
          expectClose(of({ mode: 'group-mean-token-mean' }), mean);
          expectClose(
            of(deltaL(alpha)),
            mean.map((s) => (s * length) / C),
            3 * 2 ** -24,
          );
        },
      ),
    );
  });

  test('weights sum to 1 / C for every alpha and every law', () => {
    const weighing = any.aggregation.filter(({ mode }) => mode === 'delta-l' || mode === 'inverse-variance');
    fc.assert(
      fc.property(weighing, any.activeLengths, (aggregation, lengths) => {
        const total = scales(aggregation, lengths).reduce((a, b) => a + b, 0);
        expect(Math.abs(total * 4096 - 1)).toBeLessThan(2 ** -24);
      }),
    );
  });

  test('inverse variance with a power law is Delta-L to the last bit', () => {
    fc.assert(
      fc.property(any.activeLengths, fc.double({ min: 0, max: 2, noNaN: true }), (lengths, alpha) => {
        const law = { kind: 'power', exponent: alpha } as const;
        const same = scales({ mode: 'inverse-variance', law, normConstant: C }, lengths);
        expect(same).toEqual(scales(deltaL(alpha), lengths));
      }),
    );
  });
});

describe('variance laws', () => {
  /** `v(1) / v(2)`, `v(1) / v(3)` as the weights give them. */
  function ratios(law: Extract<Aggregation, { mode: 'inverse-variance' }>['law']): number[] {
    const lengths = Int32Array.of(1, 2, 3);
    const s = planAggregation(
      { lengths },
      { aggregation: { mode: 'inverse-variance', law, normConstant: 3 } },
    );
    return [s.seqScale[1] / s.seqScale[0], s.seqScale[2] / s.seqScale[0]];
  }

  test('each law weighs by its inverse variance', () => {
    expectClose(ratios({ kind: 'iid' }), [1 / 2, 1 / 3], 2 ** -22);
    // Sum of the correlation matrix of 2 and 3 tokens with rho = 0.5: 2 + 2 rho, 3 + 4 rho + 2 rho^2.
    expectClose(ratios({ kind: 'ar1', rho: 0.5 }), [1 / 3, 1 / 5.5], 2 ** -22);
    expectClose(ratios({ kind: 'ar1', rho: -0.5 }), [1, 1 / 1.5], 2 ** -22);
    // 2 + 2 rho, 3 + 6 rho.
    expectClose(ratios({ kind: 'compound-symmetry', rho: 0.5 }), [1 / 3, 1 / 6], 2 ** -22);
    expectClose(ratios({ kind: 'power', exponent: 2 }), [1 / 4, 1 / 9], 2 ** -22);
    expectClose(ratios({ kind: 'custom', values: Float64Array.of(1, 5, 7) }), [1 / 5, 1 / 7], 2 ** -22);
  });
});

describe('scopes, ranks and masks', () => {
  const lengths = Int32Array.of(4, 2);
  const tokenMean = { aggregation: { mode: 'token-mean' } } as const;

  test('a mean over ranks is undone, a sum is left alone', () => {
    const mean = planAggregation({ lengths }, { ...tokenMean, worldSize: 3 });
    const sum = planAggregation({ lengths }, { ...tokenMean, worldSize: 3, gradReduction: 'sum' });
    expect([...mean.seqScale]).toEqual([0.5, 0.5]);
    expect([mean.entropyScale, mean.gradScale, sum.gradScale]).toEqual([0.5, 3, 1]);
    expect(sum.seqScale[0]).toBe(Math.fround(1 / 6));
    expect(sum.entropyScale).toBe(1 / 6);
  });

  test('a rollout batch split in K steps has steps of the same average size', () => {
    const plan = planAggregation({ lengths }, { ...tokenMean, scope: 'rollout-batch', optimizerSteps: 2 });
    const halves = [plan.slice(0, 1), plan.slice(1, 2)].map((half) => half.seqScale[0] * half.lengths[0]);
    expect((halves[0] + halves[1]) / 2).toBeCloseTo(1, 6);
  });

  test('a sum keeps its size in a larger scope', () => {
    const options = { scope: 'rollout-batch', optimizerSteps: 4 } as const;
    const plan = planAggregation({ lengths }, { aggregation: { mode: 'token-sum' }, ...options });
    expect([...plan.seqScale]).toEqual([1, 1]);
  });

  test('the published Delta-L, over a rectangle of B responses and width R, is the rollout-batch scope', () => {
    const rollout = Int32Array.of(5, 1, 3, 7, 2, 4);
    const [R, alpha, K] = [8, 0.75, 3];
    const r = Float64Array.from(rollout, (n) => (n / (22 / 6)) ** -alpha);
    const meanR = r.reduce((a, b) => a + b, 0) / r.length;
    const perStep = r.map((value) => value / meanR / ((rollout.length / K) * R));
    const plan = planAggregation(
      { lengths: rollout },
      { aggregation: { mode: 'delta-l', alpha, normConstant: R }, scope: 'rollout-batch', optimizerSteps: K },
    );
    expectClose(plan.seqScale, [...perStep]);
  });

  test('a micro-batch scope sums over each micro-batch alone and warns once', async () => {
    const warnings: Error[] = [];
    const listen = (warning: Error): void => void warnings.push(warning);
    process.on('warning', listen);
    const options = { ...tokenMean, scope: 'micro-batch', microBatches: 2 } as const;
    const parts = [Int32Array.of(4), Int32Array.of(2)].map(
      (part) => planAggregation({ lengths: part }, options).seqScale[0],
    );
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', listen);
    expect(parts).toEqual([1 / 8, 1 / 4]); // and not 1/6 for every token
    expect(warnings.map(({ name }) => name)).toEqual(['VarlenWarning']);
  });

  test('rejection does not change the denominator unless asked to', () => {
    const effectiveLengths = Int32Array.of(1, 0);
    const base = planAggregation({ lengths, effectiveLengths }, tokenMean);
    expect(base.seqScale[0]).toBe(Math.fround(1 / 6));
    const effective = planAggregation(
      { lengths, effectiveLengths },
      { ...tokenMean, lengthMask: 'effective' },
    );
    expect([...effective.seqScale]).toEqual([1, 0]);
    expect(effective.lengthHash).toBe(base.lengthHash);
  });

  test('the entropy scale counts the tokens it is told to', () => {
    expect(planAggregation({ lengths, entropyTokens: 3 }, tokenMean).entropyScale).toBe(1 / 3);
    expect(planAggregation({ lengths, entropyTokens: 0 }, tokenMean).entropyScale).toBe(0);
  });
});

describe('slices', () => {
  test('parts of a plan are its weights in plan order, whatever the cut', () => {
    fc.assert(
      fc.property(any.aggregation, any.lengths, fc.array(fc.nat(24)), (aggregation, lengths, cuts) => {
        const groupIds = Int32Array.from(lengths, (_, i) => i % 3);
        const plan = planAggregation({ lengths, groupIds }, { aggregation });
        const at = [0, ...cuts.filter((cut) => cut <= lengths.length).sort((a, b) => a - b), lengths.length];
        const parts = at.slice(1).map((end, i) => plan.slice(at[i], end));
        expect(parts.flatMap(({ seqScale }) => [...seqScale])).toEqual([...plan.seqScale]);
        expect(parts.map(({ start }) => start)).toEqual(at.slice(0, -1));
        for (const part of parts) {
          expect(part.totals).toBe(plan.totals);
          expect(part.activeTokens).toBe(plan.activeTokens);
          expect(part.gradScale).toBe(plan.gradScale);
          expect(part.entropyScale).toBe(plan.entropyScale);
          expect(part.lengthHash).toBe(
            planAggregation(
              { lengths: part.lengths, groupIds: new Int32Array(part.numSeqs) },
              { aggregation },
            ).lengthHash,
          );
        }
      }),
      { numRuns: 60 },
    );
  });

  test('a slice of a slice keeps names and order', () => {
    const plan = planAggregation(
      { ...input, ids: ['a', 'b', 'c', 'd', 'e'] },
      { aggregation: { mode: 'token-mean' } },
    );
    expect(plan.slice(1, 5).slice(1, 3)).toMatchObject({ ids: ['c', 'd'], start: 2 });
    expect(plan.slice(2, 2).numSeqs).toBe(0);
  });

  test.each([
    [-1, 2],
    [2, 1],
    [0, 6],
    [0.5, 2],
    [Number.NaN, 1],
  ])('slice(%s, %s) of five sequences is refused', (start, end) => {
    const plan = planAggregation(input, { aggregation: { mode: 'token-mean' } });
    expect(thrown(() => plan.slice(start, end))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
  });
});

describe('properties', () => {
  test('an inactive sequence changes nothing', () => {
    fc.assert(
      fc.property(any.aggregation, any.activeLengths, fc.nat(), (aggregation, lengths, seed) => {
        const at = seed % (lengths.length + 1);
        const longer = Int32Array.from([...lengths.slice(0, at), 0, ...lengths.slice(at)]);
        const with0 = scales(aggregation, longer);
        expect(with0[at]).toBe(0);
        expect(with0.toSpliced(at, 1)).toEqual(scales(aggregation, lengths));
      }),
    );
  });

  test('permuting sequences permutes weights, bit for bit', () => {
    const cases = any.activeLengths.chain((lengths) =>
      fc.record({
        lengths: fc.constant(lengths),
        groupIds: any.groupIdsFor(lengths.length),
        order: fc.shuffledSubarray([...lengths.keys()], { minLength: lengths.length }),
      }),
    );
    fc.assert(
      fc.property(any.aggregation, cases, (aggregation, { lengths, groupIds, order }) => {
        const plan = planAggregation({ lengths, groupIds }, { aggregation });
        const permuted = planAggregation(
          {
            lengths: Int32Array.from(order, (i) => lengths[i]),
            groupIds: Int32Array.from(order, (i) => groupIds[i]),
          },
          { aggregation },
        );
        expect([...permuted.seqScale]).toEqual(order.map((i) => plan.seqScale[i]));
      }),
    );
  });

  test('nothing active gives zeros and no NaN', () => {
    fc.assert(
      fc.property(any.aggregation, fc.nat(5), (aggregation, numSeqs) => {
        const lengths = new Int32Array(numSeqs);
        const plan = planAggregation({ lengths, groupIds: lengths }, { aggregation });
        expect([...plan.seqScale]).toEqual([...lengths]);
        expect(plan.entropyScale).toBe(0);
        expect(plan.totals).toMatchObject({ tokens: 0, seqs: 0, groups: 0 });
      }),
    );
  });

  test('the hash tells lengths, their order and their number apart', () => {
    const hash = (...lengths: number[]): string =>
      planAggregation({ lengths: Int32Array.from(lengths) }, { aggregation: { mode: 'token-sum' } })
        .lengthHash;
    const seen = [[], [0], [0, 0], [1, 2], [2, 1], [3], [1, 2, 0]].map((lengths) => hash(...lengths));
    expect(new Set(seen).size).toBe(seen.length);
    expect(hash(1, 2)).toBe(hash(1, 2));
  });

  test('the plan does not follow later writes to its input', () => {
    const lengths = Int32Array.of(1, 2);
    const plan = planAggregation({ lengths }, { aggregation: { mode: 'token-mean' } });
    lengths[0] = 9;
    expect([...plan.lengths]).toEqual([1, 2]);
  });
});

describe('what is refused', () => {
  const lengths = Int32Array.of(1, 2);
  const law = { kind: 'iid' };
  const cases: [string, object, object, string, string][] = [
    ['a plain array of lengths', { lengths: [1, 2] }, {}, 'ERR_VARLEN_TYPE', 'lengths'],
    ['lengths of another element type', { lengths: Float64Array.of(1) }, {}, 'ERR_VARLEN_DTYPE', 'lengths'],
    ['a negative length', { lengths: Int32Array.of(-1) }, {}, 'ERR_VARLEN_RANGE', 'lengths[0]'],
    ['group ids of another length', { groupIds: Int32Array.of(1) }, {}, 'ERR_VARLEN_SHAPE', 'groupIds'],
    ['ids of another length', { ids: ['a'] }, {}, 'ERR_VARLEN_SHAPE', 'ids'],
    ['an unknown input', { length: lengths }, {}, 'ERR_VARLEN_OPTION', 'length'],
    [
      'an effective length above the length',
      { effectiveLengths: Int32Array.of(2, 2) },
      {},
      'ERR_VARLEN_RANGE',
      'effectiveLengths[0]',
    ],
    [
      'an effective mask without lengths',
      {},
      { lengthMask: 'effective' },
      'ERR_VARLEN_MISSING_INPUT',
      'effectiveLengths',
    ],
    ['no aggregation', {}, { aggregation: undefined }, 'ERR_VARLEN_TYPE', 'aggregation'],
    ['an unknown mode', {}, { aggregation: { mode: 'mean' } }, 'ERR_VARLEN_OPTION', 'aggregation.mode'],
    [
      'an unknown field',
      {},
      { aggregation: { mode: 'token-mean', c: 1 } },
      'ERR_VARLEN_OPTION',
      'aggregation.c',
    ],
    [
      'a field of another mode',
      {},
      { aggregation: { mode: 'token-mean', alpha: 1 } },
      'ERR_VARLEN_INCOMPATIBLE',
      'aggregation.alpha',
    ],
    [
      'no constant',
      {},
      { aggregation: { mode: 'delta-l', alpha: 1 } },
      'ERR_VARLEN_MISSING_INPUT',
      'aggregation.normConstant',
    ],
    [
      'a constant of 0',
      {},
      { aggregation: { mode: 'seq-mean-token-sum-norm', normConstant: 0 } },
      'ERR_VARLEN_RANGE',
      'aggregation.normConstant',
    ],
    [
      'a negative alpha',
      {},
      { aggregation: { mode: 'delta-l', alpha: -1, normConstant: 1 } },
      'ERR_VARLEN_RANGE',
      'aggregation.alpha',
    ],
    [
      'an infinite alpha',
      {},
      { aggregation: { mode: 'delta-l', alpha: Infinity, normConstant: 1 } },
      'ERR_VARLEN_RANGE',
      'aggregation.alpha',
    ],
    [
      'an alpha that float64 cannot raise to',
      {},
      { aggregation: { mode: 'delta-l', alpha: 1e5, normConstant: 8192 } },
      'ERR_VARLEN_RANGE',
      'aggregation',
    ],
    [
      'groups that are missing',
      {},
      { aggregation: { mode: 'group-mean-token-mean' } },
      'ERR_VARLEN_MISSING_INPUT',
      'groupIds',
    ],
    [
      'no law',
      {},
      { aggregation: { mode: 'inverse-variance', normConstant: 1 } },
      'ERR_VARLEN_MISSING_INPUT',
      'aggregation.law',
    ],
    [
      'an unknown law',
      {},
      { aggregation: { mode: 'inverse-variance', normConstant: 1, law: { kind: 'ar2' } } },
      'ERR_VARLEN_OPTION',
      'aggregation.law.kind',
    ],
    [
      'a field of another law',
      {},
      { aggregation: { mode: 'inverse-variance', normConstant: 1, law: { ...law, rho: 0 } } },
      'ERR_VARLEN_INCOMPATIBLE',
      'aggregation.law.rho',
    ],
    [
      'rho of 1',
      {},
      { aggregation: { mode: 'inverse-variance', normConstant: 1, law: { kind: 'ar1', rho: 1 } } },
      'ERR_VARLEN_RANGE',
      'aggregation.law.rho',
    ],
    [
      'a variance below 0',
      {},
      {
        aggregation: {
          mode: 'inverse-variance',
          normConstant: 1,
          law: { kind: 'compound-symmetry', rho: -2 },
        },
      },
      'ERR_VARLEN_RANGE',
      'aggregation.law at length 2',
    ],
    [
      'a custom law of another length',
      {},
      {
        aggregation: {
          mode: 'inverse-variance',
          normConstant: 1,
          law: { kind: 'custom', values: Float64Array.of(1) },
        },
      },
      'ERR_VARLEN_SHAPE',
      'aggregation.law.values',
    ],
    [
      'a custom variance of 0',
      {},
      {
        aggregation: {
          mode: 'inverse-variance',
          normConstant: 1,
          law: { kind: 'custom', values: Float64Array.of(1, 0) },
        },
      },
      'ERR_VARLEN_RANGE',
      'aggregation.law.values[1]',
    ],
    ['an unknown option', {}, { worldsize: 1 }, 'ERR_VARLEN_OPTION', 'worldsize'],
    ['half a rank', {}, { worldSize: 0.5 }, 'ERR_VARLEN_RANGE', 'worldSize'],
    ['an unknown reduction', {}, { gradReduction: 'max' }, 'ERR_VARLEN_OPTION', 'gradReduction'],
    ['an unknown scope', {}, { scope: 'epoch' }, 'ERR_VARLEN_OPTION', 'scope'],
    [
      'a rollout batch without its number of steps',
      {},
      { scope: 'rollout-batch' },
      'ERR_VARLEN_MISSING_INPUT',
      'optimizerSteps',
    ],
    [
      'a number of steps without a rollout batch',
      {},
      { optimizerSteps: 2 },
      'ERR_VARLEN_INCOMPATIBLE',
      'optimizerSteps',
    ],
    ['micro-batches in another scope', {}, { microBatches: 2 }, 'ERR_VARLEN_INCOMPATIBLE', 'microBatches'],
    [
      'a fraction of a step',
      {},
      { scope: 'rollout-batch', optimizerSteps: 1.5 },
      'ERR_VARLEN_RANGE',
      'optimizerSteps',
    ],
    ['entropy tokens that are NaN', { entropyTokens: Number.NaN }, {}, 'ERR_VARLEN_RANGE', 'entropyTokens'],
  ];
  test.each(cases)('%s', (_name, badInput, badOptions, code, argument) => {
    const options = { aggregation: { mode: 'token-mean' }, ...badOptions };
    const error = thrown(() => planAggregation({ lengths, ...badInput } as never, options as never));
    expect(error).toBeInstanceOf(VarlenError);
    expect(error).toMatchObject({ code, details: { op: 'planAggregation', argument } });
    expect((error as Error).message).toMatch(/^planAggregation: .*; got .*, expected /);
  });

  test('offsets and masks that do not fit each other', () => {
    const bad = (layout: object): unknown => thrown(() => activeLengths(layout as never));
    expect(bad({ cuSeqlens: Int32Array.of() })).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    expect(bad({ cuSeqlens: Int32Array.of(1, 2) })).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    expect(bad({ cuSeqlens: Int32Array.of(0, 3, 2) })).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    expect(bad({ cuSeqlens: [0, 1] })).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
    const short = { cuSeqlens: Int32Array.of(0, 3), lossMask: Uint8Array.of(1) };
    expect(bad(short)).toMatchObject({ code: 'ERR_VARLEN_SHAPE', details: { argument: 'lossMask' } });
    const layout = { cuSeqlens: Int32Array.of(0, 3) };
    expect(thrown(() => keepSequences(layout, new Uint8Array(2)))).toMatchObject({
      code: 'ERR_VARLEN_SHAPE',
    });
  });
});
