import { linear } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

const ROWS = 8192;

function product(inFeatures: number, outFeatures: number): TimedOp {
  return {
    op: 'linear',
    shape: `${ROWS}x${inFeatures}x${outFeatures}`,
    bytes: ROWS * (inFeatures + outFeatures) * 4,
    flops: 2 * ROWS * inFeatures * outFeatures,
    prepare(device) {
      const x = waves([ROWS, inFeatures], device);
      const weight = waves([outFeatures, inFeatures], device);
      return {
        run: () => linear(x, weight),
        dispose() {
          x.dispose();
          weight.dispose();
        },
      };
    },
  };
}

/** Products at the shapes of a small transformer. */
export const bench = timeOps([product(256, 704), product(96, 96), product(704, 256)]);
