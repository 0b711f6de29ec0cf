import { writeRows } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, ROWS, WIDTH] = [8192, 131_072, 256];

/** Rows of a KV cache. */
export const bench = timeOps([
  {
    op: 'writeRows',
    shape: `${TOKENS} of ${ROWS}x${WIDTH}`,
    bytes: 2 * TOKENS * WIDTH * 4,
    prepare(device) {
      const [cache, values] = [waves([ROWS, WIDTH], device), waves([TOKENS, WIDTH], device)];
      const rows = Int32Array.from({ length: TOKENS }, (_, t) => (t * 7919) % ROWS);
      return {
        run: () => {
          writeRows(cache, rows, values);
          return cache.view([ROWS, WIDTH]);
        },
        dispose() {
          cache.dispose();
          values.dispose();
        },
      };
    },
  },
]);
