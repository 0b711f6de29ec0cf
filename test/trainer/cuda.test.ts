import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { CausalLM, memoryStats, readSafetensors } from '../../src/index.js';
import type { RlRecord, SftRecord } from '../../src/trainer/records.js';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { type TrainOptions, train } from '../../src/trainer/train.js';
import '../support/emulated-gpu.js';
import { parityTask, tinyRecipe, withoutMachine } from './recipes.js';

// A whole run on a GPU: measured, fine-tuned, reinforced, saved and gone on with.

const folder = mkdtempSync(join(tmpdir(), 'varlen-train-cuda-'));
afterAll(() => rmSync(folder, { recursive: true }));

const recipe = {
  ...tinyRecipe,
  model: { ...tinyRecipe.model, hiddenSize: 8, intermediateSize: 16 },
  sft: { ...tinyRecipe.sft, steps: 2, packedTokens: 256 },
  rl: { ...tinyRecipe.rl, steps: 1, prompts: 2, responses: 3, maxNewTokens: 8 },
  evaluation: { problems: 2, samples: 1 },
};
const options = (out: string, more: Partial<TrainOptions> = {}): TrainOptions => ({
  task: parityTask(knightsAndKnaves({ seed: 5 })),
  recipe,
  out: join(folder, out),
  device: 'cuda',
  ...more,
});

test('a run trains in bfloat16 there, repeats its bits, goes on where it ended, and leaves nothing', async () => {
  const tensors = () => ['cpu' as const, 'cuda' as const].map((device) => memoryStats(device).liveTensors);
  const before = tensors();
  const whole = await train(options('whole'));
  expect(whole.records.map(({ phase }) => phase)).toEqual(['eval', 'sft', 'sft', 'eval', 'rl', 'eval']);
  const tuned = whole.records.filter((one): one is SftRecord => one.phase === 'sft');
  for (const { loss, gradientNorm } of tuned) {
    expect(loss).toBeGreaterThan(0);
    expect(gradientNorm).toBeGreaterThan(0);
  }
  const [update] = whole.records.filter((one): one is RlRecord => one.phase === 'rl');
  // Sampled and trained by the same kernels, on weights of 8 bits.
  expect(update!.mismatch.max).toBeLessThan(0.05);
  expect(tensors()).toEqual(before);

  const stop = new AbortController();
  const halted = await train(
    options('halted', { signal: stop.signal, onRecord: ({ phase }) => phase === 'sft' && stop.abort() }),
  );
  expect(halted.interrupted).toBe(true);
  const rest = await train(options('halted', { resume: true }));
  expect(withoutMachine(rest.records)).toEqual(withoutMachine(whole.records));
  expect(tensors()).toEqual(before);

  const { tensors: saved } = await readSafetensors(join(folder, 'whole/model/model.safetensors'));
  for (const { dtype } of Object.values(saved)) expect(dtype).toBe('bfloat16');
  using model = await CausalLM.fromPretrained(join(folder, 'whole/model'), { device: 'cpu' });
  expect(model.dtype).toBe('bfloat16');
}, 300_000);
