import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type DType, memoryStats, Stream, Tensor, VarlenError } from '../../src/index.js';
import { thrown } from '../support/thrown.js';

/** The code of what `call` throws, which must name the op and an argument. */
function codeOf(call: () => unknown): string {
  const error = thrown(call);
  expect(error).toBeInstanceOf(VarlenError);
  const { code, message, details } = error as VarlenError;
  expect(details.op).toMatch(/^(Tensor|Device)\./);
  expect(details.argument, message).toBeTypeOf('string');
  expect(message).toContain(`${details.op}: ${details.argument}`);
  return code;
}

/** Tensor.from with arguments that no type would allow. */
const from = (...args: unknown[]): Tensor => (Tensor.from as (...args: unknown[]) => Tensor)(...args);
const empty = (...args: unknown[]): Tensor => (Tensor.empty as (...args: unknown[]) => Tensor)(...args);

describe('Tensor.from', () => {
  test('takes shape, dtype and device from the array unless told otherwise', () => {
    using t = Tensor.from(new Float32Array([1, 2, 3]), { device: 'cpu' });
    expect(t.shape).toEqual([3]);
    expect(t.dtype).toBe('float32');
    expect(String(t.device)).toBe('cpu');
    expect(t.size).toBe(3);
    expect(t.byteLength).toBe(12);
    expect(t.requiresGrad).toBe(false);
    expect(t.grad).toBeNull();
    expect(String(t)).toBe('Tensor(float32 [3] on cpu)');
    expect(Object.isFrozen(t.shape)).toBe(true);
  });

  const arrays = [
    ['float32', Float32Array.of(1.5, -2)],
    ['float64', Float64Array.of(1.5, -2)],
    ['int32', Int32Array.of(-7, 2 ** 31 - 1)],
    ['int64', BigInt64Array.of(-7n, 2n ** 62n)],
    ['uint8', Uint8Array.of(0, 255)],
  ] as const;

  test.each(arrays)('reads %s back as it was', async (dtype, array) => {
    using t = Tensor.from(array);
    expect(t.dtype).toBe(dtype);
    expect(await t.data()).toEqual(array);
    expect(t.dataSync()).toEqual(array);
  });

  test.each(['float16', 'bfloat16'] as const)('takes a Uint16Array as the bits of %s', (dtype) => {
    using t = Tensor.from(Uint16Array.of(0x3c00, 0xffff), { dtype });
    expect(t.dtype).toBe(dtype);
    expect(t.dataSync()).toEqual(Uint16Array.of(0x3c00, 0xffff));
  });

  test('converts to the dtype that was asked for, rounding to nearest even', () => {
    using t = Tensor.from(Float32Array.of(1.00390625, 1.01171875, 65520), { dtype: 'bfloat16' });
    expect(t.dataSync()).toEqual(Uint16Array.of(0x3f80, 0x3f82, 0x4780));
  });

  test('takes a Float16Array where the runtime has one', () => {
    const { Float16Array } = globalThis as unknown as {
      Float16Array?: new (values: number[]) => Float32Array;
    };
    if (Float16Array === undefined) {
      expect(Number(process.versions.node.split('.')[0])).toBeLessThan(24);
      return;
    }
    using t = Tensor.from(new Float16Array([1, -2]));
    expect(t.dtype).toBe('float16');
    expect(t.dataSync()).toEqual(Uint16Array.of(0x3c00, 0xc000));
  });

  test('copies: what happens to the array afterwards does not matter', async () => {
    const array = Float32Array.of(1, 2, 3);
    using t = Tensor.from(array);
    array.fill(9);
    structuredClone(array.buffer, { transfer: [array.buffer] });
    expect(await t.data()).toEqual(Float32Array.of(1, 2, 3));
  });

  test('starts at byteOffset and ends with the view', () => {
    const bytes = new Uint8Array(11).map((_, i) => i);
    using odd = Tensor.from(bytes.subarray(3, 8));
    expect(odd.dataSync()).toEqual(Uint8Array.of(3, 4, 5, 6, 7));
    const floats = Float32Array.of(0, 1, 2, 3, 4);
    using part = Tensor.from(floats.subarray(1, 4));
    expect(part.dataSync()).toEqual(Float32Array.of(1, 2, 3));
  });

  test('copies an array on a SharedArrayBuffer', () => {
    const shared = new Float32Array(new SharedArrayBuffer(16), 4, 2);
    shared.set([5, 6]);
    using t = Tensor.from(shared);
    shared.fill(0);
    expect(t.dataSync()).toEqual(Float32Array.of(5, 6));
  });

  test('takes tensors without elements and without dimensions', () => {
    using none = Tensor.from(new Float32Array(0), { shape: [3, 0, 2] });
    expect(none.size).toBe(0);
    expect(none.dataSync()).toEqual(new Float32Array(0));
    using one = Tensor.from(Float32Array.of(7), { shape: [] });
    expect(one.size).toBe(1);
    expect(one.dataSync()).toEqual(Float32Array.of(7));
    using six = Tensor.from(Float32Array.of(7), { shape: [1, 1, 1, 1, 1, 1] });
    expect(six.shape).toHaveLength(6);
  });

  test('goes to the stream it was given, and to its device', () => {
    using stream = new Stream('cpu');
    using t = Tensor.from(Float32Array.of(1, 2), { stream, dtype: 'float16' });
    expect(t.dataSync()).toEqual(Uint16Array.of(0x3c00, 0x4000));
  });

  test('takes tensors as onnxruntime, transformers.js and ndarray spell them', () => {
    const data = Float32Array.of(1, 2, 3, 4);
    for (const like of [
      { type: 'float32', data, dims: [2, 2] },
      { dtype: 'float32', data, shape: [2, 2] },
      { dtype: 'float32', type: 'float32', data, dims: [2, 2] },
      { data, dims: [2, 2] },
    ]) {
      using t = from(like);
      expect(t.shape).toEqual([2, 2]);
      expect(t.dataSync()).toEqual(data);
    }
    using half = from({ type: 'float16', data: Uint16Array.of(0x3c00), dims: [1] });
    expect(half.dtype).toBe('float16');
  });

  test('a tensor-like object is taken exactly when its dimensions have as many elements as its data', () => {
    const dims = fc.array(fc.nat(4), { maxLength: 6 });
    fc.assert(
      fc.property(dims, fc.nat(30), (shape, length) => {
        const product = shape.reduce((a, b) => a * b, 1);
        const make = () => Tensor.from({ data: new Float32Array(length), dims: shape });
        if (product === length) make().dispose();
        else expect(codeOf(make)).toBe('ERR_VARLEN_SHAPE');
      }),
    );
  });

  const float32 = () => Float32Array.of(1, 2, 3, 4);
  class Detached extends Float32Array {
    constructor() {
      super(4);
      structuredClone(this.buffer, { transfer: [this.buffer] });
    }
  }
  const resizable = () => {
    const Resizable = ArrayBuffer as unknown as new (bytes: number, o: object) => ArrayBuffer;
    return new Float32Array(new Resizable(16, { maxByteLength: 64 }));
  };

  test.each<[string, string, () => unknown]>([
    ['ERR_VARLEN_TYPE', 'a plain array', () => from([1, 2])],
    ['ERR_VARLEN_TYPE', 'nothing', () => from()],
    ['ERR_VARLEN_TYPE', 'null', () => from(null)],
    ['ERR_VARLEN_TYPE', 'a number', () => from(5)],
    ['ERR_VARLEN_TYPE', 'a symbol', () => from(Symbol('s'))],
    ['ERR_VARLEN_TYPE', 'a DataView', () => from(new DataView(new ArrayBuffer(8)))],
    ['ERR_VARLEN_TYPE', 'an ArrayBuffer', () => from(new ArrayBuffer(8))],
    ['ERR_VARLEN_TYPE', 'a Proxy of an array', () => from(new Proxy(float32(), {}))],
    ['ERR_VARLEN_TYPE', 'a tensor-like object without data', () => from({ dims: [1] })],
    ['ERR_VARLEN_TYPE', 'a tensor-like object with a plain array', () => from({ data: [1], dims: [1] })],
    ['ERR_VARLEN_TYPE', 'options that are no object', () => from(float32(), 'float32')],
    ['ERR_VARLEN_TYPE', 'null for options', () => from(float32(), null)],
    ['ERR_VARLEN_TYPE', 'a shape that is no array', () => from(float32(), { shape: 4 })],
    ['ERR_VARLEN_TYPE', 'a dimension that is no number', () => from(float32(), { shape: ['4'] })],
    ['ERR_VARLEN_TYPE', 'a dimension that is a BigInt', () => from(float32(), { shape: [4n] })],
    ['ERR_VARLEN_TYPE', 'a hole in the shape', () => from(float32(), { shape: new Array(1) })],
    ['ERR_VARLEN_TYPE', 'a device that is no word', () => from(float32(), { device: 0 })],
    ['ERR_VARLEN_TYPE', 'a stream that is none', () => from(float32(), { stream: {} })],
    ['ERR_VARLEN_TYPE', 'requiresGrad that is no boolean', () => from(float32(), { requiresGrad: 1 })],
    ['ERR_VARLEN_DTYPE', 'a Uint16Array without dtype', () => from(new Uint16Array(2))],
    ['ERR_VARLEN_DTYPE', 'a Uint16Array as float32', () => from(new Uint16Array(2), { dtype: 'float32' })],
    ['ERR_VARLEN_DTYPE', 'an Int8Array', () => from(new Int8Array(2))],
    ['ERR_VARLEN_DTYPE', 'a Uint32Array', () => from(new Uint32Array(2))],
    ['ERR_VARLEN_DTYPE', 'a BigUint64Array', () => from(new BigUint64Array(2))],
    ['ERR_VARLEN_DTYPE', 'a Uint8ClampedArray', () => from(new Uint8ClampedArray(2))],
    ['ERR_VARLEN_DTYPE', 'an unknown dtype', () => from(float32(), { dtype: 'float8' })],
    ['ERR_VARLEN_DTYPE', 'a dtype named like a method', () => from(float32(), { dtype: 'constructor' })],
    [
      'ERR_VARLEN_DTYPE',
      'an integer that wants a gradient',
      () => from(Int32Array.of(1), { requiresGrad: true }),
    ],
    ['ERR_VARLEN_SHAPE', 'a shape of another size', () => from(float32(), { shape: [3] })],
    ['ERR_VARLEN_SHAPE', 'seven dimensions', () => from(float32(), { shape: [1, 1, 1, 1, 1, 1, 4] })],
    ['ERR_VARLEN_SHAPE', 'neither dims nor shape', () => from({ data: float32() })],
    ['ERR_VARLEN_SHAPE', 'both dims and shape', () => from({ data: float32(), dims: [4], shape: [4] })],
    [
      'ERR_VARLEN_INCOMPATIBLE',
      'type against dtype',
      () => from({ data: float32(), dims: [4], type: 'int32', dtype: 'float32' }),
    ],
    ['ERR_VARLEN_RANGE', 'a negative dimension', () => from(float32(), { shape: [-4] })],
    ['ERR_VARLEN_RANGE', 'a dimension with a fraction', () => from(float32(), { shape: [4.5] })],
    ['ERR_VARLEN_RANGE', 'NaN for a dimension', () => from(float32(), { shape: [Number.NaN] })],
    ['ERR_VARLEN_RANGE', 'an infinite dimension', () => from(float32(), { shape: [Infinity] })],
    ['ERR_VARLEN_RANGE', 'a dimension past 2^53', () => from(float32(), { shape: [2 ** 53 + 2] })],
    [
      'ERR_VARLEN_OVERFLOW',
      'dimensions whose product no number holds',
      () => from(new Float32Array(0), { shape: [2 ** 40, 2 ** 40, 0] }),
    ],
    ['ERR_VARLEN_OPTION', 'an unknown option', () => from(float32(), { shapes: [4] })],
    ['ERR_VARLEN_OPTION', '__proto__ as an option', () => from(float32(), JSON.parse('{"__proto__": 1}'))],
    ['ERR_VARLEN_OPTION', 'an unknown device', () => from(float32(), { device: 'gpu' })],
    ['ERR_VARLEN_OPTION', 'cuda with a leading zero', () => from(float32(), { device: 'cuda:01' })],
    ['ERR_VARLEN_BUFFER', 'a detached buffer', () => from(new Detached())],
    ['ERR_VARLEN_BUFFER', 'a resizable buffer', () => from(resizable())],
  ])('%s is %s', (code, _what, call) => {
    const before = memoryStats();
    expect(codeOf(call)).toBe(code);
    expect(memoryStats().liveTensors).toBe(before.liveTensors);
    expect(memoryStats().allocated).toBe(before.allocated);
  });

  test('an unknown option suggests the nearest known one', () => {
    expect((thrown(() => from(float32(), { shap: [4] })) as Error).message).toContain(
      "did you mean 'shape'?",
    );
  });

  test('options are read once; what a getter throws comes out', () => {
    let reads = 0;
    const options = {
      get shape() {
        reads++;
        return [2, 2];
      },
    };
    from(float32(), options).dispose();
    expect(reads).toBe(1);
    const mine = new Error('mine');
    const broken = {
      get shape(): number[] {
        throw mine;
      },
    };
    expect(thrown(() => from(float32(), broken))).toBe(mine);
  });

  test('a getter that detaches the array on the way is refused', () => {
    const array = float32();
    const dims = new Proxy([4], {
      get(target, key) {
        if (key === '0') structuredClone(array.buffer, { transfer: [array.buffer] });
        return Reflect.get(target, key) as unknown;
      },
    });
    expect(codeOf(() => from(array, { shape: dims }))).toBe('ERR_VARLEN_BUFFER');
  });

  test('an array that lies about its type or length is taken for what it is, or refused', () => {
    const bytes = new Uint8Array(4);
    Object.defineProperty(bytes, Symbol.toStringTag, { value: 'Float64Array' });
    using t = from(bytes);
    expect(t.dtype).toBe('uint8');
    const long = Float32Array.of(1);
    Object.defineProperty(long, 'length', { value: 1e6 });
    expect(codeOf(() => from(long))).toBe('ERR_VARLEN_BUFFER');
    const disguised = new Uint8Array(4);
    Object.setPrototypeOf(disguised, Float64Array.prototype);
    using u = from(disguised);
    expect(u.dtype).toBe('uint8');
  });

  test('a shape that changes between reads is read once', () => {
    let reads = 0;
    const shape = new Proxy([4], {
      get: (target, key) => (key === 'length' && reads++ > 0 ? 1000 : (Reflect.get(target, key) as unknown)),
    });
    using t = from(float32(), { shape });
    expect(t.shape).toEqual([4]);
  });
});

describe('Tensor.empty', () => {
  test('makes a tensor of the shape and dtype', () => {
    using t = Tensor.empty([2, 3], { dtype: 'bfloat16' });
    expect(t.shape).toEqual([2, 3]);
    expect(t.byteLength).toBe(12);
    expect(t.dataSync()).toHaveLength(6);
  });

  test.each<[string, string, () => unknown]>([
    ['ERR_VARLEN_TYPE', 'no shape', () => empty(undefined, { dtype: 'float32' })],
    ['ERR_VARLEN_DTYPE', 'no dtype', () => empty([1])],
    ['ERR_VARLEN_RANGE', 'a negative dimension', () => empty([-1], { dtype: 'float32' })],
    ['ERR_VARLEN_SHAPE', 'seven dimensions', () => empty(new Array(7).fill(1), { dtype: 'float32' })],
    ['ERR_VARLEN_OPTION', 'an unknown option', () => empty([1], { dtype: 'float32', copy: false })],
    ['ERR_VARLEN_OVERFLOW', '2^53 bytes', () => empty([2 ** 51], { dtype: 'float32' })],
    ['ERR_VARLEN_OVERFLOW', '2^106 bytes', () => empty([2 ** 53 - 1, 2 ** 53 - 1], { dtype: 'uint8' })],
    [
      'ERR_VARLEN_DTYPE',
      'an integer that wants a gradient',
      () => empty([1], { dtype: 'int64', requiresGrad: true }),
    ],
  ])('%s is %s', (code, _what, call) => {
    expect(codeOf(call)).toBe(code);
  });

  test('more memory than there is is ERR_VARLEN_OUT_OF_MEMORY with the bytes, and the next call works', () => {
    const error = thrown(() => Tensor.empty([2 ** 48], { dtype: 'float64' })) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
    expect(error.details).toMatchObject({ op: 'Tensor.empty', requestedBytes: 2 ** 51 });
    expect(error.details.totalBytes).toBeGreaterThan(0);
    using t = Tensor.empty([2], { dtype: 'float64' });
    expect(t.size).toBe(2);
  });
});

test('float32 to bfloat16 and back is idempotent after the first pass, and monotone', () => {
  const pass = (values: Float32Array): Float32Array => {
    using narrow = Tensor.from(values, { dtype: 'bfloat16' });
    using wide = narrow.to('float32');
    return wide.dataSync() as Float32Array;
  };
  fc.assert(
    fc.property(fc.float32Array({ minLength: 1, maxLength: 50, noNaN: true }), (values) => {
      const once = pass(values.sort());
      expect(pass(once)).toEqual(once);
      for (let i = 1; i < once.length; i++) expect(once[i]).toBeGreaterThanOrEqual(once[i - 1]);
    }),
  );
});

test('every dtype converts to every other one; small whole numbers stay as they are', () => {
  const dtypes: DType[] = ['float32', 'float16', 'bfloat16', 'float64', 'int32', 'int64', 'uint8'];
  for (const from of dtypes) {
    for (const to of dtypes) {
      using source = Tensor.from(Float32Array.of(0, 1, 2, 100), { dtype: from });
      using converted = source.to(to);
      expect(converted.dtype).toBe(to);
      using back = converted.to('float64');
      expect(back.dataSync(), `${from} to ${to}`).toEqual(Float64Array.of(0, 1, 2, 100));
    }
  }
});
