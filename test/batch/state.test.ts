import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DynamicBatcher } from '../../src/batch/batcher.js';
import type { Sample } from '../../src/batch/sample.js';
import { type BatcherState, redistributeStates } from '../../src/batch/state.js';
import { arraySource } from '../support/array-source.js';
import { numRuns, runTimeout } from '../support/num-runs.js';
import { batchers, idsOf, sample, shard, type TestOptions, type TestStep } from '../support/ranks.js';
import { rejected, thrown } from '../support/thrown.js';

type Way = 'state' | 'skip' | 'payload';
type TestSource = { rest: Sample[]; open(epoch: number): Iterable<Sample> };

const json = (state: BatcherState): BatcherState => JSON.parse(JSON.stringify(state));

/** A live source: what was handed out does not come again. */
function liveSource(samples: readonly Sample[]): TestSource {
  const rest = [...samples];
  return {
    rest,
    *open() {
      while (rest.length > 0) yield rest.shift()!;
    },
  };
}

/** A payload belongs to a live source, which goes on where it was when the state was saved. */
function openSources(way: Way, data: readonly Sample[][], rest: readonly Sample[][] = data): TestSource[] {
  if (way === 'payload') return rest.map(liveSource);
  if (way === 'skip') return data.map((samples) => ({ rest: [], open: () => samples }));
  return data.map((samples) => Object.assign(arraySource(samples), { rest: [] }) as unknown as TestSource);
}

interface Taken {
  readonly steps: TestStep[][];
  /** The state behind each step, and what a live source still had to give then. */
  readonly states: { state: BatcherState; rest: Sample[] }[][];
}

/** Takes `count` steps on every rank at the same time, or all. */
async function take(all: DynamicBatcher[], count = Infinity, live: TestSource[] = []): Promise<Taken> {
  const taken: Taken = { steps: all.map(() => []), states: all.map(() => []) };
  await Promise.all(
    all.map(async (batcher, rank) => {
      const iterator = batcher[Symbol.asyncIterator]();
      while (taken.steps[rank].length < count) {
        const { done, value } = await iterator.next();
        if (done) break;
        taken.steps[rank].push(value);
        taken.states[rank].push({ state: json(batcher.state()), rest: [...(live[rank]?.rest ?? [])] });
      }
    }),
  );
  return taken;
}

/** Facts of a step without the arrays. */
const facts = (steps: TestStep[]) => steps.map(({ ids, info }) => ({ ids, info }));

const ways: Record<Way, Partial<TestOptions>> = {
  state: {},
  skip: { replay: 'skip' },
  payload: { statePayload: true },
};

const scenario = fc.record({
  shards: fc.array(fc.array(fc.integer({ min: 0, max: 40 }), { maxLength: 9 }), {
    minLength: 1,
    maxLength: 3,
  }),
  way: fc.constantFrom<Way>('state', 'skip', 'payload'),
  window: fc.integer({ min: 1, max: 6 }),
  align: fc.constantFrom('auto' as const, 'split' as const),
  windowTrigger: fc.constantFrom('count' as const, 'cost' as const),
  maxStepsPerRound: fc.constantFrom(1, 3, 100),
  maxDeferRounds: fc.integer({ min: 0, max: 2 }),
  accumulate: fc.integer({ min: 1, max: 3 }),
  accumulateAcrossRounds: fc.boolean(),
  preShuffle: fc.constantFrom(0, 4),
  lengthJitter: fc.constantFrom(0, 0.3),
  epochs: fc.integer({ min: 1, max: 2 }),
  prefetchSteps: fc.integer({ min: 0, max: 4 }),
  second: fc.nat({ max: 5 }),
});

describe('state and restore', () => {
  const share = 0.005;
  test(
    'continues with exactly the remaining steps from every step of a run, also after two resumes',
    async () => {
      const property = fc.asyncProperty(scenario, async ({ shards, way, second, lengthJitter, ...rest }) => {
        const options: TestOptions = {
          ...rest,
          ...ways[way],
          epochs: way === 'payload' ? 1 : rest.epochs,
          ...(lengthJitter > 0
            ? { mode: 'padded', budget: { paddedTokens: 48 }, lengthJitter }
            : { budget: { packedTokens: 48 } }),
          audit: true,
        };
        const data = shards.map((lengths, rank) => shard(rank, lengths));
        const whole = await take(batchers(openSources(way, data), options));
        for (let k = 1; k <= whole.steps[0].length; k++) {
          const firstSources = openSources(way, data);
          const first = batchers(firstSources, options);
          const begun = await take(first, k, firstSources);
          const saved = begun.states.map((states) => states[k - 1]);
          const secondSources = openSources(
            way,
            data,
            saved.map(({ rest }) => rest),
          );
          const resumed = batchers(secondSources, options);
          resumed.forEach((batcher, rank) => {
            batcher.restore(saved[rank].state);
            expect(json(batcher.state())).toEqual(saved[rank].state);
          });
          const middle = await take(resumed, second, secondSources);
          const savedAgain = middle.states.map((states, rank) => states.at(-1) ?? saved[rank]);
          const thirdSources = openSources(
            way,
            data,
            savedAgain.map(({ rest }) => rest),
          );
          const again = batchers(thirdSources, options);
          again.forEach((batcher, rank) => {
            batcher.restore(savedAgain[rank].state);
          });
          const end = await take(again);
          data.forEach((_, rank) => {
            const joined = [...begun.steps[rank], ...middle.steps[rank], ...end.steps[rank]];
            expect(facts(joined)).toEqual(facts(whole.steps[rank]));
            expect(again[rank].metrics().auditOut).toBe(again[rank].metrics().auditIn);
          });
          await Promise.all([...first, ...resumed].map((batcher) => batcher.close()));
        }
      });
      await fc.assert(property, { ...numRuns(share), endOnFailure: true });
    },
    runTimeout(share, 2000),
  );

  test('makes the rounds since nothing was carried again when samples wait for a later round', async () => {
    const data = shard(0, [6, 9, 9, 9, 9, 9, 9]);
    const options: TestOptions = { budget: { packedTokens: 10 }, window: 2, maxStepsPerRound: 1 };
    const whole = await take([new DynamicBatcher(arraySource(data), options)]);
    const carried = whole.states[0].filter(({ state }) => state.carry.length > 0);
    expect(carried.length).toBeGreaterThan(2);
    for (const [k, { state }] of whole.states[0].entries()) {
      const resumed = new DynamicBatcher(arraySource(data), options);
      resumed.restore(state);
      expect(facts((await take([resumed])).steps[0])).toEqual(facts(whole.steps[0].slice(k + 1)));
    }
  });

  test('starts the next pass in the next iteration, also after a resume at the very end', async () => {
    const data = shard(0, [10, 20, 30]);
    const epochs: TestStep[][] = [];
    const batcher = new DynamicBatcher(arraySource(data), { budget: { packedTokens: 30 } });
    for (let pass = 0; pass < 2; pass++) {
      const steps: TestStep[] = [];
      for await (const step of batcher) steps.push(step);
      epochs.push(steps);
    }
    expect(epochs.map((steps) => steps[0].info.epoch)).toEqual([0, 1]);
    expect(epochs.map((steps) => idsOf(steps).length)).toEqual([3, 3]);
    const restored = new DynamicBatcher(arraySource(data), { budget: { packedTokens: 30 } });
    const { states } = await take([new DynamicBatcher(arraySource(data), { budget: { packedTokens: 30 } })]);
    restored.restore(states[0].at(-1)!.state);
    expect((await take([restored])).steps[0]).toEqual([]);
    expect(facts((await take([restored])).steps[0])).toEqual(facts(epochs[1]));
  });

  test('resumes a quota run that reopens its source', async () => {
    const data = [shard(0, [5, 5, 5]), shard(1, [5, 5, 5, 5])];
    const options: TestOptions = { budget: { packedTokens: 5 }, join: 'none', quota: 15, window: 2 };
    const make = () => batchers(openSources('state', data), options);
    const whole = await take(make());
    for (let k = 1; k < whole.steps[0].length; k++) {
      const begun = await take(make(), k);
      const resumed = make();
      resumed.forEach((batcher, rank) => {
        batcher.restore(begun.states[rank][k - 1].state);
      });
      const end = await take(resumed);
      data.forEach((_, rank) => {
        expect(facts([...begun.steps[rank], ...end.steps[rank]])).toEqual(facts(whole.steps[rank]));
      });
    }
  });

  test('deals drained states out to another world size', async () => {
    const total = 40;
    const lengths = Array.from({ length: total }, (_, i) => 1 + ((i * 7) % 30));
    /** Rank r of W reads the samples of its shards; a shard is what one rank of the first world had left. */
    const sharded = (rank: number, size: number) => {
      let shards = [...Array(3).keys()]
        .filter((part) => part % size === rank)
        .map((part) => ({ part, at: 0 }));
      return {
        *open() {
          for (const one of shards) {
            for (; one.part + 3 * one.at < total; ) {
              const i = one.part + 3 * one.at++;
              yield sample(i, lengths[i]);
            }
          }
        },
        state: () => shards,
        restore(state: unknown) {
          const all = (state as { shards: (typeof shards)[] }).shards.flat();
          shards = all.filter((_, i) => i % size === rank).map((one) => ({ ...one }));
        },
      };
    };
    const options: TestOptions = { budget: { packedTokens: 40 }, window: 4 };
    const old = batchers(
      [0, 1, 2].map((rank) => sharded(rank, 3)),
      options,
    );
    const before = await Promise.all(
      old.map(async (batcher) => {
        const steps: TestStep[] = [];
        for await (const step of batcher) {
          steps.push(step);
          if (steps.length === 2) await batcher.drain();
        }
        return steps;
      }),
    );
    const states = redistributeStates(
      old.map((batcher) => json(batcher.state())),
      2,
    );
    const fresh = batchers(
      [0, 1].map((rank) => sharded(rank, 2)),
      options,
    );
    fresh.forEach((batcher, rank) => {
      batcher.restore(states[rank]);
    });
    const after = await take(fresh);
    const emitted = [...before, ...after.steps].flatMap(idsOf).map(Number);
    expect(before.flatMap(idsOf).length).toBeLessThan(total);
    expect(emitted.sort((a, b) => a - b)).toEqual([...Array(total).keys()]);
    expect(after.steps[0].length).toBe(after.steps[1].length);
  });

  test('deals payloads out to another world size in the middle of a round', async () => {
    const data = [0, 1, 2].map((rank) => shard(rank, [9, 8, 7, 6, 5, 4, 3, 2, 1]));
    const options: TestOptions = { budget: { packedTokens: 10 }, window: 6, statePayload: true };
    const sources = data.map(liveSource);
    const old = batchers(sources, options);
    const begun = await take(old, 2, sources);
    const saved = begun.states.map((states) => states[1]);
    const states = redistributeStates(
      saved.map(({ state }) => state),
      2,
    );
    // What the three live sources still have goes to the two new ones.
    const left = saved.flatMap(({ rest }) => rest);
    const fresh = batchers(
      [0, 1].map((rank) => liveSource(left.filter((_, i) => i % 2 === rank))),
      options,
    );
    fresh.forEach((batcher, rank) => {
      batcher.restore(states[rank]);
    });
    const after = await take(fresh);
    const emitted = [...begun.steps, ...after.steps].flatMap(idsOf);
    expect(emitted.sort()).toEqual(
      data
        .flat()
        .map(({ id }) => id)
        .sort(),
    );
    await Promise.all(old.map((batcher) => batcher.close()));
  });

  test('names the field in which a state does not fit', async () => {
    const data = shard(0, [10, 20, 30, 40]);
    const options: TestOptions = { budget: { packedTokens: 50 }, window: 4 };
    const make = (more: Partial<TestOptions> = {}) =>
      new DynamicBatcher(arraySource(data), { ...options, ...more });
    const { states } = await take([make()]);
    const { state } = states[0][0];
    const field = (call: () => void) => thrown(call) as { code: string; details: { field: string } };
    expect(field(() => make({ seed: 1 }).restore(state))).toMatchObject({
      code: 'ERR_VARLEN_STATE_MISMATCH',
      details: { field: 'configHash' },
    });
    expect(field(() => make({ statePayload: true }).restore(state)).details.field).toBe('payload');
    const other = batchers([data, data], options);
    expect(field(() => other[0].restore(state)).details.field).toBe('worldSize');
    for (const [name, value] of Object.entries({
      version: 2,
      rank: -1,
      round: 1.5,
      stepInRound: Number.NaN,
      base: null,
      auditOut: 'xyz',
      payload: 7,
    })) {
      expect(field(() => make().restore({ ...state, [name]: value } as never)).details.field).toBe(name);
    }
    for (const nothing of [null, undefined, 7, 'state', []]) {
      expect(field(() => make().restore(nothing as never)).code).toBe('ERR_VARLEN_STATE_MISMATCH');
    }
    // Other data under the same options: the round's digest tells.
    const elsewhere = new DynamicBatcher(arraySource(shard(0, [11, 20, 30, 40])), options);
    elsewhere.restore(state);
    expect(await rejected(take([elsewhere]))).toMatchObject({
      code: 'ERR_VARLEN_STATE_MISMATCH',
      details: { field: 'roundDigest' },
    });
  });

  test('refuses ranks that restored different moments, on every rank', async () => {
    const data = [shard(0, [10, 10, 10]), shard(1, [10, 10, 10])];
    const options: TestOptions = { budget: { packedTokens: 10 }, window: 3 };
    const { states } = await take(batchers(openSources('state', data), options));
    const resumed = batchers(openSources('state', data), options);
    resumed[0].restore(states[0][0].state);
    resumed[1].restore(states[1][1].state);
    for (const error of await Promise.all(resumed.map((batcher) => rejected(take([batcher]))))) {
      expect(error).toMatchObject({
        code: 'ERR_VARLEN_STATE_MISMATCH',
        details: { field: 'stepInRound', byRank: [1, 2] },
      });
    }
  });

  test('asks for a way back when the source has none', async () => {
    const batcher = new DynamicBatcher(shard(0, [1]), { budget: { packedTokens: 8 } });
    expect(thrown(() => batcher.state())).toMatchObject({ code: 'ERR_VARLEN_MISSING_INPUT' });
  });

  test('refuses to deal out states that belong to no common moment', async () => {
    const data = [shard(0, [10, 10, 10]), shard(1, [10, 10, 10])];
    const options: TestOptions = { budget: { packedTokens: 10 }, window: 3 };
    const { states } = await take(batchers(openSources('state', data), options));
    const [a, b] = [states[0][0].state, states[1][0].state];
    const later = states[1][1].state;
    const field = (call: () => unknown) =>
      (thrown(call) as { details: { field?: string; argument?: string } }).details;
    expect(field(() => redistributeStates([a, b], 3))).toMatchObject({ field: 'stepInRound' });
    expect(field(() => redistributeStates([a], 3))).toMatchObject({ field: 'worldSize' });
    expect(field(() => redistributeStates([a, a], 3))).toMatchObject({ field: 'rank' });
    expect(field(() => redistributeStates([a, later], 3))).toMatchObject({ field: 'stepInRound' });
    expect(field(() => redistributeStates([], 3))).toMatchObject({ field: 'states' });
    expect(field(() => redistributeStates([a, b], 0))).toMatchObject({ argument: 'worldSize' });
  });
});
