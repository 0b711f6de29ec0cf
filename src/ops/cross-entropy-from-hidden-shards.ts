import { wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { backwardFrom, isTracked, setRecording } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';

/** A vocabulary whose words lie on several ranks: what the losses from hidden states share for it. */

/** This rank's part of a vocabulary: words `firstWord .. firstWord + weight.shape[0] - 1` of `totalWords`. */
export interface VocabularyShard {
  readonly firstWord: number;
  /** Over all ranks. */
  readonly totalWords: number;
}

/**
 * Combines numbers over the ranks that hold the parts of the vocabulary, element by element, with the same
 * result on each: `(values, op) => group.allReduce(values, op)`.
 */
export type VocabularyAllReduce = <T extends Float32Array | Float64Array>(
  values: T,
  op: 'sum' | 'max',
) => Promise<T>;

/** What the native ops take of a shard. */
export interface NativeShard {
  readonly firstWord: number;
  /** 0: the vocabulary is not split. */
  readonly totalWords: number;
  /** Of all ranks, `[5, totalTokens]` float64 as `native/core/vocabulary-shard.h` lists them. */
  readonly statistics: Tensor | undefined;
}

/** The whole vocabulary is here. */
export const UNSPLIT: NativeShard = { firstWord: 0, totalWords: 0, statistics: undefined };

/** Arguments of the native `vocabularyStatistics`. */
export interface StatisticsInputs {
  readonly hidden: Tensor;
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
  readonly targetIds: Int32Array | Tensor;
  readonly lossMask: Tensor | undefined;
  readonly weights: Tensor | undefined;
  readonly temperature: number;
  readonly softcap: number;
  readonly logitScale: number;
}

/** Rows of the statistics. */
const [LSE, TARGET, ENTROPY, SQUARES, MEAN, ROWS] = [0, 1, 2, 3, 4, 5];

/** Refuses what is no shard and no function, before any rank waits. */
export function checkShard(op: string, shard: VocabularyShard, allReduce: VocabularyAllReduce): void {
  for (const name of ['firstWord', 'totalWords'] as const) {
    const value: unknown = shard?.[name];
    if (typeof value !== 'number') throw wrongType(op, name, value, 'a number');
    if (Number.isSafeInteger(value) && value >= (name === 'totalWords' ? 1 : 0)) continue;
    const problem = `is out of range; got ${value}, expected an integer >= ${name === 'totalWords' ? 1 : 0}`;
    throw argumentError('ERR_VARLEN_RANGE', op, name, problem);
  }
  if (typeof allReduce !== 'function') throw wrongType(op, 'allReduce', allReduce, 'a function');
}

/** Calls the all-reduce and refuses another answer than numbers of the same kind, as many. */
async function reduce<T extends Float32Array | Float64Array>(
  op: string,
  allReduce: VocabularyAllReduce,
  values: T,
  how: 'sum' | 'max',
): Promise<T> {
  const expected = `${values.constructor.name} of ${values.length}`;
  const result = (await allReduce(values, how)) as unknown;
  if (ArrayBuffer.isView(result) && result.constructor === values.constructor) {
    const got = (result as T).length;
    if (got === values.length) return result as T;
    const problem = `returned something else; got ${got} values, expected a ${expected}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, 'allReduce', problem);
  }
  throw wrongType(op, 'allReduce', result, `a function that resolves to a ${expected}`);
}

/**
 * Statistics of every row over the words of all ranks. Two all-reduces: the largest log-sum-exp of a row, then
 * five sums relative to it. A rank whose own part fails says so in the first one, so that nobody waits.
 */
export async function statisticsAcross(
  op: string,
  inputs: StatisticsInputs,
  shard: VocabularyShard,
  stream: Stream | undefined,
  allReduce: VocabularyAllReduce,
): Promise<Tensor> {
  const tokens = inputs.hidden.shape[0];
  let own: Float64Array;
  try {
    const { firstWord, totalWords } = shard;
    const values = { ...inputs, firstWord, totalWords, statistics: undefined };
    using local = run('vocabularyStatistics', values, inputs.hidden.device, stream)[0]!;
    own = (await local.data()) as Float64Array;
  } catch (error) {
    const failed = new Float64Array(tokens + 1).fill(-Infinity);
    failed[tokens] = 1;
    await allReduce(failed, 'max').catch(() => undefined);
    throw error;
  }
  const largest = new Float64Array(tokens + 1); // the last one is 1 when a rank failed
  largest.set(own.subarray(LSE * tokens, (LSE + 1) * tokens));
  const top = await reduce(op, allReduce, largest, 'max');
  if (top[tokens] !== 0) {
    throw varlenError('ERR_VARLEN_PEER_ABORTED', `${op}: a peer has bad input; that rank has the reason`);
  }
  const words = inputs.weight.shape[0];
  const sums = await reduce(op, allReduce, weighed(own, top, words), 'sum');
  return Tensor.from(merged(sums, top, shard.totalWords), {
    shape: [ROWS, tokens],
    device: inputs.hidden.device,
    ...(stream === undefined ? {} : { stream }),
  });
}

/** A rank's statistics as terms of sums: with `w = e^(lse - top)`, the mean logit is `lse - entropy`. */
function weighed(own: Float64Array, top: Float64Array, words: number): Float64Array {
  const tokens = top.length - 1;
  const at = (row: number, t: number): number => own[row * tokens + t];
  const terms = new Float64Array(ROWS * tokens);
  for (let t = 0; t < tokens; t++) {
    const lse = at(LSE, t);
    const weight = lse === top[t] ? 1 : Math.exp(lse - top[t]); // also where both are infinite
    terms[LSE * tokens + t] = weight;
    terms[TARGET * tokens + t] = at(TARGET, t);
    // A part without a possible word has no distribution, and no share in that of all.
    terms[ENTROPY * tokens + t] = weight === 0 ? 0 : weight * (lse - at(ENTROPY, t) - top[t]);
    terms[SQUARES * tokens + t] = weight === 0 ? 0 : weight * weight * at(SQUARES, t);
    terms[MEAN * tokens + t] = words === 0 ? 0 : at(MEAN, t) * words;
  }
  return terms;
}

/** The statistics of the whole vocabulary from those sums, in place. */
function merged(sums: Float64Array, top: Float64Array, totalWords: number): Float64Array {
  const tokens = top.length - 1;
  for (let t = 0; t < tokens; t++) {
    const [mass, shifted] = [sums[LSE * tokens + t], sums[ENTROPY * tokens + t]];
    const logMass = Math.log(mass);
    sums[LSE * tokens + t] = top[t] + logMass;
    sums[ENTROPY * tokens + t] = logMass - shifted / mass;
    sums[SQUARES * tokens + t] /= mass * mass;
    sums[MEAN * tokens + t] /= totalWords;
  }
  return sums;
}

/** How the gradient of a loss over all ranks' words reaches the hidden states that all of them have. */
export class SharedHidden {
  /** What the rank's own part of the loss reads, and where its share of the gradient arrives. */
  readonly own: Tensor;
  readonly #tracked: boolean;

  constructor(
    private readonly op: string,
    private readonly hidden: Tensor,
    parameters: readonly (Tensor | undefined)[],
    private readonly allReduce: VocabularyAllReduce,
  ) {
    this.#tracked = isTracked([hidden, ...parameters]);
    this.own = hidden.alias(this.#tracked && hidden.requiresGrad);
  }

  /** Calls `fn`, recorded as a call at the time of construction would have been. */
  recorded<T>(fn: () => T): T {
    const before = setRecording(this.#tracked);
    try {
      return fn();
    } finally {
      setRecording(before);
    }
  }

  /** Differentiates the rank's part, then sums its share of the hidden states' gradient over the ranks. */
  async backward(loss: Tensor, gradient: Tensor | undefined): Promise<void> {
    loss.backward(gradient);
    if (!this.own.requiresGrad) return;
    using share = this.own.grad!;
    this.own.grad = null;
    const values = (await share.data()) as Float32Array;
    const sum = await reduce(this.op, this.allReduce, values, 'sum');
    const { shape, device, dtype, source } = this.hidden;
    using whole = Tensor.from(sum, { shape, device });
    // A leaf adds gradients up in float32; what was computed passes them on in its own type.
    const root = { output: this.hidden, gradient: whole.copy(source === undefined ? 'float32' : dtype) };
    backwardFrom(this.op, [root], false);
  }
}
