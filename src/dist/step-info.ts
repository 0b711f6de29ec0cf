/** What a rank knows about one aligned step, and the factor that makes its loss a global mean. */
import { argumentError } from '../errors.js';

/** Facts about one aligned step: local ones, and global ones that are equal on all ranks. */
export interface StepInfo {
  /** Steps before this one in the run, equal on all ranks. */
  readonly step: number;
  /** Round within the epoch. */
  readonly round: number;
  readonly epoch: number;
  /** This rank has no data here, yet must take part in the model's collectives with zero gradients. */
  readonly idle: boolean;
  readonly localSamples: number;
  readonly globalSamples: number;
  /** Real tokens, no padding. */
  readonly localTokens: number;
  readonly globalTokens: number;
  /** What the loss is averaged over (supervised tokens unless `lossScaling` says otherwise). */
  readonly localWeight: number;
  readonly globalWeight: number;
  /** Multiply this rank's loss by it; 0 when idle. See {@link lossScale}. */
  readonly lossScale: number;
  /** No rank has any weight in this optimizer step: do not step the optimizer. */
  readonly skipOptimizer: boolean;
  readonly localCost: number;
  /** Largest and smallest cost over the ranks; IDLE counts as 0. */
  readonly maxCost: number;
  readonly minCost: number;
  /** Tokens this rank computes on, padding included. */
  readonly paddedTokens: number;
  /** Samples and tokens of all ranks up to and including this step: the clock for schedules. */
  readonly emittedSamples: number;
  readonly emittedTokens: number;
  /** The group is one sample that alone exceeds a budget. */
  readonly overBudget: boolean;
  /** Position in the optimizer step, `0 <= accumulationIndex < accumulationSteps`. */
  readonly accumulationIndex: number;
  readonly accumulationSteps: number;
  /** No step follows in this run. */
  readonly isLast: boolean;
}

/** Arguments of {@link lossScale}. */
export interface LossScaleOptions {
  /** This rank's weight in this micro-step, `n_r`. */
  localWeight: number;
  /** Weight of the whole optimizer step: all ranks, all its micro-steps, `N`. */
  globalWeight: number;
  /** Ranks that the reduction divides by (only used by `reduction: 'mean'`). */
  worldSize: number;
  /** What the local loss is: a mean over `localWeight` or a sum. Default `'mean'`. */
  localLoss?: 'mean' | 'sum';
  /** How gradients are combined over ranks. Default `'mean'`. */
  reduction?: 'mean' | 'sum';
}

function checkWeight(argument: string, value: number): void {
  if (!(value >= 0 && value < Infinity)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      'lossScale',
      argument,
      `must be finite; got ${value}, expected >= 0`,
    );
  }
}

/**
 * The factor on a rank's loss that makes the reduced gradient that of the mean over all ranks'
 * weight, `L = sum_r sum_i l_ri / sum_r n_r`.
 *
 * | local loss | reduction | factor |
 * |---|---|---|
 * | mean | mean | `W * n_r / N` |
 * | mean | sum | `n_r / N` |
 * | sum | mean | `W / N` |
 * | sum | sum | `1 / N` |
 *
 * A rank without weight gets 0 (its local mean must be evaluated as 0, not 0/0); with `N = 0` all
 * factors are 0. With accumulation, pass the `N` of all micro-steps and add their gradients up.
 *
 * Throws `ERR_VARLEN_RANGE`. Do not apply it to a loss made with an `AggregationPlan`, which is
 * already scaled.
 *
 * @example
 * lossScale({ localWeight: 30, globalWeight: 40, worldSize: 2 }); // 1.5
 */
export function lossScale(options: LossScaleOptions): number {
  const { localWeight, globalWeight, worldSize, localLoss = 'mean', reduction = 'mean' } = options;
  checkWeight('localWeight', localWeight);
  checkWeight('globalWeight', globalWeight);
  if (!(Number.isInteger(worldSize) && worldSize >= 1)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      'lossScale',
      'worldSize',
      `must be an integer; got ${worldSize}, expected >= 1`,
    );
  }
  if (localWeight === 0 || globalWeight === 0) return 0;
  const numerator = localLoss === 'mean' ? localWeight : 1;
  const ranks = reduction === 'mean' ? worldSize : 1;
  return (ranks * numerator) / globalWeight;
}
