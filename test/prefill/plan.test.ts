import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  deserializePlan,
  type HeadPattern,
  type ModalityLayout,
  PrefillPlan,
  planPrefill,
  prefillWorkspaceBytes,
  serializePlan,
  sparsePrefill,
  synthHead,
} from '../../src/prefill/index.js';
import { deviceInfo, setNumThreads, Tensor } from '../../src/tensor/index.js';
import { leafPatterns, patterns } from './arbitraries.js';
import { EXACT, normals, randomTensor, rowsOf, setOf, smallPlan } from './cases.js';

const codeOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    return (error as { code: string }).code;
  }
  return 'nothing thrown';
};

const triangle = (n: number): number[][] =>
  Array.from({ length: n }, (_, r) => Array.from({ length: r + 1 }, (_, j) => j));

describe('sets', () => {
  test('a degenerate parameter gives every causal pair (P4)', async () => {
    const ids = Uint8Array.from({ length: 70 }, (_, j) => j % 2);
    const dense = { kind: 'dense' } as const;
    const all: HeadPattern[] = [
      dense,
      { kind: 'a-shape', sink: 0, local: 70 },
      { kind: 'a-shape', sink: 70, local: 1 },
      { kind: 'tri-shape', sink: 0, local: 1, last: 70 },
      { kind: 'vertical-slash', select: { topk: { vertical: 0, slash: 70 } } },
      { kind: 'vertical-slash', select: { coverage: 1, min: 70 } },
      { kind: 'grid', stride: 1, phase: 0, hline: false, vline: true, slash: false, span: [0, 70], local: 1 },
      { kind: 'block-sparse', block: [16, 16], score: 'mean-pool', select: { blocks: 5 } },
      { kind: 'sf-strided', period: 1 },
      { kind: 'q-boundary', by: { text: dense, vision: dense } },
      { kind: '2d-boundary', by: { 'text>text': dense, 'vision>vision': dense } },
    ];
    for (const pattern of all) {
      expect(await setOf(pattern, { queries: 70, options: { modality: [{ ids }] } })).toEqual(triangle(70));
    }
  });

  test('no row of a causal plan is empty (P3)', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 150 }), async (queries) => {
        const forced = {
          kind: 'vertical-slash',
          select: { topk: { vertical: 0, slash: 0 } },
          forceVertical: 0,
          forceSlash: 1,
        } as const;
        const blocks = {
          kind: 'block-sparse',
          block: [32, 64],
          score: 'mean-pool',
          select: { blocks: 1 },
        } as const;
        const union = { kind: 'union', of: [{ kind: 'a-shape', sink: 0, local: 1 }] } as const;
        for (const pattern of [forced, blocks, union] as HeadPattern[]) {
          const rows = await setOf(pattern, { queries }, 'lines');
          for (const [r, row] of rows.entries()) expect(row).toContain(r);
        }
      }),
      { numRuns: 15 },
    );
  });

  test('a chunk has exactly the rows of the whole, wherever it is cut (P7)', async () => {
    const fixed = leafPatterns(130, 130).filter(
      ({ kind }) => !['vertical-slash', 'block-sparse', 'block-mask', 'tri-shape'].includes(kind),
    );
    await fc.assert(
      fc.asyncProperty(
        fixed,
        fc.integer({ min: 1, max: 129 }),
        fc.constantFrom(16, 32, 64, 128),
        async (pattern, cut, slashTile) => {
          const config = { slashTile: slashTile as 16 };
          const whole = await setOf(pattern, { queries: 130, config });
          expect(await setOf(pattern, { queries: 130 - cut, keys: 130, config })).toEqual(whole.slice(cut));
        },
      ),
      { numRuns: 40 },
    );
  });

  test('the names of modalities mean nothing (P8)', async () => {
    const ids = Uint8Array.from({ length: 90 }, (_, j) => Number(j % 7 < 3));
    const [a, b] = [
      { kind: 'a-shape', sink: 2, local: 9 },
      { kind: 'grid', stride: 5, phase: 1, hline: true, vline: true, slash: true, sink: 0, local: 2 },
    ] as const;
    const plain = await setOf(
      { kind: 'q-boundary', by: { text: a, vision: b } },
      { queries: 90, options: { modality: [{ ids }] } },
    );
    const renamed = { names: ['vision', 'text'], ids } as const;
    expect(
      await setOf(
        { kind: 'q-boundary', by: { vision: a, text: b } },
        { queries: 90, options: { modality: [renamed] } },
      ),
    ).not.toEqual([]);
    const swapped = { names: ['audio', 'tool'], ids } as const;
    // Spans of grids follow the name 'vision', so both grids are given one.
    const spanned = { ...b, span: [0, 90] as const };
    const first = await setOf(
      { kind: 'q-boundary', by: { text: a, vision: spanned } },
      { queries: 90, options: { modality: [{ ids }] } },
    );
    expect(
      await setOf(
        { kind: 'q-boundary', by: { audio: a, tool: spanned } },
        { queries: 90, options: { modality: [swapped] } },
      ),
    ).toEqual(first);
    expect(plain.length).toBe(90);
  });

  test('a larger budget keeps more, and never recalls less (P9)', async () => {
    const q = randomTensor([300, 1, 16], 5);
    const k = randomTensor([300, 1, 16], 6);
    let before: { rows: Set<number>[]; recall: number } | undefined;
    for (const budget of [1, 5, 20, 80]) {
      const pattern = {
        kind: 'vertical-slash',
        select: { topk: { vertical: budget, slash: budget } },
        forceVertical: 1,
        forceSlash: 1,
      } as const;
      using plan = planPrefill({ heads: pattern }, q, k, {
        cuSeqlens: Int32Array.of(0, 300),
        ...EXACT,
        certificateRows: 300,
      });
      const rows = rowsOf(await plan.mask(0, 0, 'lines'), 300).map((row) => new Set(row));
      const recall = (await plan.stats()).heads[0].recall!.mean;
      for (const [r, row] of before?.rows.entries() ?? [])
        for (const j of row) expect(rows[r].has(j)).toBe(true);
      expect(recall).toBeGreaterThanOrEqual(before?.recall ?? 0);
      before = { rows, recall };
    }
  });

  test('what is estimated does not depend on the number of threads (P12)', async () => {
    const q = randomTensor([400, 4, 16], 5);
    const k = randomTensor([400, 2, 16], 6);
    const block = { kind: 'block-sparse', block: [32, 64], stride: 8, select: { coverage: 0.5 } } as const;
    const heads: HeadPattern[] = [
      {
        kind: 'vertical-slash',
        select: { topk: { vertical: 9, slash: 9 } },
        forceSlash: 1,
        forceVertical: 1,
      },
      { ...block, score: 'antidiagonal' },
      { ...block, score: 'js-switch' },
      {
        kind: 'grid',
        stride: 'search',
        phase: 'search',
        minGain: 0,
        maxStride: 64,
        hline: true,
        vline: true,
        slash: true,
        probeRows: 'residue',
      },
    ];
    const options = { cuSeqlens: Int32Array.of(0, 150, 400), ...EXACT, guarantee: { minRecall: 0.9 } };
    const before = deviceInfo().threads;
    const words: Int32Array[] = [];
    try {
      for (const threads of [1, 2, 5]) {
        setNumThreads(threads);
        using plan = planPrefill({ heads }, q, k, options);
        words.push((await plan.data()).words);
      }
    } finally {
      setNumThreads(before);
    }
    expect(words[1]).toEqual(words[0]);
    expect(words[2]).toEqual(words[0]);
  });

  test('tiles as compressed rows are the computed set', async () => {
    await fc.assert(
      fc.asyncProperty(patterns(100, 120), async (pattern) => {
        const modality = [{ ids: Uint8Array.from({ length: 120 }, (_, j) => Number(j % 13 < 6)) }];
        using plan = smallPlan(pattern, { queries: 100, keys: 120, options: { modality } });
        const { tileRows, tileColumns, rows, columns, rowBits } = await plan.indices(0, 0);
        const set = new Uint8Array(100 * 120);
        for (let t = 0; t + 1 < tileRows.length; t++) {
          for (let n = tileColumns[t]; n < tileColumns[t + 1]; n++) {
            for (let r = tileRows[t]; r < tileRows[t + 1]; r++) {
              const bit = r - tileRows[t];
              if ((rowBits[2 * n + (bit >> 5)] >>> (bit & 31)) & 1) set[rows[r] * 120 + columns[n]]++;
            }
          }
        }
        expect(set).toEqual(await plan.mask(0, 0, 'computed'));
      }),
      { numRuns: 30 },
    );
  });
});

describe('the certificate', () => {
  test('is the attention mass that each row keeps, and the error obeys its identity (P6)', async () => {
    const [n, dim] = [120, 16];
    const [q, k, v] = [1, 2, 3].map((seed) => normals(n * dim, seed));
    const tensor = (data: Float32Array) => Tensor.from(data, { shape: [n, 1, dim], device: 'cpu' });
    const options = { cuSeqlens: Int32Array.of(0, n), ...EXACT, certificateRows: n };
    using plan = planPrefill(
      { heads: { kind: 'a-shape', sink: 3, local: 20 } },
      tensor(q),
      tensor(k),
      options,
    );
    const { recall } = (await plan.stats()).heads[0];
    using some = sparsePrefill(plan, tensor(q), tensor(k), tensor(v));
    using densePlan = planPrefill({ heads: { kind: 'dense' } }, tensor(q), tensor(k), options);
    using all = sparsePrefill(densePlan, tensor(q), tensor(k), tensor(v));
    const [lse, full] = [await some.softmaxLse.toFloat32(), await all.softmaxLse.toFloat32()];
    const kept = Array.from(lse, (x, r) => Math.exp(x - full[r]));
    expect(recall!.mean).toBeCloseTo(kept.reduce((a, b) => a + b, 0) / n, 4);
    expect(recall!.min).toBeCloseTo(Math.min(...kept), 4);
    expect(recall!.lowerBound).toBeCloseTo(recall!.mean - Math.sqrt(Math.log(20) / (2 * n)), 9);
    const [a, b] = [await some.out.toFloat32(), await all.out.toFloat32()];
    const longest = Math.max(
      ...Array.from({ length: n }, (_, j) => Math.hypot(...v.subarray(j * dim, (j + 1) * dim))),
    );
    for (let r = 0; r < n; r++) {
      const error = Math.hypot(...Array.from({ length: dim }, (_, d) => a[r * dim + d] - b[r * dim + d]));
      expect(error).toBeLessThanOrEqual(2 * (1 - kept[r]) * longest + 1e-5);
    }
  });

  const inputs = () => ({ q: randomTensor([400, 1, 16], 5), k: randomTensor([400, 1, 16], 6) });
  const poor = { kind: 'a-shape', sink: 1, local: 4 } as const;
  const options = { cuSeqlens: Int32Array.of(0, 400), ...EXACT };

  test("'densify' adds keys until enough is kept, at last all", async () => {
    const { q, k } = inputs();
    using some = planPrefill({ heads: { kind: 'a-shape', sink: 8, local: 60 } }, q, k, {
      ...options,
      guarantee: { minRecall: 0.7 },
    });
    const { recall, densified } = (await some.stats()).heads[0];
    expect(recall!.mean).toBeGreaterThanOrEqual(0.7);
    expect(densified).toBeGreaterThan(0);
    using all = planPrefill({ heads: poor }, q, k, { ...options, guarantee: { minRecall: 0.999 } });
    const made = (await all.stats()).heads[0];
    expect(made.pattern).toEqual({ kind: 'dense' });
    expect(made.recall!.mean).toBeCloseTo(1, 5);
  });

  test("'dense' and 'warn' do as they say", async () => {
    const { q, k } = inputs();
    using dense = planPrefill({ heads: poor }, q, k, {
      ...options,
      guarantee: { minRecall: 0.9, onMiss: 'dense' },
    });
    expect((await dense.stats()).heads[0].pattern.kind).toBe('dense');
    using kept = planPrefill({ heads: poor }, q, k, {
      ...options,
      guarantee: { minRecall: 0.9, onMiss: 'warn' },
    });
    const stats = await kept.stats();
    expect(stats.heads[0].pattern).toEqual(poor);
    expect(stats.notes.join()).toMatch(/recall 0\.\d+ is below 0\.9/);
  });

  test("'throw' rejects the first read that depends on the plan", async () => {
    const { q, k } = inputs();
    using plan = planPrefill({ heads: poor }, q, k, {
      ...options,
      guarantee: { minRecall: 0.9, onMiss: 'throw' },
    });
    await expect(plan.stats()).rejects.toMatchObject({ code: 'ERR_VARLEN_RECALL' });
    using result = sparsePrefill(plan, q, k, k);
    await expect(result.out.data()).rejects.toMatchObject({ code: 'ERR_VARLEN_RECALL' });
  });
});

describe('a plan is a value', () => {
  const inputs = () => ({ q: randomTensor([90, 2, 8], 1), k: randomTensor([90, 1, 8], 2) });
  const heads: HeadPattern[] = [
    { kind: 'vertical-slash', select: { coverage: 0.5 }, forceSlash: 1, forceVertical: 1 },
    {
      kind: 'cell-grid',
      cell: Int32Array.from({ length: 90 }, (_, j) => (j % 11) - 1),
      lines: Int32Array.of(2),
      hline: true,
      vline: true,
      slash: true,
    },
  ];
  const options = { cuSeqlens: Int32Array.of(0, 90), ...EXACT, certificateRows: 9 };

  test('it comes back from bytes the same, and runs the same (P15)', async () => {
    const { q, k } = inputs();
    using plan = planPrefill({ heads }, q, k, options);
    const data = await plan.data();
    const back = deserializePlan(serializePlan(data));
    expect(back).toEqual(data);
    using again = PrefillPlan.from(back, { device: 'cpu' });
    expect(again.fingerprint).toBe(plan.fingerprint);
    expect((await again.stats()).heads).toEqual((await plan.stats()).heads);
    using first = sparsePrefill(plan, q, k, k);
    using second = sparsePrefill(again, q, k, k);
    expect(await second.out.toFloat32()).toEqual(await first.out.toFloat32());
  });

  test('bytes that are cut, changed or of another kind are ERR_VARLEN_CONFIG, or fail when they run', async () => {
    const { q, k } = inputs();
    using plan = planPrefill({ heads }, q, k, options);
    const bytes = serializePlan(await plan.data());
    for (let size = 0; size < bytes.length; size += 7) {
      expect(codeOf(() => deserializePlan(bytes.subarray(0, size)))).toBe('ERR_VARLEN_CONFIG');
    }
    expect(codeOf(() => deserializePlan([] as never))).toBe('ERR_VARLEN_TYPE');
    await fc.assert(
      fc.asyncProperty(fc.nat({ max: bytes.length - 1 }), fc.nat({ max: 255 }), async (at, value) => {
        const bad = bytes.slice();
        bad[at] = value;
        let data: ReturnType<typeof deserializePlan>;
        try {
          data = deserializePlan(bad);
        } catch (error) {
          expect((error as { code: string }).code).toBe('ERR_VARLEN_CONFIG');
          return;
        }
        // What cannot be told from the bytes is told by the native side, or is another plan: never a crash.
        try {
          using other = PrefillPlan.from(data, { device: 'cpu' });
          using result = sparsePrefill(other, q, k, k);
          await result.out.data();
        } catch (error) {
          expect((error as { code: string }).code).toMatch(/^ERR_VARLEN_/);
        }
      }),
      { numRuns: 200 },
    );
  });

  test('it is frozen, and gives its memory back once', () => {
    const { q, k } = inputs();
    const plan = planPrefill({ heads }, q, k, options);
    expect(Object.isFrozen(plan)).toBe(true);
    plan.dispose();
    plan.dispose();
    expect(plan.disposed).toBe(true);
  });

  test('the heads of a group can share what any of them chose', async () => {
    const q = randomTensor([200, 4, 8], 1);
    const k = randomTensor([200, 2, 8], 2);
    const pattern = {
      kind: 'vertical-slash',
      select: { topk: { vertical: 5, slash: 5 } },
      forceVertical: 0,
      forceSlash: 1,
    } as const;
    const given = { cuSeqlens: Int32Array.of(0, 200), ...EXACT };
    using own = planPrefill({ heads: pattern }, q, k, given);
    using shared = planPrefill({ heads: pattern }, q, k, { ...given, shareAcrossGroup: 'union' });
    const [a, b, c, d] = await Promise.all([0, 1, 2, 3].map((head) => own.mask(0, head, 'lines')));
    const either = (x: Uint8Array, y: Uint8Array) => x.map((bit, i) => bit | y[i]);
    expect(await shared.mask(0, 0, 'lines')).toEqual(either(a, b));
    expect(await shared.mask(0, 1, 'lines')).toEqual(either(a, b));
    expect(await shared.mask(0, 3, 'lines')).toEqual(either(c, d));
  });

  test('heads that would compute nearly everything are made dense', async () => {
    const { q, k } = inputs();
    const isolated = {
      kind: 'vertical-slash-fixed',
      vertical: new Int32Array(0),
      slash: Int32Array.of(0, 40, 70),
    } as const;
    using plan = planPrefill({ heads: isolated }, q, k, { ...options, denseAbove: 0.5 });
    expect((await plan.stats()).heads[0].pattern).toEqual({ kind: 'dense' });
    using kept = planPrefill({ heads: isolated }, q, k, options);
    const stats = await kept.stats();
    expect(stats.heads[0].pattern.kind).toBe('vertical-slash');
    expect(stats.notes.join()).toMatch(/isolated slashes compute/);
  });

  test('a workspace of the promised size is enough, and a smaller one is ERR_VARLEN_WORKSPACE', async () => {
    const { q, k } = inputs();
    const bytes = prefillWorkspaceBytes({ heads }, { numHeads: 2, numKvHeads: 1, totalQ: 90, totalK: 90 });
    const memory = (words: number) => Tensor.empty([words], { dtype: 'int32', device: 'cpu' });
    using plan = planPrefill({ heads }, q, k, { ...options, workspace: memory(bytes / 4) });
    using plain = planPrefill({ heads }, q, k, options);
    expect(await plan.mask(0, 0, 'computed')).toEqual(await plain.mask(0, 0, 'computed'));
    expect(codeOf(() => planPrefill({ heads }, q, k, { ...options, workspace: memory(bytes / 4 - 1) }))).toBe(
      'ERR_VARLEN_WORKSPACE',
    );
  });

  test('a grid head of a million tokens takes far less than 64 MiB', () => {
    const grid = { kind: 'grid', stride: 196, phase: 5, hline: true, vline: true, slash: true } as const;
    const bytes = prefillWorkspaceBytes({ heads: grid }, { numHeads: 1, totalQ: 1 << 20, totalK: 1 << 20 });
    expect(bytes).toBeLessThan(1024);
  });
});

describe('estimates', () => {
  test('NaN and infinite keys are counted, rank last, and do not spread to other heads', async () => {
    const data = normals(200 * 2 * 8, 4);
    data[(150 * 2 + 1) * 8] = Number.NaN;
    const k = Tensor.from(data, { shape: [200, 2, 8], device: 'cpu' });
    const q = randomTensor([200, 2, 8], 3);
    const pattern = {
      kind: 'vertical-slash',
      select: { topk: { vertical: 8, slash: 8 } },
      forceVertical: 1,
      forceSlash: 1,
    } as const;
    using plan = planPrefill({ heads: pattern }, q, k, { cuSeqlens: Int32Array.of(0, 200), ...EXACT });
    const { heads } = await plan.stats();
    expect(heads.map(({ nonFinite }) => nonFinite)).toEqual([0, 50]); // rows 150 to 199 see the key
  });

  test('indices beyond the keys are legal and counted', async () => {
    const pattern = {
      kind: 'vertical-slash-fixed',
      vertical: Int32Array.of(1, 500),
      slash: Int32Array.of(0, 600, 700),
    } as const;
    using plan = smallPlan(pattern, { queries: 50 });
    expect((await plan.stats()).heads[0].ignoredIndices).toBe(3);
  });

  test('row lines are found by the entropy of one query per place', async () => {
    const head = synthHead({ frames: 60, frameTokens: 49, kind: 'grid', phase: 11, rowLines: true, seed: 4 });
    const make = (x: Float32Array) =>
      Tensor.from(x, { shape: [head.tokens, 1, head.headDim], device: 'cpu' });
    const grid = {
      kind: 'grid',
      stride: 'frame',
      phase: 'search',
      hline: true,
      vline: true,
      slash: false,
      probeRows: 'residue',
    } as const;
    using plan = planPrefill({ heads: grid }, make(head.q), make(head.k), {
      cuSeqlens: Int32Array.of(0, head.tokens),
      modality: [head.modality],
      ...EXACT,
    });
    expect((await plan.stats()).heads[0].pattern).toMatchObject({ stride: 49, phase: 11, hlinePhase: 11 });
  });
});

describe('bad input', () => {
  const q = randomTensor([20, 2, 8], 1);
  const k = randomTensor([20, 1, 8], 2);
  const dense = { kind: 'dense' } as const;
  const cuSeqlens = Int32Array.of(0, 20);
  const plan = (heads: unknown, options: object = {}, config: object = {}) =>
    codeOf(() =>
      planPrefill({ heads, ...config } as never, q, k, {
        cuSeqlens,
        ...EXACT,
        ...options,
      } as never).dispose(),
    );
  const ids = new Uint8Array(20);

  test.each<[string, unknown, object?]>([
    ['ERR_VARLEN_RANGE', { kind: 'a-shape', sink: -1, local: 1 }],
    ['ERR_VARLEN_RANGE', { kind: 'a-shape', sink: 0, local: 0 }],
    ['ERR_VARLEN_RANGE', { kind: 'a-shape', sink: Number.NaN, local: 1 }],
    ['ERR_VARLEN_RANGE', { kind: 'a-shape', sink: 1.5, local: 1 }],
    ['ERR_VARLEN_RANGE', { kind: 'a-shape', sink: 2 ** 31, local: 1 }],
    ['ERR_VARLEN_TYPE', { kind: 'a-shape', sink: '1', local: 1 }],
    ['ERR_VARLEN_TYPE', { kind: 'a-shape', sink: 1n, local: 1 }],
    ['ERR_VARLEN_MISSING_INPUT', { kind: 'a-shape', sink: 1 }],
    ['ERR_VARLEN_RANGE', { kind: 'tri-shape', sink: 0, local: 1, last: -1 }],
    ['ERR_VARLEN_RANGE', { kind: 'grid', stride: 0, phase: 0, hline: true, vline: true, slash: true }],
    ['ERR_VARLEN_RANGE', { kind: 'grid', stride: 4, phase: 4, hline: true, vline: true, slash: true }],
    [
      'ERR_VARLEN_MODALITY',
      { kind: 'grid', stride: 'frame', phase: 0, hline: true, vline: true, slash: true },
    ],
    ['ERR_VARLEN_RANGE', { kind: 'vertical-slash', select: { topk: { vertical: -1, slash: 1 } } }],
    ['ERR_VARLEN_RANGE', { kind: 'vertical-slash', select: { coverage: 0 } }],
    ['ERR_VARLEN_RANGE', { kind: 'vertical-slash', select: { coverage: 1.1 } }],
    ['ERR_VARLEN_RANGE', { kind: 'vertical-slash', select: { coverage: 0.5 }, forceSlash: 0 }],
    ['ERR_VARLEN_INCOMPATIBLE', { kind: 'vertical-slash', select: { coverage: 0.5 }, slashCoord: 'rank' }],
    [
      'ERR_VARLEN_RANGE',
      { kind: 'block-sparse', block: [24, 64], score: 'mean-pool', select: { blocks: 1 } },
    ],
    [
      'ERR_VARLEN_RANGE',
      { kind: 'block-sparse', block: [64, 64], score: 'antidiagonal', stride: 12, select: { blocks: 1 } },
    ],
    [
      'ERR_VARLEN_INDEX',
      { kind: 'vertical-slash-fixed', vertical: Int32Array.of(-1), slash: Int32Array.of(0) },
    ],
    [
      'ERR_VARLEN_INDEX',
      { kind: 'vertical-slash-fixed', vertical: Int32Array.of(2, 2), slash: Int32Array.of(0) },
    ],
    [
      'ERR_VARLEN_INDEX',
      { kind: 'vertical-slash-fixed', vertical: Int32Array.of(3, 2), slash: Int32Array.of(0) },
    ],
    [
      'nothing thrown',
      {
        kind: 'vertical-slash-fixed',
        vertical: Int32Array.of(3, 2, 2),
        slash: Int32Array.of(0),
        normalize: true,
      },
    ],
    [
      'ERR_VARLEN_BLOCK_MASK',
      { kind: 'block-mask', indptr: Int32Array.of(0, 2, 1), indices: Int32Array.of(0), block: [10, 10] },
    ],
    [
      'ERR_VARLEN_BLOCK_MASK',
      { kind: 'block-mask', indptr: Int32Array.of(0, 1, 1), indices: Int32Array.of(7), block: [10, 10] },
    ],
    [
      'ERR_VARLEN_BLOCK_MASK',
      {
        kind: 'block-mask',
        indptr: Int32Array.of(0, 1),
        indices: Int32Array.of(0),
        block: [10, 10],
        rowSizes: Int32Array.of(19),
      },
    ],
    [
      'ERR_VARLEN_SHAPE',
      {
        kind: 'cell-grid',
        cell: new Int32Array(3),
        lines: new Int32Array(0),
        hline: true,
        vline: true,
        slash: true,
      },
    ],
    ['ERR_VARLEN_MODALITY', { kind: 'q-boundary', by: { text: dense } }],
    ['ERR_VARLEN_MODALITY', { kind: 'q-boundary', by: { vision: dense } }, { modality: [{ ids }] }],
    [
      'ERR_VARLEN_MODALITY',
      { kind: 'q-boundary', by: { text: dense, sound: dense } },
      { modality: [{ ids }] },
    ],
    ['ERR_VARLEN_MODALITY', { kind: '2d-boundary', by: { 'text>vision': dense } }, { modality: [{ ids }] }],
    [
      'ERR_VARLEN_INCOMPATIBLE',
      { kind: 'q-boundary', by: { text: { kind: 'q-boundary', by: {} } } },
      { modality: [{ ids }] },
    ],
    ['ERR_VARLEN_OPTION', { kind: 'round' }],
    ['ERR_VARLEN_OPTION', { kind: 'dense', sink: 1 }],
    ['ERR_VARLEN_TYPE', null],
    ['ERR_VARLEN_SHAPE', [dense]],
    ['ERR_VARLEN_MODALITY', dense, { modality: [{ ids: new Uint8Array(19) }] }],
    ['ERR_VARLEN_MODALITY', dense, { modality: [] }],
    ['ERR_VARLEN_MODALITY', dense, { modality: [{ runs: [{ modality: 'text', start: 1, length: 19 }] }] }],
    ['ERR_VARLEN_CU_SEQLENS', dense, { cuSeqlens: Int32Array.of(0, 19) }],
    ['ERR_VARLEN_CU_SEQLENS', dense, { cuSeqlens: Int32Array.of(0, 30, 20) }],
    ['ERR_VARLEN_CU_SEQLENS', dense, { cuSeqlens: new Int32Array(0) }],
    ['ERR_VARLEN_DTYPE', dense, { cuSeqlens: new Uint32Array(2) }],
    ['ERR_VARLEN_TYPE', dense, { cuSeqlens: [0, 20] }],
    ['ERR_VARLEN_MISSING_INPUT', dense, { cuSeqlens: undefined }],
    ['ERR_VARLEN_MAX_SEQLEN', dense, { maxSeqlen: 19 }],
    ['ERR_VARLEN_RANGE', dense, { lastQ: 65 }],
    ['ERR_VARLEN_RANGE', dense, { guarantee: { minRecall: 2 } }],
    ['ERR_VARLEN_OPTION', dense, { guarantee: { minRecall: 0.5, onMiss: 'hope' } }],
    ['ERR_VARLEN_OPTION', dense, { speed: 1 }],
  ])('%s, case %#', (code, heads, options) => {
    expect(plan(heads, options)).toBe(code);
  });

  test('more queries than keys is ERR_VARLEN_CU_SEQLENS where causal', () => {
    const short = randomTensor([10, 1, 8], 1);
    const options = { cuSeqlensQ: Int32Array.of(0, 20), cuSeqlensK: Int32Array.of(0, 10), ...EXACT };
    expect(codeOf(() => planPrefill({ heads: dense }, q, short, options))).toBe('ERR_VARLEN_CU_SEQLENS');
  });

  test('patterns nested a thousand deep are refused, not followed', () => {
    let deep: HeadPattern = dense;
    for (let i = 0; i < 1000; i++) deep = { kind: 'union', of: [deep] };
    expect(plan(deep)).toBe('ERR_VARLEN_RANGE');
  });

  test('a layout given by runs is the one given by ids', async () => {
    const runs: ModalityLayout = {
      runs: [
        { modality: 'text', start: 0, length: 8 },
        { modality: 'vision', start: 8, length: 12 },
      ],
    };
    const pattern = {
      kind: 'q-boundary',
      by: { text: dense, vision: { kind: 'a-shape', sink: 0, local: 2 } },
    } as const;
    const byIds = { ids: Uint8Array.from({ length: 20 }, (_, j) => Number(j >= 8)) };
    expect(await setOf(pattern, { queries: 20, options: { modality: [runs] } })).toEqual(
      await setOf(pattern, { queries: 20, options: { modality: [byIds] } }),
    );
  });
});
