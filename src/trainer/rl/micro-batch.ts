/** The part of an update that runs at once: whole sequences for the model, responses for the loss. */
import { collatePacked, DynamicBatcher, type PackedBatch, type Sample } from '../../batch/index.js';
import type { Rollout } from './judge.js';

/** Prompts and responses packed for the model, and the responses alone on an axis of `totalTokens`. */
export interface MicroBatch {
  readonly rollouts: readonly Rollout[];
  readonly batch: PackedBatch;
  /** Of the responses, `[numSeqs + 1]`. */
  readonly cuSeqlens: Int32Array;
  /** `[totalTokens]` */
  readonly targetIds: Int32Array;
  /** Row of the batch that predicts each response token, `[totalTokens]`: the one before it. */
  readonly predictors: Int32Array;
  /** Log-probability of each token under the policy that drew it, `[totalTokens]`. */
  readonly sampled: Float32Array;
  /** Number of that policy, `[totalTokens]`. */
  readonly versions: Int32Array;
  /** `[numSeqs]` */
  readonly advantages: Float32Array;
}

interface RolloutSample extends Sample {
  readonly rollout: Rollout;
}

function microBatch(samples: readonly RolloutSample[]): MicroBatch {
  const batch = collatePacked(samples);
  const rollouts = samples.map(({ rollout }) => rollout);
  const cuSeqlens = new Int32Array(rollouts.length + 1);
  rollouts.forEach(({ entry }, i) => {
    cuSeqlens[i + 1] = cuSeqlens[i] + entry.tokens.length;
  });
  const total = cuSeqlens[rollouts.length];
  const targetIds = new Int32Array(total);
  const predictors = new Int32Array(total);
  const sampled = new Float32Array(total);
  const versions = new Int32Array(total);
  rollouts.forEach(({ entry }, i) => {
    const start = cuSeqlens[i];
    targetIds.set(entry.tokens, start);
    sampled.set(entry.logprobs, start);
    versions.set(entry.versions, start);
    const first = batch.cuSeqlens[i] + entry.promptIds.length - 1;
    for (let t = 0; t < entry.tokens.length; t++) predictors[start + t] = first + t;
  });
  const advantages = Float32Array.from(rollouts, ({ advantage }) => advantage);
  return { rollouts, batch, cuSeqlens, targetIds, predictors, sampled, versions, advantages };
}

/** Rollouts grouped by their true lengths to the token budget. */
export async function microBatches(
  rollouts: readonly Rollout[],
  packedTokens: number,
): Promise<MicroBatch[]> {
  const samples = rollouts.map((rollout): RolloutSample => {
    const { promptIds, tokens, id } = rollout.entry;
    const inputIds = new Int32Array(promptIds.length + tokens.length);
    inputIds.set(promptIds);
    inputIds.set(tokens, promptIds.length);
    return { id, inputIds, rollout };
  });
  if (samples.length === 0) return [];
  const batcher = new DynamicBatcher<RolloutSample, MicroBatch>(samples, {
    budget: { packedTokens },
    window: samples.length,
    order: 'none',
    lossScaling: 'none',
    collate: microBatch,
  });
  const parts: MicroBatch[] = [];
  for await (const { batch } of batcher) parts.push(batch);
  return parts;
}
