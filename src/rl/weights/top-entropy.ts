/** Keeps the tokens at which the policy is undecided. */
import { checkNumber } from '../check-arrays.js';
import { type Collective, runAcross, runAlone } from '../collective.js';
import type { AllReduceSum } from '../plan/across.js';
import { checkFields, eachActive, type ResponseArrays, refuseNaN } from '../response-arrays.js';
import { QUANTILE_BINS, quantile } from './quantile.js';

/** Settings of {@link topEntropyMask}. */
export interface TopEntropyOptions {
  /**
   * Quantile level of the entropies of active tokens below which tokens are dropped: 0 keeps all, 1 the
   * maximum only. To keep the share rho, say `1 - rho`.
   */
  readonly threshold: number;
}

/**
 * 1 for active tokens whose entropy is at least the quantile at `threshold`, else 0, `[totalTokens]` (Wang
 * et al. 2025, "Beyond the 80/20 rule"). Linear interpolation between neighbours; entropies are compared as
 * float32. No active token: all 0.
 *
 * Reads `entropies`. Throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_NON_FINITE` and what
 * bad arrays throw.
 *
 * @example
 * const batch = { cuSeqlens: Int32Array.of(0, 3), entropies: Float32Array.of(0.1, 2, 1) };
 * topEntropyMask(batch, { threshold: 0.5 }); // [0, 1, 1]
 */
export function topEntropyMask(batch: ResponseArrays, options: TopEntropyOptions): Float32Array {
  return runAlone(mask('topEntropyMask', batch, options));
}

/**
 * {@link topEntropyMask} with the quantile over the active tokens of all ranks. Every rank calls it; two
 * all-reduces of counts, 1.5 MiB in all whatever the number of tokens.
 *
 * @example
 * const kept = await topEntropyMaskAcross(batch, { threshold: 0.8 }, (x) => group.allReduce(x, 'sum'));
 */
export async function topEntropyMaskAcross(
  batch: ResponseArrays,
  options: TopEntropyOptions,
  allReduceSum: AllReduceSum,
): Promise<Float32Array> {
  const op = 'topEntropyMaskAcross';
  return runAcross(op, () => mask(op, batch, options), allReduceSum, QUANTILE_BINS);
}

function* mask(op: string, batch: ResponseArrays, options: TopEntropyOptions): Collective<Float32Array> {
  checkNumber(op, 'threshold', options?.threshold, { min: 0, max: 1 });
  const kept = new Float32Array(checkFields(op, batch, ['entropies']));
  const entropies = batch.entropies!;
  const active: number[] = [];
  eachActive(batch, (t) => {
    refuseNaN(op, 'entropies', entropies[t], t);
    active.push(entropies[t]);
  });
  const least = yield* quantile(active, options.threshold);
  eachActive(batch, (t) => {
    if (Math.fround(entropies[t]) >= least) kept[t] = 1;
  });
  return kept;
}
