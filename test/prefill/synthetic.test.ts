import { describe, expect, test } from 'vitest';
import {
  type HeadPattern,
  type PatternSummary,
  planPrefill,
  type SynthHead,
  sparsePrefill,
  synthHead,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';

// Specification section 17. Its numbers come from another random generator: compared to 0.02.

const FROM = 2000; // rows before it are left out, as in the reference

function tensors(head: SynthHead): { q: Tensor; k: Tensor; v: Tensor } {
  const { tokens, headDim } = head;
  const make = (data: Float32Array): Tensor =>
    Tensor.from(data, { shape: [tokens, 1, headDim], device: 'cpu' });
  return { q: make(head.q), k: make(head.k), v: make(head.v) };
}

/** Attention mass that rows keep, in float64. */
function recallOf(head: SynthHead, mask: Uint8Array, rows: readonly number[]): number {
  const { tokens, headDim, q, k } = head;
  let sum = 0;
  for (const x of rows) {
    const scores = new Float64Array(x + 1);
    for (let j = 0; j <= x; j++) {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += q[x * headDim + d] * k[j * headDim + d];
      scores[j] = dot * headDim ** -0.5;
    }
    const max = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    let [all, kept] = [0, 0];
    for (let j = 0; j <= x; j++) {
      const weight = Math.exp(scores[j] - max);
      all += weight;
      if (mask[(x - FROM) * tokens + j] === 1) kept += weight;
    }
    sum += kept / all;
  }
  return sum / rows.length;
}

interface Measured {
  readonly recall: number;
  readonly linesRecall: number;
  readonly density: number;
  readonly linesDensity: number;
}

async function measure(head: SynthHead, pattern: HeadPattern): Promise<Measured> {
  const { q, k } = tensors(head);
  const rows = head.tokens - FROM;
  using late = q.slice(0, FROM, head.tokens);
  using plan = planPrefill({ heads: pattern }, late, k, {
    cuSeqlensQ: Int32Array.of(0, rows),
    cuSeqlensK: Int32Array.of(0, head.tokens),
    denseBelow: 0,
    denseAbove: 1,
    certificateRows: 256,
  });
  const { heads } = await plan.stats();
  const { computedDensity: density, linesDensity, recall } = heads[0];
  const sample = Array.from({ length: 48 }, (_, i) => FROM + Math.floor(((i + 0.5) * rows) / 48));
  const computed = recallOf(head, await plan.mask(0, 0, 'computed'), sample);
  const lines = recallOf(head, await plan.mask(0, 0, 'lines'), sample);
  // The certificate looks at 256 rows, this at 48 others.
  expect(Math.abs(recall!.mean - computed)).toBeLessThan(0.1);
  return { recall: recall!.mean, linesRecall: lines, density, linesDensity };
}

const grid = {
  kind: 'grid',
  stride: 49,
  phase: 5,
  hline: false,
  vline: false,
  slash: false,
  sink: 16,
  local: 256,
} as const;
const vs = { kind: 'vertical-slash', select: { topk: { vertical: 500, slash: 700 } } } as const;

// Recall of what keeps neither lines nor slashes hangs on the eight random frequencies of the band: the
// reference's 0.518 for a-shape(16, 256) lies in 0.28..0.53, what eight seeds give here. Those rows are
// compared by their density, and by falling far behind.
describe.each([
  ['grid', { lines: 0.992, both: 0.992, vsLines: 0.994, vs: 0.998 }],
  ['mixed', { lines: undefined, both: 0.979, vsLines: 0.906, vs: 0.952 }],
] as const)('the reference table: %s head', (kind, expected) => {
  const head = synthHead({ frames: 160, frameTokens: 49, kind, phase: 5, seed: 0 });

  test.each([
    ['grid of column lines', { ...grid, vline: true }, expected.lines, 0.074],
    ['grid of both', { ...grid, vline: true, slash: true }, expected.both, 0.093],
  ] as const)('%s', async (_name, pattern, recall, density) => {
    const got = await measure(head, pattern);
    if (recall !== undefined) expect(Math.abs(got.recall - recall)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.density - density)).toBeLessThanOrEqual(0.005);
  });

  test.each([
    ['a-shape(16, 256)', { kind: 'a-shape', sink: 16, local: 256 }, 0.054],
    ['a-shape(128, 1024)', { kind: 'a-shape', sink: 128, local: 1024 }, 0.23],
    ['grid of slashes', { ...grid, slash: true }, 0.074],
  ] as const)('%s', async (_name, pattern, density) => {
    const got = await measure(head, pattern);
    expect(got.recall).toBeLessThan(expected.both - 0.15);
    expect(Math.abs(got.density - density)).toBeLessThanOrEqual(0.005);
  });

  test('vertical-slash(500, 700): its lines and what is computed', async () => {
    const got = await measure(head, vs);
    expect(Math.abs(got.linesRecall - expected.vsLines)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.linesDensity - 0.144)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.recall - expected.vs)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.density - 0.379)).toBeLessThanOrEqual(0.02);
  });
});

const search = { kind: 'grid', stride: 'search', phase: 'search', maxStride: 256, hline: false } as const;

async function searched(head: SynthHead, pattern: HeadPattern): Promise<PatternSummary> {
  const { q, k } = tensors(head);
  using plan = planPrefill({ heads: pattern }, q, k, {
    cuSeqlens: Int32Array.of(0, head.tokens),
    modality: [head.modality],
    denseBelow: 0,
    denseAbove: 1,
  });
  const [{ pattern: found }] = (await plan.stats()).heads;
  q.dispose();
  k.dispose();
  return found;
}

describe('stride and phase are recovered on at least 19 of 20 seeds (P13)', () => {
  const seeds = Array.from({ length: 20 }, (_, i) => i + 1);

  test.each(['grid', 'mixed'] as const)(
    'column lines of %s heads',
    async (kind) => {
      let found = 0;
      for (const seed of seeds) {
        const head = synthHead({ frames: 84, frameTokens: 49, kind, seed });
        const pattern = await searched(head, { ...search, vline: true, slash: false });
        if (pattern.kind === 'grid' && pattern.stride === 49 && pattern.phase === head.phase) found++;
      }
      expect(found).toBeGreaterThanOrEqual(19);
    },
    120_000,
  );

  test.each(['slash', 'mixed'] as const)(
    'slashes of %s heads',
    async (kind) => {
      let found = 0;
      for (const seed of seeds) {
        const head = synthHead({ frames: 84, frameTokens: 49, kind, seed });
        const pattern = await searched(head, { ...search, vline: false, slash: true });
        if (pattern.kind === 'grid' && pattern.stride === 49) found++;
      }
      expect(found).toBeGreaterThanOrEqual(19);
    },
    120_000,
  );

  test('a head without lines falls back to verticals and slashes', async () => {
    const head = synthHead({ frames: 84, frameTokens: 49, kind: 'slash', seed: 3 });
    expect((await searched(head, { ...search, vline: true, slash: false })).kind).toBe('vertical-slash');
  });
});

describe('needles are found again', () => {
  // Score: mass on the needle at least half of what dense attention pays it, over depth and length.
  const retention = async (textEvery: number, textLength: number, pattern: HeadPattern): Promise<number> => {
    let [kept, all] = [0, 0];
    for (const frames of [60, 84, 120]) {
      for (let depth = 0.05; depth < 1; depth += 0.1) {
        const head = synthHead({
          frames,
          frameTokens: 49,
          kind: 'mixed',
          needle: depth,
          seed: frames,
          textEvery,
          textLength,
        });
        const { q, k } = tensors(head);
        // A value that is 1 at the needle alone reads the mass on it.
        const marked = new Float32Array(head.tokens * 8);
        marked[head.needle * 8] = 1;
        using v = Tensor.from(marked, { shape: [head.tokens, 1, 8], device: 'cpu' });
        const masses: number[] = [];
        for (const heads of [pattern, { kind: 'dense' } as const]) {
          using late = q.slice(0, head.tokens - 64, head.tokens);
          using plan = planPrefill({ heads }, late, k, {
            cuSeqlensQ: Int32Array.of(0, 64),
            cuSeqlensK: Int32Array.of(0, head.tokens),
            modality: [head.modality],
            denseBelow: 0,
            denseAbove: 1,
            minModalityRows: 0,
          });
          using result = sparsePrefill(plan, late, k, v);
          const out = await result.out.toFloat32();
          masses.push(out.reduce((sum, x, i) => (i % 8 === 0 ? sum + x : sum), 0));
        }
        all++;
        if (masses[0] >= 0.5 * masses[1]) kept++;
        q.dispose();
        k.dispose();
      }
    }
    return kept / all;
  };
  const text = { kind: 'vertical-slash', select: { topk: { vertical: 200, slash: 200 } } } as const;

  test('in video: at least 97.7 %', async () => {
    expect(await retention(0, 0, text)).toBeGreaterThanOrEqual(0.977);
  }, 120_000);

  test('in a mix with a quarter of text: at least 91.3 %', async () => {
    const vision = { ...grid, vline: true, slash: true, stride: 'frame', phase: 'search' } as const;
    expect(await retention(10, 163, { kind: 'q-boundary', by: { text, vision } })).toBeGreaterThanOrEqual(
      0.913,
    );
  }, 120_000);
});

test('recall reaches 0.95 at no more than a tenth of the tiles on video', async () => {
  for (const kind of ['grid', 'mixed'] as const) {
    const head = synthHead({ frames: 320, frameTokens: 49, kind, seed: 2 });
    const { q, k } = tensors(head);
    const pattern = {
      ...grid,
      stride: 'frame',
      phase: 'search',
      vline: true,
      slash: kind === 'mixed',
    } as const;
    using plan = planPrefill({ heads: pattern }, q, k, {
      cuSeqlens: Int32Array.of(0, head.tokens),
      modality: [head.modality],
      denseBelow: 0,
      guarantee: { minRecall: 0.95, onMiss: 'warn' },
    });
    const [{ recall, tileDensity }] = (await plan.stats()).heads;
    expect(recall!.mean).toBeGreaterThanOrEqual(0.95);
    expect(tileDensity).toBeLessThanOrEqual(0.1);
  }
});
