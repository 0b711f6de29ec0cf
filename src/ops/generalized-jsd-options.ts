import { checkInteger, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';
import type { SequenceScales } from './sequence-scales.js';

/** What `generalizedJsd` and `fusedLinearJsd` share: options, result, and the call of the native op. */

/** Options of a generalized Jensen-Shannon divergence, wherever its logits come from. */
export interface JsdOptions {
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
  /**
   * What stands for the words that are left out: `'bucket'`, the default, is one more bin with the rest of the
   * probability; `'renorm'` divides both sides by their sums over the words that are left in.
   */
  tail?: 'bucket' | 'renorm';
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

/** The words that a teacher which runs now is compared at. */
export interface JsdTopk {
  /** The largest words of one side, by default 100; `null`, or as many as there are: the whole vocabulary. */
  topk?: number | null;
  /** Whose words are the largest. Default `'student'`. Equal logits are taken from the lowest word. */
  topkFrom?: 'student' | 'teacher';
}

/**
 * A teacher that ran before: its log-probabilities (of the whole vocabulary, natural log) at the words `ids`,
 * `[totalTokens, numWords]` both, float32, float16 or bfloat16 and int32. Of rank 1, `[totalTokens]`: of one
 * sampled word per token, which needs `beta: 1`; the loss is then `(log q - log p) log q` with a constant first
 * factor.
 */
export interface StoredTeacher {
  readonly logprobs: Tensor;
  readonly ids: Tensor;
}

/** No choice of words beside a {@link StoredTeacher}, which has made it. */
export interface StoredWords {
  topk?: never;
  topkFrom?: 'teacher';
}

export const JSD_KEYS = [
  'beta',
  'temperature',
  'temperatureScaling',
  'softcap',
  'logitScale',
  'teacherFloor',
  'tail',
  'lossMask',
  'weights',
  'logprobs',
  'oldLogprobs',
  'isClip',
  'plan',
  'cuSeqlens',
  'stream',
  'topk',
  'topkFrom',
] as const;

/** Result of a divergence; disposing it disposes its tensors. */
export interface GeneralizedJsdResult extends Disposable {
  /** `[]` float32; differentiable, like `perToken`. */
  readonly loss: Tensor;
  /** The divergence of each token before any weight, `[totalTokens]` float32, 0 where masked. */
  readonly perToken: Tensor;
  /** What was counted, once it is computed. */
  readonly stats: { data(): Promise<{ readonly activeTokens: number; readonly emptyBatch: boolean }> };
}

type Arguments = Readonly<Record<string, Tensor | undefined>>;

/** The two sides of a call, as arguments of the native op. */
export interface JsdSides {
  /** In the order of the native gradients. */
  readonly student: Arguments;
  readonly teacher: Arguments | StoredTeacher;
  readonly totalTokens: number;
  readonly vocabSize: number;
  /** Further arguments of the backward op: which gradients are wanted. */
  readonly gradients: object;
  readonly spelling: Readonly<Record<string, string>>;
}

const DEFAULT_TOPK = 100;

/** The native op's 0 turns these off; a caller does that by another word. */
function checkNotZero(
  op: string,
  argument: string,
  value: number | null | undefined,
  expected: string,
): void {
  if (value !== 0) return;
  throw argumentError('ERR_VARLEN_RANGE', op, argument, `is out of range; got 0, expected ${expected}`);
}

function checkWord(op: string, argument: string, value: string, words: readonly [string, string]): void {
  if (words.includes(value)) return;
  const problem = `is unknown; got '${String(value)}', expected '${words[0]}' or '${words[1]}'`;
  throw argumentError('ERR_VARLEN_OPTION', op, argument, problem);
}

/** Whether a teacher is a stored one; refuses what is neither. */
export function isStored(op: string, teacher: unknown, expected: string): teacher is StoredTeacher {
  if (typeof teacher !== 'object' || teacher === null) throw wrongType(op, 'teacher', teacher, expected);
  if (!('logprobs' in teacher || 'ids' in teacher)) return false;
  const { logprobs, ids } = teacher as StoredTeacher;
  checkTensor(op, 'teacher.logprobs', logprobs);
  checkTensor(op, 'teacher.ids', ids);
  return true;
}

const incompatible = (op: string, argument: string, problem: string): Error =>
  argumentError('ERR_VARLEN_INCOMPATIBLE', op, argument, problem);

/** The words of a call: native arguments, and those of its tensors that are to be disposed. */
function readWords(op: string, given: JsdOptions & JsdTopk, sides: JsdSides) {
  const { tail = 'bucket', topkFrom, topk } = given;
  checkWord(op, 'tail', tail, ['bucket', 'renorm']);
  if (topkFrom !== undefined) checkWord(op, 'topkFrom', topkFrom, ['student', 'teacher']);
  if (topk !== undefined && topk !== null) checkInteger(op, 'topk', topk, 1, 2 ** 31 - 1);
  const { totalTokens, vocabSize, teacher } = sides;
  const words = (count: number) =>
    Tensor.empty([totalTokens, count], {
      dtype: 'int32',
      device: Object.values(sides.student)[0]!.device,
      ...(given.stream && { stream: given.stream }),
    });
  const none = { teacherLogprobs: undefined, ids: undefined };
  const tailBucket = tail === 'bucket';
  if (!isStoredTeacher(teacher)) {
    const count = topk === null ? vocabSize : (topk ?? DEFAULT_TOPK);
    const someWords = count < vocabSize;
    const byTeacher = topkFrom === 'teacher';
    const native = { ...none, someWords, byTeacher, tailBucket, sampled: false };
    return { native: { ...native, words: someWords ? words(count) : undefined }, views: [] };
  }
  if (topk !== undefined) throw incompatible(op, 'topk', 'is set; got a teacher whose words are stored');
  if (topkFrom === 'student') {
    throw incompatible(op, 'topkFrom', "is 'student'; got a teacher whose words are stored");
  }
  const sampled = teacher.ids.shape.length === 1;
  const views = sampled
    ? [teacher.logprobs.view([teacher.logprobs.size, 1]), teacher.ids.view([teacher.ids.size, 1])]
    : [];
  const [teacherLogprobs = teacher.logprobs, ids = teacher.ids] = views;
  const native = { teacherLogprobs, ids, someWords: true, byTeacher: false, tailBucket, sampled };
  return { native: { ...native, words: words(ids.shape[1] ?? 0) }, views };
}

const isStoredTeacher = (teacher: JsdSides['teacher']): teacher is StoredTeacher => 'ids' in teacher;

async function readCount(tokens: Tensor): Promise<{ activeTokens: number; emptyBatch: boolean }> {
  const [activeTokens] = (await tokens.data()) as Float64Array;
  return { activeTokens, emptyBatch: activeTokens === 0 };
}

/** Calls the native op of a divergence and records it. Numbers and shapes are checked by the native side. */
export function callJsd(
  op: 'generalizedJsd' | 'fusedLinearJsd',
  given: JsdOptions & JsdTopk,
  sides: JsdSides,
): GeneralizedJsdResult {
  const { beta = 0.5, temperature = 1, temperatureScaling = 'none', softcap = 0, logitScale = 1 } = given;
  const { teacherFloor, isClip = 2, lossMask, weights, plan, stream } = given;
  checkWord(op, 'temperatureScaling', temperatureScaling, ['none', 't2']);
  if (plan !== undefined && !(plan?.seqScale instanceof Float32Array)) {
    throw wrongType(op, 'plan', plan, 'an aggregation plan');
  }
  checkNotZero(op, 'isClip', isClip, 'a number above 0, or null');
  checkNotZero(op, 'teacherFloor', teacherFloor, 'a finite number < 0');
  const lossScale = temperatureScaling === 't2' ? temperature ** 2 : 1;
  const shared = { beta, temperature, softcap, logitScale, teacherFloor: teacherFloor ?? 0, lossScale };
  const tokens = {
    lossMask,
    weights,
    logprobs: given.logprobs,
    oldLogprobs: given.oldLogprobs,
    cuSeqlens: given.cuSeqlens,
    seqScale: plan?.seqScale,
    isClip: isClip ?? 0,
  };
  const { student } = sides;
  const inputs = Object.values(student);
  const { device } = inputs[0]!;
  const { native: words, views } = readWords(op, given, sides);
  const teacher = isStoredTeacher(sides.teacher) ? {} : sides.teacher;
  const spelling = {
    ...sides.spelling,
    seqScale: 'plan',
    teacherLogprobs: 'teacher.logprobs',
    ids: 'teacher.ids',
  };
  let made: (Tensor | undefined)[];
  try {
    made = run(op, { ...student, ...teacher, ...words, ...tokens, ...shared }, device, stream, spelling);
  } catch (error) {
    words.words?.dispose();
    throw error;
  } finally {
    for (const view of views) view.dispose();
  }
  const [loss, perToken, coefficients, studentLse, teacherLse, inner, count, , slopes, tail] =
    made as Tensor[];
  const saved = { coefficients, studentLse, teacherLse, inner, words: words.words, slopes, tail };
  // Over some words the gradient is that of the student's softmax alone.
  const kept = { ...student, ...(words.someWords ? {} : teacher), lossMask, ...saved };
  recordCall(op, inputs, [loss, perToken], Object.values(kept), ([dLoss, dPerToken], tensors) => {
    const named = Object.fromEntries(Object.keys(kept).map((name, i) => [name, tensors[i]]));
    const values = { ...shared, ...named, dLoss, dPerToken, ...sides.gradients };
    return run(`${op}Backward`, values, device, undefined);
  });
  for (const tensor of Object.values(saved)) tensor?.dispose();
  return {
    loss,
    perToken,
    stats: { data: () => readCount(count) },
    [Symbol.dispose]() {
      for (const tensor of [loss, perToken, count]) tensor.dispose();
    },
  };
}
