import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { localGroups, memoryStats, readSafetensors } from '../../src/index.js';
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

test('an update of one rank and of four is the same', { timeout: 120_000 }, async () => {
  const { liveTensors } = memoryStats();
  const alone = await one('alone', rlOnly);
  const shared = await many(4, 'shared', rlOnly);
  const [a, b] = [alone, shared].map(({ records }) => withoutMachine(records) as Record<string, never>[]);
  expect(b[0]).toEqual(a[0]); // the measurement before
  for (const key of ['reward', 'groups', 'flatGroups', 'lengths', 'generatedTokens', 'tokens', 'truncated']) {
    expect(b[1][key], key).toEqual(a[1][key]);
  }
  for (const key of ['loss', 'gradientNorm', 'entropy']) expect(b[1][key] / a[1][key]).toBeCloseTo(1, 4);
  const [first, second] = [await weights('alone'), await weights('shared')];
  expect(a[1].gradientNorm).toBeGreaterThan(0);
  for (const [name, { data }] of Object.entries(first)) {
    if (!name.startsWith('model.') && !name.endsWith('exp_avg')) continue;
    const other = second[name].data as Float32Array;
    const largest = Math.max(...Array.from(data as Float32Array, Math.abs));
    for (const [i, x] of (data as Float32Array).entries()) {
      // Adam's first step is its sign wherever a gradient is lost in rounding: weights may differ by a step there.
      const slack = name.startsWith('model.') ? 2 * rlOnly.rl.learningRate : 1e-5 * largest;
      expect(Math.abs(other[i] - x), name).toBeLessThanOrEqual(slack);
    }
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
