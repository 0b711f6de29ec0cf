import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor } from '../tensor/arguments.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  callJsd,
  type GeneralizedJsdResult,
  isStored,
  JSD_KEYS,
  type JsdOptions,
  type JsdTopk,
  type StoredTeacher,
  type StoredWords,
} from './generalized-jsd-options.js';

/** A teacher that runs now, by its hidden states and its head. */
export interface HiddenTeacher {
  /** `[totalTokens, teacherHiddenSize]`, float32, float16 or bfloat16; rows may be strided. */
  teacherHidden: Tensor;
  /** `[vocabSize, teacherHiddenSize]`, dtype of teacherHidden. */
  teacherWeight: Tensor;
  /** `[vocabSize]`, dtype of teacherHidden. Default: none. */
  teacherBias?: Tensor | undefined;
  teacher?: never;
}

/** A teacher that ran before. */
export interface HiddenStoredTeacher {
  teacher: StoredTeacher;
  teacherHidden?: never;
  teacherWeight?: never;
  teacherBias?: never;
}

/** Arguments of {@link fusedLinearJsd}. No gradient flows to the teacher. */
export type FusedLinearJsdOptions = JsdOptions & {
  /** `[totalTokens, hiddenSize]`, float32, float16 or bfloat16; rows may be strided. */
  studentHidden: Tensor;
  /** `[vocabSize, hiddenSize]`, dtype of studentHidden. */
  studentWeight: Tensor;
  /** `[vocabSize]`, dtype of studentHidden. Default: none. */
  studentBias?: Tensor | undefined;
} & ((HiddenTeacher & JsdTopk) | (HiddenStoredTeacher & StoredWords));

const OP = 'fusedLinearJsd';
const KEYS = [
  ...JSD_KEYS,
  'studentHidden',
  'studentWeight',
  'studentBias',
  'teacherHidden',
  'teacherWeight',
  'teacherBias',
  'teacher',
] as const;

/**
 * `generalizedJsd` of the logits `hidden weight^T + bias` of both sides, which never all exist: they are computed a
 * tile at a time. Takes a few megabytes per thread beside its results, whatever the number of tokens and words; on a
 * GPU, where those of a chunk of tokens exist, 1 GiB, or what 128 tokens need where that is more. Student and teacher
 * share the vocabulary; their hidden sizes and dtypes may differ.
 *
 * Over the largest words of one side (the default, 100 of the student's) each side is multiplied once forward;
 * over the whole vocabulary twice, and both once more for the gradient. Gradients are computed for those of
 * `studentHidden`, `studentWeight` and `studentBias` that require one.
 *
 * @throws as `generalizedJsd`
 *
 * @example
 * ```ts
 * using result = fusedLinearJsd({ studentHidden, studentWeight, teacherHidden, teacherWeight, lossMask });
 * result.loss.backward();
 * ```
 */
export function fusedLinearJsd(options: FusedLinearJsdOptions): GeneralizedJsdResult {
  const given = readOptions<FusedLinearJsdOptions>(OP, options, KEYS);
  const { studentHidden: hidden, studentWeight: weight, studentBias: bias } = given;
  checkTensor(OP, 'studentHidden', hidden);
  checkTensor(OP, 'studentWeight', weight);
  if (bias !== undefined) checkTensor(OP, 'studentBias', bias);
  return callJsd(OP, given, {
    student: { hidden, weight, bias },
    teacher: readTeacher(given),
    totalTokens: hidden.shape[0] ?? 0,
    vocabSize: weight.shape[0] ?? 0,
    gradients: {
      wantHidden: hidden.requiresGrad,
      wantWeight: weight.requiresGrad,
      wantBias: bias?.requiresGrad ?? false,
      dHidden: undefined,
      dWeight: undefined,
      dBias: undefined,
    },
    spelling: { hidden: 'studentHidden', weight: 'studentWeight', bias: 'studentBias' },
  });
}

function readTeacher(given: FusedLinearJsdOptions) {
  const { teacherHidden, teacherWeight, teacherBias, teacher } = given;
  if (teacher !== undefined && isStored(OP, teacher, 'an object with logprobs and ids')) {
    for (const [name, tensor] of Object.entries({ teacherHidden, teacherWeight, teacherBias })) {
      if (tensor === undefined) continue;
      const problem = 'is set; got it beside a stored teacher, expected one of the two';
      throw argumentError('ERR_VARLEN_INCOMPATIBLE', OP, name, problem);
    }
    return teacher;
  }
  checkTensor(OP, 'teacherHidden', teacherHidden);
  checkTensor(OP, 'teacherWeight', teacherWeight);
  if (teacherBias !== undefined) checkTensor(OP, 'teacherBias', teacherBias);
  return { teacherHidden, teacherWeight, teacherBias };
}
