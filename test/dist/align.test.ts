import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  AlignmentDriver,
  alignRound,
  decodeHeaders,
  encodeHeader,
  HEADER_WORDS,
  type RoundHeader,
  STEP_WORDS,
  stepOrder,
  sumSteps,
} from '../../src/dist/align.js';
import { SeededRandom, seededPermutation } from '../../src/seeded-random.js';
import { miniGroups } from '../support/mini-group.js';
import { numRuns, runTimeout } from '../support/num-runs.js';
import { rejected, thrown } from '../support/thrown.js';

const header = (more: Partial<RoundHeader> = {}): RoundHeader => ({
  configHash: 7,
  round: 3,
  exhausted: false,
  abort: false,
  drain: false,
  nonJoin: false,
  samples: 4,
  steps: 2,
  maxSteps: 1000,
  carryAge: 0,
  ...more,
});

const gathered = (headers: RoundHeader[]): Int32Array => {
  const all = new Int32Array(headers.length * HEADER_WORDS);
  headers.forEach((one, rank) => {
    all.set(encodeHeader(one), rank * HEADER_WORDS);
  });
  return all;
};

const anyHeader = fc
  .record({
    samples: fc.nat(9),
    part: fc.double({ min: 0, max: 1, noNaN: true }),
    exhausted: fc.boolean(),
    drain: fc.boolean(),
    maxSteps: fc.integer({ min: 1, max: 9 }),
    carryAge: fc.nat(3),
  })
  .map(({ samples, part, exhausted, ...rest }) =>
    header({
      ...rest,
      samples,
      steps: samples === 0 ? 0 : 1 + Math.floor(part * (samples - 1)),
      exhausted: exhausted || samples === 0, // a window is empty only when its source has ended
    }),
  );

describe('alignRound', () => {
  test('takes the most steps of any rank when all can reach them', () => {
    expect(alignRound([header({ steps: 3 }), header({ steps: 4 })])).toEqual({
      target: 4,
      final: false,
      lastSteps: false,
      draining: false,
    });
  });

  test('defers to the smallest window when it cannot reach the target, until a carry is too old', () => {
    const small = header({ samples: 2, steps: 1 });
    const large = header({ samples: 8, steps: 5 });
    expect(alignRound([small, large]).target).toBe(2);
    expect(alignRound([small, large], { align: 'defer' }).target).toBe(2);
    expect(alignRound([small, large], { align: 'split' }).target).toBe(5);
    expect(alignRound([small, { ...large, carryAge: 2 }]).target).toBe(5);
    expect(alignRound([small, { ...large, carryAge: 1 }], { maxDeferRounds: 1 }).target).toBe(5);
    expect(alignRound([small, large], { maxDeferRounds: 0 }).target).toBe(5);
    expect(alignRound([{ ...small, exhausted: true }, large]).target).toBe(5);
  });

  test('never exceeds the smallest cap on steps', () => {
    expect(alignRound([header({ steps: 4, maxSteps: 3 }), header()]).target).toBe(3);
  });

  test('is final when every source has ended and nobody carries', () => {
    const done = header({ exhausted: true });
    expect(alignRound([done, done])).toMatchObject({ target: 2, final: true, lastSteps: true });
    expect(alignRound([done, header()]).final).toBe(false);
    expect(alignRound([{ ...done, maxSteps: 1 }, done]).final).toBe(false);
    const empty = header({ exhausted: true, samples: 0, steps: 0 });
    expect(alignRound([empty, empty])).toMatchObject({ target: 0, final: true });
  });

  test('ends a non-join pass when a rank is dry, and knows its last steps one round before', () => {
    const dry = header({ nonJoin: true, exhausted: true, samples: 0, steps: 0 });
    const full = header({ nonJoin: true });
    expect(alignRound([dry, full])).toMatchObject({ target: 0, final: true });
    expect(alignRound([header({ nonJoin: true, exhausted: true }), full])).toMatchObject({
      target: 2,
      final: false,
      lastSteps: true,
    });
    expect(alignRound([dry, { ...full, drain: true }])).toMatchObject({ target: 2, final: true });
  });

  test('treats every rank as exhausted once one drains', () => {
    expect(alignRound([header({ drain: true }), header({ samples: 9, steps: 5 })])).toEqual({
      target: 5,
      final: true,
      lastSteps: true,
      draining: true,
    });
  });

  test(
    'keeps its promises on any headers',
    () => {
      const property = fc.property(
        fc.array(anyHeader, { minLength: 1, maxLength: 6 }),
        fc.constantFrom('auto' as const, 'split' as const, 'defer' as const),
        fc.nat(3),
        (headers, align, maxDeferRounds) => {
          const { target, final } = alignRound(headers, { align, maxDeferRounds });
          const some = headers.some(({ samples }) => samples > 0);
          expect(target >= 1).toBe(some); // progress
          expect(target).toBeLessThanOrEqual(Math.max(...headers.map(({ steps }) => steps)));
          expect(target).toBeLessThanOrEqual(
            Math.min(...headers.map(({ maxSteps }) => maxSteps)) + (some ? 0 : Infinity),
          );
          if (target === 0) expect(final).toBe(true);
          if (final) {
            expect(headers.every(({ exhausted }) => exhausted) || headers.some(({ drain }) => drain)).toBe(
              true,
            );
            expect(headers.every(({ steps }) => steps <= target)).toBe(true);
          }
          // The decision does not depend on who asks: any order of ranks gives the same.
          expect(alignRound([...headers].reverse(), { align, maxDeferRounds })).toEqual(
            alignRound(headers, { align, maxDeferRounds }),
          );
        },
      );
      fc.assert(property, numRuns(0.2));
    },
    runTimeout(0.2, 3),
  );
});

describe('headers', () => {
  test('survive the wire', () => {
    const anyFlags = fc.tuple(
      anyHeader,
      fc.boolean(),
      fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
      fc.nat(),
    );
    fc.assert(
      fc.property(fc.array(anyFlags, { minLength: 1, maxLength: 5 }), (parts) => {
        const [, nonJoin, configHash, round] = parts[0];
        const headers = parts.map(([one]) => ({ ...one, nonJoin, configHash, round }));
        expect(decodeHeaders(gathered(headers))).toEqual(headers);
      }),
      numRuns(0.05),
    );
  });

  test('take eight int32 each', () => {
    expect(encodeHeader(header()).byteLength).toBe(32);
  });

  test('that disagree raise the same error, naming the field and the ranks', () => {
    const version = gathered([header(), header()]);
    version[HEADER_WORDS]++;
    expect(thrown(() => decodeHeaders(version))).toMatchObject({
      code: 'ERR_VARLEN_ALIGNMENT',
      details: { field: 'version' },
    });
    expect(thrown(() => decodeHeaders(gathered([header(), header({ configHash: 8 })])))).toMatchObject({
      code: 'ERR_VARLEN_ALIGNMENT',
      details: { field: 'config', byRank: [7, 8] },
    });
    expect(thrown(() => decodeHeaders(gathered([header(), header(), header({ round: 4 })])))).toMatchObject({
      code: 'ERR_VARLEN_ALIGNMENT',
      details: { field: 'round', byRank: [3, 3, 4] },
    });
  });

  test('of a rank that failed name it, before anything else is compared', () => {
    const aborted = gathered([header({ configHash: 1 }), header(), header({ abort: true, round: 9 })]);
    expect(thrown(() => decodeHeaders(aborted))).toMatchObject({
      code: 'ERR_VARLEN_PEER_ABORTED',
      details: { rank: 2 },
    });
  });
});

describe('AlignmentDriver', () => {
  const drivers = (size: number) => miniGroups(size).map((group) => new AlignmentDriver(group, 1000));
  const position = { configHash: 1, epoch: 0, round: 0, stepInRound: 0, length: 2 ** 40 + 5, abort: false };

  test('tells every rank the length of every source', async () => {
    const all = await Promise.all(
      drivers(2).map((driver, rank) =>
        driver.exchangePosition({ ...position, length: rank === 0 ? 2 ** 40 + 5 : -1 }),
      ),
    );
    expect(all).toEqual([
      [2 ** 40 + 5, -1],
      [2 ** 40 + 5, -1],
    ]);
  });

  test('refuses a run that meets another one inside a round', async () => {
    const [a, b] = drivers(2);
    const errors = await Promise.all([
      rejected(a.exchangePosition(position)),
      rejected(b.exchangeHeaders(header({ configHash: 1, round: 0 }))),
    ]);
    for (const error of errors)
      expect(error).toMatchObject({
        code: 'ERR_VARLEN_ALIGNMENT',
        details: { field: 'round', byRank: ['new run', 0] },
      });
  });

  test('sends nothing with one rank', async () => {
    const driver = new AlignmentDriver(undefined, 1000);
    expect(await driver.exchangeHeaders(header())).toEqual([header()]);
    expect(await driver.exchangeSteps(Float64Array.of(1, 2, 3, 4), 0)).toEqual(Float64Array.of(1, 2, 3, 4));
    expect(driver.sentBytes).toBe(0);
  });

  test('reads NaN in the second gather as the failure of that rank', async () => {
    const [a, b] = drivers(2);
    const rows = new Float64Array(STEP_WORDS);
    const sent = [
      rejected(a.exchangeSteps(rows, 5)),
      rejected(b.exchangeSteps(rows.slice().fill(Number.NaN), 5)),
    ];
    for (const error of await Promise.all(sent)) {
      expect(error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 1, round: 5 } });
    }
  });

  test('adds the rows of all ranks up, step by step', () => {
    const rows = Float64Array.of(1, 10, 9, 100, 0, 0, 0, 0, 2, 20, 18, 50, 3, 30, 27, 70);
    expect(sumSteps(rows, 2, 2)).toEqual([
      { samples: 3, tokens: 30, weight: 27, cost: 150, maxCost: 100, minCost: 50, samplesByRank: [1, 2] },
      { samples: 3, tokens: 30, weight: 27, cost: 70, maxCost: 70, minCost: 0, samplesByRank: [0, 3] },
    ]);
  });
});

describe('the common permutation', () => {
  test('depends on seed, epoch and round only', () => {
    const parts = fc.tuple(fc.nat(300), fc.nat(2 ** 53 - 1), fc.nat(50), fc.nat(5000));
    fc.assert(
      fc.property(parts, parts, ([target, seed, epoch, round], [other, ...rest]) => {
        const order = stepOrder(target, 'shuffle', seed, epoch, round);
        stepOrder(other, 'shuffle', ...rest); // whatever was drawn in between
        expect(stepOrder(target, 'shuffle', seed, epoch, round)).toEqual(order);
        expect([...order].sort((a, b) => a - b)).toEqual([...order.keys()]);
      }),
      numRuns(0.02),
    );
    const orders = new Set<string>();
    for (let seed = 0; seed < 5; seed++) {
      for (let epoch = 0; epoch < 5; epoch++) {
        for (let round = 0; round < 5; round++)
          orders.add(stepOrder(40, 'shuffle', seed, epoch, round).join());
      }
    }
    expect(orders.size).toBe(125);
  });

  test('puts every step in every place equally often', () => {
    const counts = Array.from({ length: 5 }, () => new Array<number>(5).fill(0));
    for (let round = 0; round < 5000; round++)
      for (const [to, from] of seededPermutation(5, 1, round).entries()) counts[to][from]++;
    // 1000 expected, standard deviation 28; five of them.
    for (const count of counts.flat()) expect(Math.abs(count - 1000)).toBeLessThan(142);
  });

  test('draws normal numbers of mean 0 and variance 1', () => {
    const random = new SeededRandom(3);
    const draws = Array.from({ length: 20_000 }, () => random.normal());
    const mean = draws.reduce((sum, x) => sum + x, 0) / draws.length;
    const variance = draws.reduce((sum, x) => sum + x * x, 0) / draws.length;
    expect(Math.abs(mean)).toBeLessThan(5 / Math.sqrt(20_000));
    expect(Math.abs(variance - 1)).toBeLessThan(5 * Math.sqrt(2 / 20_000));
  });
});
