import { describe, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import type { Float16ArrayLike, TypedArray } from './dtype.js';

/**
 * The shape that other libraries give a tensor: `onnxruntime` and `transformers.js` say
 * `type`/`data`/`dims`, `ndarray` and TensorFlow.js `dtype`/`data`/`shape`. Row-major, contiguous.
 */
export interface TensorLike {
  readonly dtype?: string;
  readonly type?: string;
  readonly data: TypedArray | Float16ArrayLike;
  readonly dims?: readonly number[];
  readonly shape?: readonly number[];
}

/** Reads the two spellings; at most one of each pair, or both alike. */
export function readTensorLike(
  op: string,
  value: object,
): { data: ArrayBufferView; dtype: string | undefined; shape: readonly number[] } {
  const { dtype, type, data, dims, shape } = value as Partial<TensorLike>;
  if (!ArrayBuffer.isView(data) || data instanceof DataView) {
    throw wrongType(op, 'data', ArrayBuffer.isView(value) ? value : data, 'a typed array');
  }
  if (dtype !== undefined && type !== undefined && dtype !== type) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      op,
      'type',
      `contradicts dtype; got ${describe(type)}, expected ${describe(dtype)}`,
    );
  }
  if ((dims === undefined) === (shape === undefined)) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      op,
      'dims',
      `must be given once; got ${dims === undefined ? 'neither dims nor shape' : 'both dims and shape'}, expected one of them`,
    );
  }
  return { data, dtype: dtype ?? type, shape: (dims ?? shape)! };
}
