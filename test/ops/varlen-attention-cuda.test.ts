import { describe, expect, test } from 'vitest';
import {
  type DType,
  scope,
  Tensor,
  type VarlenAttentionOptions,
  type VarlenError,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { varlenAttentionReference } from '../../src/testing/index.js';
import { gpu } from '../support/emulated-gpu.js';
import { normals } from '../support/random.js';
import { rejected } from '../support/thrown.js';

// From TypeScript to the kernels of the emulated GPU and back.

interface Shape {
  readonly rows: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
}

function inputs(
  { rows, numHeads, numKvHeads, headDim }: Shape,
  dtype: DType,
  device: 'cpu' | 'cuda',
  requiresGrad = false,
) {
  const make = (heads: number, seed: number) => {
    const shape = [rows, heads, headDim];
    return Tensor.from(normals(rows * heads * headDim, seed), { shape, dtype, device, requiresGrad });
  };
  return { q: make(numHeads, 1), k: make(numKvHeads, 2), v: make(numKvHeads, 3) };
}

/** Outputs on one device as float32 numbers. */
function outputs(shape: Shape, dtype: DType, device: 'cpu' | 'cuda', options: VarlenAttentionOptions) {
  return scope(() => {
    const { q, k, v } = inputs(shape, dtype, device);
    const { out, softmaxLse } = varlenAttention(q, k, v, options);
    return {
      out: out.to('float32').dataSync() as Float32Array,
      lse: softmaxLse.dataSync() as Float32Array,
    };
  });
}

/** Gradients on one device as float32 numbers. */
function gradients(shape: Shape, dtype: DType, device: 'cpu' | 'cuda', options: VarlenAttentionOptions) {
  return scope(() => {
    const { q, k, v } = inputs(shape, dtype, device);
    const { rows, numHeads, headDim } = shape;
    const dOut = Tensor.from(normals(rows * numHeads * headDim, 4), { shape: q.shape, dtype, device });
    const dLse = Tensor.from(normals(numHeads * rows, 5), { shape: [numHeads, rows], device });
    const { saved } = varlenAttention(q, k, v, options);
    const { dq, dk, dv } = varlenAttentionBackward(dOut, saved, { dLse });
    const read = (t: Tensor) => t.to('float32').dataSync() as Float32Array;
    return { dq: read(dq), dk: read(dk), dv: read(dv) };
  });
}

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    if (a[i] !== b[i]) largest = Math.max(largest, Math.abs(a[i] - b[i]));
  }
  return largest;
}

interface Gradients {
  readonly dq: ArrayLike<number>;
  readonly dk: ArrayLike<number>;
  readonly dv: ArrayLike<number>;
}

type Float = 'float32' | 'bfloat16' | 'float16';
const FLOATS: readonly Float[] = ['float32', 'bfloat16', 'float16'];

/** Of an output: one rounding of it, and one of P that the CPU does not make. In float32, of the sums. */
const OUTPUT_TOLERANCE = { float32: 5e-6, bfloat16: 0.03, float16: 0.004 } as const;
/** Of a gradient, in its largest element: roundings of P and dU at different places, or of sums. */
const GRADIENT_TOLERANCE = { float32: 2e-5, bfloat16: 4 * 2 ** -8, float16: 4 * 2 ** -11 } as const;

function expectClose(there: Gradients, here: Gradients, dtype: Float) {
  for (const name of ['dq', 'dk', 'dv'] as const) {
    const want = here[name];
    const largest = distance(want, new Float32Array(want.length));
    expect(distance(there[name], want), name).toBeLessThanOrEqual(largest * GRADIENT_TOLERANCE[dtype]);
  }
}

const shape: Shape = { rows: 75, numHeads: 4, numKvHeads: 2, headDim: 40 };
const cuSeqlens = Int32Array.of(0, 5, 5, 38, 70); // and five rows of nobody

const OPTIONS: [string, VarlenAttentionOptions][] = [
  ['causal', { causal: true }],
  ['full', {}],
  ['window', { windowSize: [3, 1] as const }],
  ['softcap and scale', { causal: true, softcap: 2, softmaxScale: -0.3 }],
  ['alibi', { causal: true, alibiSlopes: Float32Array.of(0.5, 0.25, 0.125, 0.0625) }],
  ['used rows', { seqUsedQ: Int32Array.of(5, 0, 20, 31), seqUsedK: Int32Array.of(4, 0, 33, 7) }],
];

describe('varlenAttention on the GPU', () => {
  test.each(OPTIONS)('agrees with the CPU and the reference: %s', (_, options) => {
    for (const dtype of FLOATS) {
      const all = { cuSeqlens, ...options };
      const there = outputs(shape, dtype, 'cuda', all);
      const here = outputs(shape, dtype, 'cpu', all);
      expect(distance(there.out, here.out)).toBeLessThanOrEqual(OUTPUT_TOLERANCE[dtype]);
      expect(distance(there.lse, here.lse)).toBeLessThanOrEqual(1e-5);
    }
  });

  test.each([64, 96, 128, 192, 256])('has kernels for head dimension %i', (headDim) => {
    const wide = { ...shape, rows: 40, numHeads: 2, headDim };
    const all = { cuSeqlens: Int32Array.of(0, 17, 40), causal: true };
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const there = outputs(wide, dtype, 'cuda', all);
      const here = outputs(wide, dtype, 'cpu', all);
      expect(distance(there.out, here.out)).toBeLessThanOrEqual(OUTPUT_TOLERANCE[dtype]);
    }
  });

  test('keeps document masks', () => {
    const keyEnd = Int32Array.of(7, 7, 7, 5, 5, 7, 7);
    const tree = { rows: 7, numHeads: 1, numKvHeads: 1, headDim: 16 };
    const options = { cuSeqlens: Int32Array.of(0, 7), causal: true, keyEnd };
    const there = outputs(tree, 'float16', 'cuda', options);
    expect(distance(there.out, outputs(tree, 'float16', 'cpu', options).out)).toBeLessThanOrEqual(0.004);
    scope(() => {
      const { q, k, v } = inputs(tree, 'float16', 'cuda');
      const given = { ...options, keyEnd: Tensor.from(keyEnd, { device: 'cuda' }) };
      const { out } = varlenAttention(q, k, v, given);
      expect(distance(out.to('float32').dataSync() as Float32Array, there.out)).toBe(0);
    });
  });

  test('takes offsets that only the GPU knows, with the same bits', () => {
    const onHost = outputs(shape, 'bfloat16', 'cuda', { cuSeqlens, causal: true });
    scope(() => {
      const given = Tensor.from(cuSeqlens, { device: 'cuda' });
      const onGpu = outputs(shape, 'bfloat16', 'cuda', { cuSeqlens: given, maxSeqlen: 33, causal: true });
      expect(onGpu).toEqual(onHost);
    });
  });

  test.each([
    [
      'start',
      [1, 5, 5, 38, 70],
      33,
      'ERR_VARLEN_CU_SEQLENS',
      'cuSeqlensQ must start at 0; got 1, expected 0',
    ],
    ['fall', [0, 5, 2, 38, 70], 33, 'ERR_VARLEN_CU_SEQLENS', 'cuSeqlensQ must not decrease; got'],
    [
      'negative',
      [0, -2147483648, 5, 38, 70],
      33,
      'ERR_VARLEN_CU_SEQLENS',
      'cuSeqlensQ must not decrease; got',
    ],
    [
      'end',
      [0, 5, 5, 38, 2147483647],
      33,
      'ERR_VARLEN_CU_SEQLENS',
      'must end inside the tensor; got 2147483647',
    ],
    [
      'longer than said',
      [0, 5, 5, 38, 70],
      20,
      'ERR_VARLEN_MAX_SEQLEN',
      'is smaller than a sequence; got 20',
    ],
  ])(
    'rejects bad offsets of a tensor and touches no other memory: %s',
    async (_, values, maxSeqlen, code, text) => {
      const { q, k, v } = inputs(shape, 'bfloat16', 'cuda');
      using offsets = Tensor.from(Int32Array.from(values), { device: 'cuda' });
      const result = varlenAttention(q, k, v, { cuSeqlens: offsets, maxSeqlen });
      const error = (await rejected(result.out.data())) as VarlenError;
      expect(error.code).toBe(code);
      expect(error.message).toContain(text);
      expect(error.details.op).toBe('varlenAttention');
      expect(gpu('fault')).toBe('');
      using unharmed = q.to('float32');
      expect((await unharmed.data()).length).toBe(q.size);
      for (const tensor of [q, k, v, result.out, result.softmaxLse]) tensor.dispose();
    },
  );

  test('agrees with the float64 reference as closely as the dtype allows', () => {
    const { out } = outputs(shape, 'float16', 'cuda', { cuSeqlens, causal: true });
    scope(() => {
      const { q, k, v } = inputs(shape, 'float16', 'cpu');
      const wide = (t: Tensor) => t.to('float32').dataSync() as Float32Array;
      const want = varlenAttentionReference(
        { q: wide(q), k: wide(k), v: wide(v) },
        { numHeads: 4, numKvHeads: 2, headDim: 40, cuSeqlensQ: cuSeqlens, causal: true },
      );
      expect(distance(out, want.out)).toBeLessThanOrEqual(0.004);
    });
  });

  test.each([2, 5, 1000])('cuts the keys into %i parts', (numSplits) => {
    const all = { cuSeqlens, causal: true, numSplits };
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const there = outputs(shape, dtype, 'cuda', all);
      const here = outputs(shape, dtype, 'cpu', { cuSeqlens, causal: true });
      expect(distance(there.out, here.out)).toBeLessThanOrEqual(OUTPUT_TOLERANCE[dtype]);
      expect(distance(there.lse, here.lse)).toBeLessThanOrEqual(1e-5);
    }
  });

  test('cuts few queries against many keys by itself, however the lengths came', () => {
    const [cuQ, cuK] = [Int32Array.of(0, 1, 3), Int32Array.of(0, 2500, 2600)];
    const run = (device: 'cpu' | 'cuda', lengths: VarlenAttentionOptions) =>
      scope(() => {
        const make = (rows: number, seed: number) =>
          Tensor.from(normals(rows * 32, seed), { shape: [rows, 1, 32], dtype: 'float16', device });
        const { out, softmaxLse } = varlenAttention(make(3, 1), make(2600, 2), make(2600, 3), lengths);
        return {
          out: out.to('float32').dataSync() as Float32Array,
          lse: softmaxLse.dataSync() as Float32Array,
        };
      });
    const onHost = { cuSeqlensQ: cuQ, cuSeqlensK: cuK };
    const there = run('cuda', onHost);
    const here = run('cpu', onHost);
    expect(distance(there.out, here.out)).toBeLessThanOrEqual(0.001);
    expect(distance(there.lse, here.lse)).toBeLessThanOrEqual(1e-5);
    // What only the GPU knows is cut alike; other parts would round otherwise.
    const onGpu = scope(() =>
      run('cuda', {
        cuSeqlensQ: Tensor.from(cuQ, { device: 'cuda' }),
        cuSeqlensK: Tensor.from(cuK, { device: 'cuda' }),
        maxSeqlenQ: 2,
        maxSeqlenK: 2500,
      }),
    );
    expect(onGpu).toEqual(there);
    expect(run('cuda', { ...onHost, numSplits: 1 })).not.toEqual(there);
  });
});

describe('varlenAttentionBackward on the GPU', () => {
  test.each(OPTIONS)('agrees with the CPU: %s', (_, options) => {
    for (const dtype of FLOATS) {
      const all = { cuSeqlens, ...options };
      expectClose(gradients(shape, dtype, 'cuda', all), gradients(shape, dtype, 'cpu', all), dtype);
    }
  });

  test.each([64, 96, 128, 192, 256])('has kernels for head dimension %i', (headDim) => {
    const wide = { ...shape, rows: 40, numHeads: 2, headDim };
    const all = { cuSeqlens: Int32Array.of(0, 17, 40), causal: true };
    for (const dtype of ['float32', 'bfloat16'] as const) {
      expectClose(gradients(wide, dtype, 'cuda', all), gradients(wide, dtype, 'cpu', all), dtype);
    }
  });

  test('keeps document masks', () => {
    const keyEnd = Int32Array.of(7, 7, 7, 5, 5, 7, 7);
    const tree = { rows: 7, numHeads: 2, numKvHeads: 1, headDim: 16 };
    const options = { cuSeqlens: Int32Array.of(0, 7), causal: true, keyEnd };
    expectClose(
      gradients(tree, 'float16', 'cuda', options),
      gradients(tree, 'float16', 'cpu', options),
      'float16',
    );
  });

  test('agrees with the float64 reference as closely as the dtype allows', () => {
    const got = gradients(shape, 'float16', 'cuda', { cuSeqlens, causal: true });
    scope(() => {
      const { q, k, v } = inputs(shape, 'float16', 'cpu');
      const round = (count: number, seed: number) =>
        Tensor.from(normals(count, seed), { dtype: 'float16' }).to('float32').dataSync() as Float32Array;
      const wide = (t: Tensor) => t.to('float32').dataSync() as Float32Array;
      const { rows, numHeads, numKvHeads, headDim } = shape;
      const want = varlenAttentionReference(
        {
          q: wide(q),
          k: wide(k),
          v: wide(v),
          dOut: round(rows * numHeads * headDim, 4),
          dLse: normals(numHeads * rows, 5),
        },
        { numHeads, numKvHeads, headDim, cuSeqlensQ: cuSeqlens, causal: true },
      );
      expectClose(got, { dq: want.dq!, dk: want.dk!, dv: want.dv! }, 'float16');
    });
  });

  test('takes offsets that only the GPU knows, with the same bits in every run', () => {
    const onHost = gradients(shape, 'bfloat16', 'cuda', { cuSeqlens, causal: true });
    for (let run = 0; run < 3; run++) {
      scope(() => {
        const given = Tensor.from(cuSeqlens, { device: 'cuda' });
        const options = { cuSeqlens: given, maxSeqlen: 33, causal: true };
        expect(gradients(shape, 'bfloat16', 'cuda', options)).toEqual(onHost);
      });
    }
  });

  test('writes zeros where there is nothing to attend to', () => {
    scope(() => {
      const make = (rows: number) =>
        Tensor.from(new Float32Array(rows * 32).fill(1), {
          shape: [rows, 2, 16],
          dtype: 'bfloat16',
          device: 'cuda',
        });
      const [none, some] = [make(0), make(3)];
      const empty = Int32Array.of(0, 0);
      const queries = varlenAttention(some, none, none, {
        cuSeqlensQ: Int32Array.of(0, 3),
        cuSeqlensK: empty,
      });
      const { dq, dk } = varlenAttentionBackward(some, queries.saved);
      expect([dq.size, dk.size]).toEqual([96, 0]);
      expect(new Set(dq.to('float32').dataSync() as Float32Array)).toEqual(new Set([0]));
      const keys = varlenAttention(none, some, some, { cuSeqlensQ: empty, cuSeqlensK: Int32Array.of(0, 3) });
      const { dk: dkOfNone, dv: dvOfNone } = varlenAttentionBackward(none, keys.saved);
      for (const gradient of [dkOfNone, dvOfNone]) {
        expect(new Set(gradient.to('float32').dataSync() as Float32Array)).toEqual(new Set([0]));
      }
    });
  });

  test('runs in a recorded call', () => {
    scope(() => {
      const { q, k, v } = inputs(shape, 'bfloat16', 'cuda', true);
      const dOut = Tensor.from(new Float32Array(q.size).fill(1), {
        shape: q.shape,
        dtype: 'bfloat16',
        device: 'cuda',
      });
      const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
      const { dq } = varlenAttentionBackward(dOut, saved);
      out.backward(dOut);
      expect(q.grad?.dataSync()).toEqual(dq.to('float32').dataSync());
      expect(k.grad?.shape).toEqual(k.shape);
    });
  });
});
