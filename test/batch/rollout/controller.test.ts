import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type ControllerOptions,
  RolloutController,
  type UpdateBatch,
} from '../../../src/batch/rollout/controller.js';
import type { Engine, EngineEvent } from '../../../src/batch/rollout/engine.js';
import type { RolloutEntry } from '../../../src/batch/rollout/entry.js';
import { SimulatedEngine } from '../../../src/batch/rollout/simulated-engine.js';
import { SeededRandom } from '../../../src/seeded-random.js';
import { numRuns, runTimeout } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const prompts = (count: number) =>
  Array.from({ length: count }, (_, i) => ({ id: String(i), promptIds: Int32Array.of(i) }));

/** Log-normal, median 1650, sigma 0.75, cut at 8192: the published workload. */
function rolloutLengths(count: number, seed: number): number[] {
  const random = new SeededRandom(seed);
  return Array.from({ length: count }, () =>
    Math.max(1, Math.min(8192, Math.round(1650 * Math.exp(0.75 * random.normal())))),
  );
}

async function collect(controller: RolloutController): Promise<UpdateBatch[]> {
  const batches: UpdateBatch[] = [];
  for await (const batch of controller) batches.push(batch);
  return batches;
}

const published = { updateBatch: 128, maxTokens: 8192, mode: 'partial', load: 'grouped' } as const;

function publishedRun(total: number, options: Partial<ControllerOptions> & { groupPrompts: number }) {
  const lengths = rolloutLengths(total, 2);
  const engine = new SimulatedEngine({ capacity: 512, lengthOf: (entry) => lengths[Number(entry.id)] });
  return new RolloutController(prompts(total), engine, { ...published, ...options });
}

const meanTokens = (batch: UpdateBatch) =>
  batch.entries.reduce((sum, entry) => sum + entry.tokens.length, 0) / batch.entries.length;

describe('published figures', () => {
  test('512 rollouts started together leave 73.9 % of the engine idle', async () => {
    // Over 20 seeds the mean has a standard error of 0.002.
    let sum = 0;
    for (let seed = 0; seed < 20; seed++) {
      const lengths = rolloutLengths(512, seed);
      const engine = new SimulatedEngine({ capacity: 512, lengthOf: (entry) => lengths[Number(entry.id)] });
      const options = { ...published, groupPrompts: 512, updateBatch: 512 };
      const controller = new RolloutController(prompts(512), engine, options);
      await collect(controller);
      const mean = lengths.reduce((a, b) => a + b, 0) / 512;
      expect(controller.metrics().bubbleRatio).toBeCloseTo(1 - mean / Math.max(...lengths), 12);
      sum += controller.metrics().bubbleRatio;
    }
    expect(Math.abs(sum / 20 - 0.739)).toBeLessThan(0.005);
  });

  test.each([
    [1024, 0.59],
    [2048, 0.42],
    [4096, 0.27],
  ])('groups of %i prompts leave a bubble of %f in partial mode', async (groupPrompts, bubble) => {
    const controller = publishedRun(4096, { groupPrompts });
    const batches = await collect(controller);
    expect(Math.abs(controller.metrics().bubbleRatio - bubble)).toBeLessThan(0.03);
    expect(batches).toHaveLength(32);
    expect(controller.metrics().wastedTokens).toBe(0);
  });

  test('a group trains short answers first: 695 tokens at the start, 5594 at the end', async () => {
    const batches = await collect(publishedRun(4096, { groupPrompts: 4096 }));
    expect(Math.abs(meanTokens(batches[0]) / 695 - 1)).toBeLessThan(0.1);
    expect(Math.abs(meanTokens(batches[31]) / 5594 - 1)).toBeLessThan(0.1);
  });

  test('overlap and partial mode keep the bubble below 0.06 over 20 updates and more', async () => {
    const controller = publishedRun(8192, { groupPrompts: 512, load: 'overlap' });
    const bubbles: number[] = [];
    const seen = new Set<string>();
    for await (const { entries, version } of controller) {
      for (const entry of entries) seen.add(entry.id);
      // 20 and 48 updates in; the last prompts of all must run dry, as every finite supply does.
      if (version === 19 || version === 47) bubbles.push(controller.metrics().bubbleRatio);
    }
    expect(bubbles).toHaveLength(2);
    expect(Math.max(...bubbles)).toBeLessThanOrEqual(0.06);
    expect(seen.size).toBe(8192);
    expect(controller.metrics().consumed).toBe(8192);
  });

  test('on-policy restarts waste 67 to 83 % of the tokens', async () => {
    const controller = publishedRun(4096, { groupPrompts: 4096, mode: 'on-policy' });
    for await (const { entries, version } of controller) {
      for (const entry of entries) expect(new Set(entry.versions)).toEqual(new Set([version]));
    }
    const { wastedTokens, generatedTokens } = controller.metrics();
    expect(wastedTokens / generatedTokens).toBeGreaterThan(0.67);
    expect(wastedTokens / generatedTokens).toBeLessThan(0.83);
  });
});

describe('a run small enough to follow', () => {
  test('partial mode stops at two, keeps tokens, and goes on with the longest', async () => {
    const lengths: Record<string, number> = { a: 2, b: 9, c: 4, d: 3 };
    const engine = new SimulatedEngine({ capacity: 3, lengthOf: (entry) => lengths[entry.id] });
    const source = ['a', 'b', 'c', 'd'].map((id) => ({ id, promptIds: new Int32Array(1) }));
    const options = {
      groupPrompts: 4,
      updateBatch: 2,
      maxTokens: 16,
      mode: 'partial',
      load: 'grouped',
    } as const;
    const batches = await collect(new RolloutController(source, engine, options));
    // a ends at 2 and d takes its slot; c ends at 4: harvest. b has 4 tokens, d has 2.
    expect(batches.map((batch) => batch.entries.map((entry) => entry.id))).toEqual([
      ['a', 'c'],
      ['d', 'b'],
    ]);
    const [d, b] = batches[1].entries;
    expect([...d.versions]).toEqual([0, 0, 1]);
    expect([...b.versions]).toEqual([0, 0, 0, 0, 1, 1, 1, 1, 1]);
    expect([...b.tokens]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
    expect([...b.logprobs]).toEqual([...b.versions].map((version) => -(version + 1) / 1024));
    expect([b.interruptions, b.admitted]).toEqual([1, 0]);
  });

  test('on-policy mode starts over under the next policy', async () => {
    const engine = new SimulatedEngine({ capacity: 2, lengthOf: (entry) => (entry.id === '0' ? 2 : 5) });
    const options = {
      groupPrompts: 2,
      updateBatch: 1,
      maxTokens: 16,
      mode: 'on-policy',
      load: 'grouped',
    } as const;
    const controller = new RolloutController(prompts(2), engine, options);
    const [first, second] = await collect(controller);
    expect(first.entries[0].tokens).toHaveLength(2);
    expect([...second.entries[0].versions]).toEqual([1, 1, 1, 1, 1]);
    expect(controller.metrics()).toMatchObject({ generatedTokens: 9, wastedTokens: 2, interruptions: 1 });
  });
});

describe('edge cases', () => {
  const options = {
    groupPrompts: 8,
    updateBatch: 4,
    maxTokens: 10,
    mode: 'partial',
    load: 'grouped',
  } as const;

  test('rollouts of no tokens, and of one length, are ordinary', async () => {
    for (const length of [0, 7]) {
      const engine = new SimulatedEngine({ capacity: 3, lengthOf: () => length });
      const batches = await collect(new RolloutController(prompts(8), engine, options));
      expect(batches.flatMap((batch) => batch.entries)).toHaveLength(8);
      expect(batches.every((batch) => !batch.short)).toBe(true);
    }
  });

  test('a rollout at the length limit counts as complete and is flagged', async () => {
    const engine = new SimulatedEngine({ capacity: 4, lengthOf: ({ id }) => (id === '3' ? 1000 : 5) });
    const [first, second] = await collect(new RolloutController(prompts(8), engine, options));
    const all = [...first.entries, ...second.entries];
    expect(all.filter((entry) => entry.truncated).map((entry) => [entry.id, entry.tokens.length])).toEqual([
      ['3', 10],
    ]);
  });

  test('a final batch with fewer rollouts than wanted is flagged', async () => {
    const engine = new SimulatedEngine({ capacity: 4, lengthOf: ({ id }) => 1 + Number(id) });
    const batches = await collect(new RolloutController(prompts(6), engine, options));
    expect(batches.map((batch) => [batch.entries.length, batch.short])).toEqual([
      [4, false],
      [2, true],
    ]);
    expect(await collect(new RolloutController([], engine, options))).toEqual([]);
  });

  test('rollouts wait for slow rewards without being counted as running', async () => {
    const engine = new SimulatedEngine({ capacity: 4, lengthOf: () => 5 });
    const reward = (entry: RolloutEntry) =>
      new Promise<number>((resolve) => setTimeout(() => resolve(Number(entry.id)), 10));
    const controller = new RolloutController(prompts(8), engine, { ...options, reward });
    for (const batch of await collect(controller)) {
      for (const entry of batch.entries) expect(entry.reward).toBe(Number(entry.id));
    }
    expect(controller.metrics().consumed).toBe(8);
  });

  test('a reward that fails ends the loop with its error, and running rollouts are stopped', async () => {
    const engine = new SimulatedEngine({ capacity: 4, lengthOf: ({ id }) => 3 + Number(id) });
    const error = new Error('verifier crashed');
    for (const reward of [
      () => Promise.reject(error),
      () => {
        throw error;
      },
    ]) {
      await expect(collect(new RolloutController(prompts(8), engine, { ...options, reward }))).rejects.toBe(
        error,
      );
      expect(engine.running).toBe(0);
    }
  });

  test('leaving the loop stops the engine and closes the prompts', async () => {
    let closed = false;
    const endless = (function* () {
      try {
        for (let i = 0; ; i++) yield { id: String(i), promptIds: new Int32Array(1) };
      } finally {
        closed = true;
      }
    })();
    const engine = new SimulatedEngine({ capacity: 4, lengthOf: ({ id }) => 3 + Number(id) });
    const controller = new RolloutController(endless, engine, {
      ...options,
      load: 'overlap',
      oversubscribe: 2,
    });
    for await (const batch of controller) if (batch.version === 3) break;
    expect([engine.running, closed]).toEqual([0, true]);
  });

  test('a token threshold harvests before the batch is full', async () => {
    const engine = new SimulatedEngine({ capacity: 8, lengthOf: ({ id }) => 1 + Number(id) });
    const earlyStop = { tokens: 3 };
    const batches = await collect(new RolloutController(prompts(8), engine, { ...options, earlyStop }));
    expect(batches[0].entries.map((entry) => entry.tokens.length)).toEqual([1, 2]);
    expect(batches[0].short).toBe(true);
  });

  test('prompt groups stay together when advantages need them', async () => {
    const random = new SeededRandom(4);
    const lengths = new Map<string, number>();
    const lengthOf = ({ id }: RolloutEntry) => {
      if (!lengths.has(id)) lengths.set(id, 1 + random.below(10));
      return lengths.get(id) as number;
    };
    const engine = new SimulatedEngine({ capacity: 5, lengthOf });
    const together = { ...options, responsesPerPrompt: 4, updateBatch: 8, keepPromptGroupsTogether: true };
    const batches = await collect(new RolloutController(prompts(8), engine, together));
    for (const { entries } of batches) {
      for (const id of new Set(entries.map((entry) => entry.promptId))) {
        expect(entries.filter((entry) => entry.promptId === id)).toHaveLength(4);
      }
    }
    expect(batches.flatMap((batch) => batch.entries.map((entry) => entry.id))).toHaveLength(32);
  });
});

describe('limits', () => {
  const options = {
    groupPrompts: 64,
    updateBatch: 8,
    maxTokens: 64,
    mode: 'partial',
    load: 'overlap',
  } as const;
  const lengthOf = ({ id }: RolloutEntry) => 1 + ((Number(id) * 37) % 64);

  test('no trained token is older than maxStaleness, whatever happens at the limit', async () => {
    for (const onLimit of ['finish', 'restart', 'drop'] as const) {
      for (const maxStaleness of [0, 1, 3]) {
        const engine = new SimulatedEngine({ capacity: 16, lengthOf });
        const controller = new RolloutController(prompts(128), engine, { ...options, onLimit, maxStaleness });
        const seen = new Set<string>();
        for await (const { entries, version } of controller) {
          for (const entry of entries) {
            expect(version - entry.versions[0]).toBeLessThanOrEqual(maxStaleness);
            expect(seen.has(entry.id)).toBe(false);
            seen.add(entry.id);
          }
        }
        const { dropped } = controller.metrics();
        expect(seen.size + dropped).toBe(128);
        if (onLimit === 'drop') expect(dropped).toBeGreaterThan(0);
        else expect(dropped).toBe(0);
      }
    }
  });

  test('no rollout is stopped more than maxInterruptions times', async () => {
    for (const mode of ['partial', 'on-policy'] as const) {
      for (const maxInterruptions of [0, 1, 2]) {
        const engine = new SimulatedEngine({ capacity: 16, lengthOf });
        const controller = new RolloutController(prompts(128), engine, {
          ...options,
          mode,
          maxInterruptions,
        });
        const batches = await collect(controller);
        const entries = batches.flatMap((batch) => batch.entries);
        expect(entries).toHaveLength(128);
        for (const entry of entries) expect(entry.interruptions).toBeLessThanOrEqual(maxInterruptions);
      }
    }
  });

  test('a complete rollout that had to start over is not passed over again', async () => {
    // Three slots, batches of one, all of one length: three complete at once and two start over.
    const engine = new SimulatedEngine({ capacity: 3, lengthOf: () => 5 });
    const source = ['y', 'z', 'a', 'b'].map((id) => ({ id, promptIds: new Int32Array(1) }));
    const sole = { ...options, groupPrompts: 2, updateBatch: 1, mode: 'on-policy' } as const;
    const batches = await collect(new RolloutController(source, engine, sole));
    expect(batches.map(({ entries }) => entries[0].id)).toEqual(['a', 'y', 'z', 'b']);
    expect(batches.map(({ entries }) => entries[0].restarts)).toEqual([0, 1, 2, 2]);
  });

  test('a dropped answer takes its prompt group along and everybody is told', async () => {
    const told: string[] = [];
    const engine = new SimulatedEngine({ capacity: 6, lengthOf: ({ id }) => (id.endsWith('#0') ? 60 : 2) });
    const controller = new RolloutController(prompts(12), engine, {
      ...options,
      groupPrompts: 4,
      responsesPerPrompt: 2,
      updateBatch: 2,
      earlyStop: { completed: 2 },
      keepPromptGroupsTogether: true,
      maxInterruptions: 0,
      onLimit: 'drop',
      onDrop: (entry) => told.push(entry.promptId),
    });
    const batches = await collect(controller);
    const trained = batches.flatMap((batch) => batch.entries);
    expect(trained.length + told.length).toBe(24);
    for (const id of new Set(told)) expect(told.filter((other) => other === id)).toHaveLength(2);
  });
});

test(
  'every response trains exactly once and versions never fall, for any options',
  async () => {
    const arbitrary = fc.record({
      capacity: fc.integer({ min: 1, max: 8 }),
      total: fc.integer({ min: 0, max: 30 }),
      groupPrompts: fc.integer({ min: 1, max: 10 }),
      responsesPerPrompt: fc.integer({ min: 1, max: 3 }),
      batches: fc.integer({ min: 1, max: 4 }),
      mode: fc.constantFrom('partial' as const, 'on-policy' as const),
      load: fc.constantFrom('grouped' as const, 'overlap' as const),
      oversubscribe: fc.constantFrom(1, 1.5, 3),
      maxStaleness: fc.constantFrom(undefined, 0, 1, 2),
      maxInterruptions: fc.constantFrom(undefined, 0, 1, 3),
      onLimit: fc.constantFrom('finish' as const, 'restart' as const),
      together: fc.boolean(),
      seed: fc.integer({ min: 0, max: 1000 }),
    });
    await fc.assert(
      fc.asyncProperty(arbitrary, async (c) => {
        const random = new SeededRandom(c.seed);
        const lengths = new Map<string, number>();
        const lengthOf = ({ id }: RolloutEntry) => {
          if (!lengths.has(id)) lengths.set(id, random.below(30));
          return lengths.get(id) as number;
        };
        const engine = new SimulatedEngine({ capacity: c.capacity, lengthOf });
        const controller = new RolloutController(prompts(c.total), engine, {
          groupPrompts: c.groupPrompts,
          responsesPerPrompt: c.responsesPerPrompt,
          updateBatch: c.batches * c.responsesPerPrompt,
          maxTokens: 24,
          mode: c.mode,
          load: c.load,
          oversubscribe: c.oversubscribe,
          onLimit: c.onLimit,
          keepPromptGroupsTogether: c.together,
          ...(c.maxStaleness === undefined ? {} : { maxStaleness: c.maxStaleness }),
          ...(c.maxInterruptions === undefined ? {} : { maxInterruptions: c.maxInterruptions }),
        });
        const ids: string[] = [];
        let version = -1;
        for await (const batch of controller) {
          expect(batch.version).toBe(++version);
          expect(batch.entries.length).toBeGreaterThan(0);
          expect(batch.entries.length).toBeLessThanOrEqual(c.batches * c.responsesPerPrompt);
          for (const entry of batch.entries) {
            ids.push(entry.id);
            expect(entry.tokens).toEqual(
              Int32Array.from({ length: Math.min(24, lengthOf(entry)) }, (_, i) => i),
            );
            expect([...entry.versions]).toEqual([...entry.versions].sort((a, b) => a - b));
            expect([...entry.logprobs]).toEqual([...entry.versions].map((v) => -(v + 1) / 1024));
            if (c.mode === 'on-policy') expect(new Set(entry.versions).size).toBeLessThanOrEqual(1);
            if (c.maxStaleness !== undefined && entry.versions.length > 0) {
              expect(version - entry.versions[0]).toBeLessThanOrEqual(c.maxStaleness);
            }
          }
        }
        expect(ids.length).toBe(c.total * c.responsesPerPrompt);
        expect(new Set(ids).size).toBe(ids.length);
        const { bubbleRatio } = controller.metrics();
        expect(bubbleRatio).toBeGreaterThanOrEqual(0);
        expect(bubbleRatio).toBeLessThan(1);
      }),
      numRuns(0.05),
    );
  },
  runTimeout(0.05, 40),
);

describe('a state', () => {
  const options = (c: { mode: 'partial' | 'on-policy'; load: 'grouped' | 'overlap'; batches: number }) => ({
    groupPrompts: 4,
    responsesPerPrompt: 2,
    updateBatch: 2 * c.batches,
    maxTokens: 24,
    mode: c.mode,
    load: c.load,
    maxStaleness: 2,
    keepPromptGroupsTogether: true,
    reward: ({ id, tokens }: RolloutEntry) => tokens.length + id.length,
  });
  const seen = ({ entries, version }: UpdateBatch) => ({ entries: structuredClone(entries), version });

  test(
    'goes on elsewhere as if the run had not ended, after any number of updates',
    async () => {
      const arbitrary = fc.record({
        mode: fc.constantFrom('partial' as const, 'on-policy' as const),
        load: fc.constantFrom('grouped' as const, 'overlap' as const),
        capacity: fc.integer({ min: 1, max: 9 }),
        batches: fc.integer({ min: 1, max: 4 }),
        stopAfter: fc.integer({ min: 1, max: 6 }),
        seed: fc.integer({ min: 0, max: 1000 }),
      });
      await fc.assert(
        fc.asyncProperty(arbitrary, async (c) => {
          const random = new SeededRandom(c.seed);
          const lengths = Array.from({ length: 48 }, () => random.below(30));
          const engine = () =>
            new SimulatedEngine({
              capacity: c.capacity,
              lengthOf: ({ id }) => lengths[2 * Number.parseInt(id, 10) + Number(id.at(-1))],
            });
          const whole: object[] = [];
          for await (const batch of new RolloutController(prompts(24), engine(), options(c))) {
            whole.push(seen(batch));
          }
          const parts: object[] = [];
          const unread = prompts(24)[Symbol.iterator]();
          // Leaving the first loop would end an iterator that knows `return`.
          const rest = { [Symbol.iterator]: () => ({ next: () => unread.next() }) };
          const first = new RolloutController(rest, engine(), options(c));
          let state: string | undefined;
          for await (const batch of first) {
            parts.push(seen(batch));
            if (parts.length < c.stopAfter) continue;
            state = JSON.stringify(first.state());
            break;
          }
          if (state !== undefined) {
            const resume = JSON.parse(state);
            for await (const batch of new RolloutController(rest, engine(), { ...options(c), resume })) {
              parts.push(seen(batch));
            }
          }
          expect(parts).toEqual(whole);
        }),
        numRuns(0.05),
      );
    },
    runTimeout(0.05, 40),
  );

  test('does not exist while rollouts run, and one that does not fit together is refused', async () => {
    const engine = new SimulatedEngine({ capacity: 2, lengthOf: ({ id }) => (id.endsWith('#0') ? 3 : 5) });
    const controller = new RolloutController(prompts(4), engine, {
      ...options({ mode: 'partial', load: 'grouped', batches: 1 }),
      reward: ({ tokens }) => {
        if (tokens.length === 3) {
          expect(thrown(() => controller.state())).toMatchObject({ code: 'ERR_VARLEN_BUSY' });
        }
        return tokens.length;
      },
    });
    const lengths = { promptIds: 'AAAAAA==', tokens: 'AAAAAA==', logprobs: '', versions: '' };
    for await (const batch of controller) {
      expect(batch.entries.length).toBe(2);
      const { entries, ...rest } = controller.state();
      const resume = { ...rest, entries: [{ ...entries[0], ...lengths }] };
      const made = () =>
        new RolloutController([], engine, {
          ...options({ mode: 'partial', load: 'grouped', batches: 1 }),
          resume,
        });
      expect(thrown(made)).toMatchObject({ code: 'ERR_VARLEN_STATE_MISMATCH' });
      break;
    }
  });
});

describe('bad input', () => {
  const good = { groupPrompts: 4, updateBatch: 2, maxTokens: 8, mode: 'partial', load: 'grouped' } as const;
  const engine = () => new SimulatedEngine({ capacity: 2, lengthOf: () => 3 });

  test.each([
    [{ groupPrompts: 0 }, 'ERR_VARLEN_RANGE'],
    [{ updateBatch: 1.5 }, 'ERR_VARLEN_RANGE'],
    [{ maxTokens: Number.NaN }, 'ERR_VARLEN_RANGE'],
    [{ oversubscribe: 0.5 }, 'ERR_VARLEN_RANGE'],
    [{ oversubscribe: Number.POSITIVE_INFINITY }, 'ERR_VARLEN_RANGE'],
    [{ maxStaleness: -1 }, 'ERR_VARLEN_RANGE'],
    [{ maxInterruptions: Number.NaN }, 'ERR_VARLEN_RANGE'],
    [{ earlyStop: { completed: 0 } }, 'ERR_VARLEN_RANGE'],
    [{ earlyStop: { tokens: 0 } }, 'ERR_VARLEN_RANGE'],
    [{ mode: 'off-policy' }, 'ERR_VARLEN_OPTION'],
    [{ load: 'all' }, 'ERR_VARLEN_OPTION'],
    [{ onLimit: 'panic' }, 'ERR_VARLEN_OPTION'],
    [{ keepPromptGroupsTogether: true, responsesPerPrompt: 3 }, 'ERR_VARLEN_INCOMPATIBLE'],
  ])('%j is refused at once', (wrong, code) => {
    const options = { ...good, ...wrong } as ControllerOptions;
    expect(() => new RolloutController([], engine(), options)).toThrow(expect.objectContaining({ code }));
  });

  test('an engine without capacity is refused', () => {
    const empty = new SimulatedEngine({ capacity: 0, lengthOf: () => 1 });
    expect(() => new RolloutController([], empty, good)).toThrow(/engine.capacity is out of range/);
  });

  test('a prompt id seen twice is refused', async () => {
    const twice = [...prompts(2), ...prompts(1)];
    const controller = new RolloutController(twice, engine(), good);
    await expect(collect(controller)).rejects.toMatchObject({ code: 'ERR_VARLEN_DUPLICATE_SAMPLE' });
  });

  test('a second loop is refused', async () => {
    const controller = new RolloutController(prompts(4), engine(), good);
    for await (const _ of controller) {
      await expect(collect(controller)).rejects.toMatchObject({ code: 'ERR_VARLEN_BUSY' });
    }
  });

  test('an engine that answers nonsense ends the loop with a typed error', async () => {
    const answering = (event: Partial<EngineEvent>): Engine => ({
      capacity: 2,
      submit() {},
      poll: async () => [
        { id: '0', tokens: new Int32Array(2), logprobs: new Float32Array(2), truncated: false, ...event },
      ],
      abort: async (ids) =>
        ids.map((id) => ({ id, tokens: new Int32Array(0), logprobs: new Float32Array(0) })),
      setPolicy: async () => {},
    });
    const outcome = (event: Partial<EngineEvent>) =>
      collect(new RolloutController(prompts(2), answering(event), good));
    await expect(outcome({ id: 'other' })).rejects.toMatchObject({ code: 'ERR_VARLEN_INDEX' });
    await expect(outcome({ logprobs: new Float32Array(1) })).rejects.toMatchObject({
      code: 'ERR_VARLEN_SHAPE',
    });
    const long = { tokens: new Int32Array(9), logprobs: new Float32Array(9) };
    await expect(outcome(long)).rejects.toMatchObject({ code: 'ERR_VARLEN_SHAPE' });
    // The same rollout ends twice.
    await expect(outcome({})).rejects.toMatchObject({ code: 'ERR_VARLEN_INDEX' });
  });
});
