import { adamw, type Device, Tensor } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [TENSORS, SIZE] = [25, 40_000];

const zeros = (size: number, device: Device): Tensor => Tensor.from(new Float32Array(size), { device });

/** A step on a model of a million parameters. */
export const bench = timeOps([
  {
    op: 'adamw',
    shape: `${TENSORS} tensors of ${SIZE}`,
    bytes: 7 * TENSORS * SIZE * 4,
    prepare(device) {
      const list = () => Array.from({ length: TENSORS }, () => waves([SIZE], device));
      const expAvgSq = Array.from({ length: TENSORS }, () => zeros(SIZE, device)); // never negative
      const tensors = { parameters: list(), gradients: list(), expAvg: list(), expAvgSq };
      let step = 0;
      return {
        run() {
          adamw(tensors, { step: ++step, lr: 1e-4 });
          return tensors.parameters[0].detach();
        },
        dispose() {
          for (const tensor of Object.values(tensors).flat()) tensor.dispose();
        },
      };
    },
  },
]);
