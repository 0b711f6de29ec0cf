import { lengthHash, policyLossFromHidden, Tensor } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

function loss(tokens: number, size: number, vocab: number): TimedOp {
  return {
    op: 'policyLossFromHidden',
    shape: `${tokens}x${size}x${vocab}`,
    bytes: (tokens + vocab) * size * 4,
    flops: 2 * tokens * size * vocab,
    prepare(device) {
      const hidden = waves([tokens, size], device);
      const weight = waves([vocab, size], device);
      const oldLogprobs = Tensor.from(new Float32Array(tokens).fill(-Math.log(vocab)), { device });
      const batch = {
        hidden,
        weight,
        oldLogprobs,
        targetIds: Int32Array.from({ length: tokens }, (_, t) => t % vocab),
        cuSeqlens: Int32Array.of(0, tokens),
        advantages: Float32Array.of(1),
      };
      const plan = {
        seqScale: Float32Array.of(1 / tokens),
        lengthHash: lengthHash([tokens]),
        entropyScale: 1 / tokens,
      };
      return {
        run() {
          const out = policyLossFromHidden(batch, plan, {
            ratio: { level: 'token' },
            clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
          });
          const result = out.loss.alias();
          out[Symbol.dispose]();
          return result;
        },
        dispose() {
          for (const tensor of [hidden, weight, oldLogprobs]) tensor.dispose();
        },
      };
    },
  };
}

/** The loss at the head of a small transformer and of a wider one; rates against the product are native. */
export const bench = timeOps([loss(8192, 96, 48), loss(1024, 256, 4096)]);
