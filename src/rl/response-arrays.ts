/** A packed batch of answers on the host: what the host functions of `varlen/rl` read. */
import { argumentError } from '../errors.js';
import { checkFloats } from './check-arrays.js';
import { checkLayout, type TokenLayout } from './plan/lengths.js';

/** One number per token or per sequence, on the host. */
export type Floats = Float32Array | Float64Array;

/**
 * The fields of a `ResponseBatch` as typed arrays; each function names those it needs. Values where
 * `lossMask` is 0 may be anything, NaN included.
 */
export interface ResponseArrays extends TokenLayout {
  /** `[totalTokens]`, current policy, natural log, of the sampled token. */
  readonly logprobs?: Floats;
  /** `[totalTokens]`, the policy that the ratio is taken to. */
  readonly oldLogprobs?: Floats;
  /** `[totalTokens]`, reference policy. */
  readonly refLogprobs?: Floats;
  /** `[totalTokens]`, as the inference engine reported it; NaN where it did not. */
  readonly rolloutLogprobs?: Floats;
  /** Whether the engine normalised over the whole vocabulary. Default `'full'`. */
  readonly rolloutSupport?: 'full' | 'truncated';
  /** `[totalTokens]`, log of the probability kept by top-p, top-k or min-p. */
  readonly keptLogMass?: Floats;
  /** `[numSeqs]` or `[totalTokens]`. */
  readonly advantages?: Floats;
  /** Which of the two `advantages` is; needed only where `numSeqs` equals `totalTokens`. */
  readonly advantagesPer?: 'sequence' | 'token';
  /** `[totalTokens]`, product of the token weights. Default 1. */
  readonly tokenWeights?: Floats;
  /** `[totalTokens]`, 1 where the KL term and the entropy bonus apply. Default: everywhere. */
  readonly klMask?: Uint8Array;
  /** `[totalTokens]`, entropy of the current policy. */
  readonly entropies?: Floats;
}

type TokenField = Exclude<
  keyof ResponseArrays,
  'cuSeqlens' | 'lossMask' | 'rolloutSupport' | 'advantages' | 'advantagesPer' | 'klMask'
>;

/** Checks the layout and that the named fields are there, floats of `[totalTokens]`; returns `totalTokens`. */
export function checkFields(op: string, batch: ResponseArrays, fields: readonly TokenField[]): number {
  const totalTokens = checkLayout(op, batch);
  for (const field of fields) {
    if (batch[field] === undefined) {
      const problem = 'is needed; got none, expected a Float32Array or Float64Array';
      throw argumentError('ERR_VARLEN_MISSING_INPUT', op, field, problem);
    }
    checkFloats(op, field, batch[field], totalTokens);
  }
  return totalTokens;
}

/** Calls `visit` with every active token t and its sequence i, in order. */
export function eachActive(layout: TokenLayout, visit: (t: number, i: number) => void): void {
  const { cuSeqlens, lossMask } = layout;
  for (let i = 0; i + 1 < cuSeqlens.length; i++) {
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
      if (lossMask === undefined || lossMask[t] !== 0) visit(t, i);
    }
  }
}

/** Refuses NaN at an active token. */
export function refuseNaN(op: string, field: string, value: number, t: number): void {
  if (!Number.isNaN(value)) return;
  const problem = 'is not a number; got NaN, expected a number at an active token';
  throw argumentError('ERR_VARLEN_NON_FINITE', op, `${field}[${t}]`, problem);
}

/** The advantage of token t of sequence i. */
export function advantageReader(op: string, batch: ResponseArrays): (t: number, i: number) => number {
  const { advantages, advantagesPer, cuSeqlens } = batch;
  const numSeqs = cuSeqlens.length - 1;
  const totalTokens = cuSeqlens[numSeqs];
  if (advantages === undefined) {
    const problem = 'is needed; got none, expected a Float32Array or Float64Array';
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'advantages', problem);
  }
  checkFloats(op, 'advantages', advantages);
  if (advantagesPer === undefined && numSeqs === totalTokens && numSeqs > 0) {
    // One token each in every sequence: both readings agree. Else somebody must say.
    const alike = cuSeqlens.every((start, i) => start === i);
    if (!alike && advantages.length === numSeqs) {
      const problem = 'is needed where numSeqs equals totalTokens; got none, expected sequence or token';
      throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'advantagesPer', problem);
    }
  }
  const perSequence =
    advantagesPer === 'sequence' || (advantagesPer === undefined && advantages.length === numSeqs);
  const expected = perSequence ? numSeqs : totalTokens;
  if (advantages.length !== expected) {
    const problem = `has the wrong length; got ${advantages.length}, expected ${numSeqs} sequences or ${totalTokens} tokens`;
    throw argumentError('ERR_VARLEN_SHAPE', op, 'advantages', problem);
  }
  return perSequence ? (_t, i) => advantages[i] : (t) => advantages[t];
}
