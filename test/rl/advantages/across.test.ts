import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type AdvantageOptions,
  estimateAdvantages,
  estimateAdvantagesAcross,
} from '../../../src/rl/index.js';
import { acrossRanks, resolved } from '../ranks.js';

/** Answers of three ranks; the second has none. */
const ranks = [
  { rewards: [1, 0, 0.5], groupIds: [0, 0, 0], lengths: [2, 3, 1] },
  { rewards: [], groupIds: [], lengths: [] },
  { rewards: [0.25, 1, 0, 1], groupIds: [1, 1, 2, 2], lengths: [4, 1, 2, 2] },
];

function inputOf(rows: (typeof ranks)[number], options: AdvantageOptions): object {
  const rewards = Float64Array.from(rows.rewards);
  const groupIds = Int32Array.from(rows.groupIds);
  if (options.estimator === 'gdpo') {
    return { rewardComponents: [rewards], groupIds, lengths: Int32Array.from(rows.lengths) };
  }
  const cuSeqlens = Int32Array.from([
    0,
    ...rows.lengths.map((_, i) => rows.lengths.slice(0, i + 1).reduce((a, b) => a + b, 0)),
  ]);
  const values = new Float64Array(cuSeqlens[cuSeqlens.length - 1]).map((_, t) => Math.sin(t));
  return { rewards, groupIds, cuSeqlens, ...(options.estimator === 'gae' && { values }) };
}

const all = {
  rewards: ranks.flatMap(({ rewards }) => rewards),
  groupIds: ranks.flatMap(({ groupIds }) => groupIds),
  lengths: ranks.flatMap(({ lengths }) => lengths),
};

test.each<AdvantageOptions>([
  { estimator: 'grpo-batchstd' },
  { estimator: 'gdpo' },
  { estimator: 'reinforce-pp-baseline' },
  { estimator: 'reinforce-pp', gamma: 0.9 },
  { estimator: 'grpo' },
])('three ranks, one without answers, agree with one rank under %o', async (options) => {
  const alone = estimateAdvantages(inputOf(all, options), options).advantages;
  const parts = resolved(
    await acrossRanks(3, (rank, allReduceSum) =>
      estimateAdvantagesAcross(inputOf(ranks[rank], options), options, allReduceSum),
    ),
  );
  const together = parts.flatMap(({ advantages }) => [...advantages]);
  expect(together.length).toBe(alone.length);
  together.forEach((value, i) => {
    expect(Math.abs(value - alone[i])).toBeLessThanOrEqual(2 ** -22);
  });
  expect(Math.max(...together.map(Math.abs))).toBeGreaterThan(0.1);
});

test('whitening does not cancel when all returns have a large common part', async () => {
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(0, 1e3, 1e6), async (offset) => {
      const input = (values: number[]): object => ({
        rewards: Float64Array.from(values, (value) => value + offset),
        cuSeqlens: Int32Array.of(0, 1, 2),
      });
      const parts = resolved(
        await acrossRanks(2, (rank, allReduceSum) =>
          estimateAdvantagesAcross(
            input(rank === 0 ? [0, 1] : [1, 2]),
            { estimator: 'reinforce-pp' },
            allReduceSum,
          ),
        ),
      );
      const got = parts.flatMap(({ advantages }) => [...advantages]);
      const sd = Math.sqrt(2 / 3);
      [-1 / sd, 0, 0, 1 / sd].forEach((value, i) => {
        expect(Math.abs(got[i] - value)).toBeLessThan(1e-6);
      });
    }),
    { numRuns: 6 },
  );
});

test('bad input on one rank ends the wait of the others', async () => {
  const options = { estimator: 'reinforce-pp' } as const;
  const results = await acrossRanks(2, (rank, allReduceSum) => {
    const rewards = Float64Array.of(rank === 1 ? Infinity : 1);
    return estimateAdvantagesAcross({ rewards, cuSeqlens: Int32Array.of(0, 2) }, options, allReduceSum);
  });
  expect(results[0]).toMatchObject({ status: 'rejected', reason: { code: 'ERR_VARLEN_PEER_ABORTED' } });
  expect(results[1]).toMatchObject({ status: 'rejected', reason: { code: 'ERR_VARLEN_NON_FINITE' } });
});

test('a single active token over all ranks cannot be whitened, and every rank says so', async () => {
  const results = await acrossRanks(2, (rank, allReduceSum) => {
    const cuSeqlens = rank === 0 ? Int32Array.of(0, 1) : Int32Array.of(0);
    const rewards = new Float64Array(cuSeqlens.length - 1).fill(1);
    return estimateAdvantagesAcross({ rewards, cuSeqlens }, { estimator: 'reinforce-pp' }, allReduceSum);
  });
  for (const result of results) {
    expect(result).toMatchObject({ reason: { code: 'ERR_VARLEN_WHITEN_SINGLE' } });
  }
});
