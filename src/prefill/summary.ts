import { KIND } from './encode.js';

/** What a resolved pattern is, for people and for statistics. */
export type PatternSummary =
  | { readonly kind: 'dense' }
  | { readonly kind: 'a-shape'; readonly sink: number; readonly local: number }
  | { readonly kind: 'tri-shape'; readonly sink: number; readonly local: number; readonly last: number }
  | {
      readonly kind: 'vertical-slash';
      readonly vertical: Int32Array;
      readonly slash: Int32Array;
      readonly slashCoord: 'absolute' | 'rank';
    }
  | { readonly kind: 'block-sparse'; readonly block: readonly [number, number]; readonly blocks: number }
  | { readonly kind: 'block-mask'; readonly blocks: number }
  | {
      readonly kind: 'grid';
      readonly stride: number;
      readonly phase: number;
      readonly hlinePhase: number;
      readonly hline: boolean;
      readonly vline: boolean;
      readonly slash: boolean;
      readonly sink: number;
      readonly local: number;
    }
  | { readonly kind: 'cell-grid'; readonly lines: number; readonly sink: number; readonly local: number }
  | { readonly kind: 'sf-fixed'; readonly period: number }
  | { readonly kind: 'q-boundary' | '2d-boundary' | 'union'; readonly parts: readonly PatternSummary[] };

function bitsIn(words: Int32Array): number {
  let bits = 0;
  for (let word of words) for (word >>>= 0; word !== 0; word = (word & (word - 1)) >>> 0) bits++;
  return bits;
}

/** Reads the resolved pattern at words[offset] of a plan that ran. */
export function summarize(words: Int32Array, offset: number): PatternSummary {
  const [kind, size] = words.subarray(offset, offset + 2);
  const f = words.subarray(offset + 2, offset + size);
  const parts = (count: number): PatternSummary[] =>
    Array.from(f.subarray(1, 1 + count), (child) =>
      child === 0 ? { kind: 'dense' } : summarize(words, offset + child),
    );
  switch (kind) {
    case KIND.aShape:
      return { kind: 'a-shape', sink: f[0], local: f[1] };
    case KIND.triShape:
      return { kind: 'tri-shape', sink: f[0], local: f[1], last: f[2] };
    case KIND.verticalSlash:
      return {
        kind: 'vertical-slash',
        vertical: f.slice(4, 4 + f[2]),
        slash: f.slice(4 + f[2], 4 + f[2] + f[3]),
        slashCoord: f[1] === 0 ? 'absolute' : 'rank',
      };
    case KIND.blocks:
      return { kind: 'block-sparse', block: [f[0], f[1]], blocks: bitsIn(f.subarray(5)) };
    case KIND.blockMask:
      return { kind: 'block-mask', blocks: f[3 + f[0] + 1 + f[1] + 1 + f[0]] };
    case KIND.grid:
      return {
        kind: 'grid',
        stride: f[2],
        phase: f[3],
        hlinePhase: f[4],
        hline: (f[5] & 1) !== 0,
        vline: (f[5] & 2) !== 0,
        slash: (f[5] & 4) !== 0,
        sink: f[6],
        local: f[7],
      };
    case KIND.cellGrid:
      return { kind: 'cell-grid', lines: f[4], sink: f[1], local: f[2] };
    case KIND.sfFixed:
      return { kind: 'sf-fixed', period: f[0] };
    case KIND.qBoundary:
      return { kind: 'q-boundary', parts: parts(f[0]) };
    case KIND.pairBoundary:
      return { kind: '2d-boundary', parts: parts(f[0] * f[0]) };
    case KIND.union:
      return { kind: 'union', parts: parts(f[0]) };
    default:
      return { kind: 'dense' };
  }
}
