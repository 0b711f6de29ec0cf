import { afterEach, beforeEach, expect } from 'vitest';
import {
  type DType,
  deviceInfo,
  memoryStats,
  scope,
  setNumThreads,
  Tensor,
  VarlenError,
  type VarlenErrorCode,
} from '../../src/index.js';
import { bitsOf, device } from './attention.js';
import { normals } from './random.js';
import { rejected, thrown } from './thrown.js';

/** What the tests of the smaller ops share. */

/** Every test must dispose what it makes, and so must the package. */
export function countTensors(): void {
  let alive: number;
  beforeEach(() => {
    alive = memoryStats().liveTensors;
  });
  afterEach(() => expect(memoryStats().liveTensors).toBe(alive));
}

/** Normal values, the same ones for the same seed. */
export function random(shape: readonly number[], seed: number, dtype: DType = 'float32', scale = 1): Tensor {
  const size = shape.reduce((product, n) => product * n, 1);
  const values = normals(size, seed).map((value) => value * scale);
  return Tensor.from(values, { shape, dtype, device });
}

/** A tensor of these values. */
export function values(shape: readonly number[], ...elements: number[]): Tensor {
  return Tensor.from(Float32Array.from(elements), { shape, device });
}

/** Elements as float32 numbers. */
export function read(tensor: Tensor | null | undefined): number[] {
  using wide = (tensor as Tensor).to('float32');
  return Array.from(wide.dataSync() as Float32Array);
}

/** A parameter's gradient, copied into the current scope. */
export function taken(leaf: Tensor): Tensor {
  using gradient = leaf.grad as Tensor;
  return gradient.copy();
}

/** A value whose type the declarations forbid. */
// biome-ignore lint/suspicious/noExplicitAny: that is the point
export const wrong = (value: unknown): any => value;

/** The call must throw the code for the argument and leave no tensor. */
export function expectRefused(
  call: () => unknown,
  code: VarlenErrorCode,
  argument: string | undefined,
  op: string,
): void {
  const before = memoryStats().liveTensors;
  const error = thrown(call);
  expect(error).toBeInstanceOf(VarlenError);
  const { code: got, details, message } = error as VarlenError;
  expect({ code: got, argument: details.argument, op: details.op }).toEqual({ code, argument, op });
  expect(message.startsWith(`${op}: ${argument ?? ''}`)).toBe(true);
  expect(memoryStats().liveTensors).toBe(before);
}

/** Reading the result must reject with the code. */
export async function expectLate(result: Tensor, code: VarlenErrorCode, op: string): Promise<void> {
  const error = (await rejected(result.data())) as VarlenError;
  expect({ code: error.code, op: error.details.op }).toEqual({ code, op });
  result.dispose();
}

/** The results must be the same bits for 1, 2, 3 and 16 threads. */
export function expectSameOnThreads(compute: () => readonly Tensor[]): void {
  const before = deviceInfo().threads;
  try {
    const once = (threads: number): unknown[] => {
      setNumThreads(threads);
      return scope(() => compute().map((tensor) => bitsOf(tensor)));
    };
    const first = once(1);
    for (const threads of [2, 3, 16]) expect(once(threads)).toEqual(first);
  } finally {
    setNumThreads(before);
  }
}
