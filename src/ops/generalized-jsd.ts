import { readOptions } from '../check.js';
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

/** A teacher that runs now: its logits, `[totalTokens, vocabSize]` of any of the student's dtypes. */
export interface LogitsTeacher {
  readonly logits: Tensor;
}

/** Arguments of {@link generalizedJsd}. No gradient flows to the teacher. */
export type GeneralizedJsdOptions = JsdOptions & {
  /** `[totalTokens, vocabSize]`, float32, float16 or bfloat16; rows may be strided. */
  studentLogits: Tensor;
} & (({ teacher: LogitsTeacher } & JsdTopk) | ({ teacher: StoredTeacher } & StoredWords));

const OP = 'generalizedJsd';
const KEYS = [...JSD_KEYS, 'studentLogits', 'teacher'] as const;

/**
 * Generalized Jensen-Shannon divergence of a student's distributions from a teacher's: with q the student, p the
 * teacher and `m = (1 - beta) q + beta p`, `(1 - beta) KL(q || m) + beta KL(p || m)`; KL(p || q) for beta 0,
 * KL(q || p) for beta 1 (Agarwal et al. 2024).
 *
 * By default it is taken over the student's 100 largest words and one bin for the rest; `topk: null` takes the
 * whole vocabulary. Merging words into a bin never raises the divergence. Log-probabilities are those of the
 * whole vocabulary in any case. A teacher that ran before is given by stored log-probabilities.
 *
 * A row's results are the same bits for any thread count and in any pack. Without any token the loss is 0. For
 * beta 1 a word that only the student may choose makes the loss infinite, unless `teacherFloor` is set.
 *
 * @throws at the read `ERR_VARLEN_WEIGHT`, `ERR_VARLEN_INDEX` (a stored word outside the vocabulary, or twice); at
 *   the call `ERR_VARLEN_RANGE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`,
 *   `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_PLAN_MISMATCH`, `ERR_VARLEN_INCOMPATIBLE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using result = generalizedJsd({ studentLogits, teacher: { logits }, beta: 0.5, lossMask });
 * result.loss.backward();
 *
 * const stored = { logprobs, ids }; // [totalTokens, 20] each, written when the teacher ran
 * using offline = generalizedJsd({ studentLogits, teacher: stored, beta: 0, tail: 'renorm' });
 * ```
 */
export function generalizedJsd(options: GeneralizedJsdOptions): GeneralizedJsdResult {
  const given = readOptions<GeneralizedJsdOptions>(OP, options, KEYS);
  const { studentLogits: student, teacher } = given;
  checkTensor(OP, 'studentLogits', student);
  const stored = isStored(OP, teacher, 'an object with logits, or with logprobs and ids');
  if (!stored) checkTensor(OP, 'teacher.logits', teacher.logits);
  return callJsd(OP, given, {
    student: { student },
    teacher: stored ? teacher : { teacher: teacher.logits },
    totalTokens: student.shape[0] ?? 0,
    vocabSize: student.shape[1] ?? 0,
    gradients: { dStudent: undefined },
    spelling: { student: 'studentLogits', teacher: 'teacher.logits' },
  });
}
