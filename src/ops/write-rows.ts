import { readOptions } from '../check.js';
import { checkTensor } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { refuseTracked } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link writeRows}. */
export interface WriteRowsOptions {
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'writeRows';

/**
 * Replaces rows of a matrix in place: `target[rows[t]] = values[t]`, in the order of t. New keys and
 * values enter the slots of a KV cache this way. Not differentiable.
 *
 * @param target `[numRows, width]`, float32, float16 or bfloat16, contiguous
 * @param rows `[totalTokens]`, each in `[0, numRows)`; in a tensor they are checked when the op runs
 * @param values `[totalTokens, width]`, dtype of target
 * @throws `ERR_VARLEN_INDEX`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`, `ERR_VARLEN_NO_BACKWARD`
 *
 * @example
 * ```ts
 * using cache = Tensor.from(new Float32Array(8), { shape: [4, 2] });
 * using row = Tensor.from(Float32Array.of(1, 2), { shape: [1, 2] });
 * writeRows(cache, Int32Array.of(3), row); // [[0, 0], [0, 0], [0, 0], [1, 2]]
 * ```
 */
export function writeRows(
  target: Tensor,
  rows: Int32Array | Tensor,
  values: Tensor,
  options?: WriteRowsOptions,
): void {
  checkTensor(OP, 'target', target);
  checkTensor(OP, 'values', values);
  const { stream } = readOptions<WriteRowsOptions>(OP, options, ['stream']);
  refuseTracked(OP, [target, values]);
  run(OP, { target: [target], rows, values }, target.device, stream);
}
