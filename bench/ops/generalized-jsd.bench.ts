import { generalizedJsd } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

const TOKENS = 256;

function divergence(vocab: number, topk: number | null): TimedOp {
  return {
    op: 'generalizedJsd',
    shape: `${TOKENS}x${vocab}, ${topk === null ? 'all words' : `topk ${topk}`}`,
    bytes: 2 * TOKENS * vocab * 4,
    prepare(device) {
      const studentLogits = waves([TOKENS, vocab], device);
      const logits = waves([vocab, TOKENS], device);
      const teacher = { logits: logits.view([TOKENS, vocab]) };
      return {
        run() {
          const result = generalizedJsd({ studentLogits, teacher, topk });
          const loss = result.loss.alias();
          result[Symbol.dispose]();
          return loss;
        },
        dispose() {
          for (const tensor of [studentLogits, logits, teacher.logits]) tensor.dispose();
        },
      };
    },
  };
}

/** The divergence at a small vocabulary and at a usual one, there over the largest words as well. */
export const bench = timeOps([divergence(1024, null), divergence(32768, null), divergence(32768, 100)]);
