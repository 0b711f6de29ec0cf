import { readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { sparsePrefill } from '../ops/sparse-prefill.js';
import { Tensor } from '../tensor/index.js';
import type { LayerConfig } from './config.js';
import type { ModalityLayout } from './modality.js';
import type { HeadPattern } from './pattern.js';
import { type HeadStats, planPrefill } from './plan.js';

/** Queries, keys and values of one layer over one calibration sequence. */
export interface Capture {
  /** `[tokens, numHeads, headDim]` */
  readonly q: Tensor;
  /** `[tokens, numKvHeads, headDim]` */
  readonly k: Tensor;
  readonly v: Tensor;
  readonly modality?: ModalityLayout;
}

/** Options of {@link searchPatterns}. */
export interface SearchOptions {
  /** Patterns to try. Default: those of MMInference's table 4 for sequences with vision, MInference's else. */
  readonly candidates?: readonly HeadPattern[];
  /** Relative error of the output, or attention mass lost. Default `'output-l2'`. */
  readonly objective?: 'output-l2' | 'recall';
  /** What a head may cost: the pairs that this pattern issues. Default a-shape(1024, 4096). */
  readonly budget?: HeadPattern;
  /** Heads that keep less than this at four times the budget are dense. Default 0.8. */
  readonly minRecall?: number;
  readonly signal?: AbortSignal;
}

/** What the search found for one head. */
export interface SearchedHead {
  readonly head: number;
  readonly pattern: HeadPattern;
  /** The objective; smaller is better. */
  readonly score: number;
  readonly recall: number;
  /** Share of all pairs that it issues. */
  readonly cost: number;
  /** Every candidate as it was compared. */
  readonly tried: readonly { readonly pattern: HeadPattern; readonly score: number; readonly cost: number }[];
}

/** Result of {@link searchPatterns}. */
export interface SearchResult {
  readonly layer: LayerConfig;
  readonly heads: readonly SearchedHead[];
}

const OP = 'searchPatterns';
const STEP = 50;
const TOLERANCE = 0.05;
const MAX_STEPS = 24;

const verticalSlash = (vertical: number, slash: number): HeadPattern => ({
  kind: 'vertical-slash',
  select: { topk: { vertical, slash } },
});

function defaultCandidates(vision: boolean): HeadPattern[] {
  const text: HeadPattern[] = [
    { kind: 'a-shape', sink: 1024, local: 4096 },
    verticalSlash(30, 2048),
    verticalSlash(100, 1800),
    verticalSlash(500, 1500),
    verticalSlash(3000, 200),
    { kind: 'block-sparse', block: [64, 64], score: 'mean-pool', select: { blocks: 100 } },
  ];
  if (!vision) return text;
  const grids = (['100', '010', '001', '110', '011', '111'] as const).map((flags): HeadPattern => {
    const [hline, vline, slash] = [...flags].map((flag) => flag === '1');
    return { kind: 'grid', stride: 'search', phase: 'search', hline, vline, slash };
  });
  return [
    ...grids,
    { kind: 'a-shape', sink: 128, local: 1024 },
    { kind: 'a-shape', sink: 128, local: 4096 },
    verticalSlash(1000, 1024),
    verticalSlash(2000, 2048),
    verticalSlash(1000, 4096),
    verticalSlash(3500, 200),
  ];
}

/** The pattern with `steps` times 50 keys per row more; `undefined` where nothing is left to take. */
function adjusted(pattern: HeadPattern, steps: number): HeadPattern | undefined {
  const by = steps * STEP;
  if (pattern.kind === 'a-shape' || pattern.kind === 'tri-shape') {
    return pattern.local + by < 1 ? undefined : { ...pattern, local: pattern.local + by };
  }
  if (pattern.kind === 'vertical-slash' && 'topk' in pattern.select) {
    const { vertical, slash } = pattern.select.topk;
    if (slash + by >= 1) return { ...pattern, select: { topk: { vertical, slash: slash + by } } };
    return vertical + by < 1
      ? undefined
      : { ...pattern, select: { topk: { vertical: vertical + by, slash } } };
  }
  return undefined; // grids and blocks are what they are
}

/** One head of a capture: views of its rows. */
interface OneHead {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly modality: ModalityLayout | undefined;
}

async function measure(head: OneHead, pattern: HeadPattern): Promise<HeadStats> {
  using plan = planFor(head, pattern);
  return (await plan.stats()).heads[0];
}

function planFor({ q, k, modality }: OneHead, pattern: HeadPattern): ReturnType<typeof planPrefill> {
  return planPrefill({ heads: pattern }, q, k, {
    cuSeqlens: Int32Array.of(0, q.shape[0]),
    denseBelow: 0,
    denseAbove: 1,
    certificateRows: 128,
    ...(modality === undefined ? {} : { modality: [modality] }),
  });
}

/** Brings a candidate's cost within 5 % of the budget, in steps of 50 keys per row. */
async function fitToBudget(head: OneHead, pattern: HeadPattern, budget: number): Promise<HeadPattern> {
  let [best, difference] = [pattern, Infinity];
  let steps = 0;
  let stride = 8;
  for (let turn = 0; turn < MAX_STEPS; turn++) {
    const candidate = steps === 0 ? pattern : adjusted(pattern, steps);
    if (candidate === undefined) break;
    const { tileDensity } = await measure(head, candidate);
    const off = tileDensity / budget - 1;
    if (Math.abs(off) < Math.abs(difference)) [best, difference] = [candidate, off];
    if (Math.abs(off) <= TOLERANCE || adjusted(pattern, 1) === undefined) break;
    const next = steps + (off > 0 ? -stride : stride);
    if (off * difference < 0) stride = Math.max(1, stride >> 1);
    steps = next;
  }
  return best;
}

async function outputOf(head: OneHead, pattern: HeadPattern): Promise<Float32Array> {
  using plan = planFor(head, pattern);
  using result = sparsePrefill(plan, head.q, head.k, head.v);
  return result.out.toFloat32();
}

/** `|a - b| / |b|` over all rows. */
function relativeError(a: Float32Array, b: Float32Array): number {
  let [error, norm] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    error += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return norm > 0 ? Math.sqrt(error / norm) : 0;
}

/**
 * Finds the best pattern of each head of a layer at a common cost, from what a model computed once.
 *
 * Every candidate is first brought to the cost of `budget`, counted in pairs that the kernel issues and not
 * in lines (MInference, algorithm 1), and then judged by the output it gives. Positions are never stored:
 * those of one prompt keep little of another's attention.
 *
 * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_OPTION`, and what `planPrefill` throws; the
 *   signal's reason when it is aborted
 *
 * @example
 * ```ts
 * const { layer } = await searchPatterns({ q, k, v });
 * writeFileSync('model.json', writePatternConfig({ model: 'mine', headDim: 128, lastQ: 64, layers: [layer] }));
 * ```
 */
export async function searchPatterns(capture: Capture, options?: SearchOptions): Promise<SearchResult> {
  const known = readOptions(OP, options, ['candidates', 'objective', 'budget', 'minRecall', 'signal']);
  const { objective = 'output-l2', minRecall = 0.8, signal } = known;
  const { budget = { kind: 'a-shape', sink: 1024, local: 4096 } as const } = known;
  for (const name of ['q', 'k', 'v'] as const) {
    if (!(capture?.[name] instanceof Tensor)) throw wrongType(OP, name, capture?.[name], 'a Tensor');
  }
  if (objective !== 'output-l2' && objective !== 'recall') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'objective',
      `is unknown; got '${String(objective)}', expected 'output-l2' or 'recall'`,
    );
  }
  const { q, k, v, modality } = capture;
  const { candidates = defaultCandidates(modality !== undefined) } = known;
  const [numHeads, numKvHeads] = [q.shape[1], k.shape[1]];
  const heads: SearchedHead[] = [];
  for (let h = 0; h < numHeads; h++) {
    const kv = Math.floor((h * numKvHeads) / numHeads);
    using query = q.slice(1, h, h + 1);
    using key = k.slice(1, kv, kv + 1);
    using value = v.slice(1, kv, kv + 1);
    heads.push(await searchHead({ q: query, k: key, v: value, modality }, h));
  }
  const named = heads.map(({ head, pattern }) => [String(head), pattern]);
  const layer: LayerConfig = { numHeads, defaults: { kind: 'dense' }, heads: Object.fromEntries(named) };
  return Object.freeze({ layer: Object.freeze(layer), heads: Object.freeze(heads) });

  async function searchHead(head: OneHead, index: number): Promise<SearchedHead> {
    const { tileDensity: target } = await measure(head, budget);
    const exact = await outputOf(head, { kind: 'dense' });
    const tried: { pattern: HeadPattern; score: number; cost: number; recall: number }[] = [];
    for (const candidate of candidates) {
      signal?.throwIfAborted();
      const pattern = await fitToBudget(head, candidate, target);
      const { tileDensity: cost, recall } = await measure(head, pattern);
      const score =
        objective === 'recall' ? 1 - recall!.mean : relativeError(await outputOf(head, pattern), exact);
      tried.push({ pattern, score, cost, recall: recall!.mean });
    }
    // Those that cost more than the budget compete only when nothing fits it.
    const affordable = tried.filter(({ cost }) => cost <= target * (1 + TOLERANCE));
    const pool = affordable.length > 0 ? affordable : tried;
    const best = pool.reduce((a, b) => (b.score < a.score ? b : a));
    const dense = best.recall < minRecall && (await recallAtFour(head, best.pattern)) < minRecall;
    const pattern: HeadPattern = dense ? { kind: 'dense' } : best.pattern;
    const [score, recall, cost] = dense ? [0, 1, 1] : [best.score, best.recall, best.cost];
    return Object.freeze({ head: index, pattern, score, recall, cost, tried: Object.freeze(tried) });
  }

  async function recallAtFour(head: OneHead, pattern: HeadPattern): Promise<number> {
    using plan = planPrefill({ heads: pattern }, head.q, head.k, {
      cuSeqlens: Int32Array.of(0, head.q.shape[0]),
      denseBelow: 0,
      denseAbove: 1,
      ...(head.modality === undefined ? {} : { modality: [head.modality] }),
      guarantee: { minRecall },
    });
    const [{ recall, densified }] = (await plan.stats()).heads;
    return densified <= 2 ? recall!.mean : 0; // doubled twice at most
  }
}
