import {
  CausalLM,
  demoRecipe,
  deviceInfo,
  generate,
  knightsAndKnaves,
  promptIds,
  setNumThreads,
  TextGenerator,
} from '../../src/index.js';
import { atLeast, type TargetResult } from '../batch/measure.js';
import type { Suite } from '../suites.js';

/** What generation promises: tokens per second of many sequences side by side. */

const THREADS = 2;
const NEW_TOKENS = 64;
const ROUNDS = 5;

const task = knightsAndKnaves();
const { maxTokens, ...sizes } = demoRecipe.model;
/** The model of `npm run demo`: 335,000 parameters. */
const demo = { ...sizes, vocabSize: task.tokenizer.vocabSize, tieWordEmbeddings: true };
/** 1.1 million parameters. */
const million = { ...demo, hiddenSize: 160, intermediateSize: 384, numLayers: 4 };

/** Tokens per second of `batch` puzzles that are all answered to the end, prompts in the time: the best round. */
async function tokensPerSecond(shape: typeof demo, batch: number): Promise<number> {
  using model = CausalLM.create(shape, { device: 'cpu' });
  using generator = new TextGenerator(model, { slots: batch, slotTokens: maxTokens, stopIds: [] });
  const prompts = Array.from({ length: batch }, (_, i) => ({
    id: `${i}`,
    promptIds: promptIds(task.tokenizer, task.problem('train', i).prompt),
  }));
  let best = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const [start, before] = [performance.now(), generator.generatedTokens];
    await generate(generator, prompts, NEW_TOKENS);
    best = Math.max(best, (generator.generatedTokens - before) / ((performance.now() - start) / 1000));
  }
  return best;
}

async function measured(
  id: string,
  what: string,
  [shape, batch]: readonly [typeof demo, number],
  target: number,
): Promise<TargetResult> {
  return atLeast(target, {
    id,
    what: `sampling at temperature 1, ${what}, ${batch} sequences, ${THREADS} threads`,
    comparedWith: `the target, an absolute rate, on ${deviceInfo().cpu.model}`,
    unit: 'tokens/s',
    measured: Math.round(await tokensPerSecond(shape, batch)),
  });
}

async function run(): Promise<TargetResult[]> {
  const before = deviceInfo().threads;
  setNumThreads(THREADS);
  try {
    return [
      await measured('trainer.decode.demo', "the demo's 335k parameters", [demo, 512], 10_000),
      await measured('trainer.decode.million', '1.1M parameters', [million, 64], 1500),
    ];
  } finally {
    setNumThreads(before);
  }
}

/** Both rates of decoding. */
export const decodeSuite: Suite = { ids: ['trainer.decode'], run };
