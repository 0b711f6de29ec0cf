import { crossEntropy } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

const TOKENS = 512;

function loss(vocab: number): TimedOp {
  return {
    op: 'crossEntropy',
    shape: `${TOKENS}x${vocab}`,
    bytes: TOKENS * vocab * 4,
    prepare(device) {
      const logits = waves([TOKENS, vocab], device);
      const targets = Int32Array.from({ length: TOKENS }, (_, t) => t % vocab);
      return {
        run() {
          const { loss, perToken, logprobs, entropies } = crossEntropy(logits, targets);
          for (const tensor of [perToken, logprobs, entropies]) tensor.dispose();
          return loss;
        },
        dispose: () => logits.dispose(),
      };
    },
  };
}

/** The loss of logits at a small vocabulary and at a usual one. */
export const bench = timeOps([loss(1024), loss(32768)]);
