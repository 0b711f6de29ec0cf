/** Direct preference optimization over pairs of answers (Rafailov et al., 2023) and two of its relatives. */
import { checkBoolean, checkInteger, readOptions } from '../../check.js';
import { checkArray, checkFloats, checkNumber, checkWord } from '../check-arrays.js';
import { activeLengths } from '../plan/lengths.js';
import {
  broadcastSegments,
  checkFinite,
  missingInput,
  type PackedLogprobs,
  segmentSums,
} from './segments.js';

/** Pairs of sequences of a batch. A sequence may be in several pairs. */
export interface PreferencePairs {
  /** `[numPairs]`, index of the better sequence. */
  readonly chosen: Int32Array;
  /** `[numPairs]`, index of the worse one. */
  readonly rejected: Int32Array;
}

/**
 * Loss of a pair's margin `D`.
 *
 * `sigmoid`: `-(1 - e) log s(D) - e log s(-D)` with label smoothing `e` (default 0). `hinge`:
 * `max(0, 1 - D)`. `ipo`: `(D / beta - 1 / (2 beta))^2` (Azar et al., 2023).
 */
export type PairLoss =
  | { readonly kind: 'sigmoid'; readonly labelSmoothing?: number }
  | { readonly kind: 'hinge' | 'ipo' };

/** Options of {@link dpoLoss} and {@link dpoFromSums}. */
export interface DpoOptions {
  /** Strength of the pull to the reference policy, above 0. */
  beta: number;
  /** Default `{ kind: 'sigmoid' }`. */
  loss?: PairLoss;
  /** Divide each sum of log-probabilities by its active tokens. Default false. */
  lengthNormalize?: boolean;
  /** Over pairs. Default `'mean'`. */
  reduction?: 'mean' | 'sum';
}

/** Sums over the active tokens of each sequence. */
export interface SequenceSums {
  /** `[numSeqs]`, current policy. */
  readonly sums: Float32Array | Float64Array;
  /** `[numSeqs]`, reference policy. */
  readonly refSums: Float32Array | Float64Array;
  /** `[numSeqs]`, active tokens; needed by `lengthNormalize`. */
  readonly lengths?: Int32Array;
}

/** What both forms return beside the gradient. */
export interface PairStats {
  readonly loss: number;
  /** `[numPairs]`, `D = beta * (log-ratio of the chosen - log-ratio of the rejected)`. */
  readonly margins: Float64Array;
  /** Share of pairs with `D > 0`; 0 without pairs. */
  readonly accuracy: number;
}

/**
 * Loss over pairs, and its derivative by each sequence's sum of log-probabilities, `dSums [numSeqs]`. In
 * float64; without pairs everything is 0.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_OPTION`, `ERR_VARLEN_NON_FINITE` and `ERR_VARLEN_MISSING_INPUT`.
 *
 * @example
 * const sums = { sums: Float64Array.of(-10, -12), refSums: Float64Array.of(-11, -11.5) };
 * const pairs = { chosen: Int32Array.of(0), rejected: Int32Array.of(1) };
 * dpoFromSums(sums, pairs, { beta: 0.1 }); // loss 0.620957, dSums [-0.046257, 0.046257]
 */
export function dpoFromSums(
  sequences: SequenceSums,
  pairs: PreferencePairs,
  options: DpoOptions,
): PairStats & { readonly dSums: Float64Array } {
  return overPairs('dpoFromSums', sequences, pairs, options);
}

/**
 * {@link dpoFromSums} over packed log-probabilities: returns `dLogprobs [totalTokens]`, 0 at masked tokens,
 * whose values are never read.
 *
 * Throws what {@link dpoFromSums} throws, and `ERR_VARLEN_CU_SEQLENS`.
 *
 * @example
 * const batch = {
 *   cuSeqlens: Int32Array.of(0, 2, 3), logprobs: Float32Array.of(-1, -2, -4), refLogprobs: Float32Array.of(-1, -2, -3),
 * };
 * const pairs = { chosen: Int32Array.of(0), rejected: Int32Array.of(1) };
 * dpoLoss(batch, pairs, { beta: 0.1 }).dLogprobs; // the same number twice, then its opposite
 */
export function dpoLoss(
  batch: PackedLogprobs,
  pairs: PreferencePairs,
  options: DpoOptions,
): PairStats & { readonly dLogprobs: Float32Array } {
  const op = 'dpoLoss';
  const lengths = activeLengths(batch);
  const { refLogprobs } = batch;
  if (refLogprobs === undefined) {
    throw missingInput(op, 'refLogprobs', 'DPO', 'a Float32Array or Float64Array');
  }
  const sums = segmentSums(op, 'logprobs', batch.logprobs, batch);
  const refSums = segmentSums(op, 'refLogprobs', refLogprobs, batch);
  const { dSums, ...stats } = overPairs(op, { sums, refSums, lengths }, pairs, options);
  return Object.freeze({ ...stats, dLogprobs: broadcastSegments(dSums, batch) });
}

function overPairs(
  op: string,
  { sums, refSums, lengths }: SequenceSums,
  { chosen, rejected }: PreferencePairs,
  options: DpoOptions,
): PairStats & { readonly dSums: Float64Array } {
  const known = ['beta', 'loss', 'lengthNormalize', 'reduction'] as const;
  const resolved = readOptions(op, options, known);
  const { beta, loss = { kind: 'sigmoid' }, lengthNormalize = false, reduction = 'mean' } = resolved;
  checkNumber(op, 'beta', beta, { above: 0 });
  checkBoolean(op, 'lengthNormalize', lengthNormalize);
  checkWord(op, 'reduction', reduction, ['mean', 'sum']);
  const lossOf = readLoss(op, loss, beta);

  checkFloats(op, 'sums', sums);
  const numSeqs = sums.length;
  checkFloats(op, 'refSums', refSums, numSeqs);
  if (lengthNormalize && lengths === undefined) {
    throw missingInput(op, 'lengths', 'lengthNormalize', 'an Int32Array');
  }
  if (lengths !== undefined) checkArray(op, 'lengths', lengths, 'Int32Array', numSeqs);
  checkArray(op, 'chosen', chosen, 'Int32Array');
  checkArray(op, 'rejected', rejected, 'Int32Array', chosen.length);

  // A sequence without active tokens has the sum 0, whatever it is divided by.
  const scaleOf = (i: number): number => (lengthNormalize ? beta / Math.max(1, lengths![i]) : beta);
  const logRatio = (argument: string, pair: number, i: number): number => {
    checkInteger(op, `${argument}[${pair}]`, i, 0, numSeqs - 1);
    checkFinite(op, `sums[${i}]`, sums[i]);
    checkFinite(op, `refSums[${i}]`, refSums[i]);
    return scaleOf(i) * (sums[i] - refSums[i]);
  };
  const numPairs = chosen.length;
  const share = reduction === 'mean' ? 1 / Math.max(1, numPairs) : 1;
  const dSums = new Float64Array(numSeqs);
  const margins = new Float64Array(numPairs);
  let [total, right] = [0, 0];
  for (let pair = 0; pair < numPairs; pair++) {
    const [better, worse] = [chosen[pair], rejected[pair]];
    const margin = logRatio('chosen', pair, better) - logRatio('rejected', pair, worse);
    const { value, slope } = lossOf(margin);
    margins[pair] = margin;
    total += share * value;
    if (margin > 0) right += 1;
    dSums[better] += share * slope * scaleOf(better);
    dSums[worse] -= share * slope * scaleOf(worse);
  }
  return Object.freeze({ loss: total, dSums, margins, accuracy: numPairs === 0 ? 0 : right / numPairs });
}

/** Value and slope at a margin. */
type LossOf = (margin: number) => { readonly value: number; readonly slope: number };

function readLoss(op: string, loss: PairLoss, beta: number): LossOf {
  checkWord(op, 'loss.kind', loss.kind, ['sigmoid', 'hinge', 'ipo']);
  switch (loss.kind) {
    case 'sigmoid': {
      const { labelSmoothing: e = 0 } = readOptions(op, loss, ['kind', 'labelSmoothing']);
      checkNumber(op, 'loss.labelSmoothing', e, { min: 0, below: 0.5 });
      return (margin) => ({
        value: (1 - e) * softplus(-margin) + e * softplus(margin),
        slope: e * sigmoid(margin) - (1 - e) * sigmoid(-margin),
      });
    }
    case 'hinge':
      readOptions(op, loss, ['kind']);
      return (margin) => ({ value: Math.max(0, 1 - margin), slope: margin < 1 ? -1 : 0 });
    case 'ipo':
      readOptions(op, loss, ['kind']);
      return (margin) => {
        const error = (margin - 0.5) / beta;
        return { value: error ** 2, slope: (2 * error) / beta };
      };
  }
}

/** `log(1 + exp(x))`; never overflows. */
function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}
