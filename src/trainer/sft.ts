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
  const { ranks } = run;
  ranks.beginBackward();
  // A rank that has run dry takes part with nothing.
  using loss = info.idle ? undefined : backward(run, batch, info.lossScale);
  await ranks.finishBackward();
  const learningRate = warmedUp(sft.learningRate, run.step + 1, sft.warmupSteps);
  const gradientNorm = await run.optimize(learningRate);
  const value = loss === undefined ? 0 : Number((await loss.data())[0]);
  // The op has scaled the mean for the mean over ranks.
  const local = info.lossScale === 0 ? 0 : (value / info.lossScale) * info.localWeight;
  const totals = Float64Array.of(local, batch.numSeqs, batch.weight, batch.totalTokens);
  const [lossSum, samples, supervisedTokens, rows] = await ranks.sum(totals);
  watch.lap('train');
  run.step++;
  if (info.idle) run.idleSteps++;
  run.record({
    phase: 'sft',
    step: run.step,
    loss: info.globalWeight === 0 ? 0 : lossSum / info.globalWeight,
    learningRate,
    gradientNorm,
    samples,
    tokens: info.globalTokens,
    supervisedTokens,
    paddingRatio: rows === 0 ? 0 : 1 - info.globalTokens / rows,
    budgetFill: info.globalTokens / (sft.packedTokens * ranks.size),
    idleSteps: run.idleSteps,
    machine: run.machine('sft', watch, info.globalTokens),
  });
}

/** Trains until the recipe's steps are done or somebody asks for an end; saves now and then. */
export async function trainSft(run: Run): Promise<void> {
  const { ranks } = run;
  const { recipe, task } = run.options;
  const { sft, seed, model } = recipe;
  if (run.step >= sft.steps) return;
  const batcher = new DynamicBatcher<Sample, PackedBatch>(problemSource(task, ranks.rank, ranks.size), {
    budget: { packedTokens: sft.packedTokens },
    window: sft.window,
    seed,
    maxSampleTokens: model.maxTokens,
    outlier: 'drop',
    ...(ranks.metadata === undefined ? {} : { group: ranks.metadata }),
    // Row t of the hidden states predicts token t + 1.
    collateOptions: { labels: 'shifted' },
  });
  if (run.batcher !== null) batcher.restore(run.batcher);
  let watch = new Stopwatch();
  for await (const step of batcher) {
    watch.lap('data');
    await trainStep(run, step, watch);
    const last = (await run.agree()) || run.step >= sft.steps;
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
