import { gradClip } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TENSORS, SIZE] = [25, 40_000];

/** The norm of a million gradients, which are small enough to be left alone. */
export const bench = timeOps([
  {
    op: 'gradClip',
    shape: `${TENSORS} tensors of ${SIZE}`,
    bytes: TENSORS * SIZE * 4,
    prepare(device) {
      const gradients = Array.from({ length: TENSORS }, () => waves([SIZE], device));
      return {
        run: () => gradClip(gradients, { maxNorm: 1e9 }),
        dispose() {
          for (const gradient of gradients) gradient.dispose();
        },
      };
    },
  },
]);
