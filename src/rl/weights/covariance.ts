/** Restrains the few tokens whose advantage and log-probability rise together: they decide how entropy falls. */
import { SeededRandom } from '../../seeded-random.js';
import { checkNumber, rangeError } from '../check-arrays.js';
import {
  advantageReader,
  checkFields,
  eachActive,
  type ResponseArrays,
  refuseNaN,
} from '../response-arrays.js';

/** Settings of {@link clipCovMask}. */
export interface ClipCovOptions {
  /** Share of the active tokens that is dropped, at least one token. Default 2e-4. */
  readonly share?: number;
  /** Covariances strictly between these may be dropped. Default 1 and 5. */
  readonly low?: number;
  readonly high?: number;
  /** Decides which of the candidates are dropped; the same seed drops the same tokens. */
  readonly seed: number;
}

/** Settings of {@link klCovMask}. */
export interface KlCovOptions {
  /** Share of the active tokens that is chosen, at least one token. Default 2e-4. */
  readonly share?: number;
}

/** `(A - mean A)(logprob - mean logprob)` of the active tokens, and which they are. */
function covariances(op: string, batch: ResponseArrays): { tokens: number[]; values: Float64Array } {
  checkFields(op, batch, ['logprobs']);
  const advantageOf = advantageReader(op, batch);
  const tokens: number[] = [];
  const a: number[] = [];
  let sumA = 0;
  let sumLogprob = 0;
  eachActive(batch, (t, i) => {
    refuseNaN(op, 'logprobs', batch.logprobs![t], t);
    tokens.push(t);
    a.push(advantageOf(t, i));
    sumA += advantageOf(t, i);
    sumLogprob += batch.logprobs![t];
  });
  const n = tokens.length;
  const values = Float64Array.from(
    tokens,
    (t, k) => (a[k] - sumA / n) * (batch.logprobs![t] - sumLogprob / n),
  );
  return { tokens, values };
}

function countOf(op: string, share: number, n: number): number {
  checkNumber(op, 'share', share, { min: 0, max: 1 });
  return share === 0 || n === 0 ? 0 : Math.max(1, Math.floor(share * n));
}

/**
 * 0 for a random share of the active tokens whose covariance lies between two bounds, 1 for the other
 * active ones, `[totalTokens]`: Clip-Cov (Cui et al. 2025, "The entropy mechanism of RL for reasoning
 * language models"). A token weight: dropped tokens get no gradient, denominators stay.
 *
 * Reads `logprobs` and `advantages`. Throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_MISSING_INPUT`,
 * `ERR_VARLEN_NON_FINITE` and what bad arrays throw.
 *
 * @example
 * const tokenWeights = clipCovMask(batch, { seed: step });
 */
export function clipCovMask(batch: ResponseArrays, options: ClipCovOptions): Float32Array {
  const op = 'clipCovMask';
  const { share = 2e-4, low = 1, high = 5, seed } = options;
  checkNumber(op, 'low', low);
  checkNumber(op, 'high', high, { min: low });
  if (!Number.isSafeInteger(seed)) throw rangeError(op, 'seed', seed, 'an integer');
  const { tokens, values } = covariances(op, batch);
  const kept = new Float32Array(batch.cuSeqlens[batch.cuSeqlens.length - 1]);
  for (const t of tokens) kept[t] = 1;
  const candidates = tokens.filter((_, k) => values[k] > low && values[k] < high);
  const count = Math.min(countOf(op, share, tokens.length), candidates.length);
  const random = new SeededRandom(seed);
  for (let k = 0; k < count; k++) {
    // The first steps of a Fisher-Yates shuffle: `count` distinct candidates, each as likely.
    const j = k + random.below(candidates.length - k);
    [candidates[k], candidates[j]] = [candidates[j], candidates[k]];
    kept[candidates[k]] = 0;
  }
  return kept;
}

/**
 * 1 for the share of active tokens with the largest covariance, else 0, `[totalTokens]`: KL-Cov (Cui et al.
 * 2025). The batch's `klMask`, with `refLogprobs` set to the old ones and `kl: { kind: 'abs' }`. Ties go to
 * the earlier token.
 *
 * Reads `logprobs` and `advantages`. Throws what {@link clipCovMask} throws.
 *
 * @example
 * const klMask = klCovMask(batch, { share: 2e-3 });
 */
export function klCovMask(batch: ResponseArrays, options: KlCovOptions = {}): Uint8Array {
  const op = 'klCovMask';
  const { tokens, values } = covariances(op, batch);
  const chosen = new Uint8Array(batch.cuSeqlens[batch.cuSeqlens.length - 1]);
  const order = [...tokens.keys()].sort((a, b) => values[b] - values[a] || a - b);
  for (const k of order.slice(0, countOf(op, options.share ?? 2e-4, tokens.length))) chosen[tokens[k]] = 1;
  return chosen;
}
