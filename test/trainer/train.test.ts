import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CausalLM, memoryStats, readSafetensors, Tensor, writeSafetensors } from '../../src/index.js';
import { readMetrics } from '../../src/trainer/metrics-file.js';
import type { TrainRecipe } from '../../src/trainer/recipe.js';
import type { RlRecord, SftRecord, TrainRecord } from '../../src/trainer/records.js';
import { jsonlTask } from '../../src/trainer/tasks/jsonl.js';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { type TrainOptions, train } from '../../src/trainer/train.js';
import { rejected } from '../support/thrown.js';
import { parityTask, tinyRecipe, withoutMachine } from './recipes.js';

let folder: string;
/** A whole run, never stopped, as all others must end. */
let whole: readonly TrainRecord[];

const task = () => parityTask(knightsAndKnaves({ seed: 5 }));
const options = (out: string, more: Partial<TrainOptions> = {}): TrainOptions => ({
  task: task(),
  recipe: tinyRecipe,
  out: join(folder, out),
  device: 'cpu',
  ...more,
});

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-train-'));
  whole = (await train(options('whole'))).records;
}, 120_000);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe('a run', () => {
  test('measures, trains and measures, and leaves records, a checkpoint and a model', async () => {
    expect(whole.map(({ phase }) => phase)).toEqual([
      'eval',
      ...new Array(6).fill('sft'),
      'eval',
      ...new Array(3).fill('rl'),
      'eval',
    ]);
    const out = join(folder, 'whole');
    expect(readMetrics(join(out, 'metrics.jsonl'))).toEqual(whole);
    expect(existsSync(join(out, 'checkpoint.safetensors'))).toBe(true);
    using model = await CausalLM.fromPretrained(join(out, 'model'), { device: 'cpu' });
    expect(model.config.hiddenSize).toBe(16);
  });

  test('learns from every update, on batches of the budget', () => {
    for (const record of whole.filter((one): one is SftRecord => one.phase === 'sft')) {
      expect(record.loss).toBeGreaterThan(0);
      expect(record.gradientNorm).toBeGreaterThan(0);
      expect(record.tokens).toBeLessThanOrEqual(512);
      expect(record.paddingRatio).toBe(0);
    }
    const updates = whole.filter((one): one is RlRecord => one.phase === 'rl');
    expect(updates.some(({ gradientNorm }) => gradientNorm > 0)).toBe(true);
    for (const { mismatch, microBatches, groups, flatGroups, approxKl } of updates) {
      expect(groups).toBe(4);
      expect(microBatches > 0).toBe(groups > flatGroups);
      // The generator ran the weights that are trained.
      expect(mismatch.max).toBeLessThan(1e-3);
      expect(Math.abs(approxKl)).toBeLessThan(1e-3);
    }
    expect(updates.some(({ microBatches }) => microBatches > 1)).toBe(true);
  });

  test('writes the same records twice, but for the machine', async () => {
    const again = await train(options('again'));
    expect(withoutMachine(again.records)).toEqual(withoutMachine(whole));
    const saved = (name: string) => readFileSync(join(folder, name, 'model/model.safetensors'));
    expect(saved('again').equals(saved('whole'))).toBe(true);
  });

  test('of another seed writes others', async () => {
    const other = await train(options('other', { recipe: { ...tinyRecipe, seed: 6 } }));
    expect(withoutMachine(other.records)).not.toEqual(withoutMachine(whole));
  });

  test('leaves no tensor behind', async () => {
    const { liveTensors, leakedByGc } = memoryStats();
    await train(options('leaks'));
    expect(memoryStats()).toMatchObject({ liveTensors, leakedByGc });
  });
});

describe('a run that is stopped', () => {
  test('by its signal saves after the step at hand, and a resumed one ends alike', async () => {
    for (const stopAt of [3, 9]) {
      const out = `stopped-${stopAt}`;
      const controller = new AbortController();
      let seen = 0;
      const stopped = await train(
        options(out, {
          signal: controller.signal,
          onRecord: () => {
            if (++seen === stopAt) controller.abort();
          },
        }),
      );
      expect(stopped.interrupted).toBe(true);
      expect(stopped.records).toHaveLength(stopAt);
      const { records, interrupted } = await train(options(out, { resume: true }));
      expect(interrupted).toBe(false);
      expect(withoutMachine(records)).toEqual(withoutMachine(whole));
    }
  });

  test('that is over is not run again', async () => {
    cpSync(join(folder, 'whole'), join(folder, 'over'), { recursive: true });
    const { records } = await train(options('over', { resume: true }));
    expect(records).toEqual(whole);
  });
});

describe('a model of another run', () => {
  const untrained: TrainRecipe = {
    ...tinyRecipe,
    sft: { ...tinyRecipe.sft, steps: 0 },
    rl: { ...tinyRecipe.rl, steps: 0 },
  };

  test('is begun with, whatever sizes the recipe has, and may be stopped', async () => {
    const model = join(folder, 'whole/model');
    const recipe = { ...untrained, model: { ...untrained.model, hiddenSize: 64 } };
    const { records } = await train(options('begun', { model, recipe }));
    const last = withoutMachine(whole).at(-1) as { sampled: object; greedy: object };
    expect(records[0]).toMatchObject({ sampled: last.sampled, greedy: last.greedy });
    const controller = new AbortController();
    const onRecord = ({ phase }: TrainRecord) => {
      if (phase === 'sft') controller.abort();
    };
    await train(options('more', { model, signal: controller.signal, onRecord }));
    const more = await train(options('more', { model, resume: true }));
    const atOnce = await train(options('at-once', { model }));
    expect(withoutMachine(more.records)).toEqual(withoutMachine(atOnce.records));
  });

  test('must know the words of the tokenizer, and be there', async () => {
    const small = join(folder, 'small');
    const sizes = { hiddenSize: 16, intermediateSize: 32, numLayers: 1, numHeads: 2 };
    using model = CausalLM.create({ ...sizes, vocabSize: 8 }, { device: 'cpu' });
    await model.savePretrained(small);
    expect(await rejected(train(options('narrow', { model: small, recipe: untrained })))).toMatchObject({
      code: 'ERR_VARLEN_INCOMPATIBLE',
      message: expect.stringContaining('got 8 words'),
    });
    expect(await rejected(train(options('none', { model: join(folder, 'nowhere') })))).toMatchObject({
      code: 'ERR_VARLEN_CHECKPOINT',
    });
  });
});

describe('a checkpoint', () => {
  test('of other options is refused, naming the first that differs', async () => {
    cpSync(join(folder, 'whole'), join(folder, 'mismatch'), { recursive: true });
    const recipe: TrainRecipe = { ...tinyRecipe, gradientClip: 2 };
    expect(await rejected(train(options('mismatch', { resume: true, recipe })))).toMatchObject({
      code: 'ERR_VARLEN_STATE_MISMATCH',
      message: expect.stringContaining('gradientClip; got 2, expected 1'),
    });
  });

  test('of somebody else is refused', async () => {
    cpSync(join(folder, 'whole/model/model.safetensors'), join(folder, 'foreign.safetensors'));
    const out = join(folder, 'foreign');
    await train(
      options('foreign', {
        recipe: { ...tinyRecipe, sft: { ...tinyRecipe.sft, steps: 0 }, rl: { ...tinyRecipe.rl, steps: 0 } },
      }),
    );
    cpSync(join(folder, 'foreign.safetensors'), join(out, 'checkpoint.safetensors'));
    expect(await rejected(train(options('foreign', { resume: true })))).toMatchObject({
      code: 'ERR_VARLEN_CHECKPOINT',
    });
    writeFileSync(join(out, 'checkpoint.safetensors'), 'x');
    expect(await rejected(train(options('foreign', { resume: true })))).toMatchObject({
      code: 'ERR_VARLEN_SAFETENSORS',
    });
  });

  test('of another version of the state is refused, naming both', async () => {
    cpSync(join(folder, 'whole'), join(folder, 'older'), { recursive: true });
    const path = join(folder, 'older/checkpoint.safetensors');
    const { tensors, metadata } = await readSafetensors(path);
    const state = { ...JSON.parse(metadata['varlen.trainer']), version: 1 };
    const owned = Object.entries(tensors).map(([name, entry]) => [name, Tensor.from(entry)] as const);
    await writeSafetensors(path, new Map(owned), { 'varlen.trainer': JSON.stringify(state) });
    for (const [, tensor] of owned) tensor.dispose();
    expect(await rejected(train(options('older', { resume: true })))).toMatchObject({
      code: 'ERR_VARLEN_CHECKPOINT',
      message: expect.stringContaining('version 1; expected 2'),
    });
  });

  test('gives its weights to another run, and names a tensor that does not fit', async () => {
    const weights = join(folder, 'whole/checkpoint.safetensors');
    const recipe = {
      ...tinyRecipe,
      sft: { ...tinyRecipe.sft, steps: 0 },
      rl: { ...tinyRecipe.rl, steps: 0 },
    };
    const { records } = await train(options('taken', { weights, recipe }));
    const last = withoutMachine(whole).at(-1) as { sampled: object; greedy: object };
    expect(records[0]).toMatchObject({ sampled: last.sampled, greedy: last.greedy });
    const wider = { ...recipe, model: { ...recipe.model, hiddenSize: 32 } };
    expect(await rejected(train(options('wider', { weights, recipe: wider })))).toMatchObject({
      code: 'ERR_VARLEN_CHECKPOINT',
      message: expect.stringContaining('model.embed_tokens.weight does not fit'),
    });
  });
});

test('eight worked problems are learnt by heart', { timeout: 120_000 }, async () => {
  const path = join(folder, 'eight.jsonl');
  const { problem } = knightsAndKnaves();
  const lines = Array.from({ length: 8 }, (_, i) => problem('train', i));
  writeFileSync(
    path,
    lines
      .map(({ prompt, response, id }) => JSON.stringify({ prompt: `${id} ${prompt}`, response }))
      .join('\n'),
  );
  const recipe: TrainRecipe = {
    ...tinyRecipe,
    model: { ...tinyRecipe.model, hiddenSize: 64, intermediateSize: 128, numHeads: 4, maxTokens: 512 },
    sft: { ...tinyRecipe.sft, steps: 120, packedTokens: 4096, window: 8, learningRate: 4e-3, weightDecay: 0 },
    rl: { ...tinyRecipe.rl, steps: 0 },
    evaluation: { problems: 1, samples: 1 },
    checkpointEvery: 1000,
  };
  const { records } = await train(options('eight', { task: await jsonlTask(path), recipe }));
  const losses = records.filter((one): one is SftRecord => one.phase === 'sft').map(({ loss }) => loss);
  expect(losses[0]).toBeGreaterThan(3);
  expect(losses.at(-1)).toBeLessThan(0.05);
});

describe('bad options', () => {
  test.each([
    ['a seed below 0', { seed: -1 }, 'ERR_VARLEN_RANGE'],
    ['one response per prompt', { rl: { ...tinyRecipe.rl, responses: 1 } }, 'ERR_VARLEN_RANGE'],
    [
      'a learning rate that is none',
      { sft: { ...tinyRecipe.sft, learningRate: Number.NaN } },
      'ERR_VARLEN_RANGE',
    ],
    [
      'a rule that is none',
      { rl: { ...tinyRecipe.rl, aggregation: 'median' as never } },
      'ERR_VARLEN_OPTION',
    ],
  ])('%s', async (_, change, code) => {
    const recipe = { ...tinyRecipe, ...change };
    expect(await rejected(train(options('bad', { recipe })))).toMatchObject({ code });
  });

  test('a folder that cannot be made', async () => {
    writeFileSync(join(folder, 'file'), '');
    expect(await rejected(train(options('file/below')))).toMatchObject({ code: 'ERR_VARLEN_IO' });
  });

  test('prompts that leave no room for a response', async () => {
    const recipe = { ...tinyRecipe, model: { ...tinyRecipe.model, maxTokens: 41 } };
    expect(await rejected(train(options('room', { recipe })))).toBeInstanceOf(Error);
  });
});
