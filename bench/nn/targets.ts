import { add, Device, deviceInfo, scope, setNumThreads, Tensor } from '../../src/index.js';
import { atLeast, atMost, type TargetResult } from '../batch/measure.js';
import { NotMeasured, runPeer } from '../programs.js';
import type { Suite } from '../suites.js';
import { batchOf, flopsOf, lengths, Product, Trainee } from './step.js';

/** What training promises: the rate of a step, and what JavaScript costs in it. */

const THREADS = 2;
const TOKENS = 8192;
const WHAT = 'training step: 1M parameters, 8192 packed tokens, float32, 2 threads';

/** Milliseconds of the fastest of some runs, ours and the reference by turns. */
async function fastest(runs: readonly (() => Promise<unknown>)[], rounds: number): Promise<number[]> {
  const best = runs.map(() => Infinity);
  for (let round = 0; round <= rounds; round++) {
    for (const [i, run] of runs.entries()) {
      const start = performance.now();
      await run();
      if (round > 0) best[i] = Math.min(best[i], performance.now() - start);
    }
  }
  return best;
}

/** Microseconds of JavaScript to enqueue one small op, the best of many batches into an empty queue. */
async function dispatchUs(device: Device): Promise<number> {
  const [a, b] = [1, 2].map((value) => Tensor.from(Float32Array.of(value), { device }));
  let best = Infinity;
  for (let batch = 0; batch < 200; batch++) {
    const start = performance.now();
    scope(() => {
      for (let i = 0; i < 64; i++) add(a, b);
    });
    best = Math.min(best, (1000 * (performance.now() - start)) / 64);
    await a.data();
  }
  a.dispose();
  b.dispose();
  return best;
}

/** Milliseconds of JavaScript in forward and backward, tape and op calls: those of a pack of one token. */
async function enqueueMs(trainee: Trainee): Promise<number> {
  const tiny = batchOf([1]);
  let best = Infinity;
  for (let run = 0; run < 30; run++) {
    const start = performance.now();
    using loss = trainee.gradients(tiny);
    best = Math.min(best, performance.now() - start);
    await loss.data();
    trainee.model.zeroGrad();
  }
  return best;
}

/** The peer's seconds per step, or `undefined` where it is not installed. */
function peerMs(): number | undefined {
  try {
    const [line] = runPeer('step_torch.py', '', THREADS, false) as unknown as { seconds: number }[];
    return 1000 * line.seconds;
  } catch (error) {
    if (!(error instanceof NotMeasured)) throw error;
    console.error(`trainer.step.torch: not measured: ${error.message}`);
    return undefined;
  }
}

async function run(): Promise<TargetResult[]> {
  const device = Device.cpu();
  const before = deviceInfo().threads;
  setNumThreads(THREADS);
  try {
    using trainee = new Trainee(device);
    using product = new Product(device);
    const batch = batchOf(lengths(TOKENS));
    const theirs = peerMs();
    // Slices of about a step's length: a short one would find a quieter moment of a shared machine.
    const [first, single] = await fastest([() => trainee.step(batch), () => product.run()], 1);
    const products = Math.max(1, Math.round(first / single));
    const many = async (): Promise<void> => {
      for (let i = 0; i < products; i++) await product.run();
    };
    const [stepMs, productsMs] = await fastest([() => trainee.step(batch), many], 5);
    const productMs = productsMs / products;
    const again = theirs === undefined ? undefined : Math.min(theirs, peerMs() ?? Infinity);
    const rate = flopsOf(batch) / stepMs / (Product.flops / productMs);
    const script = (await enqueueMs(trainee)) / stepMs;
    const us = await dispatchUs(device);
    const round = (value: number): number => Number(value.toPrecision(3));
    const results = [
      atLeast(0.5, {
        id: 'trainer.step.gemm',
        what: WHAT,
        comparedWith: "the package's 1024^3 float32 product, slices of a step's length by turns",
        unit: 'of its rate',
        measured: round(rate),
      }),
      atMost(0.03, {
        id: 'trainer.autograd.overhead',
        what: 'all JavaScript of forward and backward, op calls included',
        comparedWith: 'the step of 8192 tokens',
        unit: 'of the step',
        measured: round(script),
      }),
      atMost(5, {
        id: 'trainer.dispatch',
        what: 'add of one element until it returns, and its dispose',
        comparedWith: 'the target, an absolute time',
        unit: 'us',
        measured: round(us),
      }),
    ];
    if (again === undefined) return results;
    const torch = atLeast(1.5, {
      id: 'trainer.step.torch',
      what: WHAT,
      comparedWith: 'PyTorch, the same model on the batch padded to its longest sequence',
      unit: 'times its speed',
      measured: round(again / stepMs),
    });
    return [...results, torch];
  } finally {
    setNumThreads(before);
  }
}

/** Measured together: they share the model and its step. */
export const trainerSuite: Suite = { ids: ['trainer.step', 'trainer.autograd', 'trainer.dispatch'], run };
