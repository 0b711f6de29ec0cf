import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CausalLM, localGroups, memoryStats, readSafetensors } from '../../src/index.js';
import type { TrainRecipe } from '../../src/trainer/recipe.js';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { type TrainOptions, type TrainResult, train } from '../../src/trainer/train.js';
import { rejected } from '../support/thrown.js';
import { parityTask, tinyRecipe, withoutMachine } from './recipes.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-ranks-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const one = (out: string, recipe: TrainRecipe, more: Partial<TrainOptions> = {}): Promise<TrainResult> =>
  train({
    task: parityTask(knightsAndKnaves({ seed: 5 })),
    recipe,
    out: join(folder, out),
    device: 'cpu',
    ...more,
  });

/** The same run on several ranks of this process; what rank 0 saw. */
async function many(
  size: number,
  out: string,
  recipe: TrainRecipe,
  more: Partial<TrainOptions> = {},
): Promise<TrainResult> {
  const groups = localGroups(size);
  const results = await Promise.all(groups.map((group) => one(out, recipe, { ...more, group })));
  for (const { records } of results)
    expect(withoutMachine(records)).toEqual(withoutMachine(results[0].records));
  return results[0];
}

const weights = async (out: string) =>
  (await readSafetensors(join(folder, out, 'checkpoint.safetensors'))).tensors;

/** RL alone: every update has the same prompts, however many ranks share them. */
const rlOnly: TrainRecipe = {
  ...tinyRecipe,
  sft: { ...tinyRecipe.sft, steps: 0 },
  rl: { ...tinyRecipe.rl, steps: 1, prompts: 12 },
};

const relativeDifference = (a: Float32Array, b: Float32Array): number => {
  const norm = (values: Iterable<number>) => Math.hypot(...values);
  return norm(a.map((x, i) => x - b[i])) / norm(a);
};

test('twenty updates of one rank and of four are the same', { timeout: 120_000 }, async () => {
  const { liveTensors } = memoryStats();
  const recipe: TrainRecipe = {
    ...rlOnly,
    rl: { ...rlOnly.rl, steps: 20, prompts: 8 },
    checkpointEvery: 100,
  };
  const alone = await one('alone', recipe);
  const shared = await many(4, 'shared', recipe);
  const [a, b] = [alone, shared].map(({ records }) => withoutMachine(records) as Record<string, never>[]);
  expect(b).toHaveLength(a.length);
  // The measurements before and after: the same answers, token by token.
  expect([b[0], b.at(-1)]).toEqual([a[0], a.at(-1)]);
  const counted = ['reward', 'formatReward', 'groups', 'flatGroups', 'lengths', 'generatedTokens', 'tokens'];
  for (const [i, update] of a.entries()) {
    if (update.phase !== ('rl' as never)) continue;
    for (const key of [...counted, 'truncated']) expect(b[i][key], key).toEqual(update[key]);
    expect(update.gradientNorm).toBeGreaterThan(0);
    // A loss is a difference of larger sums: it is near 0 where its parts cancel.
    expect(Math.abs(b[i].loss - update.loss)).toBeLessThan(1e-6);
    for (const key of ['gradientNorm', 'entropy']) expect(b[i][key] / update[key]).toBeCloseTo(1, 5);
  }
  const [first, second] = [await weights('alone'), await weights('shared')];
  const start = CausalLM.create(
    {
      ...recipe.model,
      vocabSize: first['model.model.embed_tokens.weight'].shape[0],
      tieWordEmbeddings: true,
    },
    { seed: recipe.seed, device: 'cpu' },
  );
  const untrained = start.embedTokens.weight.dataSync() as Float32Array;
  start.dispose();
  const trained = first['model.model.embed_tokens.weight'].data as Float32Array;
  expect(relativeDifference(trained, untrained)).toBeGreaterThan(1e-3);
  for (const [name, { data }] of Object.entries(first)) {
    const [own, other] = [data as Float32Array, second[name].data as Float32Array];
    if (name.startsWith('model.')) expect(relativeDifference(own, other), name).toBeLessThan(1e-5);
  }
  expect(memoryStats().liveTensors).toBe(liveTensors);
});

test('two ranks write the same records twice, and a stopped run goes on as if it had not been', {
  timeout: 120_000,
}, async () => {
  const whole = await many(2, 'whole', tinyRecipe);
  expect(whole.records.map(({ phase }) => phase)).toEqual([
    ...['eval', ...new Array(6).fill('sft'), 'eval', ...new Array(3).fill('rl'), 'eval'],
  ]);
  const controller = new AbortController();
  let seen = 0;
  const stopped = await many(2, 'stopped', tinyRecipe, {
    signal: controller.signal,
    onRecord: () => {
      if (++seen === 4) controller.abort();
    },
  });
  expect(stopped.interrupted).toBe(true);
  const resumed = await many(2, 'stopped', tinyRecipe, { resume: true });
  expect(withoutMachine(resumed.records)).toEqual(withoutMachine(whole.records));
  const saved = (out: string) => readFileSync(join(folder, out, 'model/model.safetensors'));
  expect(saved('stopped').equals(saved('whole'))).toBe(true);
});

test('another number of ranks cannot go on, and prompts must be dealt out evenly', {
  timeout: 120_000,
}, async () => {
  await many(2, 'two', rlOnly);
  expect(await rejected(one('two', rlOnly, { resume: true }))).toMatchObject({
    code: 'ERR_VARLEN_STATE_MISMATCH',
    message: expect.stringContaining('ranks; got 1, expected 2'),
  });
  const [group] = localGroups(5);
  expect(await rejected(one('five', rlOnly, { group }))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
});
