import { readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { checkTensor, recordCall, zerosLike } from '../tensor/arguments.js';
import type { Device } from '../tensor/device.js';
import type { DType } from '../tensor/dtype.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked, refuseTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';
import { varlenAttention } from './varlen-attention.js';

/** What a run needs of a plan; `planPrefill` of `varlen/prefill` makes one. */
export interface RunnablePlan {
  /** The plan's words, `[planWords]` int32, in host memory. A GPU keeps what it makes of them. */
  readonly words: Tensor;
  /** Of q, k and v. */
  readonly device: Device;
  /** Prefix sums of the lengths, `[numSeqs + 1]`. */
  readonly cuSeqlensQ: Int32Array;
  readonly cuSeqlensK: Int32Array;
  readonly causal: boolean;
  readonly softmaxScale: number;
  readonly softcap: number;
  readonly dtype: DType;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** 64-bit fingerprint of lengths, heads and dtype. */
  readonly fingerprint: string;
  /** Every head is dense and that was known when the plan was made: the dense kernel runs it. */
  readonly allDense: boolean;
  readonly disposed: boolean;
}

/** Options of {@link sparsePrefill}. */
export interface SparsePrefillOptions {
  /** Added to the scores, `[numHeads, totalTokensK]` float32: biases of segments, `log(mergeCount)`. */
  keyBias?: Tensor;
  /** Receives the result, `[totalTokensQ, numHeads, valueDim]`. */
  out?: Tensor;
  /** Receives the log-sum-exps, `[numHeads, totalTokensQ]` float32. */
  softmaxLse?: Tensor;
  /** Default: the device's own. */
  stream?: Stream;
}

/** An attention output with the log-sum-exp of its scores: what {@link mergeAttentionStates} joins. */
export interface AttentionState {
  /** `[totalTokensQ, numHeads, valueDim]`, dtype of q. */
  readonly out: Tensor;
  /** `[numHeads, totalTokensQ]` float32, natural log; `-Infinity` for a row without keys. */
  readonly softmaxLse: Tensor;
}

/** Result of {@link sparsePrefill}; disposing it disposes both tensors. */
export interface SparsePrefillResult extends AttentionState, Disposable {}

/** What {@link sparsePrefillBackward} reads: the inputs of a call, its results, and their gradients. */
export interface SparsePrefillSaved extends AttentionState {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  /** As in the call. It is a constant: no gradient of it is computed. */
  readonly keyBias?: Tensor;
  /** Gradient of `out`, its shape and dtype. */
  readonly dOut: Tensor;
  /** Gradient of `softmaxLse`, `[numHeads, totalTokensQ]` float32, for losses that use it. */
  readonly dLse?: Tensor;
}

/** Options of {@link sparsePrefillBackward}: tensors that receive the results. */
export interface SparsePrefillBackwardOptions {
  dq?: Tensor;
  dk?: Tensor;
  dv?: Tensor;
  stream?: Stream;
}

/** Gradients of the inputs, in their shapes and dtype. */
export interface SparsePrefillGradients extends Disposable {
  readonly dq: Tensor;
  readonly dk: Tensor;
  readonly dv: Tensor;
}

/** Options of {@link mergeAttentionStates}. */
export interface MergeOptions {
  out?: Tensor;
  softmaxLse?: Tensor;
  stream?: Stream;
}

const OP = 'sparsePrefill';
const OP_BACKWARD = 'sparsePrefillBackward';
const OP_MERGE = 'mergeAttentionStates';
const OP_MERGE_BACKWARD = 'mergeAttentionStatesBackward';

function disposable(out: Tensor, softmaxLse: Tensor): SparsePrefillResult {
  return {
    out,
    softmaxLse,
    [Symbol.dispose]() {
      out.dispose();
      softmaxLse.dispose();
    },
  };
}

/** Refuses outputs of the caller's for a call on tracked inputs. */
function refuseOutputs(
  op: string,
  inputs: readonly Tensor[],
  { out, softmaxLse }: { out?: Tensor; softmaxLse?: Tensor },
): void {
  if (!isTracked(inputs) || (out ?? softmaxLse) === undefined) return;
  throw argumentError(
    'ERR_VARLEN_INCOMPATIBLE',
    op,
    out === undefined ? 'softmaxLse' : 'out',
    'cannot be given for a recorded call; got it beside a tensor that requires a gradient, expected noGrad or neither',
  );
}

/** The stream of a call, for its backward, unless it is gone by then. */
function live(stream: Stream | undefined): Stream | undefined {
  return stream?.disposed ? undefined : stream;
}

/** @internal Refuses inputs that differ from those the plan was made for. */
export function checkPlan(op: string, plan: RunnablePlan, q: Tensor, k: Tensor): void {
  if (typeof plan !== 'object' || plan === null || !(plan.words instanceof Tensor)) {
    throw wrongType(op, 'plan', plan, 'a PrefillPlan');
  }
  if (plan.disposed) {
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: plan was disposed`, { op, argument: 'plan' });
  }
  const mismatch = (what: string, got: unknown, expected: unknown): Error =>
    argumentError(
      'ERR_VARLEN_PLAN_MISMATCH',
      op,
      'plan',
      `was made for another ${what}; got ${String(got)}, expected ${String(expected)}`,
    );
  if (q.dtype !== plan.dtype) throw mismatch('dtype', q.dtype, plan.dtype);
  if (q.device !== plan.device) throw mismatch('device', q.device, plan.device);
  const expected: [string, number | undefined, number][] = [
    ['number of queries', q.shape[0], plan.cuSeqlensQ.at(-1)!],
    ['number of heads', q.shape[1], plan.numHeads],
    ['head dimension', q.shape[2], plan.headDim],
    ['number of keys', k.shape[0], plan.cuSeqlensK.at(-1)!],
    ['number of key/value heads', k.shape[1], plan.numKvHeads],
  ];
  for (const [what, got, wanted] of expected) if (got !== wanted) throw mismatch(what, got, wanted);
}

/**
 * Attention over the keys that a plan chose, and no others: `plan.mask(seq, head)` is exactly the set of
 * (query, key) pairs whose softmax this computes. Rows are the same bits for any thread count and any
 * other sequences in the pack; a row that keeps no key gets `out = 0` and `softmaxLse = -Infinity`.
 *
 * On `cuda` (float16 and bfloat16, head dimensions up to 256, no backward pass) the first run of a plan turns
 * it into tables of tiles and keys, on the host and outside the JavaScript thread, which the GPU then keeps.
 *
 * Formulas: native/ops/sparse-prefill/sparse-prefill.h. The call is recorded for tracked q, k and v; the plan
 * is frozen, and neither it nor `keyBias` gets a gradient.
 *
 * @param plan of `planPrefill`, made for these lengths, heads, dtype and device; may be used many times
 * @param q `[totalTokensQ, numHeads, headDim]`, float32, float16 or bfloat16; headDim a multiple of 8 up to 512
 * @param k `[totalTokensK, numKvHeads, headDim]`
 * @param v `[totalTokensK, numKvHeads, valueDim]`
 * @throws `ERR_VARLEN_PLAN_MISMATCH`, `ERR_VARLEN_DISPOSED`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_HEAD_DIM`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_NO_BACKWARD` for a `keyBias`
 *   that requires a gradient,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_INCOMPATIBLE`; reading the result rejects with what planning failed
 *   with, `ERR_VARLEN_RECALL` for a guarantee that was missed, and with `ERR_VARLEN_UNSUPPORTED` for what
 *   has no CUDA kernel
 *
 * @example
 * ```ts
 * using plan = planPrefill({ heads: { kind: 'a-shape', sink: 64, local: 1024 } }, q, k, { cuSeqlens });
 * const { out } = sparsePrefill(plan, q, k, v);
 * ```
 */
export function sparsePrefill(
  plan: RunnablePlan,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: SparsePrefillOptions,
): SparsePrefillResult {
  checkTensor(OP, 'q', q);
  checkTensor(OP, 'k', k);
  checkTensor(OP, 'v', v);
  const given = readOptions(OP, options, ['keyBias', 'out', 'softmaxLse', 'stream']);
  refuseTracked(OP, [given.keyBias]);
  checkPlan(OP, plan, q, k);
  const { cuSeqlensQ, cuSeqlensK, softmaxScale, softcap, causal } = plan;
  const dense = plan.allDense && given.keyBias === undefined && given.softmaxLse === undefined;
  if (dense && v.shape[2] === q.shape[2] && plan.headDim <= 256) {
    const { out, softmaxLse } = varlenAttention(q, k, v, {
      cuSeqlensQ,
      cuSeqlensK,
      softmaxScale,
      softcap,
      causal,
      ...(given.out === undefined ? {} : { out: given.out }),
      ...(given.stream === undefined ? {} : { stream: given.stream }),
    });
    return disposable(out, softmaxLse);
  }
  refuseOutputs(OP, [q, k, v], given);
  const values = { ...given, plan: plan.words, q, k, v, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap };
  const made = run(OP, values, q.device, given.stream);
  const result = disposable(made[0] ?? given.out!, made[1] ?? given.softmaxLse!);
  recordPrefill(OP, plan, { q, k, v, ...result }, { keyBias: given.keyBias }, given.stream);
  return result;
}

/**
 * @internal Leaves a node on the tape, with names of its own: the caller may dispose inputs, results and plan.
 * `biases` are what was added to the scores: constants to backward.
 */
export function recordPrefill(
  op: string,
  { words, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap }: RunnablePlan,
  { q, k, v, out, softmaxLse }: Omit<SparsePrefillSaved, 'dOut'>,
  biases: { keyBias?: Tensor | undefined; segments?: Tensor; segmentBias?: Tensor },
  stream: Stream | undefined,
): void {
  const { keyBias, segments, segmentBias } = biases;
  const tensors = [q, k, v, out, softmaxLse, words, keyBias, segments, segmentBias] as const;
  recordCall(op, [q, k, v], [out, softmaxLse], tensors, ([dOut, dLse], kept) => {
    const inputs = { q: kept[0], k: kept[1], v: kept[2], out: kept[3], softmaxLse: kept[4] };
    const ofPlan = { plan: kept[5], cuSeqlensQ, cuSeqlensK, softmaxScale, softcap };
    const constants = { keyBias: kept[6], segments: kept[7], segmentBias: kept[8] };
    // A loss of softmaxLse alone brings no gradient of out.
    const zero = dOut === undefined ? zerosLike(inputs.out) : undefined;
    const values = { ...inputs, ...ofPlan, ...constants, dOut: dOut ?? zero, dLse };
    const gradients = run(OP_BACKWARD, values, inputs.q.device, live(stream));
    zero?.dispose();
    return gradients;
  });
}

/**
 * Gradients of {@link sparsePrefill}: `dq`, `dk` and `dv` over exactly the pairs that the plan computes, from
 * the gradient of `out` and, when a loss uses it, of `softmaxLse`. Sums are float32 in a fixed order, so the
 * bits depend on no thread count. Formulas: native/ops/sparse-prefill/sparse-prefill.h.
 *
 * @param plan of the call; it must not be disposed yet
 * @throws as {@link sparsePrefill}
 *
 * @example
 * ```ts
 * const { out, softmaxLse } = sparsePrefill(plan, q, k, v);
 * const { dq, dk, dv } = sparsePrefillBackward(plan, { q, k, v, out, softmaxLse, dOut });
 * ```
 */
export function sparsePrefillBackward(
  plan: RunnablePlan,
  saved: SparsePrefillSaved,
  options?: SparsePrefillBackwardOptions,
): SparsePrefillGradients {
  if (typeof saved !== 'object' || saved === null) {
    throw wrongType(OP_BACKWARD, 'saved', saved, 'q, k, v, out, softmaxLse and dOut');
  }
  const { q, k, v, out, softmaxLse, dOut, keyBias, dLse } = saved;
  for (const [name, tensor] of Object.entries({ q, k, v, out, softmaxLse, dOut })) {
    checkTensor(OP_BACKWARD, name, tensor);
  }
  const { dq, dk, dv, stream } = readOptions(OP_BACKWARD, options, ['dq', 'dk', 'dv', 'stream']);
  checkPlan(OP_BACKWARD, plan, q, k);
  const { words, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap } = plan;
  const inputs = { plan: words, q, k, v, out, softmaxLse, dOut, keyBias, dLse };
  const values = { ...inputs, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap, dq, dk, dv };
  const made = run(OP_BACKWARD, values, q.device, stream);
  const gradients = { dq: made[0] ?? dq!, dk: made[1] ?? dk!, dv: made[2] ?? dv! };
  return {
    ...gradients,
    [Symbol.dispose]() {
      for (const gradient of Object.values(gradients)) gradient.dispose();
    },
  };
}

/**
 * Joins two attention results over disjoint sets of keys into the result over all of them:
 * `lse = ln(e^lse1 + e^lse2)`, and `out` the mean of the two weighted by `e^(lse1 - lse)` and
 * `e^(lse2 - lse)`. Swapping the two changes no bit; rows that neither has keys for give 0 and `-Infinity`.
 * The call is recorded for tracked inputs. Formulas: native/ops/sparse-prefill/sparse-prefill.h.
 *
 * @param a `out` `[totalTokensQ, numHeads, valueDim]` and `softmaxLse` `[numHeads, totalTokensQ]`
 * @param b the same shapes and dtype
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`;
 *   `ERR_VARLEN_INCOMPATIBLE` for an output given to a recorded call
 *
 * @example
 * ```ts
 * const cached = sparsePrefill(planOfCache, q, cacheK, cacheV);
 * const fresh = sparsePrefill(planOfChunk, q, k, v);
 * const { out } = mergeAttentionStates(cached, fresh);
 * ```
 */
export function mergeAttentionStates(
  a: AttentionState,
  b: AttentionState,
  options?: MergeOptions,
): SparsePrefillResult {
  const given = readOptions(OP_MERGE, options, ['out', 'softmaxLse', 'stream']);
  for (const [name, state] of [
    ['a', a],
    ['b', b],
  ] as const) {
    if (typeof state !== 'object' || state === null) throw wrongType(OP_MERGE, name, state, 'a result');
    checkTensor(OP_MERGE, `${name}.out`, state.out);
    checkTensor(OP_MERGE, `${name}.softmaxLse`, state.softmaxLse);
  }
  const inputs = [a.out, a.softmaxLse, b.out, b.softmaxLse] as const;
  refuseOutputs(OP_MERGE, inputs, given);
  const values = {
    out1: a.out,
    lse1: a.softmaxLse,
    out2: b.out,
    lse2: b.softmaxLse,
    out: given.out,
    softmaxLse: given.softmaxLse,
  };
  const made = run(OP_MERGE, values, a.out.device, given.stream);
  const result = disposable(made[0] ?? given.out!, made[1] ?? given.softmaxLse!);
  recordCall(OP_MERGE, inputs, [result.out, result.softmaxLse], inputs, ([dOut, dLse], kept) => {
    const [out1, lse1, out2, lse2] = kept;
    // A loss of softmaxLse alone brings no gradient of out.
    const zero = dOut === undefined ? zerosLike(out1) : undefined;
    const saved = { dOut: dOut ?? zero, out1, lse1, out2, lse2, dLse };
    const gradients = run(OP_MERGE_BACKWARD, saved, out1.device, live(given.stream));
    zero?.dispose();
    return gradients;
  });
  return result;
}

/** A log-sum-exp in base 2, as some other kernels keep it, from ours in base e. */
export function lseToLog2(lse: number): number {
  return lse * Math.LOG2E;
}

/** @internal What the native planner takes; names are those of native/ops/sparse-prefill/sparse-prefill.h. */
export interface NativePlanArguments {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly config: Int32Array;
  readonly cuSeqlensQ: Int32Array;
  readonly cuSeqlensK: Int32Array;
  readonly softmaxScale: number;
  readonly softcap: number;
  readonly lastQ: number;
  readonly recallRows: number;
  readonly minRecall: number;
  readonly onMiss: number;
  readonly seed: number;
  readonly denseAbove: number;
  readonly shareGroup: boolean;
  readonly plan: Tensor;
  readonly report: Tensor;
}

/** @internal Fills `plan` and `report`, which the caller brings. */
export function resolvePlan(values: NativePlanArguments, device: Device, stream: Stream | undefined): void {
  run('sparsePrefillPlan', values, device, stream);
}

/** @internal Counts of `[numSeqs, numHeads, 6]`: lines, computed, issued and all pairs; tiles; keys. */
export function countPlan(plan: Tensor, shape: readonly number[]): Tensor {
  const counts = Tensor.empty(shape, { dtype: 'float64', device: plan.device });
  run('sparsePrefillCount', { plan, counts }, plan.device, undefined);
  return counts;
}

/** @internal `[rows, keys]` uint8: how often each pair is computed. */
export function planMask(
  plan: Tensor,
  sequence: number,
  head: number,
  lines: boolean,
  shape: readonly number[],
): Tensor {
  const mask = Tensor.empty(shape, { dtype: 'uint8', device: plan.device });
  run('sparsePrefillMask', { plan, sequence, head, lines, mask }, plan.device, undefined);
  return mask;
}

/** @internal The tiles of one head as compressed rows. */
export interface PlanTiles {
  readonly tileRows: Tensor;
  readonly tileColumns: Tensor;
  readonly rows: Tensor;
  readonly columns: Tensor;
  readonly rowBits: Tensor;
}

/** @internal */
export function planTiles(
  plan: Tensor,
  sequence: number,
  head: number,
  sizes: { readonly tiles: number; readonly rows: number; readonly columns: number },
): PlanTiles {
  const ints = (size: number): Tensor => Tensor.empty([size], { dtype: 'int32', device: plan.device });
  const tiles: PlanTiles = {
    tileRows: ints(sizes.tiles + 1),
    tileColumns: ints(sizes.tiles + 1),
    rows: ints(sizes.rows),
    columns: ints(sizes.columns),
    rowBits: ints(2 * sizes.columns),
  };
  run('sparsePrefillIndices', { plan, sequence, head, ...tiles }, plan.device, undefined);
  return tiles;
}
