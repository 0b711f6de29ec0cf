/** Supervised fine-tuning on worked solutions. */
import { DynamicBatcher, type PackedBatch, type Sample, type Step } from '../batch/index.js';
import { crossEntropyFromHidden } from '../ops/index.js';
import { scope, Tensor } from '../tensor/index.js';
import { problemSource } from './problem-source.js';
import { type Run, Stopwatch } from './run.js';

/** Linear warm-up to `rate`, from 0 before the first step. */
export function warmedUp(rate: number, step: number, warmupSteps: number): number {
  return rate * Math.min(1, step / Math.max(1, warmupSteps));
}

/** Mean loss of a batch over its response tokens; gradients are left on the parameters. */
function backward({ model }: Run, batch: PackedBatch, lossScale: number): Tensor {
  return scope(() => {
    const { inputIds, positionIds, cuSeqlens, maxSeqlen, labels } = batch;
    const hidden = model.forward({ inputIds, positionIds, cuSeqlens, maxSeqlen });
    const lossMask = Tensor.from(batch.lossMask, { device: model.device });
    const { loss } = crossEntropyFromHidden(hidden, model.headWeight, labels, { lossMask, scale: lossScale });
    loss.backward();
    return loss;
  });
}

async function trainStep(run: Run, { batch, info }: Step<PackedBatch>, watch: Stopwatch): Promise<void> {
  const { sft } = run.options.recipe;
  using loss = backward(run, batch, info.lossScale);
  const learningRate = warmedUp(sft.learningRate, run.step + 1, sft.warmupSteps);
  const gradientNorm = await run.optimizer.step(learningRate);
  const value = Number((await loss.data())[0]);
  watch.lap('train');
  run.step++;
  if (info.idle) run.idleSteps++;
  run.record({
    phase: 'sft',
    step: run.step,
    // The op has scaled it for the sum over ranks.
    loss: info.lossScale === 0 ? 0 : value / info.lossScale,
    learningRate,
    gradientNorm,
    samples: batch.numSeqs,
    tokens: info.localTokens,
    supervisedTokens: batch.weight,
    paddingRatio: 1 - info.localTokens / batch.totalTokens,
    budgetFill: info.localTokens / sft.packedTokens,
    idleSteps: run.idleSteps,
    machine: run.machine('sft', watch, info.localTokens),
  });
}

/** Trains until the recipe's steps are done or somebody asks for an end; saves now and then. */
export async function trainSft(run: Run): Promise<void> {
  const { recipe, task } = run.options;
  const { sft, seed, model } = recipe;
  if (run.step >= sft.steps) return;
  const batcher = new DynamicBatcher<Sample, PackedBatch>(problemSource(task), {
    budget: { packedTokens: sft.packedTokens },
    window: sft.window,
    seed,
    maxSampleTokens: model.maxTokens,
    outlier: 'drop',
    // Row t of the hidden states predicts token t + 1.
    collateOptions: { labels: 'shifted' },
  });
  if (run.batcher !== null) batcher.restore(run.batcher);
  let watch = new Stopwatch();
  for await (const step of batcher) {
    watch.lap('data');
    await trainStep(run, step, watch);
    const last = run.step >= sft.steps || run.interrupted;
    if (!last && run.step % recipe.checkpointEvery === 0) {
      run.batcher = batcher.state();
      await run.save();
    }
    if (last) {
      run.batcher = batcher.state();
      break;
    }
    watch = new Stopwatch();
  }
}
