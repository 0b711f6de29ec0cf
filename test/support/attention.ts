import { type DType, Tensor, type TypedArray, type VarlenAttentionOptions } from '../../src/index.js';
import { type AttentionReference, varlenAttentionReference } from '../../src/testing/index.js';
import { cuSeqlensOf, type MaskAndScore, type PackShape } from './arbitraries.js';
import { numRuns } from './num-runs.js';
import { normals } from './random.js';

/** Everything one call of attention needs, as host arrays. */
export interface AttentionCase {
  readonly shape: PackShape;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly dOut: Float32Array;
  readonly dLse: Float32Array;
  readonly options: VarlenAttentionOptions & { cuSeqlensQ: Int32Array; cuSeqlensK: Int32Array };
}

/** `[rows, heads, headDim]` of q and of k. */
export function shapesOf({ shape, options }: AttentionCase): { q: number[]; k: number[]; lse: number[] } {
  const { numHeads, numKvHeads, headDim, tailQ, tailK } = shape;
  const totalQ = options.cuSeqlensQ[options.cuSeqlensQ.length - 1] + tailQ;
  const totalK = options.cuSeqlensK[options.cuSeqlensK.length - 1] + tailK;
  return { q: [totalQ, numHeads, headDim], k: [totalK, numKvHeads, headDim], lse: [numHeads, totalQ] };
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

/** Fills a pack with normal values, its tail with NaN. */
export function makeCase(
  shape: PackShape,
  { alibi, windowSize = [-1, -1], ...rest }: MaskAndScore = {},
  more: VarlenAttentionOptions = {},
): AttentionCase {
  const cuSeqlensQ = cuSeqlensOf(shape.lengthsQ);
  const cuSeqlensK = cuSeqlensOf(shape.lengthsK);
  const { numHeads, headDim, numKvHeads } = shape;
  const count = alibi === 'perSequence' ? numHeads * shape.lengthsQ.length : numHeads;
  const alibiSlopes = Float32Array.from({ length: count }, (_, i) => 0.0625 * (1 + ((3 * i) % 5)));
  const options = {
    ...rest,
    windowSize,
    ...(alibi === undefined ? {} : { alibiSlopes }),
    ...more,
    cuSeqlensQ,
    cuSeqlensK,
  };
  const usedQ = cuSeqlensQ[cuSeqlensQ.length - 1];
  const usedK = cuSeqlensK[cuSeqlensK.length - 1];
  const filled = (rows: number, tail: number, rowSize: number, seed: number): Float32Array => {
    const values = normals((rows + tail) * rowSize, seed);
    return values.fill(Number.NaN, rows * rowSize);
  };
  const dLse = normals(numHeads * (usedQ + shape.tailQ), shape.seed + 4);
  return {
    shape,
    q: filled(usedQ, shape.tailQ, numHeads * headDim, shape.seed),
    k: filled(usedK, shape.tailK, numKvHeads * headDim, shape.seed + 1),
    v: filled(usedK, shape.tailK, numKvHeads * headDim, shape.seed + 2),
    dOut: filled(usedQ, shape.tailQ, numHeads * headDim, shape.seed + 3),
    dLse: dLse.map((x, i) => (i % (usedQ + shape.tailQ) < usedQ ? x : Number.NaN)),
    options,
  };
}

/** The device the tests of ops run on: `VARLEN_REQUIRE_CUDA=1` asks for the GPU. */
export const device: 'cuda' | 'cpu' = process.env.VARLEN_REQUIRE_CUDA === '1' ? 'cuda' : 'cpu';

/** A tensor of float32 values, rounded to `dtype`. */
export function tensor(values: Float32Array, shape: readonly number[], dtype: DType = 'float32'): Tensor {
  if (sizeOf(shape) !== values.length) throw new Error(`${values.length} values do not fill [${shape}]`);
  return Tensor.from(values, { shape, dtype, device });
}

/** q, k, v, dOut and dLse of a case as tensors. */
export function tensorsOf(c: AttentionCase, dtype: DType = 'float32') {
  const shapes = shapesOf(c);
  return {
    q: tensor(c.q, shapes.q, dtype),
    k: tensor(c.k, shapes.k, dtype),
    v: tensor(c.v, shapes.k, dtype),
    dOut: tensor(c.dOut, shapes.q, dtype),
    dLse: tensor(c.dLse, shapes.lse),
  };
}

/** The float64 reference on the same values, gradients included. */
export function referenceOf(c: AttentionCase, withDLse = false): Required<AttentionReference> {
  const { numHeads, numKvHeads, headDim } = c.shape;
  const { q, k, v, dOut, dLse, options } = c;
  return varlenAttentionReference(
    { q, k, v, dOut, ...(withDLse ? { dLse } : {}) },
    { ...(options as object), numHeads, numKvHeads, headDim, cuSeqlensQ: options.cuSeqlensQ },
  ) as Required<AttentionReference>;
}

/** Values of a tensor as float32, whatever its dtype. */
export function valuesOf(t: Tensor): Float32Array {
  using converted = t.to('float32');
  return converted.dataSync() as Float32Array;
}

/** Raw bytes: what "the same bits" compares. */
export function bitsOf(t: Tensor): Buffer {
  const data: TypedArray = t.dataSync();
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** Largest error; infinite unless NaN and infinities stand in the same places. */
export function maxError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < got.length; i++) {
    if (Object.is(got[i], want[i]) || got[i] === want[i]) continue;
    const error = Math.abs(got[i] - want[i]);
    worst = Math.max(worst, Number.isFinite(error) ? error : Number.POSITIVE_INFINITY);
  }
  return worst;
}

/** Largest absolute finite value. */
export function maxAbs(values: ArrayLike<number>): number {
  let max = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) max = Math.max(max, Math.abs(values[i]));
  }
  return max;
}

/** Random cases of a property that runs kernels: a full test run tries twenty times as many, not all it asks for. */
export function tries(inCi: number): number {
  // inCi of the suite's ten thousand
  return Math.min(numRuns(inCi / 10_000).numRuns, 20 * inCi);
}
