/** Weights that calm the gradients of unlikely tokens. */
import { checkNumber } from '../check-arrays.js';
import {
  advantageReader,
  checkFields,
  eachActive,
  type ResponseArrays,
  refuseNaN,
} from '../response-arrays.js';

/** Settings of {@link advantageReweighting}. */
export interface AdvantageReweightingOptions {
  /** Share of the weight that follows the probability, `0 <= alpha <= 1`. Default 0.3. */
  readonly alpha?: number;
  /** Further factor where the advantage is negative; needs `advantages`. Default 1. */
  readonly negativeFactor?: number;
}

/**
 * `w_t = alpha pi_old(t) + 1 - alpha`, `[totalTokens]`, 0 outside the mask: Advantage Reweighting (Yang et
 * al. 2025, "Do not let low-probability tokens over-dominate in RL for LLMs"). The norm of a token's
 * gradient lies between two bounds proportional to `1 - pi`, so without it unlikely tokens decide.
 *
 * Reads `oldLogprobs`. Throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_NON_FINITE` and
 * what bad arrays throw.
 *
 * @example
 * advantageReweighting({ cuSeqlens: Int32Array.of(0, 1), oldLogprobs: Float32Array.of(-0.6) }); // [0.864643]
 */
export function advantageReweighting(
  batch: ResponseArrays,
  options: AdvantageReweightingOptions = {},
): Float32Array {
  const op = 'advantageReweighting';
  const { alpha = 0.3, negativeFactor = 1 } = options;
  checkNumber(op, 'alpha', alpha, { min: 0, max: 1 });
  checkNumber(op, 'negativeFactor', negativeFactor, { min: 0 });
  const weights = new Float32Array(checkFields(op, batch, ['oldLogprobs']));
  const advantageOf = negativeFactor === 1 ? () => 0 : advantageReader(op, batch);
  const old = batch.oldLogprobs!;
  eachActive(batch, (t, i) => {
    refuseNaN(op, 'oldLogprobs', old[t], t);
    const factor = advantageOf(t, i) < 0 ? negativeFactor : 1;
    weights[t] = factor * (alpha * Math.exp(old[t]) + 1 - alpha);
  });
  return weights;
}
