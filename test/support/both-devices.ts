import { expect } from 'vitest';
import { type DType, scope, Tensor } from '../../src/index.js';
import './emulated-gpu.js';
import { normals } from './random.js';

/** For tests of `device: 'cuda'` that ask the CPU for what is right. */

export type Side = 'cpu' | 'cuda';

export interface MatrixOptions {
  dtype?: DType;
  /** Standard deviation. Default 1. */
  scale?: number;
  /** Columns of NaN that stand in memory after each row. Default 0. */
  padding?: number;
}

/** A leaf of normal values on one device, and its rows as an op takes them. */
export function matrix(
  device: Side,
  [rows, columns]: readonly [number, number],
  seed: number,
  { dtype = 'float32', scale = 1, padding = 0 }: MatrixOptions = {},
): { leaf: Tensor; rows: Tensor } {
  const stride = columns + padding;
  const wide = new Float32Array(rows * stride).fill(Number.NaN);
  for (const [i, value] of normals(rows * columns, seed).entries()) {
    wide[Math.floor(i / columns) * stride + (i % columns)] = value * scale;
  }
  const leaf = Tensor.from(wide, { shape: [rows, stride], dtype, device, requiresGrad: true });
  return { leaf, rows: padding === 0 ? leaf : leaf.slice(1, 0, columns) };
}

/** Largest distance of two results relative to the larger one's largest element; infinite if either lacks a number. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let apart = 0;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    if (a[i] === b[i]) {
      largest = Math.max(largest, Math.abs(a[i]));
      continue;
    }
    const one = Math.abs(a[i] - b[i]);
    apart = Number.isNaN(one) ? Number.POSITIVE_INFINITY : Math.max(apart, one);
    largest = Math.max(largest, Math.abs(a[i]), Math.abs(b[i]));
  }
  return largest === 0 ? apart : apart / largest;
}

/** The named results on both devices must be within `tolerance(name)` of each other. */
export function expectBothAgree(
  compute: (device: Side) => Record<string, Tensor>,
  tolerance: (name: string) => number,
): void {
  const on = (device: Side) =>
    scope(() =>
      Object.fromEntries(
        Object.entries(compute(device)).map(([name, t]) => [
          name,
          t.to('float32').dataSync() as Float32Array,
        ]),
      ),
    );
  const here = on('cpu');
  for (const [name, values] of Object.entries(on('cuda'))) {
    expect(distance(values, here[name]), name).toBeLessThanOrEqual(tolerance(name));
  }
}
