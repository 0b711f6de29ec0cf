// How fast the trainer's parts are on this machine: `npx tsx bench/trainer/run.ts [--json]`. A busy machine moves
// all figures alike: each is the best of slices that take turns with a matrix product, whose rate stands beside.
import {
  CausalLM,
  crossEntropyFromHidden,
  demoRecipe,
  deviceInfo,
  generate,
  knightsAndKnaves,
  linear,
  promptIds,
  Stream,
  scope,
  Tensor,
  TextGenerator,
} from '../../src/index.js';

const ROUNDS = 5;
const task = knightsAndKnaves();
const { maxTokens, ...demoSizes } = demoRecipe.model;
const demo = { ...demoSizes, vocabSize: task.tokenizer.vocabSize, tieWordEmbeddings: true };
/** 1.1 million parameters. */
const million = { ...demo, hiddenSize: 160, intermediateSize: 448, numLayers: 4 };

interface Line {
  readonly what: string;
  readonly rate: number;
  readonly unit: string;
  /** Of the matrix product's rate, where that is the measure. */
  readonly ofGemm?: number;
}

/** Operations per second of a product of 1024 x 1024 matrices. */
async function gemm(a: Tensor, b: Tensor): Promise<number> {
  const start = performance.now();
  for (let i = 0; i < 8; i++) linear(a, b).dispose();
  await Stream.of('cpu').synchronize();
  return (8 * 2 * 1024 ** 3) / ((performance.now() - start) / 1000);
}

/** Tokens per second of `batch` sequences that all run to the end. */
async function decode(sizes: typeof demo, batch: number): Promise<number> {
  using model = CausalLM.create(sizes, { device: 'cpu' });
  using generator = new TextGenerator(model, { slots: batch, slotTokens: 128, stopIds: [] });
  const prompts = Array.from({ length: batch }, (_, i) => ({
    id: `${i}`,
    promptIds: promptIds(task.tokenizer, task.problem('train', i).prompt),
  }));
  let best = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const [start, before] = [performance.now(), generator.generatedTokens];
    await generate(generator, prompts, 64);
    best = Math.max(best, (generator.generatedTokens - before) / ((performance.now() - start) / 1000));
  }
  return best;
}

/** Operations per second of forward and backward over 8192 packed tokens: 6 per weight and token, plus attention. */
async function trainStep(
  sizes: typeof demo,
  reference: () => Promise<number>,
): Promise<[number, number, number]> {
  using model = CausalLM.create(sizes, { device: 'cpu' });
  const [length, count] = [128, 64];
  const tokens = length * count;
  const inputIds = Int32Array.from({ length: tokens }, (_, i) => i % sizes.vocabSize);
  const positionIds = inputIds.map((_, i) => i % length);
  const cuSeqlens = Int32Array.from({ length: count + 1 }, (_, i) => i * length);
  const matrices = model.numParameters;
  // Scores and values, causal: half of 4 * length per token and hidden unit, three times with backward.
  const attention = 3 * sizes.numLayers * 2 * length * sizes.hiddenSize * tokens;
  const work = 6 * matrices * tokens + attention;
  let [best, gemmRate] = [0, 0];
  for (let round = 0; round < ROUNDS; round++) {
    gemmRate = Math.max(gemmRate, await reference());
    const start = performance.now();
    scope(() => {
      const hidden = model.forward({ inputIds, positionIds, cuSeqlens });
      crossEntropyFromHidden(hidden, model.headWeight, inputIds).loss.backward();
    });
    await Stream.of('cpu').synchronize();
    best = Math.max(best, work / ((performance.now() - start) / 1000));
    model.zeroGrad();
  }
  return [best, gemmRate, tokens / (work / best)];
}

async function main(): Promise<void> {
  const values = new Float32Array(1024 * 1024).map((_, i) => Math.sin(i));
  using a = Tensor.from(values, { shape: [1024, 1024], device: 'cpu' });
  using b = Tensor.from(values, { shape: [1024, 1024], device: 'cpu' });
  const reference = () => gemm(a, b);
  const lines: Line[] = [];
  for (const [name, sizes] of Object.entries({ demo, million })) {
    const [rate, gemmRate, tokens] = await trainStep(sizes, reference);
    const what = `forward and backward, ${name}, 8192 packed tokens`;
    lines.push({ what, rate: rate / 1e9, unit: 'GFLOP/s', ofGemm: rate / gemmRate });
    lines.push({ what, rate: tokens, unit: 'tokens/s' });
  }
  lines.push({ what: 'decode, demo, batch 512', rate: await decode(demo, 512), unit: 'tokens/s' });
  lines.push({ what: 'decode, million, batch 64', rate: await decode(million, 64), unit: 'tokens/s' });
  const { cpu, threads } = deviceInfo();
  if (process.argv.includes('--json')) {
    for (const line of lines) process.stdout.write(`${JSON.stringify({ ...line, isa: cpu.isa, threads })}\n`);
    return;
  }
  process.stderr.write(`${cpu.model} (${cpu.isa}), ${threads} threads\n`);
  for (const { what, rate, unit, ofGemm } of lines) {
    const ratio = ofGemm === undefined ? '' : `, ${ofGemm.toFixed(2)} of a 1024 x 1024 product's rate`;
    process.stdout.write(`${what}: ${rate.toFixed(rate < 100 ? 1 : 0)} ${unit}${ratio}\n`);
  }
}

void main();
