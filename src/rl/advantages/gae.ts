/** Generalised advantage estimation over packed answers. */
import type { TokenLayout } from '../plan/lengths.js';
import { eachActiveBackwards } from './token-returns.js';

/** Advantages and the critic's targets, `[totalTokens]` each; 0 outside the mask. */
export interface Gae {
  readonly advantages: Float64Array;
  /** Advantage plus value, before whitening. */
  readonly returns: Float64Array;
}

/**
 * `A_t = delta_t + gamma lambda A_next`, `delta_t = r_t + gamma V_next - V_t` (Schulman et al. 2016, eq. 16);
 * next is the next active token, and 0 after the last.
 */
export function gae(
  layout: TokenLayout,
  tokenRewards: ArrayLike<number>,
  values: ArrayLike<number>,
  gamma: number,
  lambda: number,
): Gae {
  const advantages = new Float64Array(tokenRewards.length);
  const returns = new Float64Array(tokenRewards.length);
  for (let i = 0; i + 1 < layout.cuSeqlens.length; i++) {
    let nextAdvantage = 0;
    let nextValue = 0;
    eachActiveBackwards(layout, i, (t) => {
      const delta = tokenRewards[t] + gamma * nextValue - values[t];
      nextAdvantage = delta + gamma * lambda * nextAdvantage;
      nextValue = values[t];
      advantages[t] = nextAdvantage;
      returns[t] = nextAdvantage + values[t];
    });
  }
  return { advantages, returns };
}
