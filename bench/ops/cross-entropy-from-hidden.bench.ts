import { crossEntropyFromHidden } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

function loss(tokens: number, size: number, vocab: number): TimedOp {
  return {
    op: 'crossEntropyFromHidden',
    shape: `${tokens}x${size}x${vocab}`,
    bytes: (tokens + vocab) * size * 4,
    flops: 2 * tokens * size * vocab,
    prepare(device) {
      const hidden = waves([tokens, size], device);
      const weight = waves([vocab, size], device);
      const targets = Int32Array.from({ length: tokens }, (_, t) => t % vocab);
      return {
        run() {
          const result = crossEntropyFromHidden(hidden, weight, targets);
          for (const tensor of [result.perToken, result.logprobs, result.entropies]) tensor.dispose();
          return result.loss;
        },
        dispose() {
          hidden.dispose();
          weight.dispose();
        },
      };
    },
  };
}

/** The loss at the head of a small transformer and of a wider one; rates against the product are native. */
export const bench = timeOps([loss(8192, 96, 48), loss(1024, 256, 4096)]);
