/** PROF: keeps answers whose process agrees with their outcome, and as many right as wrong ones. */
import { checkInteger, readOptions } from '../../check.js';
import { checkArray, checkFloats, checkNumber } from '../check-arrays.js';
import { groupIndex } from '../group-index.js';

/** Answers with outcome and process scores. */
export interface ProcessScores {
  /** `[numSeqs]`, 1 = the outcome is right. */
  readonly correct: Uint8Array;
  /** `[numSeqs]`, mean process score of each answer. */
  readonly scores: Float32Array | Float64Array;
  /** `[numSeqs]`, equal value = same prompt. */
  readonly groupIds: Int32Array;
}

/** Options of {@link profFilter}. */
export interface ProfOptions {
  /** Answers to keep per prompt, `k`; a prompt with fewer keeps them all. */
  keep: number;
}

/**
 * Indices of the answers to train on, ascending.
 *
 * Of a prompt with `p` right and `n` wrong answers, `min(p, max(ceil(k / 2), k - n))` right ones stay, those
 * with the highest scores, and wrong ones up to `k`, those with the lowest: what is removed is right for bad
 * reasons or wrong for good ones, and the numbers of both kinds are as close as they can be. Of equal scores
 * the earlier answer stays.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * const answers = {
 *   correct: Uint8Array.of(1, 1, 0, 0), scores: Float32Array.of(0.2, 0.9, 0.8, 0.1), groupIds: Int32Array.of(1, 1, 1, 1),
 * };
 * profFilter(answers, { keep: 2 }); // [1, 3]
 */
export function profFilter(answers: ProcessScores, options: ProfOptions): Int32Array {
  const op = 'profFilter';
  const { correct, scores, groupIds } = answers;
  const { keep } = readOptions(op, options, ['keep']);
  checkInteger(op, 'keep', keep, 1);
  checkArray(op, 'correct', correct, 'Uint8Array');
  checkFloats(op, 'scores', scores, correct.length);
  checkArray(op, 'groupIds', groupIds, 'Int32Array', correct.length);

  const { groupOf, numGroups } = groupIndex(groupIds);
  const groups = Array.from({ length: numGroups }, () => ({ right: [] as number[], wrong: [] as number[] }));
  groupOf.forEach((g, i) => {
    checkNumber(op, `scores[${i}]`, scores[i]);
    (correct[i] === 0 ? groups[g].wrong : groups[g].right).push(i);
  });
  const kept = groups.flatMap(({ right, wrong }) => {
    const total = Math.min(keep, right.length + wrong.length);
    const rights = Math.min(right.length, Math.max(Math.ceil(total / 2), total - wrong.length));
    // Sorting is stable: of equal scores the earlier index comes first.
    right.sort((a, b) => scores[b] - scores[a]);
    wrong.sort((a, b) => scores[a] - scores[b]);
    return [...right.slice(0, rights), ...wrong.slice(0, total - rights)];
  });
  return Int32Array.from(kept).sort();
}
