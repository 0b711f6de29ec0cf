/** Drops what the old policy would hardly have written, before an off-policy update. */
import { checkNumber, checkWord } from '../check-arrays.js';
import { checkFields, eachActive, type ResponseArrays, refuseNaN } from '../response-arrays.js';

/** Settings of {@link lowProbabilityMask}. */
export interface LowProbabilityOptions {
  /** `'token'` (default) drops the unlikely tokens, `'sequence'` every answer that holds one. */
  readonly level?: 'token' | 'sequence';
  /** Least log-probability that is kept. Default -5. */
  readonly threshold?: number;
}

/**
 * 1 for active tokens (or all tokens of answers) whose `oldLogprobs` reach `threshold`, else 0,
 * `[totalTokens]`: the low-probability mask of EMPO2.
 *
 * Throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_NON_FINITE` and
 * what bad arrays throw.
 *
 * @example
 * const batch = { cuSeqlens: Int32Array.of(0, 2), oldLogprobs: Float32Array.of(-0.1, -7) };
 * lowProbabilityMask(batch); // [1, 0]
 */
export function lowProbabilityMask(batch: ResponseArrays, options: LowProbabilityOptions = {}): Float32Array {
  const op = 'lowProbabilityMask';
  const { level = 'token', threshold = -5 } = options;
  checkWord(op, 'level', level, ['token', 'sequence']);
  checkNumber(op, 'threshold', threshold, { max: 0 });
  const kept = new Float32Array(checkFields(op, batch, ['oldLogprobs']));
  const old = batch.oldLogprobs!;
  const unlikely = new Set<number>();
  eachActive(batch, (t, i) => {
    refuseNaN(op, 'oldLogprobs', old[t], t);
    if (old[t] >= threshold) kept[t] = 1;
    else unlikely.add(i);
  });
  if (level === 'token') return kept;
  for (const i of unlikely) kept.fill(0, batch.cuSeqlens[i], batch.cuSeqlens[i + 1]);
  return kept;
}
