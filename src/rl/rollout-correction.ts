/** Weights for the difference between the trainer's and the inference engine's probabilities. */
import { wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import type { RolloutCorrection } from '../ops/policy-loss-config.js';
import { checkNumber, checkWord } from './check-arrays.js';
import { checkFields, eachActive, type ResponseArrays, refuseNaN } from './response-arrays.js';

/** Bound on the log ratio of a token. */
const LOG_CLAMP = 20;

/** Default bounds of each mode. */
const BOUNDS = {
  'token-truncate': [0, 2],
  'token-mask': [0.5, 5],
  'sequence-truncate': [0, 2],
  'sequence-mask': [0.5, 5],
  'sequence-geo-mask': [0.999, 1.002],
} as const;

/** What {@link rolloutWeights} found. */
export interface RolloutWeights {
  /** `[totalTokens]`, `c_t`; 0 outside the mask. */
  readonly weights: Float64Array;
  /** `[numSeqs]`, sum of the clamped log ratios of a sequence. */
  readonly sequenceLogRatio: Float64Array;
  /** Sum of `c_t` before `batchNormalize`: `correctionSum` of a plan. */
  readonly sum: number;
  /** Active tokens. */
  readonly tokens: number;
  /** Active tokens whose ratio (or whose sequence's) left the bounds. */
  readonly outOfBounds: number;
}

/**
 * `c_t` of every token, from `y_t = clamp(old - rollout, -20, 20)`, as `rolloutCorrection` of a loss applies
 * it; for statistics, for `batchNormalize` over a whole step, and for losses of one's own. Modes and default
 * bounds: {@link RolloutCorrection}.
 *
 * `batchNormalize: { mean }` takes the mean over all ranks and micro-batches: give `sum` as `correctionSum` to
 * the plan and read `correctionMean(plan)`. Log-probabilities normalised over what top-p, top-k or min-p kept
 * (`rolloutSupport: 'truncated'`) need `keptLogMass`, which is added to them. A token that the engine did not
 * report (NaN) weighs 1. `bypass` has no weights.
 *
 * Reads `oldLogprobs` and `rolloutLogprobs`. Throws `ERR_VARLEN_TRUNCATED_SUPPORT`, `ERR_VARLEN_NON_FINITE`
 * for a NaN under `missing: 'error'`, `ERR_VARLEN_INCOMPATIBLE` for `bypass`, `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_OPTION`, `ERR_VARLEN_MISSING_INPUT` and what bad arrays throw.
 *
 * @example
 * const { sum, outOfBounds } = rolloutWeights(batch, { mode: 'token-truncate', high: 2 });
 */
export function rolloutWeights(batch: ResponseArrays, correction: RolloutCorrection): RolloutWeights {
  const op = 'rolloutWeights';
  if (typeof correction !== 'object' || correction === null) {
    throw wrongType(op, 'correction', correction, 'an object with a mode');
  }
  const known = [...Object.keys(BOUNDS), 'bypass'];
  checkWord(op, 'correction.mode', correction.mode, known);
  if (correction.mode === 'bypass') {
    const problem = 'replaces the old policy, and weights besides would count the difference twice';
    const got = "got mode 'bypass', expected a mode with weights";
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'correction.mode', `${problem}; ${got}`);
  }
  const { mode, batchNormalize = false, missing = 'neutral' } = correction;
  const [low, high] = [correction.low ?? BOUNDS[mode][0], correction.high ?? BOUNDS[mode][1]];
  checkNumber(op, 'correction.low', low, { min: 0 });
  checkNumber(op, 'correction.high', high, { min: low });
  checkWord(op, 'correction.missing', missing, ['neutral', 'error']);

  const y = logRatios(op, batch, missing);
  const numSeqs = batch.cuSeqlens.length - 1;
  const sequenceLogRatio = new Float64Array(numSeqs);
  const lengths = new Int32Array(numSeqs);
  eachActive(batch, (t, i) => {
    sequenceLogRatio[i] += y[t];
    lengths[i] += 1;
  });
  const outside = (ratio: number): boolean => ratio < low || ratio > high;
  const clip = (ratio: number): number => Math.min(Math.max(ratio, low), high);
  const weights = new Float64Array(y.length);
  let sum = 0;
  let tokens = 0;
  let outOfBounds = 0;
  eachActive(batch, (t, i) => {
    tokens += 1;
    if (Number.isNaN(batch.rolloutLogprobs![t])) {
      weights[t] = 1;
      sum += 1;
      return;
    }
    const token = Math.exp(y[t]);
    const logBound = mode === 'sequence-geo-mask' ? sequenceLogRatio[i] / lengths[i] : sequenceLogRatio[i];
    const bounded = mode.startsWith('token') ? token : Math.exp(logBound);
    if (outside(bounded)) outOfBounds += 1;
    if (mode.endsWith('truncate')) weights[t] = clip(bounded);
    else if (!outside(bounded)) weights[t] = mode === 'sequence-mask' ? bounded : token;
    sum += weights[t];
  });
  const mean = meanOf(op, batchNormalize, sum, tokens);
  if (mean !== 1) for (let t = 0; t < weights.length; t++) weights[t] /= mean;
  return { weights, sequenceLogRatio, sum, tokens, outOfBounds };
}

/** `y_t` of active tokens, 0 elsewhere and where the rollout reported nothing. */
function logRatios(op: string, batch: ResponseArrays, missing: 'neutral' | 'error'): Float64Array {
  const { rolloutSupport = 'full', keptLogMass } = batch;
  checkWord(op, 'rolloutSupport', rolloutSupport, ['full', 'truncated']);
  const totalTokens = checkFields(op, batch, ['oldLogprobs', 'rolloutLogprobs']);
  if (rolloutSupport === 'truncated') {
    if (keptLogMass === undefined) {
      const problem = "is needed by rolloutSupport 'truncated'; got none, expected the log of the kept mass";
      throw argumentError('ERR_VARLEN_TRUNCATED_SUPPORT', op, 'keptLogMass', problem);
    }
    checkFields(op, batch, ['keptLogMass']);
  }
  const y = new Float64Array(totalTokens);
  eachActive(batch, (t) => {
    const old = batch.oldLogprobs![t];
    refuseNaN(op, 'oldLogprobs', old, t);
    const reported = batch.rolloutLogprobs![t];
    if (missing === 'error') refuseNaN(op, 'rolloutLogprobs', reported, t);
    if (Number.isNaN(reported)) return;
    const rollout = rolloutSupport === 'truncated' ? reported + keptLogMass![t] : reported;
    y[t] = Math.min(Math.max(old - rollout, -LOG_CLAMP), LOG_CLAMP);
  });
  return y;
}

function meanOf(
  op: string,
  batchNormalize: boolean | { readonly mean: number },
  sum: number,
  tokens: number,
): number {
  if (batchNormalize === false) return 1;
  // All weights 0: nothing is left to normalise.
  if (batchNormalize === true) return sum > 0 ? sum / tokens : 1;
  checkNumber(op, 'correction.batchNormalize.mean', batchNormalize?.mean, { above: 0 });
  return batchNormalize.mean;
}

/**
 * The mean correction weight over all active tokens of a plan's scope, for `batchNormalize: { mean }`; 1 when
 * it has no active token or all weights are 0. Needs a plan that was given `correctionSum`.
 *
 * @example
 * const plan = await planAggregationAcross({ lengths, correctionSum: sum }, options, allReduceSum);
 * const correction = { mode: 'token-truncate', batchNormalize: { mean: correctionMean(plan) } } as const;
 */
export function correctionMean(plan: { totals: { correctionSum: number; tokens: number } }): number {
  const { correctionSum, tokens } = plan.totals;
  return correctionSum > 0 && tokens > 0 ? correctionSum / tokens : 1;
}
