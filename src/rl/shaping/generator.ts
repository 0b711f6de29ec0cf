/** The reward of a policy that writes problems for another one, from how well that one solves them. */
import { readOptions } from '../../check.js';
import { checkArray, checkNumber } from '../check-arrays.js';
import { shareAt } from './chunks.js';

/** What became of the generated problems. */
export interface SolverFeedback {
  /** `[numProblems]`, solver's successes. */
  readonly successes: Int32Array;
  /** `[numProblems]`, solver's tries, each at least 1; read for well-formed problems only. */
  readonly tries: Int32Array;
  /** `[numProblems]`, 1 = not a problem that could be posed. Default: none. */
  readonly malformed?: Uint8Array;
}

/** Options of {@link generatorRewards}. */
export interface GeneratorOptions {
  /** Above 1 sharpens the peak at one half, below 1 flattens it. Default 1. */
  exponent?: number;
}

/**
 * Rewards of generated problems, `[numProblems]`: `(1 - |2p - 1|) ^ exponent` at solver accuracy `p`, so 1
 * for a problem that is solved half of the time, 0 for one that is always or never solved, and 0 for a
 * malformed one.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * generatorRewards({ successes: Int32Array.of(4, 2, 1), tries: Int32Array.of(4, 4, 4) }); // [0, 1, 0.5]
 */
export function generatorRewards(feedback: SolverFeedback, options: GeneratorOptions = {}): Float64Array {
  const op = 'generatorRewards';
  const { successes, tries, malformed } = feedback;
  const { exponent = 1 } = readOptions(op, options, ['exponent']);
  checkNumber(op, 'exponent', exponent, { above: 0 });
  checkArray(op, 'successes', successes, 'Int32Array');
  checkArray(op, 'tries', tries, 'Int32Array', successes.length);
  if (malformed !== undefined) checkArray(op, 'malformed', malformed, 'Uint8Array', successes.length);
  return Float64Array.from(successes, (count, i) => {
    if (malformed !== undefined && malformed[i] !== 0) return 0;
    return (1 - Math.abs(2 * shareAt(op, i, count, tries[i]) - 1)) ** exponent;
  });
}
