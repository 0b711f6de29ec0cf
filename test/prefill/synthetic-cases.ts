import {
  type HeadPattern,
  type PatternSummary,
  planPrefill,
  type SynthHead,
  sparsePrefill,
  synthHead,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';

// What the tests of specification section 17 and bench/prefill/synthetic.bench.ts measure on synthetic heads.

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

export interface Measured {
  /** Of the certificate, 256 rows. */
  readonly recall: number;
  /** In float64, of 48 rows: of the computed set, and of the lines. */
  readonly sampledRecall: number;
  readonly linesRecall: number;
  readonly density: number;
  readonly linesDensity: number;
}

/** What a pattern keeps of a head, from row 2000 on. */
export async function measure(head: SynthHead, pattern: HeadPattern): Promise<Measured> {
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
  return { recall: recall!.mean, sampledRecall: computed, linesRecall: lines, density, linesDensity };
}

/** The grid of the reference table without its lines. */
export const grid = {
  kind: 'grid',
  stride: 49,
  phase: 5,
  hline: false,
  vline: false,
  slash: false,
  sink: 16,
  local: 256,
} as const;
export const vs = { kind: 'vertical-slash', select: { topk: { vertical: 500, slash: 700 } } } as const;

export const search = {
  kind: 'grid',
  stride: 'search',
  phase: 'search',
  maxStride: 256,
  hline: false,
} as const;

/** What the search of a stride finds. */
export async function searched(head: SynthHead, pattern: HeadPattern): Promise<PatternSummary> {
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

/** Share of needles, over depth and length, that draw at least half of the mass that dense attention pays them. */
export async function retention(
  textEvery: number,
  textLength: number,
  pattern: HeadPattern,
): Promise<number> {
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
}

/** Seeds whose stride (and phase, of column lines) are found, of 20. */
export async function recovered(
  kind: 'grid' | 'slash' | 'mixed',
  lines: 'columns' | 'slashes',
): Promise<number> {
  let found = 0;
  for (let seed = 1; seed <= 20; seed++) {
    const head = synthHead({ frames: 84, frameTokens: 49, kind, seed });
    const columns = lines === 'columns';
    const pattern = await searched(head, { ...search, vline: columns, slash: !columns });
    if (pattern.kind !== 'grid' || pattern.stride !== 49) continue;
    if (!columns || pattern.phase === head.phase) found++;
  }
  return found;
}

/** Verticals and slashes that find needles, and the pattern of a mix with text. */
export const textPattern = {
  kind: 'vertical-slash',
  select: { topk: { vertical: 200, slash: 200 } },
} as const;
export const mixedPattern = {
  kind: 'q-boundary',
  by: {
    text: textPattern,
    vision: { ...grid, vline: true, slash: true, stride: 'frame', phase: 'search' },
  },
} as const;

/** Recall and share of tiles of the pattern that fits a video head of 320 frames. */
export async function videoRecall(kind: 'grid' | 'mixed'): Promise<{ recall: number; tileDensity: number }> {
  const head = synthHead({ frames: 320, frameTokens: 49, kind, seed: 2 });
  const { q, k, v } = tensors(head);
  v.dispose();
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
  q.dispose();
  k.dispose();
  return { recall: recall!.mean, tileDensity };
}
