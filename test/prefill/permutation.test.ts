import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type HeadPattern, planPrefill, sparsePrefill } from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { EXACT, normals, setOf } from './cases.js';

// A grid without moving a row (MMInference, figure 3d): what the kernel does in place is here done with copies.

/** Positions of a grid by class, each in order, the class of the lines last. */
function gridOrder(length: number, stride: number, phase: number): number[] {
  const classOf = (x: number): number => (((x - phase) % stride) + stride) % stride;
  const key = (x: number): number => (classOf(x) + stride - 1) % stride;
  return Array.from({ length }, (_, x) => x).sort((a, b) => key(a) - key(b) || a - b);
}

const inverse = (order: readonly number[]): number[] => {
  const at = new Array<number>(order.length);
  for (const [n, x] of order.entries()) at[x] = n;
  return at;
};

test('E4: the order of a grid of 14 positions, and back', () => {
  const order = gridOrder(14, 4, 1);
  expect(order).toEqual([2, 6, 10, 3, 7, 11, 0, 4, 8, 12, 1, 5, 9, 13]);
  expect(inverse(order)).toEqual([6, 10, 0, 3, 7, 11, 1, 4, 8, 12, 2, 5, 9, 13]);
});

test('queries sorted by modality have the bits of a boundary plan that leaves them where they are (P8)', async () => {
  // Without a causal mask, which would follow the queries to their new places.
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 200 }),
      async (modalities) => {
        const [length, dim] = [modalities.length, 8];
        const ids = Uint8Array.from(modalities);
        const order = [0, 1].flatMap((id) => Array.from(ids.keys()).filter((x) => ids[x] === id));
        const [qs, ks, vs] = [1, 2, 3].map((seed) => normals(length * dim, seed));
        const tensor = (data: Float32Array): Tensor =>
          Tensor.from(data, { shape: [length, 1, dim], device: 'cpu' });
        const moved = Float32Array.from(qs, (_, i) => qs[order[Math.floor(i / dim)] * dim + (i % dim)]);
        const dense = { kind: 'union', of: [{ kind: 'dense' }] } as const;
        const options = { cuSeqlens: Int32Array.of(0, length), ...EXACT, modality: [{ ids }] };
        const results: Float32Array[] = [];
        for (const [pattern, q] of [
          [{ kind: 'q-boundary', by: { text: dense, vision: dense } }, qs],
          [dense, moved],
        ] as const) {
          using queries = tensor(q);
          using key = tensor(ks);
          using value = tensor(vs);
          using plan = planPrefill({ heads: pattern, causal: false }, queries, key, options);
          using result = sparsePrefill(plan, queries, key, value);
          results.push(await result.out.toFloat32());
        }
        const back = inverse(order);
        const put = Float32Array.from(
          results[1],
          (_, i) => results[1][back[Math.floor(i / dim)] * dim + (i % dim)],
        );
        expect(results[0]).toEqual(put);
      },
    ),
    { numRuns: 25 },
  );
});

test('slashes are dense causal blocks, one per class, once the classes stand together (P8)', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 2, max: 24 }),
      fc.integer({ min: 1, max: 260 }),
      async (stride, length) => {
        const phase = stride >> 1;
        const grid: HeadPattern = {
          kind: 'grid',
          stride,
          phase,
          hline: false,
          vline: false,
          slash: true,
          sink: 0,
          local: 1,
        };
        const order = gridOrder(length, stride, phase);
        const [dim, values] = [8, [1, 2, 3].map((seed) => normals(length * 8, seed))];
        const tensor = (data: Float32Array): Tensor =>
          Tensor.from(data, { shape: [length, 1, dim], device: 'cpu' });
        const permute = (data: Float32Array): Float32Array =>
          Float32Array.from(data, (_, i) => data[order[Math.floor(i / dim)] * dim + (i % dim)]);

        const [q, k, v] = values.map(tensor);
        using dynamic = planPrefill({ heads: grid }, q, k, { cuSeqlens: Int32Array.of(0, length), ...EXACT });
        using inPlace = sparsePrefill(dynamic, q, k, v);

        // Each class is a sequence of its own: dense, causal. It sees its own key with the others, which the grid
        // takes with its window and merges: the same sum in another order, so not the same bits.
        const classOf = (x: number): number => (((x - phase) % stride) + stride) % stride;
        const cuSeqlens = new Int32Array(stride + 1);
        for (let n = 0; n < stride; n++) {
          const members = order.filter((x) => classOf(x) === (n + 1) % stride).length;
          cuSeqlens[n + 1] = cuSeqlens[n] + members;
        }
        const [pq, pk, pv] = values.map((data) => tensor(permute(data)));
        const dense: HeadPattern = { kind: 'union', of: [{ kind: 'dense' }] };
        using blocks = planPrefill({ heads: dense }, pq, pk, { cuSeqlens, ...EXACT });
        using moved = sparsePrefill(blocks, pq, pk, pv);

        const [here, there] = [await inPlace.out.toFloat32(), await moved.out.toFloat32()];
        const back = inverse(order);
        for (let i = 0; i < here.length; i++) {
          const from = back[Math.floor(i / dim)] * dim + (i % dim);
          expect(Math.abs(here[i] - there[from])).toBeLessThanOrEqual(2e-6);
        }
      },
    ),
    { numRuns: 25 },
  );
});

test('column lines are one band of keys at the right, row lines one band of rows at the bottom', async () => {
  const [length, stride, phase] = [60, 7, 3];
  const grid = { kind: 'grid', stride, phase, slash: false, sink: 0, local: 1 } as const;
  const order = gridOrder(length, stride, phase);
  const lines = order.filter((x) => x % stride === phase).length;
  const columns = await setOf({ ...grid, hline: false, vline: true }, { queries: length });
  const rows = await setOf({ ...grid, hline: true, vline: false }, { queries: length });
  const at = inverse(order);
  for (const [i, keys] of columns.entries()) {
    for (const j of keys) expect(j === i || at[j] >= length - lines).toBe(true);
  }
  for (const [i, keys] of rows.entries()) expect(keys.length).toBe(at[i] >= length - lines ? i + 1 : 1);
});
