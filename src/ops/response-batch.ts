import type { Tensor } from '../tensor/tensor.js';

/**
 * Responses packed on one token axis of `totalTokens`, `numSeqs` of them, without padding. Position t holds
 * the log-probability *of* token t (natural log, after temperature). All tensors are on one device.
 *
 * Values at positions whose `lossMask` is 0 may be anything, NaN and infinities included; they reach no bit
 * of a result.
 */
export interface ResponseBatch {
  /** Prefix sums of the response spans, `[numSeqs + 1]`, from 0 to `totalTokens`. Equal neighbours: an empty sequence. */
  readonly cuSeqlens: Int32Array | Tensor;
  /** Current policy, `[totalTokens]`, float32, float16 or bfloat16. */
  readonly logprobs: Tensor;
  /** Proximal policy, `[totalTokens]` float32. Needed unless the ratio is `none` or on-policy. */
  readonly oldLogprobs?: Tensor;
  /** Reference policy, `[totalTokens]` float32. Needed when `kl.coef > 0`. */
  readonly refLogprobs?: Tensor;
  /** What the inference engine reported, `[totalTokens]` float32; NaN where it reported nothing. */
  readonly rolloutLogprobs?: Tensor;
  /** Whether those log-probabilities are normalised over the whole vocabulary. Default `'full'`. */
  readonly rolloutSupport?: 'full' | 'truncated';
  /** Log of the probability that top-p, top-k or min-p kept, `[totalTokens]` float32; added to `rolloutLogprobs`. */
  readonly keptLogMass?: Tensor;
  /** 1 where the model generated the token and it counts, `[totalTokens]` uint8. Default: all ones. */
  readonly lossMask?: Tensor;
  /** Per sequence `[numSeqs]` or per token `[totalTokens]`, float32. */
  readonly advantages: Float32Array | Tensor;
  /** Which of the two `advantages` is; needed only where `numSeqs` equals `totalTokens`. */
  readonly advantagesPer?: 'sequence' | 'token';
  /** Product of the token weights, `[totalTokens]` float32, never negative. Default: ones. */
  readonly tokenWeights?: Float32Array | Tensor;
  /** 1 where the KL term and the entropy bonus apply, `[totalTokens]` uint8, within `lossMask`. Default: everywhere. */
  readonly klMask?: Tensor;
  /** Entropies of the current policy, `[totalTokens]` float32, for the statistics of `policyLoss`. */
  readonly entropies?: Tensor;
  /** Weight of a token's entropy. Default: the plan's. */
  readonly entropyScale?: number;
}
