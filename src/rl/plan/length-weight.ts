/** The unnormalised weight `u_i` of every sequence under the two modes that weigh by length. */
import { rangeError } from '../check-arrays.js';
import type { Aggregation } from './aggregation.js';
import { varianceOf } from './variance-law.js';

/** Lengths below this are remembered: a power costs twenty times a look-up, and answers share lengths. */
const MEMO_SIZE = 1 << 16;

/**
 * `u_i` of every sequence, `[numSeqs]`, 0 where inactive; `undefined` when the mode does not weigh by length.
 *
 * `delta-l`: `(length / C)^-alpha`. `inverse-variance`: `v(C) / v(length)`; a custom law gives
 * `1 / values[i]`. Both are relative to the constant `C`, not to the mean length, so that ranks agree on
 * them before they have talked to each other; the factor cancels in `s_i`.
 */
export function lengthWeights(
  op: string,
  aggregation: Aggregation,
  lengths: Int32Array,
): Float64Array | undefined {
  if (aggregation.mode === 'delta-l') {
    const { alpha, normConstant } = aggregation;
    return ofLengths(lengths, inversePower(alpha, normConstant));
  }
  if (aggregation.mode !== 'inverse-variance') return undefined;
  const { law, normConstant } = aggregation;
  if (law.kind === 'custom') return law.values.map((v, i) => (lengths[i] > 0 ? 1 / v : 0));
  if (law.kind === 'power') return ofLengths(lengths, inversePower(law.exponent, normConstant));
  const reference = varianceOf(law, Math.max(1, Math.round(normConstant)));
  const unit = reference > 0 && reference < Infinity ? reference : 1;
  return ofLengths(lengths, (length) => {
    const variance = varianceOf(law, length);
    if (!(variance > 0 && variance < Infinity)) {
      throw rangeError(op, `aggregation.law at length ${length}`, variance, 'a finite variance above 0');
    }
    return unit / variance;
  });
}

/** `(length / constant)^-exponent`. Exponential and logarithm: half the time of `**`, within 1e-14 of it. */
function inversePower(exponent: number, constant: number): (length: number) => number {
  if (exponent === 1) return (length) => constant / length;
  const logConstant = Math.log(constant);
  return (length) => Math.exp(exponent * (logConstant - Math.log(length)));
}

/** A function of the length for every sequence, computed once per distinct length. */
function ofLengths(lengths: Int32Array, compute: (length: number) => number): Float64Array {
  let longest = 0;
  for (let i = 0; i < lengths.length; i++) if (lengths[i] > longest) longest = lengths[i];
  const known = new Float64Array(Math.min(longest + 1, MEMO_SIZE)); // 0: not yet
  const values = new Float64Array(lengths.length);
  for (let i = 0; i < lengths.length; i++) {
    const length = lengths[i];
    if (length === 0) continue;
    let value = length < known.length ? known[length] : 0;
    if (value === 0) {
      value = compute(length);
      if (length < known.length) known[length] = value;
    }
    values[i] = value;
  }
  return values;
}
