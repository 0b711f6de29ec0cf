import { describe } from '../check.js';
import { argumentError } from '../errors.js';
import { DTYPES, type DType } from '../native/binding.js';

export type { DType };

/** Arrays that hold a tensor's elements. `float16` and `bfloat16` are their bits. */
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint16Array | BigInt64Array | Uint8Array;

/**
 * `Float16Array`, where the runtime has it (Node 24 and later); its elements are read as `float16`.
 * Only its structure is declared: the types of Node 20 do not know the class.
 */
export interface Float16ArrayLike extends ArrayBufferView {
  readonly length: number;
  readonly [Symbol.toStringTag]: 'Float16Array';
}

type Constructor = new (length: number) => TypedArray;

const arrays: Record<DType, Constructor> = {
  float32: Float32Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
  uint8: Uint8Array,
};

const dtypeOfArray: Record<string, DType> = {
  Float32Array: 'float32',
  Float16Array: 'float16',
  Float64Array: 'float64',
  Int32Array: 'int32',
  BigInt64Array: 'int64',
  Uint8Array: 'uint8',
};

// The getter itself, because an own property of the array can say anything.
const nameOf = Object.getOwnPropertyDescriptor(
  Object.getPrototypeOf(Uint8Array.prototype),
  Symbol.toStringTag,
)!.get as (this: unknown) => string | undefined;

/** Bytes of one element. */
export function bytesOf(dtype: DType): number {
  return (arrays[dtype] as unknown as { BYTES_PER_ELEMENT: number }).BYTES_PER_ELEMENT;
}

/** An array for `length` elements. */
export function newArray(dtype: DType, length: number): TypedArray {
  return new arrays[dtype](length);
}

/** Refuses a word that is no element type. */
export function checkDType(op: string, argument: string, dtype: unknown): asserts dtype is DType {
  if ((DTYPES as readonly unknown[]).includes(dtype)) return;
  throw argumentError(
    'ERR_VARLEN_DTYPE',
    op,
    argument,
    `is no element type; got ${describe(dtype)}, expected ${DTYPES.join(', ')}`,
  );
}

/**
 * The element type that an array's elements have as they are.
 *
 * A `Uint16Array` may hold either half type, so `wanted` must say which one.
 */
export function naturalDType(op: string, data: ArrayBufferView, wanted: DType | undefined): DType {
  const name = nameOf.call(data) ?? '';
  if (name === 'Uint16Array') {
    if (wanted === 'float16' || wanted === 'bfloat16') return wanted;
    throw argumentError(
      'ERR_VARLEN_DTYPE',
      op,
      'dtype',
      `is ambiguous for a Uint16Array; got ${describe(wanted)}, expected 'float16' or 'bfloat16'`,
    );
  }
  const dtype = dtypeOfArray[name];
  if (dtype !== undefined) return dtype;
  throw argumentError(
    'ERR_VARLEN_DTYPE',
    op,
    'data',
    `has an element type no tensor has; got ${describe(data)}, expected ${Object.keys(dtypeOfArray).join(', ')} or Uint16Array`,
  );
}
