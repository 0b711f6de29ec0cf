import { readOptions } from '../check.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { shareGradient } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link add}. */
export interface AddOptions {
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'add';

/**
 * `a + b`, element by element, in float32, rounded once.
 *
 * @param a any shape, float32, float16 or bfloat16
 * @param b shape and dtype of a
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using sum = add(x, y);
 * ```
 */
export function add(a: Tensor, b: Tensor, options?: AddOptions): Tensor {
  checkTensor(OP, 'a', a);
  checkTensor(OP, 'b', b);
  const { stream } = readOptions<AddOptions>(OP, options, ['stream']);
  const [made] = run(OP, { a, b, out: undefined }, a.device, stream);
  const out = made!;
  recordCall(OP, [a, b], [out], [], ([dOut]) => shareGradient(dOut!));
  return out;
}
