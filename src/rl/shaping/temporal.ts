/** T-GRPO: a bonus for answers that need the order of the frames (Video-R1, section 3.2 and its code). */
import { checkInteger, readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkFloats, checkNumber, rangeError } from '../check-arrays.js';

/** Answers to the same questions, with the frames in order and shuffled. */
export interface TemporalAnswers {
  /** `[numOrdered]`, accuracy reward of every answer to ordered frames. */
  readonly accuracy: Float32Array | Float64Array;
  /** `[numOrdered]`, question of each. */
  readonly groupIds: Int32Array;
  /** `[numShuffled]`, accuracy reward of every answer to shuffled frames. */
  readonly shuffledAccuracy: Float32Array | Float64Array;
  /** `[numShuffled]`, question of each; every question of `groupIds` is among them. */
  readonly shuffledGroupIds: Int32Array;
  /** `[numOrdered]`, tokens; needed by `lengthBonus`. */
  readonly lengths?: Int32Array;
}

/** Options of {@link temporalBonus}; the defaults are those of the published code. */
export interface TemporalOptions {
  /** A question earns the bonus when its ordered mean is at least this share of its shuffled mean. Default 0.8. */
  share?: number;
  /** Default 0.3. */
  bonus?: number;
  /** An answer is correct when its accuracy is above this. Default 0.1. */
  correctAbove?: number;
  /**
   * Correct answers of `min` to `max` tokens get `bonus`, in questions with more than one correct answer.
   * Defaults 320, 512, 0.2; off when absent.
   */
  lengthBonus?: { readonly min?: number; readonly max?: number; readonly bonus?: number };
}

/**
 * What each ordered answer's reward gains, `[numOrdered]`: `bonus` when it is correct and its question's
 * ordered accuracy is at least `share` of the shuffled one, and the length bonus when that is asked for.
 *
 * Add it to the rewards and take the advantages of `grpo` with `eps: 1e-4`. Shuffled answers are only
 * counted, never trained on.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION` and
 * `ERR_VARLEN_MISSING_INPUT` (a question without shuffled answers; `lengthBonus` without lengths).
 *
 * @example
 * temporalBonus({
 *   accuracy: Float32Array.of(1, 0), groupIds: Int32Array.of(7, 7),
 *   shuffledAccuracy: Float32Array.of(1, 0), shuffledGroupIds: Int32Array.of(7, 7),
 * }); // [0.3, 0]
 */
export function temporalBonus(answers: TemporalAnswers, options: TemporalOptions = {}): Float64Array {
  const op = 'temporalBonus';
  const { accuracy, groupIds, shuffledAccuracy, shuffledGroupIds, lengths } = answers;
  const known = ['share', 'bonus', 'correctAbove', 'lengthBonus'] as const;
  const { share = 0.8, bonus = 0.3, correctAbove = 0.1, lengthBonus } = readOptions(op, options, known);
  checkNumber(op, 'share', share, { min: 0 });
  checkNumber(op, 'bonus', bonus);
  checkNumber(op, 'correctAbove', correctAbove);
  const ordered = means(op, 'accuracy', accuracy, 'groupIds', groupIds);
  const shuffled = means(op, 'shuffledAccuracy', shuffledAccuracy, 'shuffledGroupIds', shuffledGroupIds);

  const gain = Float64Array.from(groupIds, (group, i) => {
    const reference = shuffled.get(group);
    if (reference === undefined) {
      const problem = `have no answer of question ${group}; got none, expected at least one`;
      throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'shuffledGroupIds', problem, { group });
    }
    return accuracy[i] > correctAbove && ordered.get(group)! >= share * reference ? bonus : 0;
  });
  if (lengthBonus === undefined) return gain;

  const range = readOptions(op, lengthBonus, ['min', 'max', 'bonus']);
  const { min = 320, max = 512, bonus: extra = 0.2 } = range;
  checkInteger(op, 'lengthBonus.min', min, 0);
  checkInteger(op, 'lengthBonus.max', max, min);
  checkNumber(op, 'lengthBonus.bonus', extra);
  if (lengths === undefined) {
    const problem = 'are needed by lengthBonus; got none, expected an Int32Array';
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'lengths', problem);
  }
  checkArray(op, 'lengths', lengths, 'Int32Array', groupIds.length);
  const correct = new Map<number, number>();
  groupIds.forEach((group, i) => {
    if (accuracy[i] > correctAbove) correct.set(group, (correct.get(group) ?? 0) + 1);
  });
  return gain.map((value, i) => {
    const earns = accuracy[i] > correctAbove && correct.get(groupIds[i])! > 1;
    return earns && lengths[i] >= min && lengths[i] <= max ? value + extra : value;
  });
}

/** Mean of each group. */
function means(
  op: string,
  argument: string,
  values: Float32Array | Float64Array,
  idsArgument: string,
  ids: Int32Array,
): Map<number, number> {
  checkFloats(op, argument, values);
  checkArray(op, idsArgument, ids, 'Int32Array', values.length);
  const sums = new Map<number, { sum: number; count: number }>();
  ids.forEach((id, i) => {
    if (!Number.isFinite(values[i])) throw rangeError(op, `${argument}[${i}]`, values[i], 'a finite number');
    const entry = sums.get(id) ?? { sum: 0, count: 0 };
    entry.sum += values[i];
    entry.count += 1;
    sums.set(id, entry);
  });
  return new Map([...sums].map(([id, { sum, count }]) => [id, sum / count]));
}
