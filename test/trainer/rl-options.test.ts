import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { localGroups, memoryStats, readSafetensors } from '../../src/index.js';
import type { RlRecipe, TrainRecipe } from '../../src/trainer/recipe.js';
import type { RlRecord, TrainRecord } from '../../src/trainer/records.js';
import type { MicroBatch } from '../../src/trainer/rl/micro-batch.js';
import { passesOf } from '../../src/trainer/rl/passes.js';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { type TrainOptions, type TrainResult, train } from '../../src/trainer/train.js';
import { parityTask, tinyRecipe, withoutMachine } from './recipes.js';

let folder: string;
let alive: number;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-rl-'));
  alive = memoryStats().liveTensors;
});
afterEach(() => {
  rmSync(folder, { recursive: true });
  expect(memoryStats().liveTensors).toBe(alive);
});

/** RL from random weights, whose answers all reach different lengths. */
const recipeOf = (rl: Partial<RlRecipe>): TrainRecipe => ({
  ...tinyRecipe,
  sft: { ...tinyRecipe.sft, steps: 0 },
  rl: { ...tinyRecipe.rl, steps: 5, learningRate: 5e-3, ...rl },
});

const run = (out: string, rl: Partial<RlRecipe>, more: Partial<TrainOptions> = {}): Promise<TrainResult> =>
  train({
    task: parityTask(knightsAndKnaves({ seed: 5 })),
    recipe: recipeOf(rl),
    out: join(folder, out),
    device: 'cpu',
    ...more,
  });

const updates = ({ records }: TrainResult) => records.filter((one): one is RlRecord => one.phase === 'rl');
const model = (out: string) => readFileSync(join(folder, out, 'model/model.safetensors'));

function stoppedAfter(steps: number): Partial<TrainOptions> {
  const controller = new AbortController();
  const onRecord = (record: TrainRecord): void => {
    if (record.phase === 'rl' && record.step === steps) controller.abort();
  };
  return { signal: controller.signal, onRecord };
}

/** Stops a run after `steps` updates, goes on, and expects the end of one that was left alone. */
async function expectResumable(rl: Partial<RlRecipe>, steps: number): Promise<void> {
  const whole = await run('whole', rl);
  expect((await run('parts', rl, stoppedAfter(steps))).interrupted).toBe(true);
  const resumed = await run('parts', rl, { resume: true });
  expect(withoutMachine(resumed.records)).toEqual(withoutMachine(whole.records));
  expect(model('parts').equals(model('whole'))).toBe(true);
}

describe('a KL penalty', () => {
  test('is 0 at the reference, grows as the policy leaves it, and holds it back', async () => {
    const free = updates(await run('free', { klCoef: 1e-9 }));
    const held = updates(await run('held', { klCoef: 10 }));
    expect(free[0].referenceKl).toBeLessThan(1e-9);
    expect(held[0].klLoss).toBeLessThan(1e-8);
    for (const { loss, policyLoss, klLoss } of held) expect(loss).toBeCloseTo(policyLoss + klLoss, 6);
    expect(free.at(-1)!.referenceKl).toBeGreaterThan(1e-3);
    expect(held.at(-1)!.referenceKl).toBeGreaterThan(0);
    expect(held.at(-1)!.referenceKl).toBeLessThan(0.5 * free.at(-1)!.referenceKl!);
  });

  test('is not measured when nobody asks', async () => {
    for (const { referenceKl, klLoss } of updates(await run('none', { steps: 1 }))) {
      expect({ referenceKl, klLoss }).toEqual({ referenceKl: null, klLoss: 0 });
    }
    const { tensors } = await readSafetensors(join(folder, 'none/checkpoint.safetensors'));
    expect(Object.keys(tensors).filter((name) => name.startsWith('reference.'))).toEqual([]);
  });

  test('keeps its reference over a stop', async () => {
    await expectResumable({ klCoef: 0.1 }, 3);
  });
});

describe('token weights', () => {
  const part = {
    cuSeqlens: Int32Array.of(0, 2, 4),
    advantages: Float32Array.of(1, -1),
  } as MicroBatch;
  const probabilities = [0.9, 0.1, 0.5, 0.4];
  const old = Float32Array.from(probabilities, Math.log);
  const recipe = (rl: Partial<RlRecipe>) => ({ ...tinyRecipe.rl, ...rl });

  test('are one pass without any by default', () => {
    expect(passesOf(part, old, recipe({}))).toEqual([{}]);
  });

  test('of Advantage Reweighting follow the probability', () => {
    const [{ tokenWeights }] = passesOf(part, old, recipe({ reweightAlpha: 0.3 }));
    for (const [t, p] of probabilities.entries()) expect(tokenWeights![t]).toBeCloseTo(0.3 * p + 0.7, 6);
  });

  test('of Lopti put the unlikely tokens first, each in one of two passes', () => {
    const [unlikely, likely] = passesOf(part, old, recipe({ loptiEta: 0.5, reweightAlpha: 0.3 }));
    expect([...unlikely.klMask!]).toEqual([0, 1, 0, 1]);
    expect([...likely.klMask!]).toEqual([1, 0, 1, 0]);
    const [{ tokenWeights }] = passesOf(part, old, recipe({ reweightAlpha: 0.3 }));
    for (const t of old.keys()) {
      expect(unlikely.tokenWeights![t] + likely.tokenWeights![t]).toBe(tokenWeights![t]);
    }
    const [first] = passesOf(part, old, recipe({ loptiEta: -0.5 }));
    expect([...first.klMask!]).toEqual([1, 0, 1, 0]);
  });
});

describe('Lopti', () => {
  test('steps twice per update, the second time off the policy that was sampled', async () => {
    const plain = updates(await run('plain', { steps: 2 }));
    const twice = updates(await run('twice', { steps: 2, loptiEta: 0.1 }));
    expect(plain.map(({ passes }) => passes)).toEqual([1, 1]);
    expect(twice.map(({ passes }) => passes)).toEqual([2, 2]);
    // The same rollouts; the trainer met them with the weights that drew them, once.
    expect(twice[0].generatedTokens).toBe(plain[0].generatedTokens);
    expect(twice[0].mismatch.max).toBeLessThan(1e-3);
    expect(Math.abs(plain[0].approxKl)).toBeLessThan(1e-6);
    expect(Math.abs(twice[0].approxKl)).toBeGreaterThan(1e-6);
  });

  test('counts both steps in the moments of the optimizer, with a KL penalty as well', async () => {
    await run('one', { loptiEta: 0.1, klCoef: 0.1 }, stoppedAfter(1));
    const { metadata } = await readSafetensors(join(folder, 'one/checkpoint.safetensors'));
    const steps: number[] = Object.values(JSON.parse(metadata['varlen.trainer']).optimizerSteps);
    expect(new Set(steps)).toEqual(new Set([2]));
  });

  test('goes on after a stop', async () => {
    await expectResumable({ loptiEta: 0.1, reweightAlpha: 0.3 }, 2);
  });
});

describe('partial rollouts', () => {
  const partial = { partialRollouts: true, maxStaleness: 2, steps: 8 };

  test('lose no token, and are no staler than asked', async () => {
    const records = updates(await run('partial', partial));
    expect(records).toHaveLength(8);
    for (const { staleness, wastedTokens, groups, mismatch, approxKl } of records) {
      expect(staleness.max).toBeLessThanOrEqual(2);
      expect(wastedTokens).toBe(0);
      expect(groups).toBe(4);
      // The ratio is to the policy before the update, whatever policies drew the tokens.
      expect(Math.abs(approxKl)).toBeLessThan(1e-6);
      // Tokens of the current policy alone: the others were drawn by other weights.
      expect(mismatch.max).toBeLessThan(1e-3);
    }
    expect(records.some(({ staleness }) => staleness.max > 0)).toBe(true);
    // Rollouts overlap updates: more is drawn at first than trained on.
    expect(records[0].generatedTokens).toBeGreaterThan(records[0].lengths.mean * 16);
  });

  test('of no staleness at all are the rollouts of one policy', async () => {
    for (const { staleness } of updates(await run('fresh', { ...partial, maxStaleness: 0, steps: 3 }))) {
      expect(staleness).toEqual({ mean: 0, max: 0 });
    }
  });

  test('go on after a stop, token by token', async () => {
    await expectResumable(partial, 3);
  });

  test('go on after a stop on two ranks', { timeout: 60_000 }, async () => {
    const many = async (out: string, more: Partial<TrainOptions>) =>
      (await Promise.all(localGroups(2).map((group) => run(out, partial, { ...more, group }))))[0];
    const whole = await many('whole', {});
    expect((await many('parts', stoppedAfter(4))).interrupted).toBe(true);
    const resumed = await many('parts', { resume: true });
    expect(withoutMachine(resumed.records)).toEqual(withoutMachine(whole.records));
  });
});

test.each([
  ['rl.klCoef', { klCoef: -1 }, 'ERR_VARLEN_RANGE'],
  ['rl.klKind', { klKind: 'k4' as never }, 'ERR_VARLEN_OPTION'],
  ['rl.reweightAlpha', { reweightAlpha: 2 }, 'ERR_VARLEN_RANGE'],
  ['rl.loptiEta', { loptiEta: -2 }, 'ERR_VARLEN_RANGE'],
  ['rl.maxStaleness', { maxStaleness: 0.5 }, 'ERR_VARLEN_RANGE'],
  ['rl.partialRollouts', { partialRollouts: 1 as never }, 'ERR_VARLEN_TYPE'],
])('%s is checked before anything runs', async (argument, rl, code) => {
  await expect(run('bad', rl)).rejects.toMatchObject({ code, details: { argument } });
});
