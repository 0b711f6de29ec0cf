import {
  type HeadPattern,
  type PrefillConfig,
  type PrefillPlan,
  type PrefillPlanOptions,
  planPrefill,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';

/** Small plans for tests, and what their sets are. */

/** Numbers of a normal distribution, the same on every run. */
export function normals(count: number, seed = 1, scale = 1): Float32Array {
  let state = seed >>> 0 || 1;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from(
    { length: count },
    () => scale * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}

export function randomTensor(
  shape: readonly number[],
  seed: number,
  dtype: 'float32' | 'float16' | 'bfloat16' = 'float32',
): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return Tensor.from(normals(size, seed), { shape, dtype, device: 'cpu' });
}

/** Options that keep small sequences from being made dense. */
export const EXACT = { denseBelow: 0, denseAbove: 1, minModalityRows: 0 } as const;

export interface SmallPlan {
  readonly queries: number;
  readonly keys?: number;
  readonly config?: Omit<PrefillConfig, 'heads'>;
  readonly options?: Omit<PrefillPlanOptions, 'cuSeqlens'>;
}

/** A plan of one head over random q and k. */
export function smallPlan(
  pattern: HeadPattern,
  { queries, keys = queries, config, options }: SmallPlan,
): PrefillPlan {
  using q = randomTensor([queries, 1, 8], 3);
  using k = randomTensor([keys, 1, 8], 4);
  return planPrefill({ heads: pattern, ...config }, q, k, {
    cuSeqlensQ: Int32Array.of(0, queries),
    cuSeqlensK: Int32Array.of(0, keys),
    ...EXACT,
    ...options,
  });
}

/** Keys of each row. */
export function rowsOf(mask: Uint8Array, keys: number): number[][] {
  return Array.from({ length: mask.length / keys }, (_, r) =>
    Array.from({ length: keys }, (_, j) => j).filter((j) => mask[r * keys + j] !== 0),
  );
}

/** The rows of a set; every pair must be computed at most once. */
export async function setOf(
  pattern: HeadPattern,
  shape: SmallPlan,
  set: 'lines' | 'computed' = 'computed',
): Promise<number[][]> {
  using plan = smallPlan(pattern, shape);
  const mask = await plan.mask(0, 0, set);
  if (mask.some((times) => times > 1)) throw new Error('a pair is computed twice');
  return rowsOf(mask, shape.keys ?? shape.queries);
}

export const sizeOf = (rows: readonly (readonly number[])[]): number =>
  rows.reduce((n, row) => n + row.length, 0);
