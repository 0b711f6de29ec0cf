import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DynamicBatcher } from '../../src/batch/batcher.js';
import type { DroppedSample } from '../../src/batch/options.js';
import type { Sample } from '../../src/batch/sample.js';
import { arraySource } from '../support/array-source.js';
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
import { rejected } from '../support/thrown.js';

const later = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
const fives = (rank: number, n: number) => shard(rank, new Array(n).fill(5));
const one: TestOptions = { budget: { packedTokens: 5 }, window: 2, timeoutMs: 2000 };

/** Everything a rank sees until it ends, in whatever way. */
async function outcome(batcher: DynamicBatcher): Promise<{ steps: TestStep[]; error?: unknown }> {
  const steps: TestStep[] = [];
  try {
    for await (const step of batcher) steps.push(step);
    return { steps };
  } catch (error) {
    return { steps, error };
  }
}

const outcomes = (all: DynamicBatcher[]) => Promise.all(all.map(outcome));

describe('a source that fails', () => {
  test('gives its own error on its rank and PEER_ABORTED elsewhere, after equal steps', async () => {
    function* broken(): Iterable<Sample> {
      yield* fives(1, 5);
      throw new RangeError('disk on fire');
    }
    const ends = await outcomes(batchers([fives(0, 9), broken(), fives(2, 3)], one));
    expect(ends[1].error).toBeInstanceOf(RangeError);
    for (const rank of [0, 2]) {
      expect(ends[rank].error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 1 } });
    }
    // Two full rounds; the window of the third one broke.
    expect(ends.map(({ steps }) => steps.length)).toEqual([4, 4, 4]);
  });

  test.each([
    [
      'labels of another length',
      { id: 'b', inputIds: new Int32Array(3), labels: new Int32Array(2) },
      'ERR_VARLEN_SAMPLE',
    ],
    ['no token ids', { id: 'b' }, 'ERR_VARLEN_TYPE'],
    ['null', null, 'ERR_VARLEN_TYPE'],
    ['an id that is an object', { id: {}, inputIds: new Int32Array(1) }, 'ERR_VARLEN_SAMPLE'],
    ['an id that is NaN', { id: Number.NaN, inputIds: new Int32Array(1) }, 'ERR_VARLEN_SAMPLE'],
    ['negative patches', { id: 'b', inputIds: new Int32Array(1), patches: -1 }, 'ERR_VARLEN_SAMPLE'],
    ['half a patch', { id: 'b', inputIds: new Int32Array(1), patches: 0.5 }, 'ERR_VARLEN_SAMPLE'],
  ])('is told of %s by id', async (_, bad, code) => {
    const ends = await outcomes(batchers([[...fives(0, 2), bad as Sample], fives(1, 4)], one));
    expect(ends[0].error).toMatchObject({ code });
    expect(ends[1].error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 0 } });
  });

  test.each([
    ['NaN', Number.NaN],
    ['a fraction', 1.5],
    ['a negative number', -1],
    ['infinity', Infinity],
    ['a string', '5'],
    ['a bigint', 5n],
    [
      'an object that throws when converted',
      {
        valueOf: () => {
          throw new Error('no');
        },
      },
    ],
  ])('is told of a length that is %s', async (_, length) => {
    const options = { ...one, lengthOf: () => length as number };
    const ends = await outcomes(
      batchers([[sample('x', 5)], fives(1, 4)], (rank) =>
        rank === 0 ? options : { ...one, lengthOf: () => 5 },
      ),
    );
    expect(ends[0].error).toMatchObject({ code: 'ERR_VARLEN_SAMPLE', details: { id: 'x' } });
    expect(ends[1].error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED' });
  });

  test.each([
    ['a weight that is NaN', { weightOf: () => Number.NaN }],
    [
      'a filter that throws',
      {
        filter: () => {
          throw new Error('filter');
        },
      },
    ],
    [
      'a length function that throws',
      {
        lengthOf: () => {
          throw new Error('length');
        },
      },
    ],
    [
      'an onDrop that throws',
      {
        filter: () => false,
        onDrop: () => {
          throw new Error('onDrop');
        },
      },
    ],
    [
      'an onRound that throws',
      {
        onRound: () => {
          throw new Error('onRound');
        },
      },
    ],
    [
      'a collate that throws',
      {
        collate: () => {
          throw new Error('collate');
        },
      },
    ],
    ['a collate that rejects', { collate: () => Promise.reject(new Error('collate')) }],
    [
      'a grouping that throws',
      {
        groupingPolicy: () => {
          throw new Error('group');
        },
      },
    ],
    ['a grouping that loses a sample', { groupingPolicy: () => [[0]] }],
    ['a grouping that repeats a sample', { groupingPolicy: () => [[0], [0], [1]] }],
    ['a grouping over budget', { groupingPolicy: () => [[0, 1]] }],
    ['a grouping that is a word', { groupingPolicy: () => 'all' as never }],
    ['a cost that is NaN', { costOf: () => Number.NaN }],
  ] as [string, Partial<TestOptions>][])('ends all ranks on %s', async (_, more) => {
    const pair = batchers([fives(0, 6), fives(1, 6)], (rank) => {
      const keep: Partial<TestOptions> = Object.fromEntries(
        Object.keys(more).map((key) => [
          key,
          {
            weightOf: () => 1,
            filter: () => true,
            lengthOf: () => 5,
            groupingPolicy: () => [[0], [1]],
            costOf: (n: number) => n,
            onDrop: () => {},
            onRound: () => {},
            collate: () => ({}),
          }[key],
        ]),
      ) as never;
      return { ...one, ...(rank === 0 ? more : keep) };
    });
    const ends = await outcomes(pair);
    expect(ends[0].error).toBeDefined();
    expect(ends[1].error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 0 } });
  });

  test('reads every property of a sample once, so that getters cannot change their mind', async () => {
    const reads: Record<string, number> = {};
    const sly = (i: number) =>
      new Proxy(
        sample(i, 5, {
          labels: new Int32Array(5),
          lossMask: new Uint8Array(5),
          positionIds: new Int32Array(5),
          patches: 1,
        }),
        {
          get(target, key) {
            if (typeof key === 'string') reads[`${i}.${key}`] = (reads[`${i}.${key}`] ?? 0) + 1;
            const again = typeof key === 'string' && reads[`${i}.${key}`] > 1;
            return again ? new Int32Array(999) : Reflect.get(target, key);
          },
        },
      );
    const [{ steps }] = await runRanks([[0, 1, 2].map(sly)], { ...one, budget: { packedTokens: 10 } });
    expect(idsOf(steps).sort()).toEqual([0, 1, 2]);
    expect(steps.reduce((sum, { batch }) => sum + batch.totalTokens, 0)).toBe(15);
    for (const [name, count] of Object.entries(reads)) expect([name, count]).toEqual([name, 1]);
  });

  test('accepts an iterator that ends twice, yields promises, or has no return', async () => {
    let calls = 0;
    const source = {
      [Symbol.iterator]: () => ({
        next: () => {
          calls++;
          return calls <= 3
            ? { done: false, value: Promise.resolve(sample(calls, 5)) }
            : { done: true, value: undefined };
        },
      }),
    };
    const { steps } = await outcome(new DynamicBatcher(source as never, one));
    expect(idsOf(steps).sort()).toEqual([1, 2, 3]);
    expect(calls).toBe(4);
  });

  test.each([
    ['a number', () => 7],
    ['null', () => null],
    ['a promise of undefined', () => Promise.resolve(undefined)],
  ])('refuses an iterator result that is %s', async (_, next) => {
    const { error } = await outcome(
      new DynamicBatcher({ [Symbol.asyncIterator]: () => ({ next }) } as never, one),
    );
    expect(error).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
  });

  test('names a duplicate id when it audits', async () => {
    const { error } = await outcome(
      new DynamicBatcher([sample('a', 5), sample('b', 5), sample('a', 5)], { ...one, audit: true }),
    );
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DUPLICATE_SAMPLE', details: { id: 'a' } });
    const twice = await outcome(new DynamicBatcher([sample('a', 5), sample('a', 5)], one));
    expect(twice.error).toBeUndefined();
  });
});

describe('ranks that disagree', () => {
  test.each([
    ['seed', { seed: 1 }],
    ['window', { window: 3 }],
    ['budget', { budget: { packedTokens: 6 } }],
    ['join', { join: 'none' as const }],
  ])('on the %s get the same error on every rank', async (_, more) => {
    const ends = await outcomes(
      batchers([fives(0, 3), fives(1, 3)], (rank) => (rank === 1 ? { ...one, ...more } : one)),
    );
    for (const { error } of ends) {
      expect(error).toMatchObject({ code: 'ERR_VARLEN_ALIGNMENT', details: { field: 'config' } });
    }
  });

  test('end by their deadline when a peer never comes', async () => {
    const [group] = miniGroups(2);
    const batcher = new DynamicBatcher(fives(0, 3), { ...one, group, timeoutMs: 50 });
    const { error } = await outcome(batcher);
    expect(error).toMatchObject({
      code: 'ERR_VARLEN_DIST_TIMEOUT',
      details: { missingRanks: [1], round: 0 },
    });
  });

  test("end by their deadline when a user's collective never settles", async () => {
    const group = { rank: 0, size: 2, allGather: () => new Promise(() => {}) } as never;
    const { error } = await outcome(new DynamicBatcher(fives(0, 3), { ...one, group, timeoutMs: 50 }));
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_TIMEOUT', details: { round: 0 } });
  });
});

describe('a signal', () => {
  test('ends a pending next() with its reason, and all peers', async () => {
    const controller = new AbortController();
    const stuck = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) };
    const pair = batchers([stuck as never, fives(1, 4)], (rank) =>
      rank === 0 ? { ...one, signal: controller.signal } : one,
    );
    const ends = outcomes(pair);
    await later(10);
    const reason = new Error('enough');
    controller.abort(reason);
    const [own, peer] = await ends;
    expect(own.error).toBe(reason);
    expect(peer.error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 0 } });
  });

  test('that fired before the first step ends the peers too', async () => {
    const pair = batchers([fives(0, 4), fives(1, 4)], (rank) =>
      rank === 1 ? { ...one, signal: AbortSignal.abort('no') } : one,
    );
    const [peer, own] = await outcomes(pair);
    expect(own.error).toBe('no');
    expect(peer.error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: 1 } });
  });

  test(
    'at any moment on any rank lets every rank settle in time, with its reason there and PEER_ABORTED elsewhere',
    async () => {
      const property = fc.asyncProperty(
        fc.integer({ min: 1, max: 4 }),
        fc.nat(3),
        fc.nat(12),
        fc.array(fc.nat(12), { minLength: 4, maxLength: 4 }),
        async (size, who, when, sizes) => {
          const controller = new AbortController();
          let gathers = 0;
          const all = batchers(
            Array.from({ length: size }, (_, rank) => fives(rank, sizes[rank])),
            (rank) => (rank === who % size ? { ...one, signal: controller.signal } : one),
            {
              delay: () => {
                if (gathers++ === when) controller.abort('stop');
                return undefined;
              },
            },
          );
          const ends = await outcomes(all);
          const total = Math.max(...sizes.slice(0, size));
          ends.forEach(({ error, steps }, rank) => {
            if (error === undefined) expect(steps.length).toBe(total);
            else if (rank === who % size) expect(error).toBe('stop');
            else
              expect(error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: who % size } });
          });
        },
      );
      await fc.assert(property, numRuns(0.03));
    },
    runTimeout(0.03, 100),
  );
});

describe('an early end', () => {
  test('by drain() emits what was read on all ranks and goes on behind it', async () => {
    const data = [fives(0, 20), fives(1, 20)];
    const pair = batchers(
      data.map((samples) => arraySource(samples)),
      one,
    );
    const runs = await Promise.all(
      pair.map(async (batcher, rank) => {
        const first: TestStep[] = [];
        for await (const step of batcher) {
          first.push(step);
          if (rank === 1 && first.length === 3) await batcher.drain();
        }
        const state = batcher.state();
        const second: TestStep[] = [];
        for await (const step of batcher) second.push(step);
        return { first, second, state };
      }),
    );
    for (const [rank, { first, second, state }] of runs.entries()) {
      expect(first.length).toBe(runs[0].first.length);
      expect(first.length).toBeLessThan(20);
      expect(first.at(-1)!.info.isLast).toBe(true);
      expect(state).toMatchObject({ stepInRound: 0, carry: [] });
      expect([...idsOf(first), ...idsOf(second)].sort()).toEqual(data[rank].map(({ id }) => id).sort());
    }
  });

  test('by leaving the loop on one rank ends the others, and names what was left', async () => {
    const dropped: DroppedSample[] = [];
    const pair = batchers([fives(0, 20), fives(1, 20)], { ...one, onDrop: (drop) => dropped.push(drop) });
    const taken: TestStep[] = [];
    const leaver = (async () => {
      for await (const step of pair[0]) {
        taken.push(step);
        if (taken.length === 3) break;
      }
    })();
    const other = await outcome(pair[1]);
    await leaver;
    await pair[0].close();
    expect(other.error).toBeUndefined();
    expect(other.steps.length).toBeLessThan(20);
    expect(other.steps.at(-1)!.info.isLast).toBe(true);
    const left = dropped.filter(({ reason }) => reason === 'abandoned');
    expect(idsOf(taken).length + left.length).toBe(other.steps.length);
  });

  test('before the first step still lets the peers go', async () => {
    const pair = batchers([fives(0, 4), fives(1, 4)], one);
    const other = outcome(pair[1]);
    await pair[0][Symbol.asyncIterator]().return!();
    expect((await other).error).toBeUndefined();
  });

  test('by close() settles pending calls and refuses later ones', async () => {
    let returned = 0;
    const source = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise<never>(() => {}),
        return: async () => {
          returned++;
          return { done: true as const, value: undefined };
        },
      }),
    };
    const batcher = new DynamicBatcher(source as never, one);
    const iterator = batcher[Symbol.asyncIterator]();
    const pending = iterator.next();
    await Promise.all([batcher.close(), batcher.close()]);
    expect(await pending).toEqual({ done: true, value: undefined });
    expect(returned).toBe(1);
    const closed = { code: 'ERR_VARLEN_CLOSED' };
    expect(() => batcher[Symbol.asyncIterator]()).toThrow(expect.objectContaining(closed));
    expect(() => batcher.state()).toThrow(expect.objectContaining(closed));
    expect(() => batcher.restore({} as never)).toThrow(expect.objectContaining(closed));
    expect(await rejected(batcher.drain())).toMatchObject(closed);
    expect(batcher.metrics().stepCount).toBe(0);
  });

  test('leaves room for one iterator only', async () => {
    const batcher = new DynamicBatcher(fives(0, 3), one);
    const iterator = batcher[Symbol.asyncIterator]();
    expect(() => batcher[Symbol.asyncIterator]()).toThrow(
      expect.objectContaining({ code: 'ERR_VARLEN_BUSY' }),
    );
    expect(() => batcher.restore({} as never)).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_BUSY' }));
    await iterator.return!();
    expect((await outcome(batcher)).error).toBeUndefined();
  });

  test('answers next() calls made at once in order, and none after the end', async () => {
    const iterator = new DynamicBatcher(fives(0, 3), { ...one, order: 'none' })[Symbol.asyncIterator]();
    const answers = await Promise.all(Array.from({ length: 5 }, () => iterator.next()));
    expect(answers.map(({ value }) => value?.ids[0])).toEqual(['0/0', '0/1', '0/2', undefined, undefined]);
    expect((await iterator.next()).done).toBe(true);
  });

  test('after a failure refuses to go on until a state is restored', async () => {
    let broken = true;
    const source = {
      *open() {
        yield sample('a', 5);
        if (broken) throw new Error('once');
        yield sample('b', 5);
      },
    };
    const batcher = new DynamicBatcher(source, { ...one, window: 1, replay: 'skip' });
    const start = batcher.state();
    expect((await outcome(batcher)).error).toMatchObject({ message: 'once' });
    expect(() => batcher[Symbol.asyncIterator]()).toThrow(
      expect.objectContaining({ code: 'ERR_VARLEN_CLOSED' }),
    );
    broken = false;
    batcher.restore(start);
    expect(idsOf((await outcome(batcher)).steps)).toEqual(['a', 'b']);
  });
});

describe('join and quota', () => {
  test('shadow ends a rank after its last data while its protocol goes on', async () => {
    const runs = await runRanks([fives(0, 9), fives(1, 3), []], {
      ...one,
      join: 'shadow',
      divisor: 'active',
      order: 'sorted-desc',
    });
    expect(runs.map(({ steps }) => idsOf(steps).length)).toEqual([9, 3, 0]);
    expect(runs.map(({ steps }) => steps.length)).toEqual([9, 3, 0]);
    // Alone from the fourth step on, and among the three that began only two had data.
    expect(runs[0].steps.map(({ info }) => info.lossScale)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, 1]);
    const initial = await runRanks([fives(0, 9), fives(1, 3), []], {
      ...one,
      join: 'shadow',
      order: 'sorted-desc',
    });
    expect(initial[0].steps.map(({ info }) => info.lossScale)).toEqual([1.5, 1.5, 1.5, 3, 3, 3, 3, 3, 3]);
  });

  test('non-join ends the pass when a rank runs dry, and names what the others had read', async () => {
    const dropped: DroppedSample[] = [];
    const runs = await runRanks([fives(0, 9), fives(1, 4)], (rank) => ({
      ...one,
      join: 'none',
      ...(rank === 0 ? { onDrop: (drop) => dropped.push(drop) } : {}),
    }));
    expect(runs.map(({ steps }) => steps.length)).toEqual([4, 4]);
    expect(runs.map(({ steps }) => steps.at(-1)!.info.isLast)).toEqual([true, true]);
    expect(dropped).toEqual([
      { id: '0/4', reason: 'pass-end', length: 5 },
      { id: '0/5', reason: 'pass-end', length: 5 },
    ]);
  });

  test(
    'a quota stops all ranks after the first step that meets it, reopening sources as needed',
    async () => {
      const property = fc.asyncProperty(
        fc.array(fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 9 }), {
          minLength: 1,
          maxLength: 3,
        }),
        fc.integer({ min: 1, max: 60 }),
        fc.constantFrom('none' as const, 'idle' as const),
        fc.boolean(),
        fc.integer({ min: 1, max: 3 }),
        async (shards, quota, join, exact, accumulate) => {
          const sources = shards.map((lengths, rank) => shard(rank, lengths));
          const options: TestOptions = {
            budget: { packedTokens: 30 },
            window: 4,
            join,
            quota,
            accumulate,
            audit: 'list',
            ...(exact ? { quotaTrim: 'exact' } : {}),
          };
          const runs = await runRanks(sources, options);
          const infos = runs.map(({ steps }) => steps.map(({ info }) => info));
          for (const own of infos) {
            expect(own.map(({ emittedSamples }) => emittedSamples)).toEqual(
              infos[0].map(({ emittedSamples }) => emittedSamples),
            );
            const last = own.at(-1)!;
            expect(last.emittedSamples).toBeGreaterThanOrEqual(quota);
            expect(last.emittedSamples - last.globalSamples).toBeLessThan(quota);
            if (exact) expect(last.emittedSamples).toBe(quota);
            expect(own.map(({ isLast }) => isLast)).toEqual(own.map((info) => info === last));
            expect(last.accumulationIndex).toBe(last.accumulationSteps - 1);
          }
          const emitted = runs.reduce((sum, { steps }) => sum + idsOf(steps).length, 0);
          expect(emitted).toBe(infos[0].at(-1)!.emittedSamples);
          runs.forEach(({ batcher, steps }) => {
            expect(batcher.auditedIds()).toEqual(steps.map(({ ids }) => ids));
          });
          infos[0].forEach((info, i) => {
            expect(info.globalTokens).toBe(infos.reduce((sum, own) => sum + own[i].localTokens, 0));
            expect(info.globalWeight).toBe(infos.reduce((sum, own) => sum + own[i].localWeight, 0));
          });
        },
      );
      await fc.assert(property, numRuns(0.02));
    },
    runTimeout(0.02, 100),
  );

  test('a quota in epochs uses the lengths of all sources', async () => {
    const runs = await runRanks([arraySource(fives(0, 3)), arraySource(fives(1, 3))], {
      ...one,
      join: 'none',
      quota: { epochs: 2 },
    });
    expect(runs[0].steps.at(-1)!.info.emittedSamples).toBe(12);
    const nameless = await outcomes(
      batchers([{ open: () => fives(0, 3) }, arraySource(fives(1, 3))], { ...one, quota: { epochs: 2 } }),
    );
    for (const { error } of nameless) expect(error).toMatchObject({ code: 'ERR_VARLEN_MISSING_INPUT' });
  });

  test('a quota that an empty source can never meet is an error on all ranks, not a hang', async () => {
    for (const { error } of await outcomes(batchers([fives(0, 3), []], { ...one, join: 'none', quota: 4 }))) {
      expect(error).toMatchObject({ code: 'ERR_VARLEN_MISSING_INPUT', details: { epoch: 0 } });
    }
    function* once() {
      yield* fives(0, 3);
    }
    const generator = once(); // a generator does not start over
    expect((await outcome(new DynamicBatcher(generator, { ...one, quota: 4 }))).error).toMatchObject({
      code: 'ERR_VARLEN_MISSING_INPUT',
      details: { epoch: 1 },
    });
  });
});

describe('outliers', () => {
  const long = [sample('a', 5), sample('long', 23), sample('b', 5)];
  const options: TestOptions = { budget: { packedTokens: 10 }, order: 'none' };

  test('are steps of their own by default, flagged', async () => {
    const [{ steps }] = await runRanks([long], options);
    expect(steps.map(({ ids, info }) => [ids, info.overBudget])).toEqual([
      [['a', 'b'], false],
      [['long'], true],
    ]);
  });

  test('are an error with id, length and limit when that is asked for', async () => {
    const { error } = await outcome(new DynamicBatcher(long, { ...options, outlier: 'error' }));
    expect(error).toMatchObject({
      code: 'ERR_VARLEN_OVERSIZE_SAMPLE',
      details: { id: 'long', length: 23, limit: 10 },
    });
  });

  test('are dropped, and reported, when that is asked for', async () => {
    const dropped: DroppedSample[] = [];
    const [{ steps, batcher }] = await runRanks([long], {
      ...options,
      outlier: 'drop',
      audit: true,
      onDrop: (drop) => dropped.push(drop),
    });
    expect(idsOf(steps)).toEqual(['a', 'b']);
    expect(dropped).toEqual([{ id: 'long', reason: 'oversize', length: 23 }]);
    expect(batcher.metrics()).toMatchObject({ dropped: 1, auditIn: batcher.metrics().auditOut });
  });

  test('are truncated by the function given, and checked again', async () => {
    const truncate = ({ id, inputIds }: Sample, maxLen: number) => ({
      id: id!,
      inputIds: inputIds.subarray(0, maxLen),
    });
    const [{ steps }] = await runRanks([long], { ...options, outlier: 'truncate', truncate });
    expect(steps.find(({ ids }) => ids.includes('long'))!.batch.totalTokens).toBe(10);
    const { error } = await outcome(
      new DynamicBatcher(long, { ...options, outlier: 'truncate', truncate: (one) => one }),
    );
    expect(error).toMatchObject({ code: 'ERR_VARLEN_OVERSIZE_SAMPLE' });
  });

  test('are split into named chunks whose positions restart', async () => {
    const inputIds = Int32Array.from({ length: 23 }, (_, i) => i);
    const [{ steps }] = await runRanks(
      [[{ id: 'long', inputIds, positionIds: inputIds.map((i) => 100 + i) }]],
      { ...options, outlier: 'split' },
    );
    expect(idsOf(steps).sort()).toEqual(['long#0', 'long#1', 'long#2']);
    const tokens = Object.fromEntries(steps.map(({ ids, batch }) => [ids[0], [...batch.inputIds]]));
    expect([...tokens['long#0'], ...tokens['long#1'], ...tokens['long#2']]).toEqual([...inputIds]);
    for (const { batch } of steps) expect([...batch.positionIds]).toEqual([...batch.positionIds.keys()]);
    const patches = await outcome(
      new DynamicBatcher([sample('p', 23, { patches: 1 })], { ...options, outlier: 'split' }),
    );
    expect(patches.error).toMatchObject({ code: 'ERR_VARLEN_OVERSIZE_SAMPLE' });
  });

  test('over the model context are an error even when single steps are allowed', async () => {
    const { error } = await outcome(new DynamicBatcher(long, { ...options, maxSampleTokens: 20 }));
    expect(error).toMatchObject({ code: 'ERR_VARLEN_OVERSIZE_SAMPLE', details: { id: 'long', limit: 20 } });
    const [{ steps }] = await runRanks([long], { ...options, maxSampleTokens: 23 });
    expect(idsOf(steps)).toHaveLength(3);
  });

  test('are found by cost and by patches as well', async () => {
    const byCost = await runRanks([long], {
      ...options,
      budget: { packedTokens: 100, cost: 12 },
      outlier: 'drop',
    });
    expect(idsOf(byCost[0].steps)).toEqual(['a', 'b']);
    const heavy = [sample('a', 5, { patches: 3 }), sample('b', 5, { patches: 9 })];
    const byPatches = await runRanks([heavy], {
      ...options,
      budget: { packedTokens: 100, patches: 8 },
      outlier: 'drop',
    });
    expect(idsOf(byPatches[0].steps)).toEqual(['a']);
  });
});
