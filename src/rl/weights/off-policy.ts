/** Drops bad answers that the current policy has already moved away from. */
import { argumentError } from '../../errors.js';
import { checkNumber } from '../check-arrays.js';
import {
  advantageReader,
  checkFields,
  eachActive,
  type ResponseArrays,
  refuseNaN,
} from '../response-arrays.js';

/** Settings of {@link offPolicySequenceMask}. */
export interface OffPolicyOptions {
  /** Largest mean of `rolloutLogprobs - logprobs` that an answer with a negative advantage may have. */
  readonly delta: number;
}

/**
 * 0 for the tokens of answers with `A < 0` and a mean of `rolloutLogprobs - logprobs` over active tokens
 * above `delta`, else 1 where active, `[totalTokens]` (the off-policy sequence mask of DeepSeek-V3.2).
 * A rollout log-probability that is NaN was not reported and does not count.
 *
 * Reads `logprobs`, `rolloutLogprobs` and `advantages` per sequence. Throws `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_INCOMPATIBLE` for advantages per token, `ERR_VARLEN_NON_FINITE`
 * and what bad arrays throw.
 *
 * @example
 * offPolicySequenceMask({ cuSeqlens, logprobs, rolloutLogprobs, advantages }, { delta: 1 });
 */
export function offPolicySequenceMask(batch: ResponseArrays, options: OffPolicyOptions): Float32Array {
  const op = 'offPolicySequenceMask';
  checkNumber(op, 'delta', options?.delta);
  const kept = new Float32Array(checkFields(op, batch, ['logprobs', 'rolloutLogprobs']));
  const { cuSeqlens, advantages } = batch;
  const numSeqs = cuSeqlens.length - 1;
  const advantageOf = advantageReader(op, batch);
  if (batch.advantagesPer === 'token' || advantages!.length !== numSeqs) {
    const problem = 'decide over whole answers; got one per token, expected one per sequence';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'advantages', problem);
  }
  const sum = new Float64Array(numSeqs);
  const count = new Int32Array(numSeqs);
  eachActive(batch, (t, i) => {
    refuseNaN(op, 'logprobs', batch.logprobs![t], t);
    if (Number.isNaN(batch.rolloutLogprobs![t])) return;
    sum[i] += batch.rolloutLogprobs![t] - batch.logprobs![t];
    count[i] += 1;
  });
  eachActive(batch, (t, i) => {
    const far = count[i] > 0 && sum[i] / count[i] > options.delta;
    kept[t] = far && advantageOf(t, i) < 0 ? 0 : 1;
  });
  return kept;
}
