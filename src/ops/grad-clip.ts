import { readOptions, wrongType } from '../check.js';
import { Device } from '../tensor/device.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link gradClip}. */
export interface GradClipOptions {
  /** The largest norm that is left alone; `Infinity` only measures. Default 1. */
  maxNorm?: number;
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'gradClip';

/**
 * The norm of all gradients together; they are scaled in place to `maxNorm` when it is larger
 * (Pascanu et al. 2013). Squares are summed in float64, in a fixed order. A norm that is not finite
 * leaves the gradients as they are: give it to `adamw`, which then skips the step.
 *
 * @param gradients float32 tensors of any shapes
 * @returns `[1]` float32, the norm before the scaling
 * @throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE` (tensors that share memory),
 *   `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using norm = gradClip(parameters.map((p) => p.grad!), { maxNorm: 1 });
 * console.log((await norm.data())[0]);
 * ```
 */
export function gradClip(gradients: readonly Tensor[], options?: GradClipOptions): Tensor {
  const { maxNorm = 1, stream } = readOptions<GradClipOptions>(OP, options, ['maxNorm', 'stream']);
  if (!Array.isArray(gradients)) throw wrongType(OP, 'gradients', gradients, 'an array of Tensors');
  const [first] = gradients as readonly unknown[];
  const device = first instanceof Tensor ? first.device : Device.cpu();
  const [norm] = run(OP, { gradients, maxNorm, norm: undefined }, device, stream);
  return norm!;
}
