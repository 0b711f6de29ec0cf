/** Attention split anew among images, and fewer visual tokens: `prefill.companions.*`. */
import { varlenAttention } from '../../src/ops/index.js';
import { compressVisualTokens, planPrefill, rebalanceAttention } from '../../src/prefill/index.js';
import { Stream, Tensor } from '../../src/tensor/index.js';
import { atMost, type TargetResult } from '../batch/measure.js';
import { processorSeconds, random } from './processor-time.js';

const TURNS = 6;

/** Processor time of rebalanced attention over that of plain attention, less 1. */
async function rebalancing(): Promise<TargetResult> {
  const [tokens, dim, images] = [8192, 128, 8];
  const make = (seed: number): Tensor =>
    Tensor.from(random(tokens * dim, seed), { shape: [tokens, 1, dim], dtype: 'bfloat16', device: 'cpu' });
  using q = make(1);
  using k = make(2);
  using v = make(3);
  const stream = Stream.of(q.device);
  const each = tokens / images;
  // A hundred tokens of text before every image.
  const segments = Int32Array.from({ length: tokens }, (_, j) =>
    j % each < 100 ? -1 : Math.floor(j / each),
  );
  const cuSeqlens = Int32Array.of(0, tokens);
  using plan = planPrefill({ heads: { kind: 'dense' } }, q, k, { cuSeqlens });
  let [plain, rebalanced] = [Infinity, Infinity];
  for (let turn = 0; turn < TURNS; turn++) {
    plain = Math.min(
      plain,
      await processorSeconds(stream, () => {
        using _result = varlenAttention(q, k, v, { cuSeqlens, causal: true });
      }),
    );
    rebalanced = Math.min(
      rebalanced,
      await processorSeconds(stream, () => {
        using _result = rebalanceAttention(plan, q, k, v, { segments });
      }),
    );
  }
  return atMost(0.15, {
    id: 'prefill.companions.rebalance',
    what: `rebalanceAttention, ${images} images in ${tokens} tokens, headDim ${dim}, bfloat16: time beyond plain attention`,
    comparedWith: `varlenAttention on the same tokens, by turns: ${(plain * 1e3).toFixed(0)} processor ms`,
    measured: rebalanced / plain - 1,
    unit: 'of its time',
  });
}

async function compression(): Promise<TargetResult> {
  const [images, tokens, hidden] = [16, 1024, 1280];
  using features = Tensor.from(random(images * tokens * hidden, 1), {
    shape: [images * tokens, hidden],
    device: 'cpu',
  });
  const stream = Stream.of(features.device);
  const imageOffsets = Int32Array.from({ length: images + 1 }, (_, i) => i * tokens);
  let [wall, processor] = [Infinity, Infinity];
  for (let turn = 0; turn < TURNS; turn++) {
    const before = performance.now();
    const seconds = await processorSeconds(stream, () => {
      using _few = compressVisualTokens(features, { mode: 'bipartite', keepRatio: 0.5, imageOffsets });
    });
    wall = Math.min(wall, performance.now() - before);
    processor = Math.min(processor, seconds);
  }
  return atMost(350, {
    id: 'prefill.companions.compress',
    what: `compressVisualTokens, one round over ${images} images of ${tokens} x ${hidden} float32`,
    comparedWith: `wall time; ${(processor * 1e3).toFixed(0)} ms of processors`,
    measured: wall,
    unit: 'ms',
  });
}

/** Rebalancing and compression. */
export async function run(): Promise<TargetResult[]> {
  return [await rebalancing(), await compression()];
}
