import { embedding } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, VOCAB, HIDDEN] = [8192, 32_000, 256];

/** Rows of a table. */
export const bench = timeOps([
  {
    op: 'embedding',
    shape: `${TOKENS} of ${VOCAB}x${HIDDEN}`,
    bytes: 2 * TOKENS * HIDDEN * 4,
    prepare(device) {
      const weight = waves([VOCAB, HIDDEN], device);
      const ids = Int32Array.from({ length: TOKENS }, (_, t) => (t * 7919) % VOCAB);
      return { run: () => embedding(weight, ids), dispose: () => weight.dispose() };
    },
  },
]);
