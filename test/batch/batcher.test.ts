import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DynamicBatcher } from '../../src/batch/batcher.js';
import type { Sample } from '../../src/batch/sample.js';
import { localGroups } from '../../src/dist/local-group.js';
import { wrapGroup } from '../../src/dist/wrap-group.js';
import { miniGroups } from '../support/mini-group.js';
import { numRuns, runTimeout } from '../support/num-runs.js';
import {
  batchers,
  idsOf,
  runRanks,
  sample,
  shard,
  type TestOptions,
  type TestStep,
} from '../support/ranks.js';

/** What all ranks must agree on in a step. */
const globalOf = ({ info }: { info: object }) => {
  const {
    step,
    round,
    epoch,
    globalSamples,
    globalTokens,
    globalWeight,
    maxCost,
    minCost,
    emittedSamples,
    emittedTokens,
    accumulationIndex,
    accumulationSteps,
    isLast,
  } = info as Record<string, unknown>;
  return {
    step,
    round,
    epoch,
    globalSamples,
    globalTokens,
    globalWeight,
    maxCost,
    minCost,
    emittedSamples,
    emittedTokens,
    accumulationIndex,
    accumulationSteps,
    isLast,
  };
};

const BUDGET = 64;

/** Everything that may vary without breaking an invariant. */
const scenario = fc.record({
  shards: fc.array(fc.array(fc.integer({ min: 0, max: 70 }), { maxLength: 24 }), {
    minLength: 1,
    maxLength: 4,
  }),
  mode: fc.constantFrom('packed' as const, 'padded' as const),
  policy: fc.constantFrom('headroom' as const, 'odb' as const),
  window: fc.integer({ min: 1, max: 9 }),
  windowTrigger: fc.constantFrom('count' as const, 'cost' as const),
  align: fc.constantFrom('auto' as const, 'split' as const, 'defer' as const),
  maxDeferRounds: fc.integer({ min: 0, max: 3 }),
  maxStepsPerRound: fc.constantFrom(undefined, 1, 2, 5),
  maxBatchSize: fc.constantFrom(undefined, 1, 3),
  batchSizeMultiple: fc.constantFrom(undefined, 2, 3),
  patches: fc.boolean(),
  cost: fc.boolean(),
  order: fc.constantFrom('shuffle' as const, 'sorted-desc' as const, 'none' as const),
  preShuffle: fc.constantFrom(0, 5),
  prefetchSteps: fc.integer({ min: 0, max: 3 }),
  accumulate: fc.integer({ min: 1, max: 3 }),
  accumulateAcrossRounds: fc.boolean(),
  epochs: fc.integer({ min: 1, max: 2 }),
  warmup: fc.constantFrom('full' as const, 'ramp' as const),
  seed: fc.integer({ min: 0, max: 1000 }),
});
type Scenario = typeof scenario extends fc.Arbitrary<infer T> ? T : never;

function optionsOf(s: Scenario): TestOptions {
  const odb = s.mode === 'padded' && s.policy === 'odb';
  return {
    mode: s.mode,
    budget: {
      ...(s.mode === 'packed' ? { packedTokens: BUDGET } : { paddedTokens: BUDGET }),
      ...(s.patches ? { patches: 9 } : {}),
      ...(s.cost && !odb ? { cost: 60 } : {}),
    },
    groupingPolicy: odb ? 'odb' : 'headroom',
    window: s.window,
    windowTrigger: s.windowTrigger,
    align: s.align,
    maxDeferRounds: s.maxDeferRounds,
    ...(s.maxStepsPerRound === undefined ? {} : { maxStepsPerRound: s.maxStepsPerRound }),
    ...(s.maxBatchSize === undefined || odb ? {} : { maxBatchSize: s.maxBatchSize }),
    ...(s.batchSizeMultiple === undefined || odb ? {} : { batchSizeMultiple: s.batchSizeMultiple }),
    order: s.order,
    preShuffle: s.preShuffle,
    prefetchSteps: s.prefetchSteps,
    accumulate: s.accumulate,
    accumulateAcrossRounds: s.accumulateAcrossRounds,
    epochs: s.epochs,
    warmup: s.warmup,
    seed: s.seed,
    audit: true,
    timeoutMs: 5000,
  };
}

const samplesOf = (shards: readonly number[][]): Sample[][] =>
  shards.map((lengths, rank) =>
    shard(rank, lengths).map((one, i) => ({ ...one, patches: (3 * i + rank) % 6 })),
  );

async function checkInvariants(s: Scenario): Promise<void> {
  const sources = samplesOf(s.shards);
  const options = optionsOf(s);
  const runs = await runRanks(sources, options, {
    delay: (rank, call) => ((rank * 7 + call + s.seed) % 3 === 0 ? Promise.resolve() : undefined),
  });
  const steps = runs[0].steps;
  // Equal steps on all ranks, and the same global facts.
  for (const run of runs) expect(run.steps.map(globalOf)).toEqual(steps.map(globalOf));
  runs.forEach(({ batcher, steps: own }, rank) => {
    // Identity coverage: every non-empty sample exactly once per epoch.
    for (let epoch = 0; epoch < s.epochs; epoch++) {
      const emitted = idsOf(own.filter(({ info }) => info.epoch === epoch));
      const expected = sources[rank].filter(({ inputIds }) => inputIds.length > 0).map(({ id }) => id);
      expect([...emitted].sort()).toEqual([...expected].sort());
    }
    const metrics = batcher.metrics();
    expect(metrics.auditOut).toBe(metrics.auditIn);
    if (s.maxStepsPerRound === undefined) expect(metrics.maxDeferAge).toBeLessThanOrEqual(s.maxDeferRounds);
    expect(metrics.dropped).toBe(s.epochs * s.shards[rank].filter((length) => length === 0).length);
    // Bounds of the termination argument: each round takes at least one sample of every non-empty rank.
    const rounds = s.epochs * (Math.max(...s.shards.map((lengths) => lengths.length)) + 1);
    expect(metrics.rounds).toBeLessThanOrEqual(rounds);
    for (const { batch, ids, info } of own) {
      const lengths = ids.map((id) => sources[rank].find((one) => one.id === id)!);
      const size = lengths.length;
      const longest = Math.max(0, ...lengths.map(({ inputIds }) => inputIds.length));
      const tokens = lengths.reduce((sum, { inputIds }) => sum + inputIds.length, 0);
      expect(info.localTokens).toBe(tokens);
      expect(info.idle).toBe(size === 0);
      expect(info.localWeight).toBe(batch.weight);
      if (size > 1) {
        const patches = lengths.reduce((sum, one) => sum + one.patches!, 0);
        if (s.mode === 'packed') expect(tokens).toBeLessThanOrEqual(BUDGET);
        else expect(size * longest).toBeLessThanOrEqual(BUDGET);
        if (options.maxBatchSize !== undefined) expect(size).toBeLessThanOrEqual(options.maxBatchSize);
        const multiple = options.batchSizeMultiple ?? 1;
        expect(size < multiple || size % multiple === 0).toBe(true);
        if (s.patches) expect(patches).toBeLessThanOrEqual(9);
        if (options.budget.cost !== undefined) expect(info.localCost).toBeLessThanOrEqual(60 + 1e-9);
      }
    }
  });
  steps.forEach((step, i) => {
    const local = runs.map(({ steps: own }) => own[i].info);
    const sum = (pick: (info: (typeof local)[0]) => number) =>
      local.reduce((total, info) => total + pick(info), 0);
    expect(step.info.globalSamples).toBe(sum(({ localSamples }) => localSamples));
    expect(step.info.globalTokens).toBe(sum(({ localTokens }) => localTokens));
    expect(step.info.globalWeight).toBe(sum(({ localWeight }) => localWeight));
    expect(step.info.maxCost).toBe(Math.max(...local.map(({ localCost }) => localCost)));
    expect(step.info.globalSamples).toBeGreaterThan(0); // no step in which every rank is idle
    expect(step.info.step).toBe(i);
    expect(step.info.isLast).toBe(i === steps.length - 1);
  });
  // Loss scales: over each optimizer step, the scaled local means add up to the mean of all ranks' weight.
  for (let first = 0; first < steps.length; ) {
    const count = steps[first].info.accumulationSteps;
    const micro = runs.flatMap(({ steps: own }) => own.slice(first, first + count));
    const total = micro.reduce((sum, { info }) => sum + info.localWeight, 0);
    const mean = ({ ids }: { ids: readonly unknown[] }): number => 1 + (ids.length % 5) / 3;
    const scaled =
      micro.reduce((sum, one) => sum + one.info.lossScale * (one.info.localWeight > 0 ? mean(one) : 0), 0) /
      runs.length;
    const flat = micro.reduce((sum, one) => sum + one.info.localWeight * mean(one), 0) / total;
    if (total > 0) expect(Math.abs(scaled - flat)).toBeLessThanOrEqual(1e-12 * flat);
    for (const one of micro) expect(one.info.skipOptimizer).toBe(total === 0);
    for (let i = 0; i < count; i++) expect(steps[first + i].info.accumulationIndex).toBe(i);
    first += count;
  }
}

describe('DynamicBatcher', () => {
  test(
    'emits every sample exactly once in equal steps on all ranks, within the budgets, for any shards and options',
    async () => {
      await fc.assert(fc.asyncProperty(scenario, checkInvariants), numRuns(0.15));
    },
    runTimeout(0.15, 100),
  );

  test.each([
    [[8, 1], 8],
    [[16, 9], 8],
    [[8, 8], 8],
    [[20, 20], 8],
    [[13, 17], 8],
    [[1, 2], 2],
    [[200, 30], 16],
  ])(
    'loses nothing on shards of %j samples that each fill a step, with a window of %i',
    async (sizes, window) => {
      for (const align of ['auto', 'split', 'defer'] as const) {
        for (const mode of ['packed', 'padded'] as const) {
          const sources = sizes.map((n, rank) => shard(rank, new Array(n).fill(60)));
          const budget = mode === 'packed' ? { packedTokens: 64 } : { paddedTokens: 64 };
          const runs = await runRanks(sources, { mode, budget, window, align });
          expect(runs[0].steps.length).toBe(Math.max(...sizes));
          runs.forEach(({ steps }, rank) => {
            expect(steps.length).toBe(runs[0].steps.length);
            expect(new Set(idsOf(steps))).toEqual(new Set(sources[rank].map(({ id }) => id)));
          });
        }
      }
    },
  );

  test('loses nothing when most samples of one rank are empty', async () => {
    const lengths = Array.from({ length: 200 }, (_, i) => 1 + (i % 40));
    const sources = [
      shard(0, lengths),
      shard(
        1,
        lengths.map((length, i) => (i % 5 === 0 ? length : 0)),
      ),
    ];
    const runs = await runRanks(sources, { budget: { packedTokens: 64 }, window: 16 });
    expect(runs.map(({ steps }) => idsOf(steps).length)).toEqual([200, 40]);
    expect(runs[0].steps.length).toBe(runs[1].steps.length);
  });

  test(
    'is a function of seed, sources and world size, not of arrival times',
    async () => {
      await fc.assert(
        fc.asyncProperty(
          scenario,
          fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 8, maxLength: 8 }),
          async (s, delays) => {
            const slowly = async function* (samples: Sample[], rank: number) {
              for (const [i, one] of samples.entries()) {
                if ((i + rank) % 4 === delays[i % 8]) await new Promise(setImmediate);
                yield one;
              }
            };
            const reopened = (samples: Sample[], rank: number) => ({ open: () => slowly(samples, rank) });
            const plain = await runRanks(samplesOf(s.shards), optionsOf(s));
            const late = await runRanks(samplesOf(s.shards).map(reopened), optionsOf(s), {
              delay: (rank, call) =>
                delays[(rank + call) % 8] > 1 ? new Promise((resolve) => setImmediate(resolve)) : undefined,
            });
            expect(late.map(({ steps }) => steps)).toEqual(plain.map(({ steps }) => steps));
          },
        ),
        numRuns(0.02),
      );
    },
    runTimeout(0.02, 200),
  );

  test('lets no cheap sample wait for ever behind costly ones', async () => {
    const [{ steps, batcher }] = await runRanks([shard(0, [6, 9, 9, 9, 9, 9, 9])], {
      budget: { packedTokens: 10 },
      window: 2,
      maxStepsPerRound: 1,
    });
    // The costliest goes first; after one round of waiting the cheap one does.
    expect(steps.slice(0, 2).map(({ ids }) => ids[0])).toEqual(['0/1', '0/0']);
    expect(batcher.metrics().maxDeferAge).toBeGreaterThan(0);
  });

  test('emits nothing and ends when every source is empty', async () => {
    const runs = await runRanks([[], [], []], { budget: { packedTokens: 8 } });
    expect(runs.map(({ steps }) => steps)).toEqual([[], [], []]);
  });

  test('gives IDLE batches of no row, or of one ignored token', async () => {
    for (const idleShape of ['empty', 'dummy'] as const) {
      const runs = await runRanks([shard(0, [5, 5]), shard(1, [5])], {
        budget: { packedTokens: 5 },
        idleShape,
      });
      const idle = runs[1].steps.filter(({ info }) => info.idle);
      expect(idle).toHaveLength(1);
      const { batch, info, ids } = idle[0];
      expect(info).toMatchObject({ lossScale: 0, localSamples: 0, localWeight: 0, localCost: 0, minCost: 0 });
      expect(ids).toEqual([]);
      expect(batch).toMatchObject({
        numSeqs: 0,
        weight: 0,
        idle: true,
        totalTokens: idleShape === 'dummy' ? 1 : 0,
      });
      expect([...batch.cuSeqlens]).toEqual(idleShape === 'dummy' ? [0, 1] : [0]);
      expect([...batch.labels]).toEqual(idleShape === 'dummy' ? [-100] : []);
    }
  });

  test('starts with the costliest aligned step under probe', async () => {
    const lengths = [10, 20, 30, 40, 50, 60];
    const runs = await runRanks([shard(0, lengths), shard(1, lengths)], {
      budget: { packedTokens: 60 },
      probe: true,
      seed: 3,
    });
    const costs = runs[0].steps.map(({ info }) => info.maxCost);
    expect(costs[0]).toBe(Math.max(...costs));
  });

  test('orders steps by cost, or by first arrival', async () => {
    const lengths = [10, 60, 20, 50, 30, 40];
    const sorted = await runRanks([shard(0, lengths)], {
      budget: { packedTokens: 60 },
      order: 'sorted-desc',
    });
    const costs = sorted[0].steps.map(({ info }) => info.localCost);
    expect(costs).toEqual([...costs].sort((a, b) => b - a));
    const arrived = await runRanks([shard(0, lengths)], { budget: { packedTokens: 60 }, order: 'none' });
    const firsts = arrived[0].steps.map(({ ids }) =>
      Math.min(...ids.map((id) => Number(String(id).slice(2)))),
    );
    expect(firsts).toEqual([...firsts].sort((a, b) => a - b));
  });

  test('keeps the lengths of consecutive packed steps uncorrelated', async () => {
    const lengths = Array.from({ length: 4000 }, (_, i) => 20 + ((i * 7919) % 480));
    const [packed] = await runRanks([shard(0, lengths)], { budget: { packedTokens: 2048 }, window: 512 });
    expect(Math.abs(packed.batcher.metrics().lengthAutocorrelation)).toBeLessThanOrEqual(0.1);
    const [padded] = await runRanks([shard(0, lengths)], {
      mode: 'padded',
      budget: { paddedTokens: 2048 },
      window: 512,
    });
    expect(Math.abs(padded.batcher.metrics().lengthAutocorrelation)).toBeLessThanOrEqual(0.2);
    expect(padded.batcher.metrics().paddingRatio).toBeLessThanOrEqual(0.025);
    expect(packed.batcher.metrics().paddingRatio).toBe(0);
  });

  test('never holds more than its windows and prefetched batches', async () => {
    let pulled = 0;
    let taken = 0;
    let most = 0;
    function* source() {
      for (let i = 0; i < 400; i++) {
        pulled++;
        most = Math.max(most, pulled - taken);
        yield sample(i, 16);
      }
    }
    const [batcher] = batchers([source()], {
      budget: { packedTokens: 64 },
      window: 16,
      prefetchSteps: 1,
    });
    for await (const { ids } of batcher) {
      await new Promise((resolve) => setImmediate(resolve));
      taken += ids.length;
    }
    expect(taken).toBe(400);
    // The round being emitted, the next window, one peeked sample, and of the round before one
    // prefetched batch and the one in the consumer's hands.
    expect(most).toBeLessThanOrEqual(16 + 16 + 1 + 4 + 4);
  });

  test.each([
    ['local', (n: number) => localGroups(n)],
    [
      'wrapped',
      (n: number) =>
        miniGroups(n).map((group, rank) =>
          wrapGroup({
            rank,
            size: n,
            allGather: async (send) => {
              const all = new Uint8Array(n * send.length);
              await group.allGather(send, all);
              return Array.from({ length: n }, (_, peer) =>
                all.subarray(peer * send.length, (peer + 1) * send.length),
              );
            },
          }),
        ),
    ],
  ])("gives the same steps over the package's own %s groups", async (_, groups) => {
    const sources = [shard(0, [9, 8, 7, 60, 5]), shard(1, [30, 30]), shard(2, [])];
    const options: TestOptions = { budget: { packedTokens: BUDGET }, window: 2 };
    const expected = await runRanks(sources, options);
    const own = groups(3).map((group, rank) => new DynamicBatcher(sources[rank], { ...options, group }));
    const steps = await Promise.all(
      own.map(async (batcher) => {
        const taken: TestStep[] = [];
        for await (const step of batcher) taken.push(step);
        return taken;
      }),
    );
    expect(steps).toEqual(expected.map((run) => run.steps));
  });
});
