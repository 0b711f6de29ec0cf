import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type AcrossOptions,
  type Aggregation,
  type AggregationPlan,
  planAggregation,
  planAggregationAcross,
} from '../../../src/rl/index.js';
import { rejected } from '../../support/thrown.js';
import * as any from '../arbitraries.js';
import { acrossRanks, resolved } from '../ranks.js';

/** Lengths dealt to ranks in their order: `cuts` end all ranks but the last, so ranks may be empty. */
const dealt = any.lengths.chain((lengths) =>
  fc
    .tuple(fc.nat(lengths.length), fc.nat(lengths.length))
    .map(([a, b]) => ({ lengths, bounds: [0, Math.min(a, b), Math.max(a, b), lengths.length] })),
);

async function plansOf(
  lengths: Int32Array,
  groupIds: Int32Array,
  bounds: readonly number[],
  options: AcrossOptions,
): Promise<AggregationPlan[]> {
  const numRanks = bounds.length - 1;
  const results = await acrossRanks(numRanks, (rank, allReduceSum) => {
    const part = [bounds[rank], bounds[rank + 1]] as const;
    const input = { lengths: lengths.slice(...part), groupIds: groupIds.slice(...part) };
    return planAggregationAcross(input, options, allReduceSum);
  });
  return resolved(results);
}

test('ranks that know only their own lengths get the weights of one plan over all, bit for bit', async () => {
  await fc.assert(
    fc.asyncProperty(any.aggregation, dealt, async (aggregation, { lengths, bounds }) => {
      const groupIds = Int32Array.from(lengths, (_, i) => i % 3);
      const options = { aggregation, worldSize: 3, gradReduction: 'sum' } as const;
      const whole = planAggregation({ lengths, groupIds }, options);
      const shared = { ...options, groupsAreLocal: false, numGroups: 3 };
      const parts = await plansOf(lengths, groupIds, bounds, shared);
      expect(parts.flatMap(({ seqScale }) => [...seqScale])).toEqual([...whole.seqScale]);
      for (const part of parts) {
        expect(part.totals).toEqual(whole.totals);
        expect(part.entropyScale).toBe(whole.entropyScale);
      }
    }),
  );
});

test('groups on one rank need no number of groups', async () => {
  const lengths = Int32Array.of(4, 1, 2, 3);
  const groupIds = Int32Array.of(9, 9, -1, -1);
  const options = { aggregation: { mode: 'group-mean-token-mean' }, worldSize: 3 } as const;
  const whole = planAggregation({ lengths, groupIds }, options);
  const parts = await plansOf(lengths, groupIds, [0, 2, 2, 4], options);
  expect(parts.flatMap(({ seqScale }) => [...seqScale])).toEqual([...whole.seqScale]);
  expect(parts.map(({ totals }) => totals.groups)).toEqual([2, 2, 2]);
});

test('a group that spans ranks counts once', async () => {
  const lengths = Int32Array.of(4, 1, 0, 3);
  const groupIds = Int32Array.of(0, 0, 1, 0);
  const parts = await plansOf(lengths, groupIds, [0, 1, 2, 4], {
    aggregation: { mode: 'group-mean-token-mean' },
    gradReduction: 'sum',
    groupsAreLocal: false,
    numGroups: 2,
  });
  expect(parts[0].totals.groups).toBe(1);
  expect(parts.map(({ seqScale }) => seqScale[0])).toEqual([Math.fround(1 / 8), Math.fround(1 / 8), 0]);
});

test('weights do not depend on which rank holds which answer', async () => {
  const lengths = Int32Array.from({ length: 999 }, (_, i) => 1 + ((i * 7919) % 4096));
  const aggregation: Aggregation = { mode: 'delta-l', alpha: 0.75, normConstant: 4096 };
  const groupIds = new Int32Array(999);
  const sums = new Set<number>();
  for (const cut of [0, 1, 333, 500, 999]) {
    const [{ totals }] = await plansOf(lengths, groupIds, [0, cut, 999], { aggregation });
    sums.add(totals.weightSum);
  }
  const reversed = planAggregation({ lengths: lengths.slice().reverse() }, { aggregation });
  sums.add(reversed.totals.weightSum);
  expect(sums.size).toBe(1);
});

test('one all-reduce of eight numbers', async () => {
  const sizes: number[] = [];
  await planAggregationAcross(
    { lengths: Int32Array.of(1), correctionSum: 2.5 },
    { aggregation: { mode: 'delta-l', alpha: 1, normConstant: 8 } },
    async (local) => {
      sizes.push(local.length);
      return local;
    },
  );
  expect(sizes).toEqual([8]);
});

test('correction weights and entropy tokens add up over ranks', async () => {
  const results = await acrossRanks(2, (rank, allReduceSum) =>
    planAggregationAcross(
      { lengths: Int32Array.of(4), correctionSum: rank + 1.5, entropyTokens: rank + 1 },
      { aggregation: { mode: 'token-mean' }, worldSize: 2 },
      allReduceSum,
    ),
  );
  for (const plan of resolved(results)) {
    expect(plan.totals).toMatchObject({ correctionSum: 4, entropyTokens: 3 });
    expect(plan.entropyScale).toBe(2 / 3);
  }
});

test('bad input on one rank ends the wait of the others', async () => {
  const results = await acrossRanks(3, (rank, allReduceSum) =>
    planAggregationAcross(
      { lengths: Int32Array.of(rank === 1 ? -1 : 1) },
      { aggregation: { mode: 'token-mean' } },
      allReduceSum,
    ),
  );
  const codes = results.map((result) => result.status === 'rejected' && result.reason.code);
  expect(codes).toEqual(['ERR_VARLEN_PEER_ABORTED', 'ERR_VARLEN_RANGE', 'ERR_VARLEN_PEER_ABORTED']);
});

test.each<[string, object, object, string, string]>([
  ['a micro-batch scope', {}, { scope: 'micro-batch' }, 'ERR_VARLEN_INCOMPATIBLE', 'scope'],
  ['a number of local groups', {}, { numGroups: 2 }, 'ERR_VARLEN_INCOMPATIBLE', 'numGroups'],
  [
    'spanning groups without a number',
    { groupIds: Int32Array.of(0) },
    { groupsAreLocal: false },
    'ERR_VARLEN_MISSING_INPUT',
    'numGroups',
  ],
  [
    'spanning groups without ids',
    {},
    { groupsAreLocal: false, numGroups: 2 },
    'ERR_VARLEN_MISSING_INPUT',
    'groupIds',
  ],
  [
    'a group past the number',
    { groupIds: Int32Array.of(2) },
    { groupsAreLocal: false, numGroups: 2 },
    'ERR_VARLEN_RANGE',
    'groupIds[0]',
  ],
  [
    'half a group',
    { groupIds: Int32Array.of(0) },
    { groupsAreLocal: false, numGroups: 1.5 },
    'ERR_VARLEN_RANGE',
    'numGroups',
  ],
  ['a word for a flag', {}, { groupsAreLocal: 'no' }, 'ERR_VARLEN_TYPE', 'groupsAreLocal'],
])('%s is refused', async (_name, badInput, badOptions, code, argument) => {
  const call = planAggregationAcross(
    { lengths: Int32Array.of(1), ...badInput },
    { aggregation: { mode: 'token-mean' }, ...badOptions } as never,
    async (local) => local,
  );
  expect(await rejected(call)).toMatchObject({ code, details: { op: 'planAggregationAcross', argument } });
});

test('an all-reduce that is no function, or that returns something else, is refused', async () => {
  const options = { aggregation: { mode: 'token-mean' } } as const;
  const lengths = Int32Array.of(1);
  expect(await rejected(planAggregationAcross({ lengths }, options, undefined as never))).toMatchObject({
    code: 'ERR_VARLEN_TYPE',
  });
  const short = planAggregationAcross({ lengths }, options, async () => new Float64Array(2));
  expect(await rejected(short)).toMatchObject({ code: 'ERR_VARLEN_SHAPE' });
});
