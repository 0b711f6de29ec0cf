/** A plan of a million tokens: `prefill.cpu.million.*`. */

import { varlenAttention } from '../../src/ops/index.js';
import {
  type PrefillPlan,
  planPrefill,
  prefillWorkspaceBytes,
  type SynthHead,
  sparsePrefill,
  synthHead,
} from '../../src/prefill/index.js';
import { Stream, Tensor } from '../../src/tensor/index.js';
import { atMost, type TargetResult } from '../batch/measure.js';
import { processorSeconds } from './processor-time.js';

const GRID = {
  kind: 'grid',
  stride: 'frame',
  phase: 'search',
  hline: true,
  vline: true,
  slash: true,
  sink: 16,
  local: 256,
} as const;

const CERTIFIED_ROWS = 128;
/** Rows of a chunk at the end that is run and compared with dense attention. */
const SAMPLED_ROWS = 64;
const MIB = 2 ** 20;

function tensorsOf({ tokens, headDim, q, k, v }: SynthHead): [Tensor, Tensor, Tensor] {
  const make = (data: Float32Array): Tensor =>
    Tensor.from(data, { shape: [tokens, 1, headDim], dtype: 'bfloat16', device: 'cpu' });
  return [make(q), make(k), make(v)];
}

/** Difference of the mean recall of the last rows, as certified and from the log-sum-exps of two runs. */
async function sampledRecall(q: Tensor, k: Tensor, v: Tensor): Promise<number> {
  const tokens = k.shape[0];
  using late = q.slice(0, tokens - SAMPLED_ROWS, tokens);
  const lengths = { cuSeqlensQ: Int32Array.of(0, SAMPLED_ROWS), cuSeqlensK: Int32Array.of(0, tokens) };
  const pattern = { ...GRID, stride: 196, phase: 5 };
  using plan = planPrefill({ heads: pattern }, late, k, { ...lengths, certificateRows: SAMPLED_ROWS });
  using some = sparsePrefill(plan, late, k, v);
  using all = varlenAttention(late, k, v, { ...lengths, causal: true });
  const [kept, full] = [await some.softmaxLse.toFloat32(), await all.softmaxLse.toFloat32()];
  const mean = kept.reduce((sum, lse, r) => sum + Math.exp(lse - full[r]), 0) / SAMPLED_ROWS;
  return Math.abs(mean - (await plan.stats()).heads[0].recall!.mean);
}

/** Plans and certifies a video head of a million tokens, and runs rows of it. */
export async function run(): Promise<TargetResult[]> {
  const head = synthHead({ frames: 5350, frameTokens: 196, kind: 'mixed', phase: 5, seed: 1 });
  const { tokens } = head;
  const [q, k, v] = tensorsOf(head);
  const bytes = prefillWorkspaceBytes({ heads: GRID }, { numHeads: 1, totalQ: tokens, totalK: tokens });
  await Stream.of(q.device).synchronize();
  const before = process.memoryUsage.rss();
  let made: PrefillPlan | undefined;
  const seconds = await processorSeconds(Stream.of(q.device), () => {
    made = planPrefill({ heads: GRID }, q, k, {
      cuSeqlens: Int32Array.of(0, tokens),
      modality: [head.modality],
      certificateRows: CERTIFIED_ROWS,
    });
  });
  const taken = process.memoryUsage.rss() - before;
  using plan = made!;
  const [{ pattern, recall }] = (await plan.stats()).heads;
  const found = pattern.kind === 'grid' ? `stride ${pattern.stride}, phase ${pattern.phase}` : pattern.kind;
  const mean = recall!.mean;
  const apart = await sampledRecall(q, k, v);
  for (const tensor of [q, k, v]) tensor.dispose();
  const line = {
    what: `a grid head of ${tokens} tokens (${found}), recall ${mean.toFixed(3)} certified on ${CERTIFIED_ROWS} rows`,
    comparedWith: `${seconds.toFixed(1)} processor seconds to plan and certify`,
    unit: 'MiB',
  };
  return [
    atMost(64, { ...line, id: 'prefill.cpu.million.plan', measured: bytes / MIB }),
    atMost(64, { ...line, id: 'prefill.cpu.million.memory', measured: taken / MIB }),
    atMost(1e-3, {
      id: 'prefill.cpu.million.recall',
      what: `mean recall of the last ${SAMPLED_ROWS} rows: as certified, and from the sums of the runs`,
      comparedWith: 'dense attention of these rows',
      measured: mean > 0 ? apart : Number.POSITIVE_INFINITY,
      unit: 'difference',
    }),
  ];
}
