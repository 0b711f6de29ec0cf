import { checkInteger, describe, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { Tensor } from '../tensor/index.js';
import type { LayerConfig } from './config.js';
import { type ModalityLayout, modalityNames, readModalities } from './modality.js';
import type { HeadPattern } from './pattern.js';
import { planPrefill } from './plan.js';
import { boundaryNames, searchBoundaries } from './search-boundary.js';
import { defaultCandidates } from './search-candidates.js';
import { HeadSearch, type Objective, type OneHead, TOLERANCE, type Tried } from './search-head.js';

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
  /**
   * Patterns to try. Default: those of MMInference's table 4 for sequences with modalities and for rows of vision,
   * those of its table 7 for text.
   */
  readonly candidates?: readonly HeadPattern[];
  /**
   * Relative error of the output, share of its elements that are off by more than 0.005, or attention mass lost.
   * Default `'output-l2'`.
   */
  readonly objective?: Objective;
  /**
   * Whether patterns per query modality and per pair of modalities compete as well. Default: where at least two
   * modalities have `minModalityRows` rows.
   */
  readonly boundaries?: boolean;
  /** Rows from which on a modality gets patterns of its own. Default 128, as in `planPrefill`. */
  readonly minModalityRows?: number;
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
  readonly tried: readonly Tried[];
}

/** Result of {@link searchPatterns}. */
export interface SearchResult {
  readonly layer: LayerConfig;
  readonly heads: readonly SearchedHead[];
}

const OP = 'searchPatterns';
const OBJECTIVES: readonly Objective[] = ['output-l2', 'output-count', 'recall'];

/**
 * Finds the best pattern of each head of a layer at a common cost, from what a model computed once.
 *
 * Every candidate is first brought to the cost of `budget`, counted in pairs that the kernel issues and not
 * in lines (MInference, algorithm 1), and then judged by the output it gives. Positions are never stored:
 * those of one prompt keep little of another's attention. With several modalities, the best pattern of each, and
 * of each pair of them, are composed and compete at the same cost (MMInference, algorithm 4).
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
  const known = readOptions(OP, options, [
    'candidates',
    'objective',
    'boundaries',
    'minModalityRows',
    'budget',
    'minRecall',
    'signal',
  ]);
  const { objective = 'output-l2', minRecall = 0.8, minModalityRows = 128, signal } = known;
  const { budget = { kind: 'a-shape', sink: 1024, local: 4096 } as const } = known;
  for (const name of ['q', 'k', 'v'] as const) {
    if (!(capture?.[name] instanceof Tensor)) throw wrongType(OP, name, capture?.[name], 'a Tensor');
  }
  if (!OBJECTIVES.includes(objective)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'objective',
      `is unknown; got ${describe(objective)}, expected ${OBJECTIVES.join(', ')}`,
    );
  }
  checkInteger(OP, 'minModalityRows', minModalityRows, 0);
  const { q, k, v, modality } = capture;
  const [numHeads, numKvHeads] = [q.shape[1], k.shape[1]];
  const layouts = modality === undefined ? [] : [modality];
  const allNames = modalityNames(OP, layouts);
  const parts =
    modality === undefined
      ? { names: [], nameOf: () => '' }
      : boundaryNames(
          readModalities(OP, 'modality', modality, allNames, q.shape[0]),
          allNames,
          Math.max(1, minModalityRows),
        );
  const { boundaries = parts.names.length > 1 } = known;
  if (boundaries && parts.names.length < 2) {
    throw argumentError(
      'ERR_VARLEN_MODALITY',
      OP,
      'boundaries',
      `need two modalities of at least ${minModalityRows} rows; got ${parts.names.length}`,
    );
  }
  const candidatesOf = (name: string): readonly HeadPattern[] => known.candidates ?? defaultCandidates(name);
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
    const search = await HeadSearch.start(head, objective, budget);
    const tried: Tried[] = [];
    for (const candidate of candidatesOf(modality === undefined ? 'text' : 'vision')) {
      signal?.throwIfAborted();
      tried.push(await search.try(candidate));
    }
    if (boundaries) tried.push(...(await searchBoundaries(search, { ...parts, candidatesOf, signal })));
    // Those that cost more than the budget compete only when nothing fits it.
    const affordable = tried.filter(({ cost }) => cost <= search.target * (1 + TOLERANCE));
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
