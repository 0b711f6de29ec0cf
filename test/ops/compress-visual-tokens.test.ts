import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type CompressedTokens,
  type CompressVisualTokensOptions,
  compressVisualTokens,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { normals } from '../prefill/cases.js';
import { device } from '../support/attention.js';
import { thrown } from '../support/thrown.js';

const tensor = (values: ArrayLike<number>, hidden: number): Tensor =>
  Tensor.from(Float32Array.from(values), { shape: [values.length / hidden, hidden], device });

interface Read {
  readonly features: number[];
  readonly keepIdx: number[];
  readonly assign: number[];
  readonly size: number[];
  readonly cell: number[];
  readonly imageOffsets: number[];
}

async function read(tokens: CompressedTokens): Promise<Read> {
  const names = ['features', 'keepIdx', 'assign', 'size', 'cell', 'imageOffsets'] as const;
  const all = await Promise.all(
    names.map(async (name) => [name, Array.from(await tokens[name].toFloat32())]),
  );
  tokens[Symbol.dispose]();
  return Object.fromEntries(all) as Read;
}

const EXAMPLE = [1, 0, 0.98, 0.2, 0, 1, 0.1, 0.99, 0.7, 0.7, 1, 0.05];
const ONE = Int32Array.of(0, 6);

describe('worked by hand', () => {
  test('by threshold', async () => {
    const got = await read(
      compressVisualTokens(tensor(EXAMPLE, 2), { mode: 'threshold', imageOffsets: ONE }),
    );
    expect(got.imageOffsets).toEqual([0, 3]);
    expect(got.keepIdx).toEqual([0, 2, 4, 0, 0, 0]);
    expect(got.assign).toEqual([0, 0, 1, 1, 2, 0]);
    expect(got.size).toEqual([3, 2, 1, 0, 0, 0]);
    const expected = [0.99333333, 0.08333333, 0.05, 0.995, 0.7, 0.7, 0, 0, 0, 0, 0, 0];
    for (const [i, x] of expected.entries()) expect(got.features[i]).toBeCloseTo(x, 6);
    expect(
      got.size
        .slice(0, 3)
        .map(Math.log)
        .map((x) => Number(x.toFixed(8))),
    ).toEqual([1.09861229, Number(Math.LN2.toFixed(8)), 0]);
  });

  test('one round', async () => {
    const got = await read(
      compressVisualTokens(tensor(EXAMPLE, 2), { mode: 'bipartite', targetTokens: 4, imageOffsets: ONE }),
    );
    expect(got.keepIdx).toEqual([1, 3, 4, 5]);
    expect(got.size).toEqual([1, 2, 1, 2]);
    expect(got.assign).toEqual([3, 0, 1, 1, 2, 3]);
    const expected = [0.98, 0.2, 0.05, 0.995, 0.7, 0.7, 1, 0.025];
    for (const [i, x] of expected.entries()) expect(got.features[i]).toBeCloseTo(x, 6);
  });

  test('two rounds count each token once by size, and each merge once when uniform', async () => {
    // [1, 1, 1, 7] on a line: the first round joins two pairs, the second what is left.
    const values = [1, 0, 1, 0, 1, 0, 7, 0];
    const given = { mode: 'bipartite', targetTokens: 1, imageOffsets: Int32Array.of(0, 4) } as const;
    const bySize = await read(compressVisualTokens(tensor(values, 2), given));
    expect(bySize.features[0]).toBeCloseTo((1 + 1 + 1 + 7) / 4, 6);
    // Round one: all cosines are 1, so 0 and 2 both go to 1: (1 + 1 + 1) / 3; then it joins 3: (1 + 7) / 2.
    const uniform = await read(compressVisualTokens(tensor(values, 2), { ...given, weighting: 'uniform' }));
    expect(uniform.features[0]).toBeCloseTo(4, 6);
    expect(uniform.size).toEqual([4]);
  });

  test('in a video a token joins one of its frame, or of the places beside its own in the frame before', async () => {
    // Three frames of three places; places 0 and 1 alike, 2 different.
    const values = [1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1];
    const got = await read(
      compressVisualTokens(tensor(values, 2), {
        mode: 'threshold',
        imageOffsets: Int32Array.of(0, 9),
        frameTokens: 3,
      }),
    );
    // 1 joins 0; 3 is at place 0, out of reach of 2, so it stays and 4 joins it, the earlier of 2 and 3; 5 is out of
    // reach of 0; 6 joins 3 of the frame before; 7 finds 5 beside it; 8 joins 3, out of reach... so it stays.
    expect(got.keepIdx.slice(0, got.imageOffsets[1])).toEqual([0, 2, 3, 5, 8]);
    expect(got.assign).toEqual([0, 0, 1, 2, 1, 3, 2, 3, 4]);
    expect(got.cell.slice(0, 5)).toEqual([0, 2, 0, 2, 2]);
  });
});

describe('properties', () => {
  const problems = fc.record({
    images: fc.array(fc.integer({ min: 0, max: 40 }), { minLength: 0, maxLength: 5 }),
    seed: fc.integer({ min: 1, max: 1000 }),
    ratio: fc.double({ min: 0.05, max: 1, noNaN: true }),
    action: fc.constantFrom('merge', 'prune'),
    mode: fc.constantFrom('bipartite', 'threshold'),
    guarded: fc.integer({ min: 1, max: 9 }),
  });

  test('every token goes to a row of its image, and rows are means of what went to them', async () => {
    await fc.assert(
      fc.asyncProperty(problems, async ({ images, seed, ratio, action, mode, guarded }) => {
        const offsets = Int32Array.of(0, ...images);
        for (let i = 0; i < images.length; i++) offsets[i + 1] += offsets[i];
        const tokens = offsets[images.length];
        const values = normals(tokens * 8, seed);
        const isProtected = Uint8Array.from({ length: tokens }, (_, x) => Number(x % guarded === 0));
        const given = {
          imageOffsets: offsets,
          protected: isProtected,
          action,
          ...(mode === 'bipartite' ? { mode, keepRatio: ratio } : { mode, threshold: ratio }),
        } as CompressVisualTokensOptions;
        const got = await read(compressVisualTokens(tensor(values, 8), given));
        const rows = got.imageOffsets[images.length];
        expect(got.size.reduce((a, b) => a + b, 0)).toBe(tokens);
        expect(new Set(got.assign).size).toBe(rows); // surjective
        const sums = new Float64Array(rows * 8);
        for (const [x, row] of got.assign.entries()) {
          for (let d = 0; d < 8; d++) sums[row * 8 + d] += values[x * 8 + d];
        }
        for (let i = 0; i < images.length; i++) {
          const [first, end] = [got.imageOffsets[i], got.imageOffsets[i + 1]];
          if (mode === 'bipartite') {
            const marked = isProtected.subarray(offsets[i], offsets[i + 1]).reduce((a, b) => a + b, 0);
            const least = Math.max(Math.round(ratio * images[i]), Math.min(1, images[i]), marked);
            expect(end - first).toBe(least); // exact
          }
          for (let x = offsets[i]; x < offsets[i + 1]; x++) {
            expect(got.assign[x]).toBeGreaterThanOrEqual(first);
            expect(got.assign[x]).toBeLessThan(end);
            if (isProtected[x]) expect(got.keepIdx[got.assign[x]]).toBe(x);
          }
          for (let row = first; row < end; row++) {
            const own = got.keepIdx[row];
            if (row > first) expect(own).toBeGreaterThan(got.keepIdx[row - 1]);
            for (let d = 0; d < 8; d++) {
              const kept = action === 'prune' || isProtected[own];
              const expected = kept ? values[own * 8 + d] : sums[row * 8 + d] / got.size[row];
              expect(got.features[row * 8 + d]).toBeCloseTo(expected, 4);
            }
          }
        }
      }),
      { numRuns: device === 'cuda' ? 6 : 60 }, // the emulator takes a second each
    );
  });

  test('pruning by a threshold twice is pruning once', async () => {
    const values = normals(120 * 4, 3);
    const imageOffsets = Int32Array.of(0, 70, 120);
    const given = { mode: 'threshold', threshold: 0.8, action: 'prune' } as const;
    const once = await read(compressVisualTokens(tensor(values, 4), { ...given, imageOffsets }));
    const rows = once.imageOffsets[2];
    expect(rows).toBeLessThan(120);
    const again = await read(
      compressVisualTokens(tensor(once.features.slice(0, rows * 4), 4), {
        ...given,
        imageOffsets: Int32Array.from(once.imageOffsets),
      }),
    );
    expect(again.imageOffsets).toEqual(once.imageOffsets);
    expect(again.features).toEqual(once.features.slice(0, rows * 4));
  });

  test('bounds of a threshold hold, whatever is similar', async () => {
    const same = new Float32Array(40 * 4).fill(1);
    const different = normals(40 * 4, 5);
    const bounded = {
      mode: 'threshold',
      keepRatio: [0.25, 0.5],
      imageOffsets: Int32Array.of(0, 40),
    } as const;
    expect((await read(compressVisualTokens(tensor(same, 4), bounded))).imageOffsets).toEqual([0, 10]);
    const given = { ...bounded, threshold: 1 };
    expect((await read(compressVisualTokens(tensor(different, 4), given))).imageOffsets).toEqual([0, 20]);
    const many = { mode: 'threshold', minTokens: 7, imageOffsets: Int32Array.of(0, 40) } as const;
    expect((await read(compressVisualTokens(tensor(same, 4), many))).imageOffsets).toEqual([0, 7]);
  });

  test('another metric decides, and the features follow', async () => {
    const metric = tensor([1, 0, 0, 1, 0, 1, 1, 0], 2);
    const got = await read(
      compressVisualTokens(tensor([1, 2, 3, 4], 1), {
        mode: 'threshold',
        metric,
        imageOffsets: Int32Array.of(0, 4),
      }),
    );
    expect(got.features.slice(0, 2)).toEqual([2.5, 2.5]);
    expect(got.assign).toEqual([0, 1, 1, 0]);
  });

  test('no tokens give no rows', async () => {
    const got = await read(
      compressVisualTokens(Tensor.from(new Float32Array(0), { shape: [0, 4], device }), {
        mode: 'bipartite',
        keepRatio: 0.5,
        imageOffsets: Int32Array.of(0, 0),
      }),
    );
    expect(got).toEqual({ features: [], keepIdx: [], assign: [], size: [], cell: [], imageOffsets: [0, 0] });
  });
});

test.each<[string, object]>([
  ['ERR_VARLEN_OPTION', { mode: 'round' }],
  ['ERR_VARLEN_OPTION', { mode: 'threshold', weighting: 'size' }],
  ['ERR_VARLEN_OPTION', { mode: 'bipartite', keepRatio: 0.5, threshold: 0.5 }],
  ['ERR_VARLEN_OPTION', { action: 'drop' }],
  ['ERR_VARLEN_OPTION', { weighting: 'none' }],
  ['ERR_VARLEN_RANGE', { keepRatio: 0 }],
  ['ERR_VARLEN_RANGE', { keepRatio: 1.1 }],
  ['ERR_VARLEN_RANGE', { keepRatio: Number.NaN }],
  ['ERR_VARLEN_RANGE', { keepRatio: undefined, targetTokens: 0 }],
  ['ERR_VARLEN_RANGE', { keepRatio: undefined, targetTokens: 2, protected: new Uint8Array(6).fill(1) }],
  ['ERR_VARLEN_RANGE', { mode: 'threshold', keepRatio: [0.5, 0.2] }],
  ['ERR_VARLEN_RANGE', { mode: 'threshold', keepRatio: undefined, threshold: 1.5 }],
  ['ERR_VARLEN_RANGE', { minTokens: -1 }],
  ['ERR_VARLEN_RANGE', { frameTokens: -1 }],
  ['ERR_VARLEN_MISSING_INPUT', { keepRatio: undefined }],
  ['ERR_VARLEN_INCOMPATIBLE', { targetTokens: 3 }],
  ['ERR_VARLEN_TYPE', { imageOffsets: [0, 6] }],
  ['ERR_VARLEN_TYPE', { protected: [1] }],
  ['ERR_VARLEN_TYPE', { metric: [1] }],
  ['ERR_VARLEN_CU_SEQLENS', { imageOffsets: Int32Array.of(0, 5) }],
  ['ERR_VARLEN_CU_SEQLENS', { imageOffsets: Int32Array.of(1, 6) }],
  ['ERR_VARLEN_SHAPE', { protected: new Uint8Array(5) }],
  ['ERR_VARLEN_SHAPE', { metric: tensor([1, 2], 1) }],
])('%s, case %#', (code, changed) => {
  const given = { mode: 'bipartite', keepRatio: 0.5, imageOffsets: ONE, ...changed };
  expect(thrown(() => compressVisualTokens(tensor(EXAMPLE, 2), given as never))).toMatchObject({ code });
});

describe('gradients', () => {
  const PROTECTED = Uint8Array.from({ length: 26 }, (_, x) => Number(x === 3 || x === 20));
  const imageOffsets = Int32Array.of(0, 17, 26);

  test.each<[string, Partial<CompressVisualTokensOptions>]>([
    ['one round', { mode: 'bipartite', keepRatio: 0.6 }],
    ['rounds that count members', { mode: 'bipartite', keepRatio: 0.2 }],
    ['rounds that count merges', { mode: 'bipartite', keepRatio: 0.2, weighting: 'uniform' }],
    ['a threshold', { mode: 'threshold', threshold: 0.4 }],
    ['protected tokens', { mode: 'bipartite', keepRatio: 0.3, protected: PROTECTED }],
    ['pruning', { mode: 'bipartite', keepRatio: 0.3, action: 'prune' }],
  ])('%s: they are the differences of the result', (_name, options) => {
    // The choice comes from the metric, so that no step of a difference changes it.
    const metric = tensor(normals(26 * 6, 8), 6);
    const given = { ...options, imageOffsets, metric } as CompressVisualTokensOptions;
    const features = tensor(normals(26 * 3, 9), 3);
    expect(gradCheck((x) => compressVisualTokens(x, given).features, [features])).toBeLessThan(1e-3);
    features.dispose();
    metric.dispose();
  });

  test('a kept row hands its gradient to its members in equal parts, a pruned one to itself', async () => {
    for (const [action, expected] of [
      ['merge', [3, 3, 30, 30, 9]],
      ['prune', [6, 0, 60, 0, 9]],
    ] as const) {
      using features = Tensor.from(Float32Array.of(1, 0, 1, 0, 0, 1, 0, 1, -1, 0), {
        shape: [5, 2],
        device,
        requiresGrad: true,
      });
      using few = compressVisualTokens(features, {
        mode: 'threshold',
        action,
        imageOffsets: Int32Array.of(0, 5),
      });
      using gradient = tensor([6, 6, 60, 60, 9, 9, 1, 1, 1, 1], 2); // the last two rows are none
      few.features.backward(gradient);
      const got = await features.grad!.toFloat32();
      expect(Array.from({ length: 5 }, (_, x) => got[2 * x])).toEqual(expected);
      features.grad!.dispose();
    }
  });

  test('what was recorded outlives the features and the result', async () => {
    const leaf = Tensor.from(Float32Array.from(EXAMPLE), { shape: [6, 2], device, requiresGrad: true });
    const few = compressVisualTokens(leaf, { mode: 'bipartite', keepRatio: 0.5, imageOffsets: ONE });
    for (const other of [few.keepIdx, few.assign, few.size, few.cell, few.imageOffsets]) other.dispose();
    using gradient = tensor(new Float32Array(6).fill(1), 2);
    few.features.backward(gradient);
    few.features.dispose();
    // Each row's gradient is shared out once.
    expect((await leaf.grad!.toFloat32()).reduce((sum, x) => sum + x, 0)).toBeCloseTo(6, 5);
    leaf.grad!.dispose();
    leaf.dispose();
  });

  test('a metric that requires one is ERR_VARLEN_NO_BACKWARD', () => {
    const metric = Tensor.from(Float32Array.from(EXAMPLE), { shape: [6, 2], device, requiresGrad: true });
    const given = { mode: 'bipartite', keepRatio: 0.5, imageOffsets: ONE, metric } as const;
    expect(thrown(() => compressVisualTokens(tensor(EXAMPLE, 2), given))).toMatchObject({
      code: 'ERR_VARLEN_NO_BACKWARD',
    });
  });
});
