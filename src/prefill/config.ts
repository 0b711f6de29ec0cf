import type { HeadPattern } from './pattern.js';

/** The patterns of one layer: by head, with a default for those that are not named. */
export interface LayerConfig {
  readonly numHeads: number;
  readonly defaults: HeadPattern;
  /** By head index. */
  readonly heads: Readonly<Record<string, HeadPattern>>;
}

/** One pattern per head from a pattern for all or from a layer. */
export function patternsOf(heads: HeadPattern | LayerConfig, numHeads: number): HeadPattern[] {
  if (typeof heads !== 'object' || heads === null || !('defaults' in heads)) {
    return new Array(numHeads).fill(heads);
  }
  return Array.from({ length: heads.numHeads }, (_, h) => heads.heads[h] ?? heads.defaults);
}
