import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type DType, linear, scope, Tensor, type VarlenError } from '../../src/index.js';
import { distance, type Side } from '../support/both-devices.js';
import { gpu } from '../support/emulated-gpu.js';
import { countTensors, read } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected } from '../support/thrown.js';

// The products by cuBLASLt, over a library with its names, and by our own kernels where it has none.

const folder = mkdtempSync(join(tmpdir(), 'varlen-cublaslt-'));
const source = join(import.meta.dirname, 'linear/fake-cublaslt.cc');

function compile(name: string, ...flags: string[]): string {
  const library = join(folder, name);
  const args = ['-std=c++20', '-O1', '-Wall', '-Wextra', '-Werror', '-fPIC', '-shared', source];
  const { status, stderr } = spawnSync('c++', [...args, ...flags, '-o', library], { encoding: 'utf8' });
  expect(status, stderr).toBe(0);
  return library;
}

beforeAll(() => {
  // The first that serves is taken: one is missing, one lacks a function, one is too old, one refuses the GPU.
  const files = [
    join(folder, 'missing.so'),
    compile('partial.so', '-DcublasLtMatmul=another'),
    compile('old.so', '-DOLD'),
    compile('refusing.so', '-DREFUSES'),
    compile('whole.so'),
  ];
  expect(gpu(`cublaslt ${files.join(' ')}`)).toBe('');
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true }));
countTensors();

interface Shape {
  readonly rows: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Launches of kernels so far, once everything that makes the inputs is done. */
function launches(...inputs: Tensor[]): number {
  for (const input of inputs) input.dataSync();
  return Number(gpu('count launch'));
}

/** y, and the gradients of x, W and b, in a device's arithmetic. */
function passes({ rows, inFeatures, outFeatures }: Shape, dtype: DType, device: Side) {
  return scope(() => {
    const make = (shape: number[], seed: number, requiresGrad: boolean) => {
      const size = shape.reduce((product, n) => product * n, 1);
      return Tensor.from(normals(size, seed), { shape, dtype, device, requiresGrad });
    };
    const x = make([rows, inFeatures], 1, true);
    const weight = make([outFeatures, inFeatures], 2, true);
    const bias = make([outFeatures], 3, true);
    const before = launches(x, weight, bias);
    const y = linear(x, weight, { bias });
    const forward = launches(y) - before;
    const values = [read(y)];
    y.backward(make([rows, outFeatures], 4, false));
    for (const leaf of [x, weight, bias]) {
      values.push(read(leaf.grad));
      leaf.grad?.dispose();
    }
    return { values, forward };
  });
}

const TOLERANCE = { float32: 2e-6, float16: 1e-3, bfloat16: 8e-3 } as const;

test.each(['float32', 'float16', 'bfloat16'] as const)('cuBLASLt computes both passes in %s', (dtype) => {
  for (const shape of [
    { rows: 5, inFeatures: 7, outFeatures: 3 },
    { rows: 1, inFeatures: 16, outFeatures: 24 },
    { rows: 33, inFeatures: 8, outFeatures: 1 },
  ]) {
    const there = passes(shape, dtype, 'cuda');
    const here = passes(shape, dtype, 'cpu');
    expect(there.forward).toBe(0); // no kernel of ours
    for (const [i, values] of there.values.entries()) {
      expect(distance(values, here.values[i])).toBeLessThanOrEqual(TOLERANCE[dtype]);
    }
  }
});

test('cuBLASLt is told how tensors that begin anywhere are aligned, and serves every bias', () => {
  scope(() => {
    const all = Tensor.from(normals(60, 1), { shape: [15, 4], dtype: 'bfloat16', device: 'cuda' });
    const weight = Tensor.from(normals(8, 2), { shape: [2, 4], dtype: 'bfloat16', device: 'cuda' });
    const biases = Tensor.from(normals(4, 3), { shape: [2, 2], dtype: 'bfloat16', device: 'cuda' });
    const before = launches(all, weight, biases);
    const whole = [0, 1].map((i) => {
      const bias = biases.slice(0, i, i + 1).view([2]);
      return read(linear(all, weight, { bias }));
    });
    expect(whole[0]).not.toEqual(whole[1]);
    for (const start of [0, 1, 2, 3]) {
      const bias = biases.slice(0, 1, 2).view([2]);
      const part = linear(all.slice(0, start, start + 5), weight, { bias });
      expect(read(part)).toEqual(whole[1].slice(2 * start, 2 * start + 10));
    }
    // The conversions to float32 alone.
    expect(launches() - before).toBe(6);
  });
});

test('what cuBLASLt has no algorithm for, our kernels compute', () => {
  process.env.FAKE_CUBLASLT_NO_KERNEL_FOR = '6';
  try {
    const shape = { rows: 4, inFeatures: 3, outFeatures: 6 };
    const there = passes(shape, 'float32', 'cuda');
    expect(there.forward).toBe(1);
    const here = passes(shape, 'float32', 'cpu');
    for (const [i, values] of there.values.entries()) {
      expect(distance(values, here.values[i])).toBeLessThanOrEqual(TOLERANCE.float32);
    }
  } finally {
    delete process.env.FAKE_CUBLASLT_NO_KERNEL_FOR;
  }
});

test('empty products need no library', () => {
  scope(() => {
    const none = Tensor.empty([0, 3], { dtype: 'float32', device: 'cuda' });
    const weight = Tensor.from(normals(6, 1), { shape: [2, 3], device: 'cuda' });
    expect(linear(none, weight).shape).toEqual([0, 2]);
    const nothing = Tensor.empty([2, 0], { dtype: 'float32', device: 'cuda' });
    const bias = Tensor.from(Float32Array.of(1, 2), { device: 'cuda' });
    const wide = Tensor.empty([3, 0], { dtype: 'float32', device: 'cuda' });
    expect(read(linear(wide, nothing, { bias }))).toEqual([1, 2, 1, 2, 1, 2]);
  });
});

test('a failure of cuBLASLt is a typed error that names the product, and the GPU lives', async () => {
  using x = Tensor.from(normals(6, 1), { shape: [2, 3], device: 'cuda' });
  using weight = Tensor.from(normals(12, 2), { shape: [4, 3], device: 'cuda' });
  process.env.FAKE_CUBLASLT_STATUS = '13';
  using failed = linear(x, weight);
  const error = (await rejected(failed.data())) as VarlenError;
  delete process.env.FAKE_CUBLASLT_STATUS;
  expect(error.code).toBe('ERR_VARLEN_CUDA');
  expect(error.message).toContain(
    'linear: failed on cuda:0: cublasLtMatmul gave CUBLAS_STATUS_EXECUTION_FAILED for ' +
      '2 x 3 by 3 x 4 of float32, expected CUBLAS_STATUS_SUCCESS',
  );
  expect(error.details).toMatchObject({ op: 'linear', cudaError: 'CUBLAS_STATUS_EXECUTION_FAILED' });
  using again = linear(x, weight);
  expect(read(again)).toHaveLength(8);
});
