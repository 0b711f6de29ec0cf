import { readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { zerosLike } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked, record } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link varlenAttention}. Lengths are in tokens, positions relative to a sequence's start. */
export interface VarlenAttentionOptions {
  /** Prefix sums of the lengths, `[numSeqs + 1]`, for q and k alike. */
  cuSeqlens?: Int32Array | Tensor;
  /** The longest sequence; needed when `cuSeqlens` is a tensor, computed otherwise. */
  maxSeqlen?: number;
  /** Instead of `cuSeqlens`, where the lengths of q and k differ. */
  cuSeqlensQ?: Int32Array | Tensor;
  /** Default: `cuSeqlensQ`. */
  cuSeqlensK?: Int32Array | Tensor;
  maxSeqlenQ?: number;
  maxSeqlenK?: number;
  /** Rows used out of each slot, `[numSeqs]`. Default: all. */
  seqUsedQ?: Int32Array | Tensor;
  seqUsedK?: Int32Array | Tensor;
  /** Any finite value. Default `headDim ** -0.5`. */
  softmaxScale?: number;
  /** Query i sees keys up to `i + lengthK - lengthQ` (bottom-right aligned). Default false. */
  causal?: boolean;
  /** Keys to the left and right of that position that are seen; -1 is unbounded. Default `[-1, -1]`. */
  windowSize?: readonly [left: number, right: number];
  /** Scores become `softcap * tanh(score / softcap)`; 0 is off, the default. */
  softcap?: number;
  /** Slopes of linear biases, `[numHeads]` or `[numSeqs * numHeads]`. */
  alibiSlopes?: Float32Array | Tensor;
  /**
   * Tree and document masks, `[totalTokensK]`: the first row of the sequence that no longer sees the
   * key. Needs `causal`. `[prompt | answer 1 | answer 2]` shares one prompt: prompt keys end where the
   * sequence does, an answer's keys where the answer does.
   */
  keyEnd?: Int32Array | Tensor;
  /** Same bits on every run. The CPU always is. Default true. */
  deterministic?: boolean;
  /** Parts into which the keys are cut, for few long sequences; 1 is off. Default `'auto'`. */
  numSplits?: 'auto' | number;
  /** Receives the result, `[totalTokensQ, numHeads, headDim]`. */
  out?: Tensor;
  /** Default: the device's own. */
  stream?: Stream;
  /**
   * What is checked of arrays that are tensors (arrays on the host always are): `'full'` and
   * `'device'` check in the stream, and reading the result rejects; `'none'` trusts them. Default `'device'`.
   */
  validate?: 'full' | 'device' | 'none';
}

/** What the backward pass needs. It names the caller's tensors: keep them until then. */
export interface SavedForBackward {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly out: Tensor;
  readonly softmaxLse: Tensor;
  /** The arguments of the native call, by its names. */
  readonly options: object;
}

/** Result of {@link varlenAttention}; disposing it disposes `out` and `softmaxLse`. */
export interface VarlenAttentionResult extends Disposable {
  /** `[totalTokensQ, numHeads, headDim]`, dtype of q. */
  readonly out: Tensor;
  /** `[numHeads, totalTokensQ]` float32, natural log; `-Infinity` for a row without keys. */
  readonly softmaxLse: Tensor;
  readonly saved: SavedForBackward;
}

/** Options of {@link varlenAttentionBackward}. */
export interface VarlenAttentionBackwardOptions {
  /** Gradient of `softmaxLse`, `[numHeads, totalTokensQ]` float32, for losses that use it. */
  dLse?: Tensor;
  /** Receive the results. */
  dq?: Tensor;
  dk?: Tensor;
  dv?: Tensor;
  stream?: Stream;
}

/** Gradients of the inputs, in their shapes and dtype. */
export interface VarlenAttentionGradients extends Disposable {
  readonly dq: Tensor;
  readonly dk: Tensor;
  readonly dv: Tensor;
}

const OP = 'varlenAttention';
const OP_BACKWARD = 'varlenAttentionBackward';

const OPTION_NAMES = [
  'cuSeqlens',
  'maxSeqlen',
  'cuSeqlensQ',
  'cuSeqlensK',
  'maxSeqlenQ',
  'maxSeqlenK',
  'seqUsedQ',
  'seqUsedK',
  'softmaxScale',
  'causal',
  'windowSize',
  'softcap',
  'alibiSlopes',
  'keyEnd',
  'deterministic',
  'numSplits',
  'out',
  'stream',
  'validate',
] as const;

/** Refuses lengths given in neither or both spellings: a pair for self-attention, or one each for q and k. */
function checkLengths(given: VarlenAttentionOptions): void {
  const { cuSeqlens, maxSeqlen, cuSeqlensQ, cuSeqlensK, maxSeqlenQ, maxSeqlenK } = given;
  if (cuSeqlens === undefined && cuSeqlensQ === undefined) {
    throw argumentError(
      'ERR_VARLEN_MISSING_INPUT',
      OP,
      'cuSeqlens',
      'is required; got nothing, expected cuSeqlens, or cuSeqlensQ and cuSeqlensK',
    );
  }
  if (cuSeqlens === undefined && maxSeqlen === undefined) return;
  if ((cuSeqlensQ ?? cuSeqlensK ?? maxSeqlenQ ?? maxSeqlenK) === undefined) return;
  throw argumentError(
    'ERR_VARLEN_INCOMPATIBLE',
    OP,
    'cuSeqlens',
    'is given beside the separate ones; got both, expected either cuSeqlens and maxSeqlen, or cuSeqlensQ, cuSeqlensK, maxSeqlenQ, maxSeqlenK',
  );
}

/** The native op's -1 asks for a computed maximum; a caller asks for that by giving none. */
function readMaxSeqlen(argument: string, value: number | undefined): number {
  if (value === undefined) return -1;
  if (typeof value !== 'number' || !(value < 0)) return value; // its type is checked where all are
  throw argumentError('ERR_VARLEN_MAX_SEQLEN', OP, argument, `is negative; got ${value}, expected tokens`);
}

const SHARED_SPELLING = {
  cuSeqlensQ: 'cuSeqlens',
  maxSeqlenQ: 'maxSeqlen',
  maxSeqlenK: 'maxSeqlen',
  windowLeft: 'windowSize',
  windowRight: 'windowSize',
};
const SEPARATE_SPELLING = { windowLeft: 'windowSize', windowRight: 'windowSize' };

function readWindow(windowSize: unknown): [left: number, right: number] {
  if (windowSize === undefined) return [-1, -1];
  if (!Array.isArray(windowSize) || windowSize.length !== 2) {
    throw wrongType(OP, 'windowSize', windowSize, 'a pair [left, right]');
  }
  return [windowSize[0], windowSize[1]];
}

const VALIDATE = { full: true, device: true, none: false };

/**
 * Every argument of the native op by its native name, defaults filled in. One literal of one shape:
 * this runs at every call, and spreads cost more than the call itself.
 */
interface NativeArguments {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  cuSeqlensQ: Int32Array | Tensor | undefined;
  cuSeqlensK: Int32Array | Tensor | undefined;
  seqUsedQ: Int32Array | Tensor | undefined;
  seqUsedK: Int32Array | Tensor | undefined;
  readonly maxSeqlenQ: number;
  readonly maxSeqlenK: number;
  readonly softmaxScale: number;
  readonly causal: boolean;
  readonly windowLeft: number;
  readonly windowRight: number;
  readonly softcap: number;
  alibiSlopes: Float32Array | Tensor | undefined;
  keyEnd: Int32Array | Tensor | undefined;
  readonly deterministic: boolean;
  readonly checkDeviceArrays: boolean;
  readonly numSplits: number;
  readonly out: Tensor | undefined;
}

function nativeArguments(q: Tensor, k: Tensor, v: Tensor, given: VarlenAttentionOptions): NativeArguments {
  // Defaults by destructuring: `undefined` asks for one, `null` is a wrong type.
  const { validate = 'device', numSplits = 'auto', causal = false, deterministic = true } = given;
  const { softmaxScale = (q.shape.at(-1) ?? 1) ** -0.5, softcap = 0 } = given;
  const { cuSeqlens, cuSeqlensQ = cuSeqlens, cuSeqlensK, maxSeqlen } = given;
  const { maxSeqlenQ = maxSeqlen, maxSeqlenK = cuSeqlensK === undefined ? maxSeqlenQ : undefined } = given;
  if (!Object.hasOwn(VALIDATE, validate)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'validate',
      `is unknown; got '${String(validate)}', expected 'full', 'device' or 'none'`,
    );
  }
  if (numSplits !== 'auto' && typeof numSplits !== 'number') {
    throw wrongType(OP, 'numSplits', numSplits, "'auto' or a number");
  }
  if (numSplits !== 'auto' && !(numSplits >= 1)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      OP,
      'numSplits',
      `is out of range; got ${numSplits}, expected 'auto' or an integer >= 1`,
    );
  }
  checkLengths(given);
  const [windowLeft, windowRight] = readWindow(given.windowSize);
  const own = maxSeqlen === undefined;
  return {
    q,
    k,
    v,
    cuSeqlensQ,
    cuSeqlensK,
    seqUsedQ: given.seqUsedQ,
    seqUsedK: given.seqUsedK,
    maxSeqlenQ: readMaxSeqlen(own ? 'maxSeqlenQ' : 'maxSeqlen', maxSeqlenQ),
    maxSeqlenK: readMaxSeqlen(own ? 'maxSeqlenK' : 'maxSeqlen', maxSeqlenK),
    softmaxScale,
    causal,
    windowLeft,
    windowRight,
    softcap,
    alibiSlopes: given.alibiSlopes,
    keyEnd: given.keyEnd,
    deterministic,
    checkDeviceArrays: VALIDATE[validate],
    numSplits: numSplits === 'auto' ? 0 : numSplits,
    out: given.out,
  };
}

/** Arguments that may be arrays on the host. */
const ARRAY_ARGUMENTS = [
  'cuSeqlensQ',
  'cuSeqlensK',
  'seqUsedQ',
  'seqUsedK',
  'alibiSlopes',
  'keyEnd',
] as const satisfies (keyof NativeArguments)[];

/** Copies the arrays on the host: backward comes later, when the caller may have changed them. */
function keepArrays(values: NativeArguments): void {
  for (const name of ARRAY_ARGUMENTS) {
    const value = values[name];
    if (value === undefined || value instanceof Tensor) continue;
    (values as unknown as Record<string, Int32Array | Float32Array>)[name] = value.slice();
  }
}

function checkTensor(op: string, argument: string, value: unknown): asserts value is Tensor {
  if (!(value instanceof Tensor)) throw wrongType(op, argument, value, 'a Tensor');
}

/**
 * Exact softmax attention over packed sequences of any lengths: nothing is padded.
 *
 * Sequence b owns rows `cuSeqlens[b]` to `cuSeqlens[b + 1]`; query head h reads key/value head
 * `floor(h * numKvHeads / numHeads)`. Results are the same bits for any thread count, and for any other
 * sequences in the pack. Rows that belong to no sequence get `out = 0` and `softmaxLse = -Infinity`.
 * Semantics are those of FlashAttention's `flash_attn_varlen_func`; `keyEnd` is ours.
 *
 * @param q `[totalTokensQ, numHeads, headDim]`, float32, float16 or bfloat16, headDim 1 to 256
 * @param k `[totalTokensK, numKvHeads, headDim]`, dtype of q; `numHeads` is a multiple of `numKvHeads`
 * @param v the shape and dtype of k
 * @throws `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_MAX_SEQLEN`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_HEAD_DIM`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_DEVICE`, `ERR_VARLEN_RANGE`,
 *   `ERR_VARLEN_TREE`, `ERR_VARLEN_INCOMPATIBLE`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_OVERFLOW`,
 *   `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_BUFFER`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * // two sequences of 3 and 2 tokens, 2 heads of 8
 * const make = () => Tensor.from(new Float32Array(5 * 2 * 8).fill(0.1), { shape: [5, 2, 8] });
 * using q = make(), k = make(), v = make();
 * const { out } = varlenAttention(q, k, v, { cuSeqlens: Int32Array.of(0, 3, 5), causal: true });
 * console.log(out.shape, await out.data());
 * ```
 */
export function varlenAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: VarlenAttentionOptions,
): VarlenAttentionResult {
  checkTensor(OP, 'q', q);
  checkTensor(OP, 'k', k);
  checkTensor(OP, 'v', v);
  const given = readOptions<VarlenAttentionOptions>(OP, options, OPTION_NAMES);
  const values = nativeArguments(q, k, v, given);
  const { stream } = given;
  if (given.out !== undefined && isTracked([q, k, v])) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      OP,
      'out',
      'cannot be given for a recorded call; got out beside a tensor that requires a gradient, expected noGrad or no out',
    );
  }
  const spelling = given.cuSeqlens === undefined ? SEPARATE_SPELLING : SHARED_SPELLING;
  const made = run(OP, values, q.device, stream, spelling);
  const out = made[0] ?? given.out!;
  const softmaxLse = made[1]!;
  keepArrays(values);
  const saved: SavedForBackward = { q, k, v, out, softmaxLse, options: values };
  if (isTracked([q, k, v])) recordCall(saved, stream);
  return {
    out,
    softmaxLse,
    saved,
    [Symbol.dispose]() {
      out.dispose();
      softmaxLse.dispose();
    },
  };
}

/** The tape's own names for what backward reads: the caller may dispose theirs. */
function recordCall(call: SavedForBackward, stream: Stream | undefined): void {
  const names: Tensor[] = [];
  const alias = (tensor: Tensor): Tensor => {
    const own = tensor.alias().outlive();
    names.push(own);
    return own;
  };
  try {
    recordSaved(call, aliasAll(call, alias), names, stream);
  } catch (error) {
    for (const own of [...names, call.out, call.softmaxLse]) own.dispose();
    throw error;
  }
}

/** What `alias` makes of every tensor of a call. */
function aliasAll(call: SavedForBackward, alias: (tensor: Tensor) => Tensor): SavedForBackward {
  // The caller's q, k, v and out are not kept: they may be disposed and collected before backward.
  const none = { q: undefined, k: undefined, v: undefined, out: undefined };
  const options: Record<string, unknown> = { ...call.options, ...none };
  for (const name of ARRAY_ARGUMENTS) {
    const value = options[name];
    if (value instanceof Tensor) options[name] = alias(value);
  }
  return {
    q: alias(call.q),
    k: alias(call.k),
    v: alias(call.v),
    out: alias(call.out),
    softmaxLse: alias(call.softmaxLse),
    options,
  };
}

function recordSaved(
  call: SavedForBackward,
  saved: SavedForBackward,
  names: readonly Tensor[],
  stream: Stream | undefined,
): void {
  record(OP, [call.q, call.k, call.v], [call.out, call.softmaxLse], names, ([dOut, dLse]) => {
    // A loss of softmaxLse alone brings no gradient of out.
    const zero = dOut === undefined ? zerosLike(saved.out) : undefined;
    const gradients = varlenAttentionBackward((dOut ?? zero)!, saved, {
      ...(dLse === undefined ? {} : { dLse }),
      ...(stream === undefined || stream.disposed ? {} : { stream }),
    });
    zero?.dispose();
    return [gradients.dq, gradients.dk, gradients.dv];
  });
}

/**
 * Gradients of {@link varlenAttention}: `dq`, `dk` and `dv` from the gradient of `out` and, when a loss
 * uses it, of `softmaxLse`. Formulas: native/ops/varlen-attention/varlen-attention.h (FlashAttention-2,
 * section 3.1.2, with bottom-right masks).
 *
 * @param dOut `[totalTokensQ, numHeads, headDim]`, dtype of q
 * @param saved `saved` of the forward call; its tensors must not be disposed yet
 * @throws as {@link varlenAttention}
 *
 * @example
 * ```ts
 * const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
 * const { dq, dk, dv } = varlenAttentionBackward(dOut, saved);
 * ```
 */
export function varlenAttentionBackward(
  dOut: Tensor,
  saved: SavedForBackward,
  options?: VarlenAttentionBackwardOptions,
): VarlenAttentionGradients {
  checkTensor(OP_BACKWARD, 'dOut', dOut);
  const { dLse, dq, dk, dv, stream } = readOptions(OP_BACKWARD, options, [
    'dLse',
    'dq',
    'dk',
    'dv',
    'stream',
  ]);
  if (typeof saved !== 'object' || saved === null || !(saved.q instanceof Tensor)) {
    throw wrongType(OP_BACKWARD, 'saved', saved, "a forward call's `saved`");
  }
  const { q, k, v, out, softmaxLse } = saved;
  const values = { ...saved.options, dOut, q, k, v, out, softmaxLse, dLse, dq, dk, dv };
  const made = run(OP_BACKWARD, values, q.device, stream);
  const gradients = { dq: made[0] ?? dq!, dk: made[1] ?? dk!, dv: made[2] ?? dv! };
  return {
    ...gradients,
    [Symbol.dispose]() {
      for (const gradient of Object.values(gradients)) gradient.dispose();
    },
  };
}
