/** Keypoint weighting (KPOD): which tokens and steps of a rationale a student is trained on, and how hard they are. */
import { checkInteger, readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkFloats, checkWord } from '../check-arrays.js';
import { checkOffsets } from '../offsets.js';
import { checkLayout, type TokenLayout } from '../plan/lengths.js';
import { checkFinite } from './segments.js';

/** Tokens of rationales with keypoint weights. */
export interface WeightedTokens extends TokenLayout {
  /** `[totalTokens]`, natural log. Masked tokens may hold anything. */
  readonly logprobs: Float32Array | Float64Array;
  /** `[totalTokens]`, keypoint weight of each token, at least 0. */
  readonly weights: Float32Array | Float64Array;
}

/** Options of {@link weightedNll}. */
export interface WeightedNllOptions {
  /** `'weight-sum'` (default) divides by the sum of the weights, `'none'` does not. */
  normalize?: 'weight-sum' | 'none';
}

/**
 * `sum_t w_t (-log p_t) / sum_t w_t` over the active tokens, and `dLogprobs [totalTokens]`. In float64; 0
 * when no active token has weight.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_OPTION`,
 * `ERR_VARLEN_WEIGHT` and `ERR_VARLEN_NON_FINITE`.
 *
 * @example
 * weightedNll({
 *   cuSeqlens: Int32Array.of(0, 3), logprobs: Float64Array.of(-0.2, -2, -0.3), weights: Float64Array.of(0.8, 0.1, 0.95),
 * }).loss; // 0.645 / 1.85
 */
export function weightedNll(
  tokens: WeightedTokens,
  options: WeightedNllOptions = {},
): { readonly loss: number; readonly dLogprobs: Float32Array } {
  const op = 'weightedNll';
  const { normalize = 'weight-sum' } = readOptions(op, options, ['normalize']);
  checkWord(op, 'normalize', normalize, ['weight-sum', 'none']);
  const totalTokens = checkLayout(op, tokens);
  const { logprobs, weights, lossMask } = tokens;
  checkFloats(op, 'logprobs', logprobs, totalTokens);
  checkFloats(op, 'weights', weights, totalTokens);
  let [nll, mass] = [0, 0];
  const active = (t: number): boolean => lossMask === undefined || lossMask[t] !== 0;
  for (let t = 0; t < totalTokens; t++) {
    if (!active(t)) continue;
    checkFinite(op, `logprobs[${t}]`, logprobs[t]);
    checkWeight(op, t, weights[t]);
    nll -= weights[t] * logprobs[t];
    mass += weights[t];
  }
  const scale = normalize === 'none' ? 1 : mass === 0 ? 0 : 1 / mass;
  const dLogprobs = new Float32Array(totalTokens);
  for (let t = 0; t < totalTokens; t++) if (active(t)) dLogprobs[t] = -scale * weights[t];
  return Object.freeze({ loss: scale * nll + 0, dLogprobs });
}

function checkWeight(op: string, t: number, weight: number): void {
  if (weight >= 0 && weight < Infinity) return;
  const problem = `is no weight; got ${weight}, expected a finite number >= 0`;
  throw argumentError('ERR_VARLEN_WEIGHT', op, `weights[${t}]`, problem);
}

/** Options of {@link stepDifficulty}. */
export interface StepDifficultyOptions {
  /**
   * How a step's weights become shares. Default `'proportional'`: `w_t / sum w`. `'softmax'`:
   * `exp(w_t) / sum exp(w)`.
   */
  weighting?: 'proportional' | 'softmax';
}

/**
 * Difficulty of each step of a rationale, `[numSteps]`: the weighted mean of `-log p` over its tokens, under
 * the student before it is trained. 0 for a step without tokens or without weight.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_OPTION`,
 * `ERR_VARLEN_WEIGHT` and `ERR_VARLEN_NON_FINITE`.
 *
 * @param logprobs `[totalTokens]`
 * @param weights `[totalTokens]`, keypoint weights, at least 0
 * @param stepOffsets `[numSteps + 1]`, tokens: starts 0, never falls, ends at `totalTokens`
 *
 * @example
 * stepDifficulty(Float64Array.of(-1, -3), Float64Array.of(1, 1), Int32Array.of(0, 2)); // [2]
 */
export function stepDifficulty(
  logprobs: Float32Array | Float64Array,
  weights: Float32Array | Float64Array,
  stepOffsets: Int32Array,
  options: StepDifficultyOptions = {},
): Float64Array {
  const op = 'stepDifficulty';
  const { weighting = 'proportional' } = readOptions(op, options, ['weighting']);
  checkWord(op, 'weighting', weighting, ['proportional', 'softmax']);
  checkFloats(op, 'logprobs', logprobs);
  checkFloats(op, 'weights', weights, logprobs.length);
  checkOffsets(op, 'stepOffsets', stepOffsets, logprobs.length);
  return Float64Array.from({ length: stepOffsets.length - 1 }, (_, k) => {
    let [nll, mass] = [0, 0];
    let highest = 0;
    for (let t = stepOffsets[k]; t < stepOffsets[k + 1]; t++) {
      checkFinite(op, `logprobs[${t}]`, logprobs[t]);
      checkWeight(op, t, weights[t]);
      highest = Math.max(highest, weights[t]);
    }
    for (let t = stepOffsets[k]; t < stepOffsets[k + 1]; t++) {
      const share = weighting === 'softmax' ? Math.exp(weights[t] - highest) : weights[t];
      nll -= share * logprobs[t];
      mass += share;
    }
    return mass === 0 ? 0 : nll / mass;
  });
}

/** Steps of packed rationales. */
export interface StepLayout {
  /** `[numSteps + 1]`, tokens: step `k` owns `stepOffsets[k] .. stepOffsets[k + 1] - 1`. */
  readonly stepOffsets: Int32Array;
  /** `[numSeqs + 1]`, which steps belong to which rationale. */
  readonly cuSteps: Int32Array;
}

/**
 * Mask of the tokens that are trained at a stage, `[totalTokens]`: the last steps of every rationale. The
 * steps before them are given as input.
 *
 * @param trained the stage `c`: the last `c` steps of each rationale; or `[numSeqs]`, the first step of each
 * rationale that is trained (counted from 0 inside it), as a `CurriculumStage` has it
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and
 * `ERR_VARLEN_CU_SEQLENS`.
 *
 * @example
 * const steps = { stepOffsets: Int32Array.of(0, 2, 3, 5), cuSteps: Int32Array.of(0, 3) };
 * progressiveMask(steps, 2); // [0, 0, 1, 1, 1]: the last two of three steps
 */
export function progressiveMask(steps: StepLayout, trained: number | Int32Array): Uint8Array {
  const op = 'progressiveMask';
  const { stepOffsets, cuSteps } = steps;
  checkOffsets(op, 'stepOffsets', stepOffsets);
  checkOffsets(op, 'cuSteps', cuSteps, stepOffsets.length - 1);
  const numSeqs = cuSteps.length - 1;
  if (typeof trained === 'number') checkInteger(op, 'trained', trained, 0);
  else checkArray(op, 'trained', trained, 'Int32Array', numSeqs);
  const mask = new Uint8Array(stepOffsets[stepOffsets.length - 1]);
  for (let i = 0; i < numSeqs; i++) {
    const numSteps = cuSteps[i + 1] - cuSteps[i];
    const first = typeof trained === 'number' ? Math.max(0, numSteps - trained) : trained[i];
    checkInteger(op, `trained[${i}]`, first, 0, numSteps);
    mask.fill(1, stepOffsets[cuSteps[i] + first], stepOffsets[cuSteps[i + 1]]);
  }
  return mask;
}
