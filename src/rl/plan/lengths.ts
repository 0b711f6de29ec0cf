/** Active tokens per sequence: what "length" means in every formula here. */
import { checkArray, checkCuSeqlens } from '../check-arrays.js';

/** Offsets and mask of a packed batch of answers. */
export interface TokenLayout {
  /** `[numSeqs + 1]`, starts 0, never falls, ends at `totalTokens`. */
  readonly cuSeqlens: Int32Array;
  /** `[totalTokens]`, 1 = the token takes part in the loss. Default: all do. */
  readonly lossMask?: Uint8Array;
}

/** Checks a layout and returns `totalTokens`. */
export function checkLayout(op: string, layout: TokenLayout): number {
  checkCuSeqlens(op, layout.cuSeqlens);
  const totalTokens = layout.cuSeqlens[layout.cuSeqlens.length - 1];
  if (layout.lossMask !== undefined) checkArray(op, 'lossMask', layout.lossMask, 'Uint8Array', totalTokens);
  return totalTokens;
}

/**
 * Active tokens of each sequence, `[numSeqs]`: `L_i`, what {@link planAggregation} takes.
 *
 * Throws `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_DTYPE` and `ERR_VARLEN_SHAPE`.
 *
 * @example
 * activeLengths({ cuSeqlens: Int32Array.of(0, 2, 5), lossMask: Uint8Array.of(1, 1, 1, 0, 1) }); // [2, 2]
 */
export function activeLengths(layout: TokenLayout): Int32Array {
  return countActive('activeLengths', layout);
}

/** {@link activeLengths} on behalf of `op`. */
export function countActive(op: string, layout: TokenLayout): Int32Array {
  checkLayout(op, layout);
  const { cuSeqlens, lossMask } = layout;
  const lengths = new Int32Array(cuSeqlens.length - 1);
  for (let i = 0; i < lengths.length; i++) {
    const start = cuSeqlens[i];
    const end = cuSeqlens[i + 1];
    if (lossMask === undefined) lengths[i] = end - start;
    else for (let t = start; t < end; t++) if (lossMask[t] !== 0) lengths[i] += 1;
  }
  return lengths;
}

/**
 * The mask without the sequences whose `keep` is 0, `[totalTokens]`: how unscored answers and answers of
 * groups without spread leave the loss and every denominator.
 *
 * Throws what {@link activeLengths} throws.
 *
 * @example
 * keepSequences({ cuSeqlens: Int32Array.of(0, 2, 3) }, Uint8Array.of(0, 1)); // [0, 0, 1]
 */
export function keepSequences(layout: TokenLayout, keep: Uint8Array): Uint8Array {
  const totalTokens = checkLayout('keepSequences', layout);
  const { cuSeqlens, lossMask } = layout;
  checkArray('keepSequences', 'keep', keep, 'Uint8Array', cuSeqlens.length - 1);
  const kept = lossMask === undefined ? new Uint8Array(totalTokens).fill(1) : lossMask.slice();
  keep.forEach((flag, i) => {
    if (flag === 0) kept.fill(0, cuSeqlens[i], cuSeqlens[i + 1]);
  });
  return kept;
}
