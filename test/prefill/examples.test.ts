import { describe, expect, test } from 'vitest';
import { mergeAttentionStates, sparsePrefill } from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { setOf, sizeOf, smallPlan } from './cases.js';

// Worked by hand; E3, E5, E9 and E10 are about scores and stand in native/ops/sparse-prefill/test.cc.

const range = (begin: number, end: number) => Array.from({ length: end - begin }, (_, i) => begin + i);

describe('E1 a-shape and tri-shape', () => {
  test('a sink of 2 and a window of 3 over 8 tokens', async () => {
    const rows = await setOf({ kind: 'a-shape', sink: 2, local: 3 }, { queries: 8 });
    expect(rows).toEqual([
      [0],
      [0, 1],
      [0, 1, 2],
      [0, 1, 2, 3],
      [0, 1, 2, 3, 4],
      [0, 1, 3, 4, 5],
      [0, 1, 4, 5, 6],
      [0, 1, 5, 6, 7],
    ]);
    expect(sizeOf(rows)).toBe(30);
  });

  test('the last two queries of a tri-shape see everything', async () => {
    const rows = await setOf({ kind: 'tri-shape', sink: 1, local: 2, last: 2 }, { queries: 8 });
    expect(rows).toEqual([[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], range(0, 7), range(0, 8)]);
    expect(sizeOf(rows)).toBe(30);
  });

  test('a chunk of 3 queries over 8 keys keeps its place', async () => {
    const rows = await setOf({ kind: 'a-shape', sink: 1, local: 3 }, { queries: 3, keys: 8 });
    expect(rows).toEqual([
      [0, 3, 4, 5],
      [0, 4, 5, 6],
      [0, 5, 6, 7],
    ]);
  });

  test('only the final chunk of a tri-shape has dense queries', async () => {
    const shape = { queries: 3, keys: 8, options: { isFinalChunk: false } };
    expect(await setOf({ kind: 'tri-shape', sink: 1, local: 3, last: 2 }, shape)).toEqual(
      await setOf({ kind: 'a-shape', sink: 1, local: 3 }, { queries: 3, keys: 8 }),
    );
  });
});

describe('E2 vertical-slash', () => {
  // The smallest tile of the interface is 16: the example's tiles of 4 stand in the native test.
  const fixed = (slash: number[], vertical = [0, 5, 9]) =>
    ({
      kind: 'vertical-slash-fixed',
      vertical: Int32Array.from(vertical),
      slash: Int32Array.from(slash),
    }) as const;

  test('lines are exactly the columns and diagonals', async () => {
    const rows = await setOf(fixed([0, 6]), { queries: 16, config: { slashTile: 16 } }, 'lines');
    expect(sizeOf(rows)).toBe(54);
    expect(rows[13]).toEqual([0, 5, 7, 9, 13]);
  });

  test('a slash is computed as squares of the tile, aligned to positions and not to chunks', async () => {
    const config = { slashTile: 16 } as const;
    const whole = await setOf(fixed([0, 37], []), { queries: 64, config });
    expect(whole[50]).toEqual([...range(11, 27), ...range(48, 51)]);
    expect(await setOf(fixed([0, 37], []), { queries: 23, keys: 64, config })).toEqual(whole.slice(41));
  });
});

describe('E4 grid', () => {
  const grid = {
    kind: 'grid',
    stride: 4,
    phase: 1,
    hline: false,
    vline: false,
    slash: false,
    sink: 1,
    local: 1,
  } as const;

  test('column lines', async () => {
    const rows = await setOf({ ...grid, vline: true }, { queries: 14 });
    expect(rows.slice(5)).toEqual([
      [0, 1, 5],
      [0, 1, 5, 6],
      [0, 1, 5, 7],
      [0, 1, 5, 8],
      [0, 1, 5, 9],
      [0, 1, 5, 9, 10],
      [0, 1, 5, 9, 11],
      [0, 1, 5, 9, 12],
      [0, 1, 5, 9, 13],
    ]);
    expect(sizeOf(rows)).toBe(51);
  });

  test('row lines are dense', async () => {
    const rows = await setOf({ ...grid, vline: true, hline: true }, { queries: 14 });
    expect(sizeOf(rows)).toBe(69);
    for (const r of [1, 5, 9, 13]) expect(rows[r]).toEqual(range(0, r + 1));
  });

  test('slashes join equal places of the frames', async () => {
    const rows = await setOf({ ...grid, slash: true, sink: 0 }, { queries: 14 });
    expect(rows[13]).toEqual([1, 5, 9, 13]);
    expect(rows[8]).toEqual([0, 4, 8]);
    expect(sizeOf(rows)).toBe(32);
  });
});

describe('E6 and E7 modalities', () => {
  test('ranks of ten tokens of two modalities', async () => {
    const ids = Uint8Array.from([0, 0, 1, 1, 1, 0, 1, 1, 1, 0]);
    const dense = { kind: 'dense' } as const;
    const by = { 'text>text': dense, 'vision>vision': { kind: 'a-shape', sink: 0, local: 1 } } as const;
    const nothing = { kind: 'a-shape', sink: 0, local: 1 } as const;
    const options = { modality: [{ ids }] };
    const pairs = await setOf({ kind: '2d-boundary', by }, { queries: 10, options });
    // Text sees all text (1 + 2 + 3 + 4 pairs) and, by the fallback, all vision (0 + 0 + 3 + 6); vision sees
    // all text (2, 2, 2, 3, 3, 3) and of vision only itself.
    expect(pairs).toEqual([
      [0],
      [0, 1],
      [0, 1, 2],
      [0, 1, 3],
      [0, 1, 4],
      [0, 1, 2, 3, 4, 5],
      [0, 1, 5, 6],
      [0, 1, 5, 7],
      [0, 1, 5, 8],
      range(0, 10),
    ]);
    const own = { ...by, 'text>vision': nothing, 'vision>text': nothing } as const;
    const newest = await setOf({ kind: '2d-boundary', by: own }, { queries: 10, options });
    expect(newest[9]).toEqual([0, 1, 5, 8, 9]); // the newest vision key, all text
    expect(newest[7]).toEqual([5, 7]); // the newest text key, and itself
  });

  test('a slash of 3 counted in positions lands on text, counted in ranks on vision', async () => {
    const ids = Uint8Array.from([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]);
    const modality = [{ ids }];
    const slash = {
      kind: 'vertical-slash-fixed',
      vertical: new Int32Array(0),
      slash: Int32Array.of(3),
    } as const;
    const vision = await setOf(slash, { queries: 14, options: { modality } }, 'lines');
    expect(vision.slice(8)).toEqual([[5], [6], [7], [8], [9], [10]]);
    const by = { 'text>text': { kind: 'dense' }, 'vision>vision': slash } as const;
    const empty = {
      kind: 'vertical-slash-fixed',
      vertical: new Int32Array(0),
      slash: Int32Array.of(1000),
    } as const;
    const ranks = await setOf(
      { kind: '2d-boundary', by, fallback: empty },
      { queries: 14, options: { modality } },
      'lines',
    );
    expect(ranks.slice(8)).toEqual([[3], [4], [5], [8], [9], [10]]);
  });
});

test('E8 two results over halves of the keys merge into the whole', async () => {
  const half = (out: number[], lse: number) => ({
    out: Tensor.from(Float32Array.from(out), { shape: [1, 1, 2], device: 'cpu' }),
    softmaxLse: Tensor.from(Float32Array.of(lse), { shape: [1, 1], device: 'cpu' }),
  });
  using merged = mergeAttentionStates(
    half([0.817574, 0.182426], 0.70141328),
    half([1.642391, 1.880797], 2.12692801),
  );
  const [x, y] = (await merged.out.data()) as Float32Array;
  expect(x).toBeCloseTo(1.482543, 5);
  expect(y).toBeCloseTo(1.551655, 5);
  expect(((await merged.softmaxLse.data()) as Float32Array)[0]).toBeCloseTo(2.34234958, 6);
});

test('E11 recall is the mass that is kept, and it bounds the error', async () => {
  const [keys, dim] = [12, 8];
  const random = (seed: number, rows: number) =>
    Tensor.from(
      Float32Array.from({ length: rows * dim }, (_, i) => Math.sin(seed * 37.7 + i * 1.37)),
      { shape: [rows, 1, dim], device: 'cpu' },
    );
  using q = random(1, 1);
  using k = random(2, keys);
  using v = random(3, keys);
  const run = async (vertical: number[]) => {
    const pattern = {
      kind: 'vertical-slash-fixed',
      vertical: Int32Array.from(vertical),
      slash: Int32Array.of(0),
    } as const;
    using plan = smallPlan(pattern, {
      queries: 1,
      keys,
      config: { slashTile: 16, softmaxScale: dim ** -0.5 },
    });
    // A tile of one row: the diagonal square would take in all keys.
    using fixed = smallPlan(
      { ...pattern, slash: new Int32Array(0) },
      { queries: 1, keys, config: { softmaxScale: dim ** -0.5 } },
    );
    void plan;
    const { out, softmaxLse } = sparsePrefill(fixed, q, k, v);
    return { out: (await out.data()) as Float32Array, lse: ((await softmaxLse.data()) as Float32Array)[0] };
  };
  const all = await run(range(0, keys));
  const kept = [0, 2, 5, 8, 11];
  const some = await run(kept);
  const rest = await run(range(0, keys).filter((j) => !kept.includes(j)));
  const recall = Math.exp(some.lse - all.lse);
  expect(recall + Math.exp(rest.lse - all.lse)).toBeCloseTo(1, 6);
  for (let d = 0; d < dim; d++) {
    expect(all.out[d] - some.out[d]).toBeCloseTo((1 - recall) * (rest.out[d] - some.out[d]), 5);
  }
});
