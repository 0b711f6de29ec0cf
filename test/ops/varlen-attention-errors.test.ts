import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  memoryStats,
  scope,
  Tensor,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionOptions,
  VarlenError,
  type VarlenErrorCode,
  VarlenInputError,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { badCuSeqlens, cuSeqlens as goodCuSeqlens } from '../support/arbitraries.js';
import { bitsOf, device, tensor, tries, valuesOf } from '../support/attention.js';
import { rejected, thrown } from '../support/thrown.js';

// Every mistake a caller can make: the code, the argument's name, and that nothing is left behind.

const [TOTAL_Q, TOTAL_K, HEADS, KV_HEADS, DIM] = [7, 9, 4, 2, 8];
const CU_Q = Int32Array.of(0, 3, 3, 7);
const CU_K = Int32Array.of(0, 3, 5, 9);

function filled(shape: number[]): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tensor(
    Float32Array.from({ length: size }, (_, i) => Math.sin(i)),
    shape,
  );
}

let q: Tensor;
let k: Tensor;
let v: Tensor;
let self: Tensor; // queries that are keys too, for trees
beforeAll(() => {
  q = filled([TOTAL_Q, HEADS, DIM]);
  k = filled([TOTAL_K, KV_HEADS, DIM]);
  v = filled([TOTAL_K, KV_HEADS, DIM]);
  self = filled([TOTAL_Q, HEADS, DIM]);
});
afterAll(() => {
  for (const t of [q, k, v, self]) t.dispose();
});

/** A value whose type the declarations forbid. */
// biome-ignore lint/suspicious/noExplicitAny: that is the point
const wrong = (value: unknown): any => value;

const good: VarlenAttentionOptions = { cuSeqlensQ: CU_Q, cuSeqlensK: CU_K };
const treeOptions: VarlenAttentionOptions = {
  cuSeqlens: CU_Q,
  causal: true,
  keyEnd: Int32Array.of(3, 3, 3, 4, 4, 4, 4),
};

/** The call must throw the code for the argument, leave no tensor, and let the next call work. */
function expectRefused(call: () => unknown, code: VarlenErrorCode, argument: string, op = 'varlenAttention') {
  const before = memoryStats().liveTensors;
  const error = thrown(call);
  expect(error).toBeInstanceOf(VarlenError);
  const { code: got, details, message } = error as VarlenError;
  expect({ code: got, argument: details.argument, op: details.op }).toEqual({ code, argument, op });
  expect(message.startsWith(`${op}: ${argument} `)).toBe(true);
  if (code !== 'ERR_VARLEN_DISPOSED') expect(error).toBeInstanceOf(VarlenInputError);
  expect(memoryStats().liveTensors).toBe(before);
}

function refuses(options: VarlenAttentionOptions, code: VarlenErrorCode, argument: string): void {
  expectRefused(() => varlenAttention(q, k, v, options), code, argument);
}

function refusesTree(options: VarlenAttentionOptions, code: VarlenErrorCode, argument: string): void {
  expectRefused(() => varlenAttention(self, self, self, { ...treeOptions, ...options }), code, argument);
}

test('the calls that the mistakes are made in work', () => {
  scope(() => {
    expect(varlenAttention(q, k, v, good).out.shape).toEqual([TOTAL_Q, HEADS, DIM]);
    expect(varlenAttention(self, self, self, treeOptions).out.shape).toEqual([TOTAL_Q, HEADS, DIM]);
  });
});

describe('offsets', () => {
  const ints = (...values: number[]) => Int32Array.from(values);

  test.each<[string, number[], number[], string]>([
    ['not starting at 0', [1, 3, 3, 7], [0, 3, 5, 9], 'cuSeqlensQ'],
    ['negative', [-1, 3, 3, 7], [0, 3, 5, 9], 'cuSeqlensQ'],
    ['decreasing', [0, 3, 2, 7], [0, 3, 5, 9], 'cuSeqlensQ'],
    ['ending past the rows', [0, 3, 3, 8], [0, 3, 5, 9], 'cuSeqlensQ'],
    ['ending far past the rows', [0, 3, 3, 2 ** 31 - 1], [0, 3, 5, 9], 'cuSeqlensQ'],
    ['of keys not starting at 0', [0, 3, 3, 7], [2, 3, 5, 9], 'cuSeqlensK'],
    ['of keys decreasing', [0, 3, 3, 7], [0, 6, 5, 9], 'cuSeqlensK'],
    ['of keys ending past the rows', [0, 3, 3, 7], [0, 3, 5, 10], 'cuSeqlensK'],
    ['of two lengths', [0, 3, 3, 7], [0, 3, 9], 'cuSeqlensK'],
    ['without an entry', [], [], 'cuSeqlensQ'],
    ['of keys without an entry', [0, 3, 3, 7], [], 'cuSeqlensK'],
  ])('%s are refused', (_, cuQ, cuK, argument) => {
    refuses({ cuSeqlensQ: ints(...cuQ), cuSeqlensK: ints(...cuK) }, 'ERR_VARLEN_CU_SEQLENS', argument);
  });

  test('of both sides are named as the caller named them', () => {
    expectRefused(
      () => varlenAttention(self, self, self, { cuSeqlens: ints(0, 9) }),
      'ERR_VARLEN_CU_SEQLENS',
      'cuSeqlens',
    );
    expectRefused(
      () => varlenAttention(self, self, self, { cuSeqlens: CU_Q, maxSeqlen: 3 }),
      'ERR_VARLEN_MAX_SEQLEN',
      'maxSeqlen',
    );
  });

  test('missing, or given twice, are refused', () => {
    refuses({}, 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens');
    refuses({ cuSeqlensK: CU_K }, 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens');
    refuses({ cuSeqlens: CU_Q, cuSeqlensQ: CU_Q }, 'ERR_VARLEN_INCOMPATIBLE', 'cuSeqlens');
    refuses({ cuSeqlens: CU_Q, cuSeqlensK: CU_K }, 'ERR_VARLEN_INCOMPATIBLE', 'cuSeqlens');
  });

  test('random wrong ones are refused, at the call or in the stream, and never read out of bounds', async () => {
    await fc.assert(
      fc.asyncProperty(badCuSeqlens(TOTAL_Q), async (cuSeqlens) => {
        expectRefused(
          () => varlenAttention(self, self, self, { cuSeqlens }),
          'ERR_VARLEN_CU_SEQLENS',
          'cuSeqlens',
        );
        if (cuSeqlens.length === 0) return;
        using inTensor = Tensor.from(cuSeqlens, { device });
        using late = varlenAttention(self, self, self, { cuSeqlens: inTensor, maxSeqlen: TOTAL_Q });
        const error = (await rejected(late.out.data())) as VarlenError;
        expect([error.code, error.details.op]).toEqual(['ERR_VARLEN_CU_SEQLENS', 'varlenAttention']);
        expect(((await rejected(late.softmaxLse.data())) as VarlenError).code).toBe('ERR_VARLEN_CU_SEQLENS');
      }),
      { numRuns: tries(200) },
    );
  });

  test('that are right are accepted, on the host and in a tensor, whatever rows follow', () => {
    fc.assert(
      fc.property(goodCuSeqlens, fc.nat(3), (cuSeqlens, tail) => {
        scope(() => {
          const total = cuSeqlens[cuSeqlens.length - 1] + tail;
          const t = filled([total, 1, 1]);
          const onHost = varlenAttention(t, t, t, { cuSeqlens });
          const inTensor = Tensor.from(cuSeqlens, { device });
          const late = varlenAttention(t, t, t, { cuSeqlens: inTensor, maxSeqlen: total });
          expect(bitsOf(late.out).equals(bitsOf(onHost.out))).toBe(true);
        });
      }),
      { numRuns: tries(60) },
    );
  });

  test('in a tensor fail in the stream, and what is computed from the result fails alike', async () => {
    using cuSeqlens = Tensor.from(Int32Array.of(0, 5, 4, 7), { device });
    using result = varlenAttention(self, self, self, { cuSeqlens, maxSeqlen: 7 });
    using gradients = varlenAttentionBackward(self, result.saved);
    for (const t of [result.out, result.softmaxLse, gradients.dq, gradients.dk, gradients.dv]) {
      const error = (await rejected(t.data())) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_CU_SEQLENS');
      expect(error.details.call).toBeGreaterThan(0);
      expect((thrown(() => t.dataSync()) as VarlenError).code).toBe('ERR_VARLEN_CU_SEQLENS');
    }
    using fine = varlenAttention(self, self, self, { cuSeqlens: CU_Q }); // the stream goes on
    expect(valuesOf(fine.out).every(Number.isFinite)).toBe(true);
  });

  test('in a tensor need a maximum, an int32 row, and a maximum that holds', async () => {
    using cuSeqlens = Tensor.from(CU_Q, { device });
    using longs = Tensor.from(BigInt64Array.of(0n, 3n, 3n, 7n), { device });
    using matrix = Tensor.from(CU_Q, { shape: [2, 2], device });
    expectRefused(
      () => varlenAttention(self, self, self, { cuSeqlens }),
      'ERR_VARLEN_MISSING_INPUT',
      'maxSeqlen',
    );
    const refusesArray = (array: Tensor, code: VarlenErrorCode) =>
      expectRefused(
        () => varlenAttention(self, self, self, { cuSeqlens: array, maxSeqlen: 7 }),
        code,
        'cuSeqlens',
      );
    refusesArray(longs, 'ERR_VARLEN_DTYPE');
    refusesArray(matrix, 'ERR_VARLEN_SHAPE');
    using late = varlenAttention(self, self, self, { cuSeqlens, maxSeqlen: 3 });
    expect(((await rejected(late.out.data())) as VarlenError).code).toBe('ERR_VARLEN_MAX_SEQLEN');
  });
});

describe('other arrays', () => {
  test('used lengths must fit their slots and be one per sequence', () => {
    refuses({ ...good, seqUsedQ: Int32Array.of(3, 1, 4) }, 'ERR_VARLEN_CU_SEQLENS', 'seqUsedQ');
    refuses({ ...good, seqUsedK: Int32Array.of(-1, 0, 0) }, 'ERR_VARLEN_CU_SEQLENS', 'seqUsedK');
    refuses({ ...good, seqUsedQ: Int32Array.of(3, 0) }, 'ERR_VARLEN_SHAPE', 'seqUsedQ');
    refuses({ ...good, seqUsedK: Int32Array.of(3, 0, 0, 0) }, 'ERR_VARLEN_SHAPE', 'seqUsedK');
  });

  test('slopes must be finite and one per head', () => {
    refuses({ ...good, alibiSlopes: new Float32Array(3) }, 'ERR_VARLEN_SHAPE', 'alibiSlopes');
    refuses({ ...good, alibiSlopes: new Float32Array(0) }, 'ERR_VARLEN_SHAPE', 'alibiSlopes');
    for (const slope of [Number.NaN, Number.POSITIVE_INFINITY]) {
      refuses({ ...good, alibiSlopes: Float32Array.of(0, slope, 0, 0) }, 'ERR_VARLEN_RANGE', 'alibiSlopes');
    }
  });

  test.each<[string, number[]]>([
    ['end before the key', [3, 1, 3, 4, 4, 4, 4]],
    ['end at 0', [0, 3, 3, 4, 4, 4, 4]],
    ['are negative', [3, 3, 3, -(2 ** 31), 4, 4, 4]],
    ['end past the sequence', [3, 3, 3, 4, 4, 5, 4]],
    ['end far past the sequence', [2 ** 31 - 1, 3, 3, 4, 4, 4, 4]],
    ['cross', [2, 3, 3, 4, 4, 4, 4]],
  ])('tree ends that %s are refused', (_, ends) => {
    refusesTree({ keyEnd: Int32Array.from(ends) }, 'ERR_VARLEN_TREE', 'keyEnd');
  });

  test('a tree needs causal, as many queries as keys, and neither window nor slopes', () => {
    refusesTree({ causal: false }, 'ERR_VARLEN_TREE', 'keyEnd');
    refuses(
      { ...good, causal: true, keyEnd: Int32Array.of(3, 3, 3, 2, 2, 4, 4, 4, 4) },
      'ERR_VARLEN_TREE',
      'keyEnd',
    );
    refusesTree({ keyEnd: Int32Array.of(3, 3, 3) }, 'ERR_VARLEN_SHAPE', 'keyEnd');
    refusesTree({ windowSize: [2, 0] }, 'ERR_VARLEN_INCOMPATIBLE', 'keyEnd');
    refusesTree({ windowSize: [-1, 0] }, 'ERR_VARLEN_INCOMPATIBLE', 'keyEnd');
    refusesTree({ alibiSlopes: new Float32Array(HEADS) }, 'ERR_VARLEN_INCOMPATIBLE', 'keyEnd');
  });

  test('a wrong tree in a tensor fails in the stream', async () => {
    using keyEnd = Tensor.from(Int32Array.of(2, 3, 3, 4, 4, 4, 4), { device });
    using result = varlenAttention(self, self, self, { ...treeOptions, keyEnd });
    expect(((await rejected(result.out.data())) as VarlenError).code).toBe('ERR_VARLEN_TREE');
  });

  const arrayOptions = ['cuSeqlensQ', 'cuSeqlensK', 'seqUsedQ', 'seqUsedK', 'keyEnd', 'alibiSlopes'] as const;
  describe.each(arrayOptions)('%s', (name) => {
    const floats = name === 'alibiSlopes';
    const give = (value: unknown) => ({ ...good, causal: true, [name]: wrong(value) });

    test('of another kind is refused', () => {
      for (const value of [[0, 3, 3, 7], '0', 7, null, new DataView(new ArrayBuffer(16)), {}, () => 0]) {
        const isView = ArrayBuffer.isView(value);
        refuses(give(value), isView ? 'ERR_VARLEN_DTYPE' : 'ERR_VARLEN_TYPE', name);
      }
      const other = [
        Float64Array,
        Uint32Array,
        Uint8Array,
        BigInt64Array,
        floats ? Int32Array : Float32Array,
      ];
      for (const Kind of other) refuses(give(new Kind(4)), 'ERR_VARLEN_DTYPE', name);
    });

    test('in memory that can change or vanish is refused', () => {
      const Kind = floats ? Float32Array : Int32Array;
      const shared = new Kind(new SharedArrayBuffer(16) as unknown as ArrayBuffer);
      refuses(give(shared), 'ERR_VARLEN_BUFFER', name);
      const Resizable = ArrayBuffer as unknown as new (
        n: number,
        o: { maxByteLength: number },
      ) => ArrayBuffer;
      refuses(give(new Kind(new Resizable(16, { maxByteLength: 64 }))), 'ERR_VARLEN_BUFFER', name);
      const detached = new Kind(4);
      structuredClone(detached, { transfer: [detached.buffer] });
      const error = thrown(() => varlenAttention(q, k, v, give(detached))) as VarlenError;
      expect(error).toBeInstanceOf(VarlenInputError);
      expect(error.details.argument).toBe(name);
    });

    test('that only looks like a tensor is refused', () => {
      for (const handle of [1e9, -1, -3, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
        const error = thrown(() => varlenAttention(q, k, v, give({ handle }))) as VarlenError;
        expect(error).toBeInstanceOf(VarlenError);
        expect(error.details.argument).toBe(name);
      }
      const proxy = new Proxy(new Int32Array(4), {});
      expect(thrown(() => varlenAttention(q, k, v, give(proxy)))).toBeInstanceOf(VarlenInputError);
    });
  });

  test('an array that starts inside its buffer is read from where it starts', () => {
    const buffer = Int32Array.of(99, 99, ...CU_Q, 99);
    scope(() => {
      const want = bitsOf(varlenAttention(q, k, v, good).out);
      const { out } = varlenAttention(q, k, v, { ...good, cuSeqlensQ: buffer.subarray(2, 6) });
      expect(bitsOf(out).equals(want)).toBe(true);
    });
  });
});

describe('tensors', () => {
  const withTensors = (make: () => [Tensor, Tensor, Tensor], code: VarlenErrorCode, argument: string) => {
    const tensors = make();
    expectRefused(() => varlenAttention(...tensors, good), code, argument);
    for (const t of tensors) if (![q, k, v].includes(t)) t.dispose();
  };

  test('of several or unsupported dtypes are refused', () => {
    withTensors(() => [q, k.to('float16'), v], 'ERR_VARLEN_DTYPE', 'k');
    withTensors(() => [q, k, v.to('bfloat16')], 'ERR_VARLEN_DTYPE', 'v');
    for (const dtype of ['float64', 'int32', 'int64', 'uint8'] as const) {
      withTensors(
        () => [Tensor.empty([TOTAL_Q, HEADS, DIM], { dtype, device }), k, v],
        'ERR_VARLEN_DTYPE',
        'q',
      );
    }
  });

  test('of a wrong rank, or of shapes that do not fit, are refused', () => {
    withTensors(() => [q.view([TOTAL_Q * HEADS, DIM]), k, v], 'ERR_VARLEN_SHAPE', 'q');
    withTensors(() => [q, k.view([TOTAL_K, KV_HEADS, DIM, 1]), v], 'ERR_VARLEN_SHAPE', 'k');
    withTensors(() => [q, k, v.view([TOTAL_K * KV_HEADS * DIM])], 'ERR_VARLEN_SHAPE', 'v');
    withTensors(() => [q, filled([TOTAL_K, KV_HEADS, 7]), v], 'ERR_VARLEN_SHAPE', 'k');
    withTensors(() => [q, k, filled([TOTAL_K, KV_HEADS, 9])], 'ERR_VARLEN_SHAPE', 'v');
    withTensors(() => [q, k, filled([TOTAL_K, 1, DIM])], 'ERR_VARLEN_SHAPE', 'v');
    withTensors(() => [q, k, filled([TOTAL_K + 1, KV_HEADS, DIM])], 'ERR_VARLEN_SHAPE', 'v');
    for (const heads of [3, 8, 0]) {
      withTensors(
        () => [q, filled([TOTAL_K, heads, DIM]), filled([TOTAL_K, heads, DIM])],
        'ERR_VARLEN_SHAPE',
        'k',
      );
    }
  });

  test.each([0, 257, 4096])('of headDim %i are refused', (dim) => {
    withTensors(
      () => [filled([TOTAL_Q, 1, dim]), filled([TOTAL_K, 1, dim]), filled([TOTAL_K, 1, dim])],
      'ERR_VARLEN_HEAD_DIM',
      'q',
    );
  });

  test.each([1, 2, 7, 131, 255, 256])('of headDim %i are accepted', (dim) => {
    scope(() => {
      const [a, b] = [filled([TOTAL_Q, 2, dim]), filled([TOTAL_K, 1, dim])];
      expect(valuesOf(varlenAttention(a, b, b, good).out).every(Number.isFinite)).toBe(true);
    });
  });

  test('whose rows have gaps are read in place', () => {
    const column = filled([TOTAL_Q, HEADS, 2 * DIM]).slice(2, 0, DIM); // rows with gaps are fine
    scope(() => {
      expect(varlenAttention(column, k, v, good).out.shape).toEqual(q.shape);
    });
    column.dispose();
  });

  test('that were disposed are refused by name', () => {
    const gone = filled([TOTAL_Q, HEADS, DIM]);
    gone.dispose();
    gone.dispose(); // twice is once
    expectRefused(() => varlenAttention(gone, k, v, good), 'ERR_VARLEN_DISPOSED', 'q');
    const goneKeys = filled([TOTAL_K, KV_HEADS, DIM]);
    goneKeys.dispose();
    expectRefused(() => varlenAttention(q, k, goneKeys, good), 'ERR_VARLEN_DISPOSED', 'v');
    const cuSeqlensQ = Tensor.from(CU_Q, { device });
    cuSeqlensQ.dispose();
    refuses({ ...good, cuSeqlensQ, maxSeqlenQ: 4 }, 'ERR_VARLEN_DISPOSED', 'cuSeqlensQ');
  });

  test('that are none are refused', () => {
    for (const value of [undefined, null, 3, 'q', new Float32Array(8), { shape: [7, 4, 8] }, []]) {
      expectRefused(() => varlenAttention(wrong(value), k, v, good), 'ERR_VARLEN_TYPE', 'q');
      expectRefused(() => varlenAttention(q, wrong(value), v, good), 'ERR_VARLEN_TYPE', 'k');
      expectRefused(() => varlenAttention(q, k, wrong(value), good), 'ERR_VARLEN_TYPE', 'v');
    }
  });

  test('to be written must fit and share no memory with what is read', () => {
    const empty = (shape: number[], dtype: 'float32' | 'float16' = 'float32') =>
      Tensor.empty(shape, { dtype, device });
    const outputs: [Tensor, VarlenErrorCode][] = [
      [empty([TOTAL_Q, HEADS, DIM + 1]), 'ERR_VARLEN_SHAPE'],
      [empty([TOTAL_Q, HEADS * DIM]), 'ERR_VARLEN_SHAPE'],
      [empty([TOTAL_Q, HEADS, DIM], 'float16'), 'ERR_VARLEN_DTYPE'],
      [filled([TOTAL_Q, HEADS, 2 * DIM]).slice(2, 0, DIM), 'ERR_VARLEN_LAYOUT'],
      [q, 'ERR_VARLEN_INCOMPATIBLE'],
      [q.view([TOTAL_Q, HEADS, DIM]), 'ERR_VARLEN_INCOMPATIBLE'],
    ];
    for (const [out, code] of outputs) refuses({ ...good, out }, code, 'out');
    for (const [out] of outputs) if (out !== q) out.dispose();
    refuses({ ...good, out: wrong(new Float32Array(8)) }, 'ERR_VARLEN_TYPE', 'out');
  });
});

describe('numbers and flags', () => {
  const typeErrors = [10n, '1', Symbol('one'), null, {}, [], true, { valueOf: () => thrown(() => 0) }];

  test.each<[string, (value: unknown) => VarlenAttentionOptions, number[], number[]]>([
    [
      'softmaxScale',
      (x) => ({ ...good, softmaxScale: wrong(x) }),
      [-0, -1, 0, 1, 1.5, 2 ** 31, 2 ** 53],
      [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e39],
    ],
    [
      'softcap',
      (x) => ({ ...good, softcap: wrong(x) }),
      [-0, 0, 1, 1.5, 2 ** 31, 2 ** 53],
      [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -1, -1e-30, 1e39],
    ],
    [
      'numSplits',
      (x) => ({ ...good, numSplits: wrong(x) }),
      [1, 2, 2 ** 31 - 1, 2 ** 31, 2 ** 32],
      [Number.NaN, Number.POSITIVE_INFINITY, -1, -0, 0, 1.5, 2 ** 53 + 2],
    ],
    [
      'windowSize',
      (x) => ({ ...good, windowSize: [wrong(x), -1] }),
      [-1, -0, 0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 53 - 1],
      [Number.NaN, Number.POSITIVE_INFINITY, -2, 1.5, -(2 ** 53)],
    ],
  ])('%s is checked', (name, make, accepted, refused) => {
    for (const value of accepted) scope(() => varlenAttention(q, k, v, make(value)).out.dataSync());
    for (const value of refused) refuses(make(value), 'ERR_VARLEN_RANGE', name);
    for (const value of typeErrors) refuses(make(value), 'ERR_VARLEN_TYPE', name);
  });

  test('maxSeqlen is checked', () => {
    const make = (value: unknown): VarlenAttentionOptions => ({ ...good, maxSeqlenQ: wrong(value) });
    for (const value of [4, 5, 2 ** 31, 2 ** 53 - 1]) {
      scope(() => varlenAttention(q, k, v, make(value)).out.dataSync());
    }
    for (const value of [0, -0, 1, 3, -1, -2]) refuses(make(value), 'ERR_VARLEN_MAX_SEQLEN', 'maxSeqlenQ');
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, 4.5, 2 ** 53 + 2]) {
      refuses(make(value), 'ERR_VARLEN_RANGE', 'maxSeqlenQ');
    }
    for (const value of typeErrors) refuses(make(value), 'ERR_VARLEN_TYPE', 'maxSeqlenQ');
    refuses({ ...good, maxSeqlenK: 3 }, 'ERR_VARLEN_MAX_SEQLEN', 'maxSeqlenK');
  });

  test('a window is a pair', () => {
    for (const value of [3, [1], [1, 2, 3], '1,2', { 0: 1, 1: 2 }, null, Int32Array.of(1, 2)]) {
      refuses({ ...good, windowSize: wrong(value) }, 'ERR_VARLEN_TYPE', 'windowSize');
    }
  });

  test('flags are booleans', () => {
    for (const value of [0, 1, 'yes', null, {}]) {
      refuses({ ...good, causal: wrong(value) }, 'ERR_VARLEN_TYPE', 'causal');
      refuses({ ...good, deterministic: wrong(value) }, 'ERR_VARLEN_TYPE', 'deterministic');
    }
  });

  test('validate is one of its words', () => {
    for (const value of ['some', '', 'toString', '__proto__']) {
      refuses({ ...good, validate: wrong(value) }, 'ERR_VARLEN_OPTION', 'validate');
    }
    for (const value of [null, 1, Symbol('full')]) {
      const { code } = thrown(() =>
        varlenAttention(q, k, v, { ...good, validate: wrong(value) }),
      ) as VarlenError;
      expect(['ERR_VARLEN_OPTION', 'ERR_VARLEN_TYPE']).toContain(code);
    }
  });
});

describe('the options object', () => {
  test('with an unknown key is refused, with the nearest known one', () => {
    refuses({ ...good, ...wrong({ casual: true }) }, 'ERR_VARLEN_OPTION', 'casual');
    const { message } = thrown(() =>
      varlenAttention(q, k, v, { ...good, ...wrong({ casual: true }) }),
    ) as Error;
    expect(message).toContain("did you mean 'causal'?");
    refuses(wrong(JSON.parse('{ "__proto__": 1 }')), 'ERR_VARLEN_OPTION', '__proto__');
    refuses({ ...good, ...wrong({ constructor: 1 }) }, 'ERR_VARLEN_OPTION', 'constructor');
  });

  test('is an object', () => {
    for (const value of [null, 3, 'causal', true]) refuses(wrong(value), 'ERR_VARLEN_TYPE', 'options');
    refuses(wrong(undefined), 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens');
  });

  test('is read once, without what it inherits, and its getters may throw', () => {
    let reads = 0;
    const options = Object.create({ causal: 'inherited', softcap: -1 });
    Object.defineProperties(options, {
      cuSeqlensQ: { enumerable: true, get: () => (reads++ === 0 ? CU_Q : Int32Array.of(5)) },
      cuSeqlensK: { enumerable: true, value: CU_K },
    });
    scope(() => {
      const want = bitsOf(varlenAttention(q, k, v, good).out);
      expect(bitsOf(varlenAttention(q, k, v, options).out).equals(want)).toBe(true);
    });
    expect(reads).toBe(1);
    const boom = new Error('boom');
    const throwing = {
      ...good,
      get causal(): boolean {
        throw boom;
      },
    };
    expect(thrown(() => varlenAttention(q, k, v, throwing))).toBe(boom);
  });
});

describe('the backward call', () => {
  const refusesBackward = (
    call: (saved: ReturnType<typeof varlenAttention>['saved']) => unknown,
    code: VarlenErrorCode,
    argument: string,
  ) => {
    using result = varlenAttention(q, k, v, good);
    expectRefused(() => call(result.saved), code, argument, 'varlenAttentionBackward');
  };
  const given =
    (options: VarlenAttentionBackwardOptions) => (saved: Parameters<typeof varlenAttentionBackward>[1]) =>
      varlenAttentionBackward(q, saved, options);

  test('refuses gradients that do not fit', () => {
    scope(() => {
      const other = filled([TOTAL_Q, HEADS, DIM - 1]);
      const halves = q.to('float16');
      const flat = q.view([TOTAL_Q, HEADS * DIM]);
      refusesBackward((saved) => varlenAttentionBackward(other, saved), 'ERR_VARLEN_SHAPE', 'q');
      refusesBackward((saved) => varlenAttentionBackward(flat, saved), 'ERR_VARLEN_SHAPE', 'dOut');
      refusesBackward((saved) => varlenAttentionBackward(halves, saved), 'ERR_VARLEN_DTYPE', 'q');
      const dLse = filled([HEADS, TOTAL_Q]);
      const turned = filled([TOTAL_Q, HEADS]);
      refusesBackward(given({ dLse: turned }), 'ERR_VARLEN_SHAPE', 'dLse');
      refusesBackward(given({ dLse: dLse.to('bfloat16') }), 'ERR_VARLEN_DTYPE', 'dLse');
      refusesBackward(given({ dLse: wrong(new Float32Array(28)) }), 'ERR_VARLEN_TYPE', 'dLse');
    });
  });

  test('refuses outputs that do not fit or share memory', () => {
    scope(() => {
      const [dq, dk] = [filled([TOTAL_Q, HEADS, DIM]), filled([TOTAL_K, KV_HEADS, DIM])];
      refusesBackward(given({ dq: dk }), 'ERR_VARLEN_SHAPE', 'dq');
      refusesBackward(given({ dk: dq }), 'ERR_VARLEN_SHAPE', 'dk');
      refusesBackward(given({ dq: q }), 'ERR_VARLEN_INCOMPATIBLE', 'dq');
      refusesBackward(given({ dk, dv: dk }), 'ERR_VARLEN_INCOMPATIBLE', 'dv');
      refusesBackward(given({ dv: v }), 'ERR_VARLEN_INCOMPATIBLE', 'dv');
    });
  });

  test('refuses saved tensors that were disposed, unknown options, and what is no tensor', () => {
    const result = varlenAttention(q, k, v, good);
    result.softmaxLse.dispose();
    const op = 'varlenAttentionBackward';
    expectRefused(() => varlenAttentionBackward(q, result.saved), 'ERR_VARLEN_DISPOSED', 'softmaxLse', op);
    result.out.dispose();
    refusesBackward(given(wrong({ dlse: q })), 'ERR_VARLEN_OPTION', 'dlse');
    refusesBackward((saved) => varlenAttentionBackward(wrong(null), saved), 'ERR_VARLEN_TYPE', 'dOut');
    for (const saved of [undefined, null, 3, {}, { q: 1 }, result.out]) {
      refusesBackward(() => varlenAttentionBackward(q, wrong(saved)), 'ERR_VARLEN_TYPE', 'saved');
    }
    refusesBackward(() => varlenAttentionBackward(q, wrong({ q, k, v })), 'ERR_VARLEN_TYPE', 'out');
  });
});

test('thousands of refused calls leave no memory behind', () => {
  const refuse = () => thrown(() => varlenAttention(q, k, v, { ...good, cuSeqlensQ: Int32Array.of(0, 9) }));
  refuse();
  const { allocated, liveTensors } = memoryStats();
  for (let i = 0; i < 5000; i++) refuse();
  expect(memoryStats()).toMatchObject({ allocated, liveTensors });
});
