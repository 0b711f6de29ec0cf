import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Stream, Tensor, type VarlenError, varlenAttention } from '../../src/index.js';
import { loadNative, packageRoot } from '../../src/native/load.js';
import { thrown } from '../support/thrown.js';

interface Addon {
  readonly args: Float64Array;
  readonly result: Float64Array;
  readonly ops: readonly { readonly name: string; readonly args: readonly { readonly name: string }[] }[];
  takeError(): { code: string };
  [entry: string]: unknown;
}
const addon = loadNative() as Addon;

test('the ops of binding.ts are the ops of the binary', () => {
  const source = readFileSync(join(packageRoot, 'src/native/binding.ts'), 'utf8');
  const union = /export type NativeOp =([^;]+);/.exec(source)?.[1] ?? '';
  const names = [...union.matchAll(/'([^']+)'/g)].map(([, name]) => name);
  expect(names.sort()).toEqual(addon.ops.map(({ name }) => name).sort());
  expect(new Set(names).size).toBe(names.length);
});

test('no op has an argument twice, or more arguments than the call has room for', () => {
  for (const { name, args } of addon.ops) {
    const names = args.map((arg) => arg.name);
    expect(new Set(names).size, name).toBe(names.length);
    expect(names.length, name).toBeLessThan(addon.args.length);
  }
});

describe('the native side', () => {
  const entries = Object.keys(addon).filter((key) => typeof addon[key] === 'function');
  const quiet = ['takeError', 'info', 'onSettled', 'newStream', 'disposeStream', 'release', 'releaseEvent'];
  const hostile = [
    Number.NaN,
    Infinity,
    -Infinity,
    -1,
    -0,
    0.5,
    1,
    2 ** 28,
    2 ** 31,
    2 ** 53,
    2 ** 60,
    1e300,
  ];

  test.each(entries.filter((entry) => !quiet.includes(entry)))(
    '%s survives numbers that no caller of ours passes',
    (entry) => {
      const threads = addon.threads as () => number;
      addon.args[0] = 0;
      threads();
      const before = addon.result[0];
      for (const a of hostile) {
        for (const b of hostile) {
          addon.args.fill(b);
          addon.args[0] = a;
          // threads: a real number of threads would be set
          if (entry === 'threads' && a > 1) continue;
          const failed = (addon[entry] as () => number)();
          if (failed !== 0) expect(addon.takeError().code).toMatch(/^ERR_VARLEN_/);
        }
      }
      addon.args[0] = before;
      threads();
      using t = Tensor.from(Float32Array.of(1));
      expect(t.dataSync()).toEqual(Float32Array.of(1));
    },
  );

  test('an op survives arrays of the wrong kind and number', () => {
    const call = addon.call as (...values: unknown[]) => number;
    for (const values of [
      [],
      ['x'],
      [-1],
      [99],
      [0],
      [0, 5],
      [0, new Uint8Array(3)],
      [0, ...new Array(20).fill(new Int32Array(2))],
    ]) {
      addon.args.fill(-1);
      addon.args[0] = 0;
      expect(call(...values)).toBe(1);
      expect(addon.takeError().code).toMatch(/^ERR_VARLEN_/);
    }
  });
});

describe('what callers pass for a tensor or an array', () => {
  const q = Tensor.from(new Float32Array(8), { shape: [4, 1, 2] });
  const cuSeqlens = Int32Array.of(0, 4);
  const codeOf = (options: object): string =>
    (thrown(() => varlenAttention(q, q, q, { cuSeqlens, ...options })) as VarlenError).code;

  test('a look-alike is no tensor', () => {
    const lookAlike = { handle: q.handle, shape: q.shape, dtype: q.dtype };
    expect(codeOf({ out: lookAlike })).toBe('ERR_VARLEN_TYPE');
    expect(codeOf({ keyEnd: lookAlike, causal: true })).toBe('ERR_VARLEN_TYPE');
    expect(codeOf({ cuSeqlens: Object.create(null) })).toBe('ERR_VARLEN_TYPE');
    expect(codeOf({ stream: Object.create(null) })).toBe('ERR_VARLEN_TYPE');
  });

  test('a disposed tensor is named', () => {
    const gone = Tensor.from(new Float32Array(8), { shape: [4, 1, 2] });
    gone.dispose();
    expect(codeOf({ out: gone })).toBe('ERR_VARLEN_DISPOSED');
    expect(codeOf({ alibiSlopes: gone })).toBe('ERR_VARLEN_DISPOSED');
    const error = thrown(() => varlenAttention(q, gone, q, { cuSeqlens })) as VarlenError;
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DISPOSED', details: { argument: 'k' } });
  });

  test('an output may not share memory with an input, whichever way it came', () => {
    expect(codeOf({ out: q })).toBe('ERR_VARLEN_INCOMPATIBLE');
    using view = q.view([4, 1, 2]);
    expect(codeOf({ out: view })).toBe('ERR_VARLEN_INCOMPATIBLE');
    using out = Tensor.empty([4, 1, 2], { dtype: 'float32' });
    using flat = out.view([8]);
    using slopes = flat.slice(0, 0, 1);
    expect(codeOf({ out, alibiSlopes: slopes })).toBe('ERR_VARLEN_INCOMPATIBLE');
  });

  test('an array with memory that may change is refused', () => {
    const shared = new Int32Array(new SharedArrayBuffer(8));
    expect(codeOf({ cuSeqlens: shared })).toBe('ERR_VARLEN_BUFFER');
    const Resizable = ArrayBuffer as unknown as new (bytes: number, o: object) => ArrayBuffer;
    expect(codeOf({ cuSeqlens: new Int32Array(new Resizable(8, { maxByteLength: 16 })) })).toBe(
      'ERR_VARLEN_BUFFER',
    );
    const detached = Int32Array.of(0, 4);
    structuredClone(detached.buffer, { transfer: [detached.buffer] });
    expect(codeOf({ cuSeqlens: detached })).toMatch(/ERR_VARLEN_(BUFFER|CU_SEQLENS)/);
    const disguised = Object.setPrototypeOf(new Uint8Array(8), Int32Array.prototype) as unknown;
    expect(codeOf({ cuSeqlens: disguised })).toBe('ERR_VARLEN_DTYPE');
  });

  test('a subarray at an odd offset is read where it begins', () => {
    const bytes = new ArrayBuffer(20);
    const part = new Int32Array(bytes, 4, 2);
    part.set([0, 4]);
    varlenAttention(q, q, q, { cuSeqlens: part })[Symbol.dispose]();
    using side = new Stream('cpu');
    varlenAttention(q, q, q, { cuSeqlens: part, stream: side })[Symbol.dispose]();
  });
});
