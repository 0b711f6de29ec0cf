import { describe, expect, test } from 'vitest';
import {
  type DType,
  scope,
  Tensor,
  type VarlenAttentionOptions,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { gpu } from '../support/emulated-gpu.js';
import { normals } from '../support/random.js';

// The emulated GPU as one of compute capability 9.0, where attention has kernels of its own. Before
// the first tensor on it: a GPU is asked once what it is.
gpu('major 9');

interface Shape {
  readonly rows: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
}

function outputs(shape: Shape, device: 'cpu' | 'cuda', options: VarlenAttentionOptions) {
  return scope(() => {
    const { rows, numHeads, numKvHeads, headDim } = shape;
    const make = (heads: number, seed: number) =>
      Tensor.from(normals(rows * heads * headDim, seed), {
        shape: [rows, heads, headDim],
        dtype: 'bfloat16',
        device,
      });
    const { out, softmaxLse } = varlenAttention(
      make(numHeads, 1),
      make(numKvHeads, 2),
      make(numKvHeads, 3),
      options,
    );
    return {
      out: out.to('float32').dataSync() as Float32Array,
      lse: softmaxLse.dataSync() as Float32Array,
    };
  });
}

/** Gradients of the sum of out times normals and of lse times normals, as float32 numbers. */
function gradients(shape: Shape, dtype: DType, device: 'cpu' | 'cuda', options: VarlenAttentionOptions) {
  return scope(() => {
    const { rows, numHeads, numKvHeads, headDim } = shape;
    const make = (heads: number, seed: number) =>
      Tensor.from(normals(rows * heads * headDim, seed), { shape: [rows, heads, headDim], dtype, device });
    const { softmaxLse, saved } = varlenAttention(
      make(numHeads, 1),
      make(numKvHeads, 2),
      make(numKvHeads, 3),
      options,
    );
    const dLse = Tensor.from(normals(numHeads * rows, 5), { shape: [numHeads, rows], device });
    softmaxLse.dataSync(); // the forward pass has made its maps
    const made = () => Number(gpu('count encode'));
    const before = made();
    const { dq, dk, dv } = varlenAttentionBackward(make(numHeads, 4), saved, { dLse });
    const read = (t: Tensor) => t.to('float32').dataSync() as Float32Array;
    const values = { dq: read(dq), dk: read(dk), dv: read(dv) };
    return { values, maps: made() - before };
  });
}

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    if (a[i] !== b[i]) largest = Math.max(largest, Math.abs(a[i] - b[i]));
  }
  return largest;
}

/** Tensor maps that one call makes: two (k and v) where TMA loads, none on the path of other GPUs. */
function mapsOf(shape: Shape, options: VarlenAttentionOptions): number {
  const made = () => Number(gpu('count encode'));
  const before = made();
  const there = outputs(shape, 'cuda', options);
  expect(gpu('fault')).toBe('');
  const here = outputs(shape, 'cpu', options);
  // One rounding of the output, and one of P that the CPU does not make.
  expect(distance(there.out, here.out)).toBeLessThanOrEqual(0.03);
  expect(distance(there.lse, here.lse)).toBeLessThanOrEqual(1e-5);
  return made() - before;
}

/** Tensor maps that one backward call makes: two for each pass that loads by TMA. */
function backwardMapsOf(shape: Shape, options: VarlenAttentionOptions, dtype: DType = 'bfloat16'): number {
  const there = gradients(shape, dtype, 'cuda', options);
  expect(gpu('fault')).toBe('');
  const here = gradients(shape, dtype, 'cpu', options);
  for (const name of ['dq', 'dk', 'dv'] as const) {
    const want = here.values[name];
    const largest = distance(want, new Float32Array(want.length));
    // The devices round P and dU to the dtype at different places.
    const units = 4 * largest * (dtype === 'bfloat16' ? 2 ** -8 : 2 ** -11);
    expect(distance(there.values[name], want), name).toBeLessThanOrEqual(units);
  }
  return there.maps;
}

const shape: Shape = { rows: 75, numHeads: 4, numKvHeads: 2, headDim: 40 };
const cuSeqlens = Int32Array.of(0, 5, 5, 38, 70); // and five rows of nobody
const OPTIONS: [string, VarlenAttentionOptions][] = [
  ['causal', { causal: true }],
  ['full', {}],
  ['window', { windowSize: [3, 1] as const }],
  ['softcap and scale', { causal: true, softcap: 2, softmaxScale: -0.3 }],
  ['scale 0', { softmaxScale: 0 }],
  ['alibi', { causal: true, alibiSlopes: Float32Array.of(0.5, 0.25, 0.125, 0.0625) }],
  ['used rows', { seqUsedQ: Int32Array.of(5, 0, 20, 31), seqUsedK: Int32Array.of(4, 0, 33, 7) }],
];

describe('varlenAttention on compute capability 9.0', () => {
  test.each(OPTIONS)('loads by TMA and agrees with the CPU: %s', (_, options) => {
    expect(mapsOf(shape, { cuSeqlens, ...options })).toBe(2);
  });

  test('cuts keys where that is asked for only: no sequence chooses the kernel of the others', () => {
    const long = { rows: 2500, numHeads: 1, numKvHeads: 1, headDim: 16 };
    const few = { cuSeqlensQ: Int32Array.of(0, 2), cuSeqlensK: Int32Array.of(0, 2500) };
    expect(mapsOf(long, few)).toBe(2);
    expect(mapsOf(long, { ...few, numSplits: 2 })).toBe(0);
  });

  test.each([64, 96, 128, 192, 256])('has a kernel for head dimension %i', (headDim) => {
    const wide = { ...shape, rows: 40, numHeads: 2, headDim };
    expect(mapsOf(wide, { cuSeqlens: Int32Array.of(0, 17, 40), causal: true })).toBe(2);
  });

  test('takes the path of other GPUs where rows are not on 16 bytes', () => {
    expect(mapsOf({ ...shape, headDim: 20 }, { cuSeqlens, causal: true })).toBe(0);
    expect(mapsOf({ ...shape, headDim: 25 }, { cuSeqlens, causal: true })).toBe(0);
  });
});

describe('varlenAttentionBackward on compute capability 9.0', () => {
  test.each(OPTIONS)('loads by TMA and agrees with the CPU: %s', (_, options) => {
    for (const dtype of ['bfloat16', 'float16'] as const) {
      expect(backwardMapsOf(shape, { cuSeqlens, ...options }, dtype)).toBe(4);
    }
  });

  test('sees trees as the CPU does', () => {
    // A prompt of 30 rows, and four answers of ten that see it and not each other.
    const keyEnd = Int32Array.from({ length: 70 }, (_, j) =>
      j < 30 ? 70 : 40 + 10 * Math.floor((j - 30) / 10),
    );
    const tree = { cuSeqlens: Int32Array.of(0, 70), causal: true, keyEnd };
    expect(backwardMapsOf({ ...shape, rows: 70 }, tree)).toBe(4);
  });

  // From 192 on dk and dv are passes of their own.
  test.each([
    [64, 4],
    [96, 4],
    [128, 4],
    [192, 6],
    [256, 6],
  ])('has kernels for head dimension %i', (headDim, maps) => {
    const wide = { ...shape, rows: 40, numHeads: 3, numKvHeads: 1, headDim };
    expect(backwardMapsOf(wide, { cuSeqlens: Int32Array.of(0, 17, 40), causal: true })).toBe(maps);
  });

  test('takes the kernels of other GPUs where rows are not on 16 bytes', () => {
    expect(backwardMapsOf({ ...shape, headDim: 20 }, { cuSeqlens, causal: true })).toBe(0);
  });

  test('leaves groups of more heads than a block has columns to the kernel of other GPUs', () => {
    const few = { rows: 20, numHeads: 130, numKvHeads: 1, headDim: 16 };
    expect(backwardMapsOf(few, { cuSeqlens: Int32Array.of(0, 9, 20), causal: true })).toBe(2);
  });

  test('gives the same bits every time', () => {
    const runs = Array.from({ length: 3 }, () =>
      gradients(shape, 'bfloat16', 'cuda', { cuSeqlens, causal: true }),
    );
    for (const { values } of runs) expect(values).toEqual(runs[0].values);
  });
});
