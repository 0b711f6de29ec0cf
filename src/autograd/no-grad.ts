import { wrongType } from '../check.js';
import { setRecording } from '../tensor/tape.js';

/**
 * Calls `fn` without recording: what it computes requires no gradient.
 *
 * @param fn a synchronous function: with an asynchronous one, "inside" would have no end
 * @throws `ERR_VARLEN_TYPE` when `fn` returns a promise
 *
 * @example
 * ```ts
 * const { out } = noGrad(() => varlenAttention(q, k, v, { cuSeqlens }));
 * ```
 */
export function noGrad<T>(fn: () => T): T {
  const before = setRecording(false);
  try {
    const result = fn();
    if (typeof (result as { then?: unknown } | null | undefined)?.then === 'function') {
      throw wrongType('noGrad', 'fn', result, 'a function that returns no promise');
    }
    return result;
  } finally {
    setRecording(before);
  }
}
