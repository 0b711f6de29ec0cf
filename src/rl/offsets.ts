/** Offsets of parts: of chunks in answers, of steps in rationales, of members in lists. */
import { argumentError } from '../errors.js';
import { checkArray } from './check-arrays.js';

/** Refuses offsets that do not start at 0, that decrease, or that do not end at `end`. */
export function checkOffsets(
  op: string,
  argument: string,
  offsets: unknown,
  end?: number,
): asserts offsets is Int32Array {
  checkArray(op, argument, offsets, 'Int32Array');
  const refuse = (problem: string): never => {
    throw argumentError('ERR_VARLEN_CU_SEQLENS', op, argument, problem);
  };
  if (offsets.length === 0) refuse('is empty; got 0 entries, expected at least 1');
  if (offsets[0] !== 0) refuse(`must start at 0; got ${offsets[0]}, expected 0`);
  for (let i = 1; i < offsets.length; i++) {
    if (offsets[i] < offsets[i - 1]) {
      refuse(`must not decrease; got ${offsets[i]} at ${i}, expected >= ${offsets[i - 1]}`);
    }
  }
  const last = offsets[offsets.length - 1];
  if (end !== undefined && last !== end) refuse(`has a wrong end; got ${last}, expected ${end}`);
}
