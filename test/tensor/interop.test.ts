import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Tensor, type TypedArray, tokenIds } from '../../src/tensor/index.js';
import { thrown } from '../support/thrown.js';

const device = 'cpu';

/**
 * The shape of a tensor of onnxruntime-common: a class with getters, `type`, `dims`, `data`, and members
 * of its own that are none of our business.
 */
class OrtTensor {
  readonly #data: TypedArray;
  readonly cpuData: TypedArray;
  readonly dataLocation = 'cpu';
  constructor(
    readonly type: string,
    data: TypedArray,
    readonly dims: readonly number[],
  ) {
    this.#data = data;
    this.cpuData = data;
  }
  get data(): TypedArray {
    return this.#data;
  }
  get size(): number {
    return this.dims.reduce((product, n) => product * n, 1);
  }
  async getData(): Promise<TypedArray> {
    return this.#data;
  }
}

/** transformers.js wraps an onnxruntime tensor and forwards its properties through a Proxy. */
function transformersTensor(type: string, data: TypedArray, dims: number[]): OrtTensor {
  const inner = new OrtTensor(type, data, dims);
  return new Proxy({} as OrtTensor, {
    get: (_, name: keyof OrtTensor) => (name === 'size' ? inner.size : inner[name]),
  });
}

describe('tensors of other libraries', () => {
  test.each([
    ['float32', Float32Array.of(1, 2, 3, 4)],
    ['float64', Float64Array.of(1, 2, 3, 4)],
    ['int32', Int32Array.of(1, -2, 3, 4)],
    ['int64', BigInt64Array.of(1n, -(2n ** 62n), 3n, 4n)],
    ['uint8', Uint8Array.of(0, 1, 254, 255)],
    ['float16', Uint16Array.of(0x3c00, 0xc100, 0x7bff, 0)],
  ])('%s of onnxruntime and of transformers.js come in and go out unchanged', async (type, data) => {
    for (const foreign of [new OrtTensor(type, data, [2, 2]), transformersTensor(type, data, [2, 2])]) {
      using tensor = Tensor.from(foreign, { device });
      expect({ dtype: tensor.dtype, shape: tensor.shape }).toEqual({ dtype: type, shape: [2, 2] });
      const back = await tensor.toTensorLike();
      expect(back).toEqual({ type, dtype: type, dims: [2, 2], shape: [2, 2], data });
      // What onnxruntime's constructor takes: new Tensor(type, data, dims).
      expect(new OrtTensor(back.type, back.data as TypedArray, back.dims).size).toBe(4);
    }
  });

  test('dtype and shape, the words of TensorFlow.js and ndarray, say the same', () => {
    using tensor = Tensor.from({ dtype: 'float32', data: Float32Array.of(1, 2), shape: [1, 2] }, { device });
    expect(tensor.shape).toEqual([1, 2]);
  });

  test('both spellings together are accepted when they agree', () => {
    using tensor = Tensor.from(
      { type: 'int32', dtype: 'int32', data: Int32Array.of(1), dims: [1] },
      { device },
    );
    expect(tensor.dtype).toBe('int32');
  });

  test.each([
    ['no dims', { type: 'float32', data: Float32Array.of(1) }, 'ERR_VARLEN_SHAPE'],
    ['dims and shape', { data: Float32Array.of(1), dims: [1], shape: [1] }, 'ERR_VARLEN_SHAPE'],
    ['dims that do not fit', { type: 'float32', data: Float32Array.of(1), dims: [2] }, 'ERR_VARLEN_SHAPE'],
    ['a negative dim', { type: 'float32', data: Float32Array.of(1), dims: [-1] }, 'ERR_VARLEN_RANGE'],
    [
      'a type and another dtype',
      { type: 'int32', dtype: 'float32', data: Float32Array.of(1), dims: [1] },
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['data on a GPU', { type: 'float32', data: undefined, dims: [1] }, 'ERR_VARLEN_TYPE'],
    ['strings', { type: 'string', data: ['a'], dims: [1] }, 'ERR_VARLEN_TYPE'],
    ['a type no tensor has', { type: 'bool', data: Uint8Array.of(1), dims: [1] }, 'ERR_VARLEN_DTYPE'],
  ])('%s is refused', (_, foreign, code) => {
    expect(thrown(() => Tensor.from(foreign as never, { device }))).toMatchObject({ code });
  });

  test('a tensor-like is accepted exactly when its dims multiply to its length', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(4), { maxLength: 4 }), fc.nat(64), (dims, length) => {
        const make = (): Tensor =>
          Tensor.from({ type: 'float32', data: new Float32Array(length), dims }, { device });
        if (dims.reduce((product, n) => product * n, 1) === length) make().dispose();
        else expect(thrown(make)).toMatchObject({ code: 'ERR_VARLEN_SHAPE' });
      }),
    );
  });
});

describe('half precision', () => {
  test('a bare Uint16Array is ambiguous; with a dtype it is taken as bits', () => {
    const bits = Uint16Array.of(0x3f80, 0xc020, 0x7fc0);
    expect(thrown(() => Tensor.from(bits, { device }))).toMatchObject({
      code: 'ERR_VARLEN_DTYPE',
      details: { argument: 'dtype' },
    });
    using bfloat16 = Tensor.from(bits, { dtype: 'bfloat16', device });
    expect(bfloat16.dataSync()).toEqual(bits);
    using wide = bfloat16.to('float32');
    expect(wide.dataSync()).toEqual(Float32Array.of(1, -2.5, Number.NaN));
  });

  test('float16 comes from a Float16Array where the runtime has one (Node 24), from bits elsewhere', async () => {
    const bits = Uint16Array.of(0x3c00, 0xc100, 0x7bff, 0x0001);
    const { Float16Array } = globalThis as { Float16Array?: new (buffer: ArrayBuffer) => object };
    const half =
      Float16Array === undefined ? { type: 'float16', data: bits, dims: [4] } : new Float16Array(bits.buffer);
    using tensor = Tensor.from(half as never, { device });
    expect(tensor.dtype).toBe('float16');
    expect(tensor.dataSync()).toEqual(bits);
    expect(await tensor.toFloat32()).toEqual(Float32Array.of(1, -2.5, 65504, 2 ** -24));
  });

  test('float16 gives the bits that onnxruntime wants', async () => {
    using tensor = Tensor.from(Float32Array.of(1, -2.5, 65504), { dtype: 'float16', device });
    expect(await tensor.toTensorLike()).toMatchObject({
      type: 'float16',
      data: Uint16Array.of(0x3c00, 0xc100, 0x7bff),
    });
  });
});

describe('tokenIds', () => {
  test('takes what tokenizers return', () => {
    const ids = Int32Array.of(1, 15043, 2 ** 31 - 1);
    expect(tokenIds([1, 15043, 2 ** 31 - 1])).toEqual(ids);
    expect(tokenIds(BigInt64Array.of(1n, 15043n, 2n ** 31n - 1n))).toEqual(ids);
    expect(tokenIds(ids)).toBe(ids);
    expect(tokenIds([])).toEqual(new Int32Array(0));
  });

  test.each([
    ['a negative id', [3, -1]],
    ['a fraction', [3, 1.5]],
    ['NaN', [3, Number.NaN]],
    ['an id past 2^31', [3, 2 ** 31]],
    ['a string', [3, '7']],
    ['null', [3, null]],
    ['a hole', [3, undefined]],
    ['a bigint past 2^53', BigInt64Array.of(3n, 2n ** 62n + 1n)],
    ['a negative id in an Int32Array', Int32Array.of(3, -1)],
  ])('%s is refused and its row named', (_, ids) => {
    expect(thrown(() => tokenIds(ids as never))).toMatchObject({
      code: 'ERR_VARLEN_INDEX',
      details: { row: 1 },
    });
  });

  test.each([
    ['text', '1 2'],
    ['floats', Float32Array.of(1)],
    ['null', null],
  ])('%s is a type error', (_, ids) => {
    expect(thrown(() => tokenIds(ids as never))).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
  });
});
