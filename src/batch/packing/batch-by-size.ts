import { argumentError } from '../../errors.js';
import { readLengths } from './packing.js';

/**
 * Index batches in the given order, the way fairseq's `batch_by_size` cuts them.
 *
 * A batch grows while `longest * count <= maxTokens` and `count <= maxSentences`; a batch of more than
 * `multiple` is then cut down to a multiple of it, and what was cut starts the next batch. Sort the
 * lengths first to get little padding.
 *
 * ```ts
 * batchBySize([2, 3, 3, 4, 5, 5, 9, 10], 20, 0, 1); // [[0, 1, 2, 3], [4, 5], [6, 7]]
 * ```
 *
 * @param lengths tokens per sentence, `[numSentences]`
 * @param maxTokens padded tokens per batch; 0 or less: no limit
 * @param maxSentences sentences per batch; 0 or less: no limit
 * @throws VarlenInputError `ERR_VARLEN_RANGE` for a length above `maxTokens` (`details.index`)
 */
export function batchBySize(
  lengths: ArrayLike<number>,
  maxTokens: number,
  maxSentences = 0,
  multiple = 1,
): number[][] {
  const op = 'batchBySize';
  const tokens = readLengths(op, lengths);
  for (const [argument, value] of Object.entries({ maxTokens, maxSentences })) {
    if (Number.isSafeInteger(value)) continue;
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      argument,
      `must be an integer; got ${String(value)}, expected a count, or 0 for no limit`,
    );
  }
  if (!Number.isSafeInteger(multiple) || multiple < 1) {
    const problem = `is out of range; got ${String(multiple)}, expected an integer of at least 1`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'multiple', problem);
  }

  const tokenLimit = maxTokens > 0 ? maxTokens : Infinity;
  const countLimit = maxSentences > 0 ? maxSentences : Infinity;
  const batches: number[][] = [];
  for (let start = 0; start < tokens.length; ) {
    let longest = 0;
    let count = 0;
    while (start + count < tokens.length && count < countLimit) {
      const length = tokens[start + count];
      if (length > tokenLimit) {
        throw argumentError(
          'ERR_VARLEN_RANGE',
          op,
          `lengths[${start + count}]`,
          `is above maxTokens; got ${length}, expected at most ${maxTokens}`,
          { index: start + count },
        );
      }
      longest = Math.max(longest, length);
      if (longest * (count + 1) > tokenLimit) break;
      count++;
    }
    if (count > multiple) count -= count % multiple;
    const first = start;
    batches.push(Array.from({ length: count }, (_, i) => first + i));
    start += count;
  }
  return batches;
}
