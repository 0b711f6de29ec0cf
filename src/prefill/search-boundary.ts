import type { Modalities } from './modality.js';
import type { HeadPattern } from './pattern.js';
import type { HeadSearch, Tried } from './search-head.js';

/** Boundaries between modalities in the offline search (MMInference, algorithm 4). */

/** What of a sequence the search of boundaries reads. */
export interface BoundaryInput {
  /** Modalities with enough rows to have patterns of their own. */
  readonly names: readonly string[];
  /** Name of each position's modality. */
  readonly nameOf: (position: number) => string;
  readonly candidatesOf: (name: string) => readonly HeadPattern[];
  readonly signal: AbortSignal | undefined;
}

/** Reads which modalities of a sequence have at least `minRows` rows. */
export function boundaryNames(
  { ids }: Modalities,
  names: readonly string[],
  minRows: number,
): { names: string[]; nameOf: (position: number) => string } {
  const rows = new Array<number>(names.length).fill(0);
  for (const id of ids) rows[id]++;
  return { names: names.filter((_, id) => rows[id] >= minRows), nameOf: (position) => names[ids[position]] };
}

/** Keeps what scored best under each key. */
class Best {
  readonly #best = new Map<string, { readonly score: number; readonly pattern: HeadPattern }>();

  offer(key: string, score: number, pattern: HeadPattern): void {
    const before = this.#best.get(key);
    if (before === undefined || score < before.score) this.#best.set(key, { score, pattern });
  }

  patterns(): Record<string, HeadPattern> {
    return Object.fromEntries([...this.#best].map(([key, { pattern }]) => [key, pattern]));
  }
}

/** Every candidate of some modality, once. */
function allCandidates({ names, candidatesOf }: BoundaryInput): readonly HeadPattern[] {
  return [...new Set(names.flatMap((name) => candidatesOf(name)))];
}

/**
 * The best pattern of each query modality, composed: every candidate is put on all modalities at the budget's cost,
 * and judged on the rows of each.
 */
async function searchQueries(search: HeadSearch, input: BoundaryInput): Promise<Tried> {
  const best = new Best();
  for (const candidate of allCandidates(input)) {
    input.signal?.throwIfAborted();
    const by = Object.fromEntries(input.names.map((name) => [name, candidate]));
    const fitted = await search.fit({ kind: 'q-boundary', by });
    if (fitted.kind !== 'q-boundary') continue;
    for (const name of input.names) {
      if (!input.candidatesOf(name).includes(candidate)) continue;
      const score = await search.scoreOf(fitted, (row) => input.nameOf(row) === name);
      best.offer(name, score, fitted.by[name]);
    }
  }
  return search.try({ kind: 'q-boundary', by: best.patterns() });
}

/**
 * The best pattern of each pair of modalities, composed: a candidate has the size that it has on all pairs at the
 * budget's cost, and is judged alone, with every other pair dense, on the rows of its query modality.
 */
async function searchPairs(search: HeadSearch, input: BoundaryInput): Promise<Tried> {
  const { names, candidatesOf, signal, nameOf } = input;
  const pairs = names.flatMap((a) => names.map((b) => [a, b, `${a}>${b}`] as const));
  const dense: HeadPattern = { kind: 'dense' };
  const own = Object.fromEntries(names.map((name) => [`${name}>${name}`, dense]));
  const best = new Best();
  for (const candidate of allCandidates(input)) {
    signal?.throwIfAborted();
    const everywhere = Object.fromEntries(pairs.map(([, , pair]) => [pair, candidate]));
    const fitted = await search.fit({ kind: '2d-boundary', by: everywhere });
    if (fitted.kind !== '2d-boundary') continue;
    for (const [query, , pair] of pairs) {
      if (!candidatesOf(query).includes(candidate)) continue;
      const part = fitted.by[pair as `${string}>${string}`];
      const alone = { kind: '2d-boundary', by: { ...own, [pair]: part } } as const;
      best.offer(pair, await search.scoreOf(alone, (row) => nameOf(row) === query), part);
    }
  }
  return search.try({ kind: '2d-boundary', by: best.patterns() });
}

/** The best compositions: one pattern per query modality, and one per pair. */
export async function searchBoundaries(search: HeadSearch, input: BoundaryInput): Promise<Tried[]> {
  return [await searchQueries(search, input), await searchPairs(search, input)];
}
