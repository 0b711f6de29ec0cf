import { addRmsNorm } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, HIDDEN] = [8192, 256];

/** The norm with the addition before it. */
export const bench = timeOps([
  {
    op: 'rmsNorm',
    shape: `${TOKENS}x${HIDDEN} + residual`,
    bytes: 4 * TOKENS * HIDDEN * 4,
    prepare(device) {
      const inputs = [
        waves([TOKENS, HIDDEN], device),
        waves([TOKENS, HIDDEN], device),
        waves([HIDDEN], device),
      ];
      const [x, residual, weight] = inputs;
      return {
        run() {
          const { out, sum } = addRmsNorm(x, residual, weight);
          sum.dispose();
          return out;
        },
        dispose() {
          for (const input of inputs) input.dispose();
        },
      };
    },
  },
]);
