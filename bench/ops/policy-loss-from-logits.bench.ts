import { lengthHash, policyLossFromLogits } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, VOCAB] = [256, 32768];

/** The forward pass: every logit is read once. */
export const bench = timeOps([
  {
    op: 'policyLossFromLogits',
    shape: `${TOKENS}x${VOCAB}`,
    bytes: TOKENS * VOCAB * 4,
    prepare(device) {
      const logits = waves([TOKENS, VOCAB], device);
      const batch = {
        logits,
        targetIds: new Int32Array(TOKENS).fill(7),
        cuSeqlens: Int32Array.of(0, TOKENS),
        advantages: Float32Array.of(1),
      };
      const plan = {
        seqScale: Float32Array.of(1 / TOKENS),
        lengthHash: lengthHash([TOKENS]),
        entropyScale: 1 / TOKENS,
      };
      return {
        run() {
          const { dLogprobs, ...rest } = policyLossFromLogits(batch, plan, {
            ratio: { level: 'none' },
            clip: { kind: 'none' },
          });
          for (const tensor of [rest.loss, rest.logprobs, rest.saved.lse]) tensor.dispose();
          rest.stats[Symbol.dispose]();
          return dLogprobs;
        },
        dispose() {
          logits.dispose();
        },
      };
    },
  },
]);
