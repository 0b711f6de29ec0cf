/** What an answer loses by being too long (DAPO, section 3.4), or by being cut off. */
import { checkInteger, readOptions } from '../../check.js';
import { checkArray, checkNumber, rangeError } from '../check-arrays.js';
import { keepSequences, type TokenLayout } from '../plan/lengths.js';

/** Options of {@link overlongPenalty}. */
export interface OverlongOptions {
  /** Longest answer, in tokens: `Lmax`. */
  maxLength: number;
  /** The last tokens before `maxLength`, over which the penalty rises from 0 to `factor`. */
  buffer: number;
  /** Penalty at `maxLength`. Default 1. */
  factor?: number;
}

/**
 * What each answer's reward loses by its length: `-max(0, L - (maxLength - buffer)) / buffer * factor`,
 * `[numSeqs]`, to be added to the rewards. Never positive; below `-factor` past `maxLength`.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @param lengths `[numSeqs]`, tokens, each at least 0
 *
 * @example
 * overlongPenalty(Int32Array.of(10, 16, 20), { maxLength: 20, buffer: 8 }); // [0, -0.5, -1]
 */
export function overlongPenalty(lengths: Int32Array, options: OverlongOptions): Float64Array {
  const op = 'overlongPenalty';
  checkArray(op, 'lengths', lengths, 'Int32Array');
  const { maxLength, buffer, factor = 1 } = readOptions(op, options, ['maxLength', 'buffer', 'factor']);
  checkInteger(op, 'maxLength', maxLength, 1);
  checkInteger(op, 'buffer', buffer, 1, maxLength);
  checkNumber(op, 'factor', factor, { min: 0 });
  return Float64Array.from(lengths, (length, i) => {
    if (length < 0) throw rangeError(op, `lengths[${i}]`, length, 'an integer >= 0');
    const excess = length - (maxLength - buffer);
    return excess > 0 ? (-excess / buffer) * factor : 0;
  });
}

/**
 * The mask without the answers that were cut off, `[totalTokens]`: a cut answer has no reward of its own.
 * Count lengths after this, not before: a cut answer is in no denominator.
 *
 * Throws `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_DTYPE` and `ERR_VARLEN_SHAPE`.
 *
 * @param truncated `[numSeqs]`, 1 = the answer reached its limit before it ended
 *
 * @example
 * maskTruncated({ cuSeqlens: Int32Array.of(0, 2, 3) }, Uint8Array.of(1, 0)); // [0, 0, 1]
 */
export function maskTruncated(layout: TokenLayout, truncated: Uint8Array): Uint8Array {
  checkArray('maskTruncated', 'truncated', truncated, 'Uint8Array');
  return keepSequences(
    layout,
    truncated.map((flag) => (flag === 0 ? 1 : 0)),
  );
}
