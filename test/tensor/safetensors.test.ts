import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { VarlenError } from '../../src/errors.js';
import { fromSafetensors, Tensor, type TypedArray, toSafetensors } from '../../src/tensor/index.js';

const numRuns = process.env.VARLEN_TEST_FULL === '1' ? 100_000 : 500;

/** A file with this header, and `dataBytes` zeros behind it. */
function fileOf(header: string | Uint8Array, dataBytes = 0): Uint8Array {
  const bytes = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + bytes.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(bytes.length), true);
  file.set(bytes, 8);
  return file;
}

/** What reading `bytes` throws; fails the test when it reads. */
function failure(bytes: Uint8Array): VarlenError {
  try {
    fromSafetensors(bytes);
  } catch (error) {
    if (error instanceof VarlenError) return error;
    throw error;
  }
  throw new Error('the file was read');
}

const entry = (dtype: string, shape: string, offsets: string): string =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
const F32_PAIR = entry('F32', '[2]', '[0,8]');

describe('reading', () => {
  test('a file written by the Python package reads to its values, element types and metadata', () => {
    const path = join(import.meta.dirname, '../gold/safetensors-python.json');
    const gold = JSON.parse(readFileSync(path, 'utf8')) as {
      base64: string;
      metadata: Record<string, string>;
      tensors: { name: string; dtype: string; shape: number[]; data: (number | string)[] }[];
    };
    const { tensors, metadata } = fromSafetensors(Buffer.from(gold.base64, 'base64'));
    expect(metadata).toEqual(Object.assign(Object.create(null), gold.metadata));
    expect(Object.keys(tensors).sort()).toEqual(gold.tensors.map(({ name }) => name).sort());
    for (const { name, dtype, shape, data } of gold.tensors) {
      const read = tensors[name];
      expect({ name, dtype: read.dtype, shape: read.shape }).toEqual({ name, dtype, shape });
      expect(
        Array.from<number | bigint, number | string>(read.data, (x) =>
          typeof x === 'bigint' ? String(x) : x,
        ),
      ).toEqual(data);
    }
  });

  test('aligned data are views of the bytes, unaligned ones are copies', () => {
    const aligned = toSafetensors({ x: { data: Float32Array.of(1, 2), shape: [2] } });
    expect(fromSafetensors(aligned).tensors.x.data.buffer).toBe(aligned.buffer);
    const shifted = new Uint8Array(aligned.length + 1).subarray(1);
    shifted.set(aligned);
    const { data } = fromSafetensors(shifted).tensors.x;
    expect(data.buffer).not.toBe(shifted.buffer);
    expect(data).toEqual(Float32Array.of(1, 2));
  });

  test('names like __proto__ and constructor are plain data', () => {
    const header = `{"__proto__":${entry('U8', '[1]', '[0,1]')},"constructor":${entry('U8', '[1]', '[1,2]')},"__metadata__":{"__proto__":"x"}}`;
    const { tensors, metadata } = fromSafetensors(fileOf(header, 2));
    expect(Object.getPrototypeOf(tensors)).toBeNull();
    expect(Object.keys(tensors)).toEqual(['__proto__', 'constructor']);
    expect(Object.keys(metadata)).toEqual(['__proto__']);
    expect(({} as Record<string, unknown>).shape).toBeUndefined();
  });

  test('`names` reads only those, and an element type of another library stops only its own tensor', () => {
    const header = `{"a":${F32_PAIR},"b":${entry('I16', '[1]', '[8,10]')}}`;
    const file = fileOf(header, 10);
    expect(Object.keys(fromSafetensors(file, { names: ['a'] }).tensors)).toEqual(['a']);
    expect(failure(file)).toMatchObject({
      code: 'ERR_VARLEN_UNSUPPORTED',
      details: { feature: 'I16', name: 'b' },
    });
    expect(() => fromSafetensors(file, { names: ['c'] })).toThrow(
      expect.objectContaining({ code: 'ERR_VARLEN_OPTION' }),
    );
  });

  test.each([
    ['no bytes at all', new Uint8Array(0), 0],
    ['seven bytes', new Uint8Array(7), 7],
    ['a header longer than the file', fileOf('{}').subarray(0, 9), 0],
    ['a header length of 2^63', Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x80, 0x7b, 0x7d), 0],
    ['an empty header', fileOf(''), 8],
    ['a header that starts with a space', fileOf(' {}'), 8],
    ['a header that is a list', fileOf('[]'), 8],
    ['a header that stops', fileOf('{"a"'), 12],
    ['two JSON values', fileOf('{} {}'), 11],
    ['a trailing comma', fileOf(`{"a":${F32_PAIR},}`, 8), undefined],
    ['a key without quotes', fileOf('{a:1}'), 9],
    ['invalid UTF-8 in a name', fileOf(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x7d)), 10],
    ['half a surrogate pair', fileOf(`{"\\ud800":${F32_PAIR}}`, 8), 10],
    ['a control character in a name', fileOf(`{"a\nb":${F32_PAIR}}`, 8), 11],
    ['an unknown escape', fileOf(`{"\\x":${F32_PAIR}}`, 8), 10],
    ['a string that does not end', fileOf('{"abc'), 10],
    ['an escape at the very end', fileOf('{"\\'), 10],
    ['the same name twice', fileOf(`{"a":${F32_PAIR},"a":${F32_PAIR}}`, 8), undefined],
    ['the same name twice, once escaped', fileOf(`{"a":${F32_PAIR},"\\u0061":${F32_PAIR}}`, 8), undefined],
    [
      'the same key twice in one tensor',
      fileOf('{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4),
      undefined,
    ],
    ['metadata twice', fileOf('{"__metadata__":{},"__metadata__":{}}'), undefined],
    ['metadata that are no text', fileOf('{"__metadata__":{"a":1}}'), undefined],
    ['an unknown key in a tensor', fileOf('{"a":{"dtype":"F32","strides":[1]}}'), undefined],
    ['a missing dtype', fileOf('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8), undefined],
    ['a missing shape', fileOf('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8), undefined],
    ['missing offsets', fileOf('{"a":{"dtype":"F32","shape":[2]}}', 8), undefined],
    ['three offsets', fileOf(`{"a":${entry('F32', '[2]', '[0,8,8]')}}`, 8), undefined],
    ['an unknown dtype', fileOf(`{"a":${entry('F31', '[2]', '[0,8]')}}`, 8), undefined],
    ['a dtype every object has', fileOf(`{"a":${entry('constructor', '[2]', '[0,8]')}}`, 8), undefined],
    ['deep nesting', fileOf(`{"a":${'['.repeat(100_000)}`), undefined],
    ['a nested shape', fileOf(`{"a":${entry('F32', '[[[[2]]]]', '[0,8]')}}`, 8), undefined],
    ['a negative size', fileOf(`{"a":${entry('F32', '[-2]', '[0,8]')}}`, 8), undefined],
    ['a fraction', fileOf(`{"a":${entry('F32', '[2.5]', '[0,10]')}}`, 10), undefined],
    ['an exponent', fileOf(`{"a":${entry('F32', '[2e0]', '[0,8]')}}`, 8), undefined],
    ['an infinite number', fileOf(`{"a":${entry('F32', '[1e400]', '[0,8]')}}`, 8), undefined],
    [
      'a number past 2^53',
      fileOf(`{"a":${entry('U8', '[9007199254740993]', '[0,9007199254740993]')}}`),
      undefined,
    ],
    ['a leading zero', fileOf(`{"a":${entry('F32', '[02]', '[0,8]')}}`, 8), undefined],
    [
      'a shape whose product wraps around 2^64',
      fileOf(`{"a":${entry('U8', '[4294967296,4294967296]', '[0,0]')}}`),
      undefined,
    ],
    ['offsets that fall', fileOf(`{"a":${entry('F32', '[2]', '[8,0]')}}`, 8), undefined],
    ['a size that is not the shape’s', fileOf(`{"a":${entry('F32', '[3]', '[0,8]')}}`, 8), undefined],
    ['tensors that overlap', fileOf(`{"a":${F32_PAIR},"b":${entry('F32', '[2]', '[4,12]')}}`, 12), undefined],
    [
      'a hole between tensors',
      fileOf(`{"a":${F32_PAIR},"b":${entry('F32', '[1]', '[12,16]')}}`, 16),
      undefined,
    ],
    ['a hole at the start', fileOf(`{"a":${entry('F32', '[1]', '[4,8]')}}`, 8), undefined],
    ['bytes behind the last tensor', fileOf(`{"a":${F32_PAIR}}`, 9), undefined],
    ['bytes behind no tensor', fileOf('{}', 1), 10],
    ['data beyond the end of the file', fileOf(`{"a":${F32_PAIR}}`, 7), undefined],
  ])('%s is refused, and the offset of the fault is told', (_, file, offset) => {
    const error = failure(file);
    expect(error.code).toBe('ERR_VARLEN_SAFETENSORS');
    expect(error.details.offset).toEqual(offset ?? expect.any(Number));
    expect(error.message).toContain(`(byte ${error.details.offset})`);
    expect(error.details.offset).toBeLessThanOrEqual(file.length);
  });

  test('a header above the format’s 100 MB is refused before it is parsed', () => {
    const file = new Uint8Array(100_000_016);
    new DataView(file.buffer).setBigUint64(0, 100_000_001n, true);
    expect(failure(file)).toMatchObject({ code: 'ERR_VARLEN_SAFETENSORS', details: { offset: 0 } });
  });

  test('more than a million tensors are refused', { timeout: 120_000 }, () => {
    const entries = Array.from({ length: 1_000_001 }, (_, i) => `"${i}":${entry('U8', '[0]', '[0,0]')}`);
    expect(failure(fileOf(`{${entries}}`))).toMatchObject({ code: 'ERR_VARLEN_SAFETENSORS' });
  });

  test('a file cut at any byte is refused', () => {
    const whole = toSafetensors({
      a: { data: Float32Array.of(1, 2), shape: [2] },
      b: { data: Uint8Array.of(7), shape: [1] },
    });
    for (let length = 0; length < whole.length; length++) {
      expect(failure(whole.slice(0, length)), `cut to ${length}`).toMatchObject({
        code: 'ERR_VARLEN_SAFETENSORS',
      });
    }
  });

  test('a flipped bit never changes a tensor: it is refused, or it was in text that describes none', () => {
    const tensors = { weight: { data: Float32Array.of(1, -2.5), shape: [2] } };
    const whole = toSafetensors(tensors, { step: '1' });
    const dataStart = whole.length - 8;
    for (let bit = 0; bit < 8 * whole.length; bit++) {
      const flipped = whole.slice();
      flipped[bit >> 3] ^= 1 << (bit & 7);
      try {
        const read = fromSafetensors(flipped).tensors;
        expect({ bit, read: { ...read } }).toEqual({
          bit,
          read: { weight: { dtype: 'float32', ...tensors.weight } },
        });
        expect(bit >> 3).toBeLessThan(dataStart);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_VARLEN_SAFETENSORS' });
      }
    }
  });

  test('`verify: false` reads damaged data that keep to the format', () => {
    const bytes = toSafetensors({ a: { data: Float32Array.of(1, 2), shape: [2] } });
    bytes[bytes.length - 1] ^= 1;
    expect(failure(bytes).message).toContain('SHA-256');
    expect(fromSafetensors(bytes, { verify: false }).tensors.a.shape).toEqual([2]);
  });

  test('whatever the header holds, reading ends in tensors or in a typed error', () => {
    const words = [
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '"',
      '"a"',
      '"dtype"',
      '"F32"',
      '"shape"',
      '"data_offsets"',
      '[0,4]',
      '[1]',
      '[]',
      '0',
      '4',
      '-1',
      '1e9',
      '\\',
      '\\u0000',
      ' ',
      '\n',
      'null',
      'true',
      '"__metadata__"',
      '{}',
      F32_PAIR,
    ];
    const text = fc
      .array(fc.oneof(fc.constantFrom(...words), fc.string()), { maxLength: 24 })
      .map((parts) => parts.join(''));
    const header = fc.oneof(
      text.map((t) => new TextEncoder().encode(`{${t}`)),
      fc.uint8Array({ maxLength: 64 }),
    );
    fc.assert(
      fc.property(header, fc.nat(16), (bytes, dataBytes) => {
        try {
          fromSafetensors(fileOf(bytes, dataBytes));
        } catch (error) {
          expect(['ERR_VARLEN_SAFETENSORS', 'ERR_VARLEN_UNSUPPORTED']).toContain((error as VarlenError).code);
        }
      }),
      { numRuns },
    );
  });

  test('a valid file with some bytes changed ends in tensors or in a typed error', () => {
    const whole = fileOf(`{"a":${F32_PAIR},"__metadata__":{"k":"v"}}`, 8);
    const changes = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(changes, (list) => {
        const bytes = whole.slice();
        for (const [at, value] of list) bytes[at] = value;
        try {
          fromSafetensors(bytes);
        } catch (error) {
          expect(['ERR_VARLEN_SAFETENSORS', 'ERR_VARLEN_UNSUPPORTED']).toContain((error as VarlenError).code);
        }
      }),
      { numRuns: 2 * numRuns },
    );
  });

  test.each([
    ['text', 'not bytes'],
    ['an ArrayBuffer', new ArrayBuffer(8)],
    ['null', null],
  ])('%s instead of bytes is a type error', (_, bytes) => {
    expect(() => fromSafetensors(bytes as never)).toThrow(
      expect.objectContaining({ code: 'ERR_VARLEN_TYPE' }),
    );
  });

  test('shared and detached memory is refused', () => {
    const shared = new Uint8Array(new SharedArrayBuffer(16));
    const detached = new Uint8Array(16);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    expect(() => fromSafetensors(shared)).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_BUFFER' }));
    // Node 20 cannot tell a detached buffer from an empty one; either way nothing is read.
    expect(['ERR_VARLEN_BUFFER', 'ERR_VARLEN_SAFETENSORS']).toContain(failure(detached).code);
  });
});

describe('writing', () => {
  const arrays: fc.Arbitrary<[string, TypedArray]> = fc.oneof(
    fc.float32Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['float32', a]),
    fc.float64Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['float64', a]),
    fc.int32Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['int32', a]),
    fc.bigInt64Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['int64', a]),
    fc.uint8Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['uint8', a]),
    fc.uint16Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['float16', a]),
    fc.uint16Array({ maxLength: 12 }).map((a): [string, TypedArray] => ['bfloat16', a]),
  );
  const names = fc
    .oneof(fc.string({ unit: 'grapheme' }), fc.constantFrom('__proto__', '10', '9', 'constructor', '"\\', ''))
    .filter((name) => name !== '__metadata__' && !/\p{Surrogate}/u.test(name));

  test('what was written is read back: names, shapes, element types, bits and metadata', () => {
    const tensors = fc.uniqueArray(fc.tuple(names, arrays, fc.boolean()), {
      selector: ([name]) => name,
      maxLength: 6,
    });
    const metadata = fc.dictionary(names, names, { noNullPrototype: true, maxKeys: 4 });
    fc.assert(
      fc.property(tensors, metadata, (list, meta) => {
        const source = new Map(
          list.map(([name, [dtype, data], column]) => [
            name,
            { dtype, data, shape: column ? [data.length, 1] : [data.length] },
          ]),
        );
        const { tensors: read, metadata: readMeta } = fromSafetensors(toSafetensors(source, meta));
        expect(Object.keys(read).sort()).toEqual([...source.keys()].sort());
        for (const [name, { dtype, data, shape }] of source) {
          expect(read[name].dtype).toBe(dtype);
          expect(read[name].shape).toEqual(shape);
          const { data: back } = read[name];
          // Bits, not values: -0 and the payload of a NaN count.
          expect(Buffer.from(back.buffer, back.byteOffset, back.byteLength)).toEqual(
            Buffer.from(data.buffer, data.byteOffset, data.byteLength),
          );
        }
        expect(Object.entries(readMeta).sort()).toEqual(Object.entries(meta).sort());
      }),
      { numRuns: Math.min(numRuns, 5000) },
    );
  });

  test('the order in which tensors are given does not change the bytes', () => {
    const a = { data: Float32Array.of(1), shape: [1] };
    const b = { data: Uint8Array.of(2), shape: [1] };
    expect(toSafetensors({ a, b })).toEqual(toSafetensors({ b, a }));
  });

  test('tensors are written as they are, also converted ones and views', () => {
    using whole = Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), { shape: [3, 2], device: 'cpu' });
    using half = whole.to('bfloat16');
    using row = whole.slice(0, 1, 2);
    const { tensors } = fromSafetensors(toSafetensors({ half, row }));
    expect(tensors.row).toEqual({ dtype: 'float32', shape: [1, 2], data: Float32Array.of(3, 4) });
    expect(tensors.half).toMatchObject({ dtype: 'bfloat16', shape: [3, 2] });
    using back = Tensor.from(tensors.half, { device: 'cpu' });
    using wide = back.to('float32');
    expect(wide.dataSync()).toEqual(Float32Array.of(1, 2, 3, 4, 5, 6));
  });

  test.each([
    ['a reserved name', { __metadata__: { data: Uint8Array.of(1), shape: [1] } }, {}, 'ERR_VARLEN_OPTION'],
    [
      'half a surrogate pair as a name',
      { '\ud800': { data: Uint8Array.of(1), shape: [1] } },
      {},
      'ERR_VARLEN_OPTION',
    ],
    ['a shape that does not fit', { a: { data: Uint8Array.of(1), shape: [2] } }, {}, 'ERR_VARLEN_SHAPE'],
    [
      'an element type that contradicts the array',
      { a: { data: Uint8Array.of(1), shape: [1], dtype: 'int32' } },
      {},
      'ERR_VARLEN_DTYPE',
    ],
    ['a Uint16Array without a dtype', { a: { data: Uint16Array.of(1), shape: [1] } }, {}, 'ERR_VARLEN_DTYPE'],
    ['no tensor', { a: 5 }, {}, 'ERR_VARLEN_TYPE'],
    ['no tensors', null, {}, 'ERR_VARLEN_TYPE'],
    ['metadata that are no text', {}, { step: 5 }, 'ERR_VARLEN_TYPE'],
    ['a metadata key of ours', {}, { 'varlen.sha256': 'x' }, 'ERR_VARLEN_OPTION'],
  ])('%s is refused', (_, tensors, metadata, code) => {
    expect(() => toSafetensors(tensors as never, metadata as never)).toThrow(
      expect.objectContaining({ code }),
    );
  });

  test('a disposed tensor is refused', () => {
    const gone = Tensor.from(Float32Array.of(1), { device: 'cpu' });
    gone.dispose();
    expect(() => toSafetensors({ gone })).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_DISPOSED' }));
  });
});
