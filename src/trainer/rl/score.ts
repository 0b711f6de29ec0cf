/** Log-probabilities of responses under a model as it stands, without gradients. */
import { noGrad } from '../../autograd/index.js';
import type { CausalLM } from '../../nn/index.js';
import { crossEntropyFromHidden, embedding } from '../../ops/index.js';
import { scope } from '../../tensor/index.js';
import type { MicroBatch } from './micro-batch.js';

/** `[totalTokens]`, natural log, of logits divided by `temperature`. */
export async function score(
  model: CausalLM,
  { batch, predictors, targetIds }: MicroBatch,
  temperature: number,
): Promise<Float32Array> {
  const { read } = noGrad(() =>
    scope(() => {
      const { inputIds, positionIds, cuSeqlens, maxSeqlen } = batch;
      const hidden = model.forward({ inputIds, positionIds, cuSeqlens, maxSeqlen });
      const rows = embedding(hidden, predictors);
      const { logprobs } = crossEntropyFromHidden(rows, model.headWeight, targetIds, { temperature });
      // A read that has begun outlives its tensor.
      return { read: logprobs.data() };
    }),
  );
  return (await read) as Float32Array;
}
