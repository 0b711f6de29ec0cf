import { swiglu } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, HIDDEN] = [8192, 704];

/** The gate, which computes an exponential per element. */
export const bench = timeOps([
  {
    op: 'swiglu',
    shape: `${TOKENS}x${HIDDEN}`,
    bytes: 3 * TOKENS * HIDDEN * 4,
    prepare(device) {
      const [gate, up] = [waves([TOKENS, HIDDEN], device), waves([TOKENS, HIDDEN], device)];
      return {
        run: () => swiglu(gate, up),
        dispose() {
          gate.dispose();
          up.dispose();
        },
      };
    },
  },
]);
