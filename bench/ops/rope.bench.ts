import { rope, ropeTable, Tensor } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TOKENS, HEADS, HEAD_DIM, POSITIONS] = [8192, 4, 64, 1024];

/** Rotation of every head. */
export const bench = timeOps([
  {
    op: 'rope',
    shape: `${TOKENS}x${HEADS}x${HEAD_DIM}`,
    bytes: 2 * TOKENS * HEADS * HEAD_DIM * 4,
    prepare(device) {
      const x = waves([TOKENS, HEADS, HEAD_DIM], device);
      const frequencies = Float64Array.from(
        { length: HEAD_DIM / 2 },
        (_, i) => 10_000 ** ((-2 * i) / HEAD_DIM),
      );
      const table = Tensor.from(ropeTable(frequencies, POSITIONS), { shape: [POSITIONS, HEAD_DIM], device });
      const positions = Int32Array.from({ length: TOKENS }, (_, t) => t % POSITIONS);
      return {
        run: () => rope(x, table, positions),
        dispose() {
          x.dispose();
          table.dispose();
        },
      };
    },
  },
]);
