import { readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import type { Tensor } from '../tensor/tensor.js';
import type { SequenceScales } from './sequence-scales.js';

/** Arguments of {@link generalizedJsd}. */
export interface GeneralizedJsdOptions {
  /** `[totalTokens, vocabSize]`, float32, float16 or bfloat16; rows may be strided. */
  studentLogits: Tensor;
  /** Logits of the same shape, of any of these dtypes; no gradient flows to them. */
  teacher: { readonly logits: Tensor };
  /** Weight of the teacher in the mixture: 0 is KL(teacher || student), 1 is KL(student || teacher). Default 0.5. */
  beta?: number;
  /** Logits of both sides are divided by it. Default 1. */
  temperature?: number;
  /** `'t2'` multiplies the loss by `temperature ** 2`. Default `'none'`. */
  temperatureScaling?: 'none' | 't2';
  /** Logits of both sides become `softcap * tanh(logit / softcap)` first; 0 is off, the default. */
  softcap?: number;
  /** Logits of both sides are multiplied by it before anything else. Default 1. */
  logitScale?: number;
  /** Bound from below on the teacher's log-probabilities, negative. Default: none. */
  teacherFloor?: number;
  /** 1 where the token counts, `[totalTokens]` uint8. Default: everywhere. Other rows are never read. */
  lossMask?: Tensor | undefined;
  /** `[totalTokens]` float32, none negative. Default: ones. */
  weights?: Tensor | undefined;
  /** The student's log-probability of each sampled token now, `[totalTokens]` float32; with `oldLogprobs`. */
  logprobs?: Tensor | undefined;
  /** The same when it was sampled: tokens are weighted by the ratio, a constant, at most `isClip`. */
  oldLogprobs?: Tensor | undefined;
  /** Default 2; `null` leaves the ratio out. */
  isClip?: number | null;
  /** Weights of the sequences; with `cuSeqlens`. Default: the mean over tokens that count. */
  plan?: SequenceScales | undefined;
  /** `[numSeqs + 1]`. */
  cuSeqlens?: Int32Array | Tensor | undefined;
  /** Default: the device's own. */
  stream?: Stream;
}

/** Result of {@link generalizedJsd}; disposing it disposes its tensors. */
export interface GeneralizedJsdResult extends Disposable {
  /** `[]` float32; differentiable, like `perToken`. */
  readonly loss: Tensor;
  /** The divergence of each token before any weight, `[totalTokens]` float32, 0 where masked. */
  readonly perToken: Tensor;
  /** What was counted, once it is computed. */
  readonly stats: { data(): Promise<{ readonly activeTokens: number; readonly emptyBatch: boolean }> };
}

const OP = 'generalizedJsd';
const KEYS = [
  'studentLogits',
  'teacher',
  'beta',
  'temperature',
  'temperatureScaling',
  'softcap',
  'logitScale',
  'teacherFloor',
  'lossMask',
  'weights',
  'logprobs',
  'oldLogprobs',
  'isClip',
  'plan',
  'cuSeqlens',
  'stream',
] as const;
const SPELLING = { student: 'studentLogits', teacher: 'teacher.logits', seqScale: 'plan' };

/** The native op's 0 turns these off; a caller does that by another word. */
function checkNotZero(argument: string, value: number | null | undefined, expected: string): void {
  if (value !== 0) return;
  throw argumentError('ERR_VARLEN_RANGE', OP, argument, `is out of range; got 0, expected ${expected}`);
}

async function readCount(tokens: Tensor): Promise<{ activeTokens: number; emptyBatch: boolean }> {
  const [activeTokens] = (await tokens.data()) as Float64Array;
  return { activeTokens, emptyBatch: activeTokens === 0 };
}

/**
 * Generalized Jensen-Shannon divergence of a student's distributions from a teacher's, over the whole vocabulary:
 * with q the student, p the teacher and `m = (1 - beta) q + beta p`,
 * `(1 - beta) KL(q || m) + beta KL(p || m)`; KL(p || q) for beta 0, KL(q || p) for beta 1 (Agarwal et al. 2024).
 *
 * A row's results are the same bits for any thread count and in any pack. Without any token the loss is 0. For
 * beta 1 a word that only the student may choose makes the loss infinite, unless `teacherFloor` is set.
 *
 * @throws at the read `ERR_VARLEN_WEIGHT`; at the call `ERR_VARLEN_RANGE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_PLAN_MISMATCH`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using result = generalizedJsd({ studentLogits, teacher: { logits }, beta: 0.5, lossMask });
 * result.loss.backward();
 * ```
 */
export function generalizedJsd(options: GeneralizedJsdOptions): GeneralizedJsdResult {
  const given = readOptions<GeneralizedJsdOptions>(OP, options, KEYS);
  const { studentLogits: student, beta = 0.5, temperature = 1, temperatureScaling = 'none' } = given;
  const { softcap = 0, logitScale = 1, teacherFloor, isClip = 2, lossMask, plan } = given;
  checkTensor(OP, 'studentLogits', student);
  if (typeof given.teacher !== 'object' || given.teacher === null) {
    throw wrongType(OP, 'teacher', given.teacher, 'an object with logits');
  }
  const teacher = given.teacher.logits;
  checkTensor(OP, 'teacher.logits', teacher);
  if (temperatureScaling !== 'none' && temperatureScaling !== 't2') {
    const problem = `is unknown; got '${String(temperatureScaling)}', expected 'none' or 't2'`;
    throw argumentError('ERR_VARLEN_OPTION', OP, 'temperatureScaling', problem);
  }
  if (plan !== undefined && !(plan?.seqScale instanceof Float32Array)) {
    throw wrongType(OP, 'plan', plan, 'an aggregation plan');
  }
  checkNotZero('isClip', isClip, 'a number above 0, or null');
  checkNotZero('teacherFloor', teacherFloor, 'a finite number < 0');
  const shared = {
    beta,
    temperature,
    softcap,
    logitScale,
    teacherFloor: teacherFloor ?? 0,
    lossScale: temperatureScaling === 't2' ? temperature ** 2 : 1,
  };
  const values = {
    ...shared,
    student,
    teacher,
    lossMask,
    weights: given.weights,
    logprobs: given.logprobs,
    oldLogprobs: given.oldLogprobs,
    cuSeqlens: given.cuSeqlens,
    seqScale: plan?.seqScale,
    isClip: isClip ?? 0,
  };
  const made = run(OP, values, student.device, given.stream, SPELLING) as Tensor[];
  const [loss, perToken, coefficients, studentLse, teacherLse, inner, tokens] = made;
  const own = [coefficients, studentLse, teacherLse, inner] as const;
  recordCall(OP, [student], [loss, perToken], [student, teacher, lossMask, ...own], (gradients, kept) => {
    const [dLoss, dPerToken] = gradients;
    const [q, p, mask, c, qLse, pLse, sum] = kept;
    const backward = {
      ...shared,
      dLoss,
      dPerToken,
      student: q,
      teacher: p,
      lossMask: mask,
      coefficients: c,
      studentLse: qLse,
      teacherLse: pLse,
      inner: sum,
      dStudent: undefined,
    };
    return run('generalizedJsdBackward', backward, q.device, undefined);
  });
  for (const tensor of own) tensor.dispose();
  return {
    loss,
    perToken,
    stats: { data: () => readCount(tokens) },
    [Symbol.dispose]() {
      for (const tensor of [loss, perToken, tokens]) tensor.dispose();
    },
  };
}
