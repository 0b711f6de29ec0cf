/** Reflective rejection sampling: training examples in which the model looks again (ViLaSR, section 3.3). */
import { checkInteger, readOptions } from '../../check.js';
import { SeededRandom } from '../../seeded-random.js';
import { checkArray, checkFloats, checkNumber } from '../check-arrays.js';
import { groupIndex } from '../group-index.js';

/** Sampled responses, as `drawingReward` scores them. */
export interface ReflectiveCandidates {
  /** `[numSeqs]`, in [0, 1]. */
  readonly accuracy: Float32Array | Float64Array;
  /** `[numSeqs]`, 1 = well-formed. */
  readonly format: Uint8Array;
  /** `[numSeqs]`, 1 = drew a label again with another box. */
  readonly reflection: Uint8Array;
  /** `[numSeqs]`, equal value = same question. */
  readonly groupIds: Int32Array;
}

/** Options of {@link reflectiveRejection}. */
export interface ReflectiveOptions {
  /** Equal seeds choose alike. An integer. */
  seed: number;
  /** Responses to keep per question at most. Default 1. */
  perGroup?: number;
  /** Lowest accuracy that counts as right. Default 1. */
  minAccuracy?: number;
}

/**
 * Indices of the responses to keep, ascending: right, well-formed and reflective ones, drawn at random
 * where a question has more than `perGroup`. A question without any contributes nothing. The draw depends
 * on the seed and the question's id, not on the other questions.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * const candidates = {
 *   accuracy: Float32Array.of(1, 1, 0), format: Uint8Array.of(1, 1, 1),
 *   reflection: Uint8Array.of(0, 1, 1), groupIds: Int32Array.of(4, 4, 4),
 * };
 * reflectiveRejection(candidates, { seed: 1 }); // [1]
 */
export function reflectiveRejection(
  candidates: ReflectiveCandidates,
  options: ReflectiveOptions,
): Int32Array {
  const op = 'reflectiveRejection';
  const { accuracy, format, reflection, groupIds } = candidates;
  const known = ['seed', 'perGroup', 'minAccuracy'] as const;
  const { seed, perGroup = 1, minAccuracy = 1 } = readOptions(op, options, known);
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'perGroup', perGroup, 1);
  checkNumber(op, 'minAccuracy', minAccuracy, { min: 0, max: 1 });
  checkFloats(op, 'accuracy', accuracy);
  for (const [argument, flags] of Object.entries({ format, reflection })) {
    checkArray(op, argument, flags, 'Uint8Array', accuracy.length);
  }
  checkArray(op, 'groupIds', groupIds, 'Int32Array', accuracy.length);

  const { groupOf, numGroups } = groupIndex(groupIds);
  const passing = Array.from({ length: numGroups }, () => [] as number[]);
  groupOf.forEach((g, i) => {
    checkNumber(op, `accuracy[${i}]`, accuracy[i], { min: 0, max: 1 });
    if (accuracy[i] >= minAccuracy && format[i] !== 0 && reflection[i] !== 0) passing[g].push(i);
  });
  const kept = passing.flatMap((members) => {
    if (members.length <= perGroup) return members;
    const random = new SeededRandom(seed, groupIds[members[0]], REFLECTIVE_STREAM);
    // The first steps of a Fisher-Yates shuffle.
    for (let place = 0; place < perGroup; place++) {
      const other = place + random.below(members.length - place);
      [members[place], members[other]] = [members[other], members[place]];
    }
    return members.slice(0, perGroup);
  });
  return Int32Array.from(kept).sort();
}

/** Keeps these draws apart from other uses of the same seed. */
const REFLECTIVE_STREAM = 0x5246_4c43;
