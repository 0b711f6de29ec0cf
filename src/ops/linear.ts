import { readOptions } from '../check.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link linear}. */
export interface LinearOptions {
  /** `[outFeatures]`, added to every row. Default: none. */
  bias?: Tensor | undefined;
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'linear';

/**
 * `x W^T + b` over all leading dimensions of `x`. A row of the result depends on its own row of `x` alone,
 * to the bit, for any number of threads and rows; on a GPU with cuBLASLt, but for the last bit. Sums are
 * float32; gradients of weight and bias are too.
 *
 * @param x `[..., inFeatures]`, float32, float16 or bfloat16
 * @param weight `[outFeatures, inFeatures]`, dtype of x
 * @returns `[..., outFeatures]`, dtype of x
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using x = Tensor.from(Float32Array.of(1, 2, 3, 4), { shape: [2, 2] });
 * using weight = Tensor.from(Float32Array.of(1, 1), { shape: [1, 2] });
 * using y = linear(x, weight); // [[3], [7]]
 * ```
 */
export function linear(x: Tensor, weight: Tensor, options?: LinearOptions): Tensor {
  checkTensor(OP, 'x', x);
  checkTensor(OP, 'weight', weight);
  const { bias, stream } = readOptions<LinearOptions>(OP, options, ['bias', 'stream']);
  const [made] = run(OP, { x, weight, bias, out: undefined }, x.device, stream);
  const out = made!;
  const wantX = x.requiresGrad;
  const wantWeight = weight.requiresGrad;
  const wantBias = bias?.requiresGrad ?? false;
  recordCall(OP, [x, weight, bias], [out], [x, weight], ([dOut], [input, matrix]) => {
    const wanted = { wantX, wantWeight, wantBias, dx: undefined, dWeight: undefined, dBias: undefined };
    return run('linearBackward', { dOut, x: input, weight: matrix, ...wanted }, input.device, undefined);
  });
  return out;
}
