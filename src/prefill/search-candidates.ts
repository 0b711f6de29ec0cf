import type { HeadPattern } from './pattern.js';

/** What the offline search tries, and how a candidate is made to cost more or less. */

/** Keys per row that one step adds or takes (MInference, algorithm 1). */
const STEP = 50;

const verticalSlash = (vertical: number, slash: number): HeadPattern => ({
  kind: 'vertical-slash',
  select: { topk: { vertical, slash } },
});
const aShape = (sink: number, local: number): HeadPattern => ({ kind: 'a-shape', sink, local });

/** MMInference, table 7: rows of text. */
const TEXT: readonly HeadPattern[] = [
  aShape(1024, 4096),
  verticalSlash(30, 2048),
  verticalSlash(100, 1800),
  verticalSlash(500, 1500),
  verticalSlash(3000, 200),
  { kind: 'block-sparse', block: [64, 64], score: 'mean-pool', select: { blocks: 100 } },
];

/** MMInference, table 4: rows of images and video. */
const VISION: readonly HeadPattern[] = [
  ...(['100', '010', '001', '110', '011', '111'] as const).map((flags): HeadPattern => {
    const [hline, vline, slash] = [...flags].map((flag) => flag === '1');
    return { kind: 'grid', stride: 'search', phase: 'search', hline, vline, slash };
  }),
  aShape(128, 1024),
  aShape(128, 2048),
  aShape(128, 4096),
  verticalSlash(1000, 1024),
  verticalSlash(1000, 2048),
  verticalSlash(2000, 2048),
  verticalSlash(1000, 3096),
  verticalSlash(2000, 3096),
  verticalSlash(1000, 4096),
  verticalSlash(2000, 4096),
  verticalSlash(3500, 200),
  verticalSlash(1000, 2500),
];

/** Candidates for rows of a modality, or of a sequence with vision in it. */
export function defaultCandidates(modality: string): readonly HeadPattern[] {
  return modality === 'vision' ? VISION : TEXT;
}

/**
 * The pattern with `steps` times 50 keys per row more, or fewer; a boundary pattern has each of its parts changed.
 * `undefined` where nothing is left to take, or where the pattern has no size to change.
 */
export function adjusted(pattern: HeadPattern, steps: number): HeadPattern | undefined {
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
  if (pattern.kind === 'q-boundary' || pattern.kind === '2d-boundary') {
    const parts = Object.entries<HeadPattern>(pattern.by).map(
      ([name, part]) => [name, part, adjusted(part, steps)] as const,
    );
    if (parts.every(([, , part]) => part === undefined)) return undefined;
    // Grids and blocks are what they are: the others carry the difference.
    const by = Object.fromEntries(parts.map(([name, part, changed]) => [name, changed ?? part]));
    return { ...pattern, by };
  }
  return undefined;
}
