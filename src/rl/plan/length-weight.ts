/** The unnormalised weight `u_i` of a sequence under the two modes that weigh by length. */
import { rangeError } from '../check-arrays.js';
import type { Aggregation } from './aggregation.js';
import { varianceOf } from './variance-law.js';

/** Lengths below this can have a slot of their own in the memo: a power costs fifty times a look-up. */
const MAX_SLOTS = 1 << 15;

/**
 * `u_i` of sequence i with `length >= 1` active tokens; `undefined` when the mode does not weigh by
 * length.
 *
 * `delta-l`: `(length / C)^-alpha`. `inverse-variance`: `v(C) / v(length)`; a custom law gives
 * `1 / values[i]`. Both are relative to the constant `C`, not to the mean length, so that ranks agree on
 * them before they have talked to each other; the factor cancels in `s_i`.
 */
export function lengthWeight(
  op: string,
  aggregation: Aggregation,
  numSeqs: number,
): ((length: number, i: number) => number) | undefined {
  if (aggregation.mode === 'delta-l') {
    const { alpha, normConstant } = aggregation;
    return memoized(numSeqs, (length) => (length / normConstant) ** -alpha);
  }
  if (aggregation.mode !== 'inverse-variance') return undefined;
  const { law, normConstant } = aggregation;
  if (law.kind === 'custom') return (_length, i) => 1 / law.values[i];
  if (law.kind === 'power') return memoized(numSeqs, (length) => (length / normConstant) ** -law.exponent);
  const reference = varianceOf(law, Math.max(1, Math.round(normConstant)));
  const unit = reference > 0 && reference < Infinity ? reference : 1;
  return memoized(numSeqs, (length) => {
    const variance = varianceOf(law, length);
    if (!(variance > 0 && variance < Infinity)) {
      throw rangeError(op, `aggregation.law at length ${length}`, variance, 'a finite variance above 0');
    }
    return unit / variance;
  });
}

/** Remembers a function of the length in a direct-mapped table: answers share few distinct lengths. */
function memoized(numSeqs: number, compute: (length: number) => number): (length: number) => number {
  let slots = 64;
  while (slots < numSeqs && slots < MAX_SLOTS) slots *= 2;
  const keys = new Int32Array(slots); // 0 is no length of an active sequence
  const values = new Float64Array(slots);
  return (length) => {
    const slot = length & (slots - 1);
    if (keys[slot] !== length) {
      values[slot] = compute(length);
      keys[slot] = length;
    }
    return values[slot];
  };
}
