/** The baseline per token position that weighs answers by the size of their gradient so far. */
import type { TokenLayout } from '../plan/lengths.js';

/**
 * `G_t - B_t` for every active token, `[totalTokens]`: `B_t` is the mean of the returns of the group's
 * answers at the same offset, weighed by `W_t = sum_{j <= t} (1 - 2 pi_j + sum pi^2)`, the expected squared
 * norm of the gradient with respect to the logits. `include` leaves answers out.
 */
export function optimalTokenBaseline(
  layout: TokenLayout,
  returns: Float64Array,
  logprobs: ArrayLike<number>,
  sumSquaredProbs: ArrayLike<number>,
  groupOf: Int32Array,
  include: (i: number) => boolean,
): Float64Array {
  const { cuSeqlens, lossMask } = layout;
  const numSeqs = cuSeqlens.length - 1;
  const members = new Map<number, number[]>();
  for (let i = 0; i < numSeqs; i++) {
    if (!include(i)) continue;
    const known = members.get(groupOf[i]);
    if (known === undefined) members.set(groupOf[i], [i]);
    else known.push(i);
  }
  const advantages = new Float64Array(returns.length);
  for (const group of members.values()) {
    let longest = 0;
    for (const i of group) longest = Math.max(longest, cuSeqlens[i + 1] - cuSeqlens[i]);
    const weighted = new Float64Array(longest);
    const total = new Float64Array(longest);
    for (const i of group) {
      let sum = 0;
      for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
        if (lossMask !== undefined && lossMask[t] === 0) continue;
        sum += 1 - 2 * Math.exp(logprobs[t]) + sumSquaredProbs[t];
        weighted[t - cuSeqlens[i]] += returns[t] * sum;
        total[t - cuSeqlens[i]] += sum;
      }
    }
    for (const i of group) {
      for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
        if (lossMask !== undefined && lossMask[t] === 0) continue;
        const offset = t - cuSeqlens[i];
        // A policy that is certain has no gradient at all, and any baseline is as good as none.
        advantages[t] = returns[t] - (total[offset] > 0 ? weighted[offset] / total[offset] : 0);
      }
    }
  }
  return advantages;
}
