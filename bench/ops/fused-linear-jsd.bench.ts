import { fusedLinearJsd } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

function divergence(tokens: number, size: number, vocab: number, topk: number | null): TimedOp {
  return {
    op: 'fusedLinearJsd',
    shape: `${tokens}x${size}x${vocab}, ${topk === null ? 'all words' : `topk ${topk}`}`,
    bytes: 2 * (tokens + vocab) * size * 4,
    flops: (topk === null ? 8 : 4) * tokens * size * vocab,
    prepare(device) {
      const [studentHidden, studentWeight] = [waves([tokens, size], device), waves([vocab, size], device)];
      const [teacherHidden, teacherWeight] = [waves([tokens, size], device), waves([vocab, size], device)];
      const options = { studentHidden, studentWeight, teacherHidden, teacherWeight, topk };
      return {
        run() {
          const result = fusedLinearJsd(options);
          const loss = result.loss.alias();
          result[Symbol.dispose]();
          return loss;
        },
        dispose() {
          for (const tensor of [studentHidden, studentWeight, teacherHidden, teacherWeight]) tensor.dispose();
        },
      };
    },
  };
}

/** The divergence at the head of a small model, over all words and over the largest. */
export const bench = timeOps([divergence(512, 256, 8192, null), divergence(512, 256, 8192, 100)]);
