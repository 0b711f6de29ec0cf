import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { memoryStats, Stream, Tensor, type VarlenError } from '../../src/index.js';
import { thrown } from '../support/thrown.js';

const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;

/** 0, 1, 2, ... in the given shape. */
function counting(shape: readonly number[]): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return Tensor.from(
    Float32Array.from({ length: size }, (_, i) => i),
    { shape },
  );
}

describe('view', () => {
  test('shares the memory in another shape, and lives on when the first name is gone', () => {
    const t = counting([2, 6]);
    using v = t.view([3, 4]);
    expect(memoryStats().allocated).toBeGreaterThan(0);
    t.dispose();
    expect(v.shape).toEqual([3, 4]);
    expect(v.dataSync()).toEqual(Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
  });

  test('takes no memory of its own', () => {
    using t = counting([1024]);
    const before = memoryStats().allocated;
    using _view = t.view([32, 32]);
    expect(memoryStats().allocated).toBe(before);
  });

  test('refuses another number of elements, a strided tensor and a disposed one', () => {
    using t = counting([4, 4]);
    expect(codeOf(() => t.view([15]))).toBe('ERR_VARLEN_SHAPE');
    expect(codeOf(() => t.view([1, 1, 1, 1, 1, 1, 16]))).toBe('ERR_VARLEN_SHAPE');
    expect(codeOf(() => t.view([-16]))).toBe('ERR_VARLEN_RANGE');
    expect(codeOf(() => t.view([2 ** 40, 2 ** 40]))).toBe('ERR_VARLEN_OVERFLOW');
    expect(codeOf(() => t.view('16' as unknown as number[]))).toBe('ERR_VARLEN_TYPE');
    using columns = t.slice(1, 0, 2);
    expect(codeOf(() => columns.view([8]))).toBe('ERR_VARLEN_LAYOUT');
    t.dispose();
    expect(codeOf(() => t.view([16]))).toBe('ERR_VARLEN_DISPOSED');
  });
});

describe('slice', () => {
  test('is what nested loops over the kept indices say, for any shape, bounds and nesting', () => {
    const cut = fc.record({ dim: fc.nat(3), a: fc.nat(5), b: fc.nat(5) });
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 }),
        fc.array(cut, { maxLength: 3 }),
        (shape, cuts) => {
          let t = counting(shape);
          const ranges = shape.map((size) => [0, size]);
          for (const { dim, a, b } of cuts) {
            const d = dim % shape.length;
            const length = t.shape[d];
            const start = Math.min(a, b, length);
            const end = Math.min(Math.max(a, b), length);
            const next = t.slice(d, start, end);
            t.dispose();
            t = next;
            ranges[d] = [ranges[d][0] + start, ranges[d][0] + end];
          }
          const expected = Array.from({ length: shape.reduce((x, y) => x * y, 1) }, (_, i) => i).filter(
            (i) => {
              let rest = i;
              for (let d = shape.length - 1; d >= 0; d--) {
                const index = rest % shape[d];
                rest = Math.floor(rest / shape[d]);
                if (index < ranges[d][0] || index >= ranges[d][1]) return false;
              }
              return true;
            },
          );
          expect(Array.from(t.dataSync() as Float32Array)).toEqual(expected);
          t.dispose();
        },
      ),
    );
  });

  test('refuses bounds outside the dimension', () => {
    using t = counting([4, 4]);
    for (const [dim, start, end] of [
      [2, 0, 1],
      [-1, 0, 1],
      [0, 0, 5],
      [0, 3, 2],
      [0, -1, 2],
      [0, 0.5, 2],
      [0, Number.NaN, 2],
      [Number.NaN, 0, 2],
    ]) {
      expect(codeOf(() => t.slice(dim, start, end))).toBe('ERR_VARLEN_RANGE');
    }
    expect(codeOf(() => t.slice(0, '0' as unknown as number, 2))).toBe('ERR_VARLEN_TYPE');
    using scalar = Tensor.from(Float32Array.of(1), { shape: [] });
    expect(codeOf(() => scalar.slice(0, 0, 1))).toBe('ERR_VARLEN_RANGE');
    t.dispose();
    expect(codeOf(() => t.slice(0, 0, 1))).toBe('ERR_VARLEN_DISPOSED');
  });

  test('of a tensor that requires a gradient does too', () => {
    using t = Tensor.from(Float32Array.of(1, 2), { requiresGrad: true });
    using part = t.slice(0, 0, 1);
    expect(part.requiresGrad).toBe(true);
  });

  test('stays inside the memory though a caller overwrites the shape', () => {
    using t = counting([4]);
    (t as { shape: readonly number[] }).shape = [1000];
    expect(codeOf(() => t.slice(0, 0, 1000))).toBe('ERR_VARLEN_RANGE');
    expect(codeOf(() => t.dataSync())).toBe('ERR_VARLEN_BUFFER');
    (t as { shape: readonly number[] }).shape = [4];
    (t as { dtype: string }).dtype = 'uint8';
    expect(codeOf(() => t.dataSync())).toBe('ERR_VARLEN_BUFFER');
  });
});

describe('to', () => {
  test('copies a strided tensor into a contiguous one of another dtype', () => {
    using t = counting([3, 4]);
    using columns = t.slice(1, 1, 3);
    using converted = columns.to('int32');
    expect(converted.shape).toEqual([3, 2]);
    expect(converted.dataSync()).toEqual(Int32Array.of(1, 2, 5, 6, 9, 10));
    using flat = converted.view([6]);
    expect(flat.size).toBe(6);
  });

  test('with nothing to change is a second name for the same memory', () => {
    using t = counting([4]);
    const before = memoryStats().allocated;
    using same = t.to('float32');
    using here = t.to('cpu');
    expect(same).not.toBe(t);
    expect(memoryStats().allocated).toBe(before);
    t.dispose();
    expect(same.dataSync()).toEqual(here.dataSync());
  });

  test('floats that no integer holds become the nearest bound, NaN becomes 0', () => {
    using t = Tensor.from(Float32Array.of(3e9, -3e9, Number.NaN, 2.9, -2.9, Infinity));
    using ints = t.to('int32');
    expect(ints.dataSync()).toEqual(Int32Array.of(2147483647, -2147483648, 0, 2, -2, 2147483647));
    using bytes = t.to('uint8');
    expect(bytes.dataSync()).toEqual(Uint8Array.of(255, 0, 0, 2, 0, 255));
  });

  test('doubles round to the 16-bit types once', () => {
    using t = Tensor.from(Float64Array.of(1.00390625 + 2 ** -40, 1.01171875 - 2 ** -40));
    using narrow = t.to('bfloat16');
    expect(narrow.dataSync()).toEqual(Uint16Array.of(0x3f81, 0x3f81));
  });

  test('runs on the stream it is given', () => {
    using stream = new Stream('cpu');
    using t = counting([4]);
    using converted = t.to('float64', { stream });
    expect(converted.dataSync()).toEqual(Float64Array.of(0, 1, 2, 3));
  });

  test('refuses what is no target', () => {
    using t = counting([4]);
    const to = (target: unknown, options?: unknown) => () => t.to(target as 'cpu', options as object);
    expect(codeOf(to('float8'))).toBe('ERR_VARLEN_OPTION');
    expect(codeOf(to(5))).toBe('ERR_VARLEN_TYPE');
    expect(codeOf(to(undefined))).toBe('ERR_VARLEN_TYPE');
    expect(codeOf(to(Symbol('s')))).toBe('ERR_VARLEN_TYPE');
    expect(codeOf(to('float64', { strem: 1 }))).toBe('ERR_VARLEN_OPTION');
    expect(codeOf(to('float64', { stream: 1 }))).toBe('ERR_VARLEN_TYPE');
    t.dispose();
    expect(codeOf(to('float64'))).toBe('ERR_VARLEN_DISPOSED');
  });
});

describe('detach', () => {
  test('shares the memory and requires no gradient', () => {
    using t = Tensor.from(Float32Array.of(1, 2), { requiresGrad: true });
    using d = t.detach();
    expect(d.requiresGrad).toBe(false);
    t.dispose();
    expect(d.dataSync()).toEqual(Float32Array.of(1, 2));
  });

  test('works for tensors without dimensions and without elements', () => {
    using scalar = Tensor.from(Float32Array.of(3), { shape: [] });
    using a = scalar.detach();
    expect(a.dataSync()).toEqual(Float32Array.of(3));
    using none = Tensor.from(new Float32Array(0), { shape: [0, 2] });
    using b = none.detach();
    expect(b.shape).toEqual([0, 2]);
    scalar.dispose();
    expect(codeOf(() => scalar.detach())).toBe('ERR_VARLEN_DISPOSED');
  });
});
