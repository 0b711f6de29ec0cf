/** Between tokens and sequences: sums over the active tokens, and their gradients on the way back. */
import { argumentError } from '../../errors.js';
import { checkFloats } from '../check-arrays.js';
import type { TokenLayout } from '../plan/lengths.js';

/** Log-probabilities of packed answers. */
export interface PackedLogprobs extends TokenLayout {
  /** `[totalTokens]`, current policy, natural log. Masked tokens may hold anything. */
  readonly logprobs: Float32Array | Float64Array;
  /** `[totalTokens]`, reference policy. */
  readonly refLogprobs?: Float32Array | Float64Array;
}

/** Sums of the active values of each sequence, `[numSeqs]`, in float64. Masked values are never read. */
export function segmentSums(
  op: string,
  argument: string,
  values: Float32Array | Float64Array,
  { cuSeqlens, lossMask }: TokenLayout,
): Float64Array {
  checkFloats(op, argument, values, cuSeqlens[cuSeqlens.length - 1]);
  const sums = new Float64Array(cuSeqlens.length - 1);
  for (let i = 0; i < sums.length; i++) {
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
      if (lossMask !== undefined && lossMask[t] === 0) continue;
      checkFinite(op, `${argument}[${t}]`, values[t]);
      sums[i] += values[t];
    }
  }
  return sums;
}

/** The gradient of each token from that of its sequence's sum, `[totalTokens]`; 0 where masked. */
export function broadcastSegments(dSums: Float64Array, { cuSeqlens, lossMask }: TokenLayout): Float32Array {
  const tokens = new Float32Array(cuSeqlens[cuSeqlens.length - 1]);
  for (let i = 0; i < dSums.length; i++) {
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
      if (lossMask === undefined || lossMask[t] !== 0) tokens[t] = dSums[i];
    }
  }
  return tokens;
}

/** Refuses NaN and infinities. */
export function checkFinite(op: string, argument: string, value: number): void {
  if (Number.isFinite(value)) return;
  const problem = `is not finite; got ${value}, expected a finite number`;
  throw argumentError('ERR_VARLEN_NON_FINITE', op, argument, problem);
}

/** The error of an input that the chosen options need. */
export function missingInput(op: string, argument: string, option: string, expected: string): Error {
  const problem = `is needed by ${option}; got none, expected ${expected}`;
  return argumentError('ERR_VARLEN_MISSING_INPUT', op, argument, problem);
}
