import { add } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, HIDDEN] = [8192, 256];

/** A residual addition. */
export const bench = timeOps([
  {
    op: 'add',
    shape: `${TOKENS}x${HIDDEN}`,
    bytes: 3 * TOKENS * HIDDEN * 4,
    prepare(device) {
      const [a, b] = [waves([TOKENS, HIDDEN], device), waves([TOKENS, HIDDEN], device)];
      return {
        run: () => add(a, b),
        dispose() {
          a.dispose();
          b.dispose();
        },
      };
    },
  },
]);
