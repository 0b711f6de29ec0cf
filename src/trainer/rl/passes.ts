/** How an update weighs its tokens, and in how many optimizer steps it takes them. */
import { advantageReweighting, loptiPasses } from '../../rl/index.js';
import type { RlRecipe } from '../recipe.js';
import type { MicroBatch } from './micro-batch.js';

/** What one optimizer step changes in a micro-batch; nothing: all tokens alike. */
export interface Pass {
  /** `[totalTokens]` */
  readonly tokenWeights?: Float32Array;
  /** `[totalTokens]`, 1 where the KL penalty applies. */
  readonly klMask?: Uint8Array;
}

/** Optimizer steps per update. */
export function passCount({ loptiEta }: RlRecipe): number {
  return loptiEta === 0 ? 1 : 2;
}

/**
 * The passes of a micro-batch: Advantage Reweighting weighs its tokens, then Lopti deals them out to two
 * steps (Yang et al. 2025), both of which see the old log-probabilities from before the first.
 */
export function passesOf(
  { cuSeqlens, advantages }: MicroBatch,
  oldLogprobs: Float32Array,
  { reweightAlpha, loptiEta }: RlRecipe,
): readonly Pass[] {
  const arrays = { cuSeqlens, oldLogprobs, advantages, advantagesPer: 'sequence' as const };
  const weighted =
    reweightAlpha === 0 ? {} : { tokenWeights: advantageReweighting(arrays, { alpha: reweightAlpha }) };
  return loptiEta === 0 ? [weighted] : loptiPasses({ ...arrays, ...weighted }, { eta: loptiEta });
}
