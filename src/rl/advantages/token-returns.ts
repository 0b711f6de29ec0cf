/** Rewards and returns of tokens; tokens outside the mask are stepped over, not discounted. */
import { checkFloats, checkNumber } from '../check-arrays.js';
import { checkLayout, type TokenLayout } from '../plan/lengths.js';

/** Calls `visit` with the active tokens of sequence i, last first. */
export function eachActiveBackwards(layout: TokenLayout, i: number, visit: (t: number) => void): void {
  const { cuSeqlens, lossMask } = layout;
  for (let t = cuSeqlens[i + 1] - 1; t >= cuSeqlens[i]; t--) {
    if (lossMask === undefined || lossMask[t] !== 0) visit(t);
  }
}

/** Each answer's reward at its last active token, `[totalTokens]`; 0 elsewhere, and where it is NaN. */
export function rewardsAtEnd(layout: TokenLayout, rewards: ArrayLike<number>): Float64Array {
  const { cuSeqlens } = layout;
  const tokenRewards = new Float64Array(cuSeqlens[cuSeqlens.length - 1]);
  for (let i = 0; i < rewards.length; i++) {
    let last = -1;
    eachActiveBackwards(layout, i, (t) => {
      if (last < 0) last = t;
    });
    if (last >= 0 && !Number.isNaN(rewards[i])) tokenRewards[last] = rewards[i];
  }
  return tokenRewards;
}

/**
 * Discounted return from each token on, `[totalTokens]`: `G_t = r_t + gamma G_next`, where next is the next
 * active token of the sequence. 0 outside the mask.
 *
 * Throws `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE` and
 * `ERR_VARLEN_RANGE`.
 *
 * @example
 * const layout = { cuSeqlens: Int32Array.of(0, 5), lossMask: Uint8Array.of(1, 1, 0, 0, 1) };
 * tokenReturns(layout, Float64Array.of(0, 0, 0, 0, 2), { gamma: 0.5 }); // [0.5, 1, 0, 0, 2]
 */
export function tokenReturns(
  layout: TokenLayout,
  tokenRewards: Float32Array | Float64Array,
  options: { readonly gamma?: number } = {},
): Float64Array {
  const op = 'tokenReturns';
  const totalTokens = checkLayout(op, layout);
  checkFloats(op, 'tokenRewards', tokenRewards, totalTokens);
  const { gamma = 1 } = options;
  checkNumber(op, 'gamma', gamma, { min: 0, max: 1 });
  return returnsOf(layout, tokenRewards, gamma);
}

/** {@link tokenReturns} of checked arguments. */
export function returnsOf(layout: TokenLayout, tokenRewards: ArrayLike<number>, gamma: number): Float64Array {
  const returns = new Float64Array(tokenRewards.length);
  for (let i = 0; i + 1 < layout.cuSeqlens.length; i++) {
    let next = 0;
    eachActiveBackwards(layout, i, (t) => {
      next = tokenRewards[t] + gamma * next;
      returns[t] = next;
    });
  }
  return returns;
}
