import { readOptions } from '../check.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link swiglu}. */
export interface SwigluOptions {
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'swiglu';

/**
 * The gated linear unit of Llama: `gate * sigmoid(gate) * up`, element by element (Shazeer 2020).
 *
 * @param gate any shape, float32, float16 or bfloat16
 * @param up shape and dtype of gate
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using hidden = swiglu(linear(x, gateWeight), linear(x, upWeight));
 * ```
 */
export function swiglu(gate: Tensor, up: Tensor, options?: SwigluOptions): Tensor {
  checkTensor(OP, 'gate', gate);
  checkTensor(OP, 'up', up);
  const { stream } = readOptions<SwigluOptions>(OP, options, ['stream']);
  const [made] = run(OP, { gate, up, out: undefined }, gate.device, stream);
  const out = made!;
  recordCall(OP, [gate, up], [out], [gate, up], ([dOut], [g, u]) => {
    const values = { dOut, gate: g, up: u, dGate: undefined, dUp: undefined };
    return run('swigluBackward', values, g.device, undefined);
  });
  return out;
}
