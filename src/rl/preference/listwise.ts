/** Listwise preference optimization: one winner against all others of its list. */
import { checkBoolean, checkInteger, readOptions } from '../../check.js';
import { checkArray, checkFloats, checkNumber } from '../check-arrays.js';
import { checkOffsets } from '../offsets.js';
import { activeLengths } from '../plan/lengths.js';
import { broadcastSegments, checkFinite, type PackedLogprobs, segmentSums } from './segments.js';

/** Lists of neighbours, each with one winner. */
export interface PreferenceLists {
  /** `[numLists + 1]`, list `g` has the members `cuLists[g] .. cuLists[g + 1] - 1`. */
  readonly cuLists: Int32Array;
  /** `[numLists]`, place of the winner in its list, from 0. */
  readonly winners: Int32Array;
  /** `[numLists]`, weight of each list's loss, at least 0. Default `1 / numLists`: the mean. */
  readonly weights?: Float32Array | Float64Array;
}

/** Options of {@link listwiseFromScores}. */
export interface ListwiseOptions {
  /** Temperature of the softmax over a list, above 0. Default 2, as published for recommendation. */
  tau?: number;
}

/** Options of {@link listwiseLoss}. */
export interface PackedListwiseOptions extends ListwiseOptions {
  /** Factor of the log-probabilities, above 0. Default 1. */
  beta?: number;
  /** Divide each sum of log-probabilities by its active tokens. Default false. */
  lengthNormalize?: boolean;
}

/**
 * `-log(exp(u_w / tau) / sum_k exp(u_k / tau))` of each list, weighted and summed, and its derivative by the
 * scores, `dScores [numMembers]`. In float64.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_OPTION`, `ERR_VARLEN_NON_FINITE` and `ERR_VARLEN_CU_SEQLENS`.
 *
 * @param scores `[numMembers]`, `u`
 *
 * @example
 * const lists = { cuLists: Int32Array.of(0, 4), winners: Int32Array.of(0) };
 * listwiseFromScores(Float64Array.of(0.8, 0.5, 0.2, -0.1), lists).loss; // 1.175312
 */
export function listwiseFromScores(
  scores: Float32Array | Float64Array,
  lists: PreferenceLists,
  options: ListwiseOptions = {},
): { readonly loss: number; readonly dScores: Float64Array } {
  const op = 'listwiseFromScores';
  const { tau = 2 } = readOptions(op, options, ['tau']);
  return overLists(op, scores, lists, tau);
}

/**
 * {@link listwiseFromScores} where a member is an answer and its score is `beta` times its log-probability,
 * less that of the reference policy when there is one. Returns `dLogprobs [totalTokens]`, 0 at masked tokens,
 * whose values are never read.
 *
 * Throws what {@link listwiseFromScores} throws.
 *
 * @example
 * const batch = { cuSeqlens: Int32Array.of(0, 1, 2), logprobs: Float32Array.of(-1, -2) };
 * const lists = { cuLists: Int32Array.of(0, 2), winners: Int32Array.of(0) };
 * listwiseLoss(batch, lists, { tau: 1 }).loss; // log(1 + exp(-1)) = 0.3133
 */
export function listwiseLoss(
  batch: PackedLogprobs,
  lists: PreferenceLists,
  options: PackedListwiseOptions = {},
): { readonly loss: number; readonly dLogprobs: Float32Array; readonly scores: Float64Array } {
  const op = 'listwiseLoss';
  const {
    tau = 2,
    beta = 1,
    lengthNormalize = false,
  } = readOptions(op, options, ['tau', 'beta', 'lengthNormalize']);
  checkNumber(op, 'beta', beta, { above: 0 });
  checkBoolean(op, 'lengthNormalize', lengthNormalize);
  const lengths = activeLengths(batch);
  const sums = segmentSums(op, 'logprobs', batch.logprobs, batch);
  const { refLogprobs } = batch;
  const refSums = refLogprobs === undefined ? undefined : segmentSums(op, 'refLogprobs', refLogprobs, batch);
  const factor = Float64Array.from(lengths, (length) => beta / (lengthNormalize ? Math.max(1, length) : 1));
  const scores = sums.map((sum, i) => factor[i] * (sum - (refSums?.[i] ?? 0)));
  const { loss, dScores } = overLists(op, scores, lists, tau);
  const dSums = dScores.map((slope, i) => factor[i] * slope);
  return Object.freeze({ loss, dLogprobs: broadcastSegments(dSums, batch), scores });
}

function overLists(
  op: string,
  scores: Float32Array | Float64Array,
  { cuLists, winners, weights }: PreferenceLists,
  tau: number,
): { readonly loss: number; readonly dScores: Float64Array } {
  checkNumber(op, 'tau', tau, { above: 0 });
  checkFloats(op, 'scores', scores);
  checkOffsets(op, 'cuLists', cuLists, scores.length);
  const numLists = cuLists.length - 1;
  checkArray(op, 'winners', winners, 'Int32Array', numLists);
  if (weights !== undefined) checkFloats(op, 'weights', weights, numLists);
  const dScores = new Float64Array(scores.length);
  let loss = 0;
  for (let g = 0; g < numLists; g++) {
    checkInteger(op, `winners[${g}]`, winners[g], 0, cuLists[g + 1] - cuLists[g] - 1);
    if (weights !== undefined) checkNumber(op, `weights[${g}]`, weights[g], { min: 0 });
    const list = Float64Array.from(scores.subarray(cuLists[g], cuLists[g + 1]));
    list.forEach((score, k) => {
      checkFinite(op, `scores[${cuLists[g] + k}]`, score);
    });
    const weight = weights?.[g] ?? 1 / numLists;
    const { value, slopes } = winnerLoss(list, winners[g], tau);
    loss += weight * value;
    slopes.forEach((slope, k) => {
      dScores[cuLists[g] + k] = weight * slope;
    });
  }
  return Object.freeze({ loss, dScores });
}

/** `-log softmax(u / tau)[winner]` and its slopes `(softmax - onehot) / tau`. */
export function winnerLoss(
  u: Float64Array,
  winner: number,
  tau: number,
): { readonly value: number; readonly slopes: Float64Array } {
  const highest = u.reduce((a, b) => Math.max(a, b), -Infinity);
  const exps = u.map((score) => Math.exp((score - highest) / tau));
  const sum = exps.reduce((a, b) => a + b, 0);
  return {
    value: Math.log(sum) - (u[winner] - highest) / tau,
    slopes: exps.map((exp, k) => (exp / sum - (k === winner ? 1 : 0)) / tau),
  };
}
