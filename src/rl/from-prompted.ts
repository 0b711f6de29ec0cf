/** From rows of [prompt | answer] to the answers alone. */
import { argumentError } from '../errors.js';
import { checkArray, checkCuSeqlens, checkFloats, rangeError } from './check-arrays.js';
import type { ResponseArrays } from './response-arrays.js';

/** The fields of {@link ResponseArrays} that have one value per token. */
const TOKEN_FIELDS = [
  'logprobs',
  'oldLogprobs',
  'refLogprobs',
  'rolloutLogprobs',
  'keptLogMass',
  'tokenWeights',
  'entropies',
] as const;

/** A packed batch of prompts with their answers: every per-token array covers both. */
export interface PromptedBatch extends ResponseArrays {
  /** `[numSeqs]`, tokens of each sequence that are its prompt, from its start. */
  readonly promptLengths: Int32Array;
}

/** The answers of a {@link PromptedBatch}, and where they were. */
export type ResponsesOfPrompted = ResponseArrays & {
  /** `[responseTokens]`, row of each answer token in the prompted batch. */
  readonly rows: Int32Array;
};

/**
 * The batch without its prompts, so that the token axis counts answers only. Tool output in the middle of an
 * answer stays, under mask 0. Values must be aligned already: position t holds the log-probability *of* token
 * t. Logits and hidden states predict the next token, so the row that predicts an answer token is
 * `rows[t] - 1`.
 *
 * Throws `ERR_VARLEN_RANGE` for a prompt longer than its sequence, `ERR_VARLEN_MISSING_INPUT`,
 * `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE` and `ERR_VARLEN_SHAPE`.
 *
 * @example
 * responseBatchFromPrompted({
 *   cuSeqlens: Int32Array.of(0, 5),
 *   promptLengths: Int32Array.of(3),
 *   logprobs: Float32Array.of(0, 0, 0, -1, -2),
 * }); // { cuSeqlens: [0, 2], logprobs: [-1, -2], rows: [3, 4] }
 */
export function responseBatchFromPrompted(batch: PromptedBatch): ResponsesOfPrompted {
  const op = 'responseBatchFromPrompted';
  const { cuSeqlens, promptLengths, advantages, advantagesPer } = batch;
  checkCuSeqlens(op, cuSeqlens);
  const numSeqs = cuSeqlens.length - 1;
  const totalTokens = cuSeqlens[numSeqs];
  checkArray(op, 'promptLengths', promptLengths, 'Int32Array', numSeqs);
  const offsets = new Int32Array(numSeqs + 1);
  for (let i = 0; i < numSeqs; i++) {
    const length = cuSeqlens[i + 1] - cuSeqlens[i];
    if (promptLengths[i] < 0 || promptLengths[i] > length) {
      const expected = `an integer between 0 and ${length}, the sequence's length`;
      throw rangeError(op, `promptLengths[${i}]`, promptLengths[i], expected);
    }
    offsets[i + 1] = offsets[i] + length - promptLengths[i];
  }
  const rows = new Int32Array(offsets[numSeqs]);
  for (let i = 0; i < numSeqs; i++) {
    const first = cuSeqlens[i] + promptLengths[i];
    for (let t = offsets[i]; t < offsets[i + 1]; t++) rows[t] = first + (t - offsets[i]);
  }
  const taken: Record<string, unknown> = { cuSeqlens: offsets, rows };
  for (const name of TOKEN_FIELDS) {
    const values = batch[name];
    if (values === undefined) continue;
    checkFloats(op, name, values, totalTokens);
    taken[name] = take(values, rows);
  }
  for (const name of ['lossMask', 'klMask'] as const) {
    const values = batch[name];
    if (values === undefined) continue;
    checkArray(op, name, values, 'Uint8Array', totalTokens);
    taken[name] = take(values, rows);
  }
  if (advantages !== undefined) {
    checkFloats(op, 'advantages', advantages);
    const perToken =
      advantagesPer === 'token' || (advantagesPer === undefined && advantages.length !== numSeqs);
    if (advantagesPer === undefined && totalTokens === numSeqs && numSeqs > 0) {
      const problem = 'is needed where numSeqs equals totalTokens; got none, expected sequence or token';
      throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'advantagesPer', problem);
    }
    checkFloats(op, 'advantages', advantages, perToken ? totalTokens : numSeqs);
    taken.advantages = perToken ? take(advantages, rows) : advantages.slice();
    // The answers alone may be as many tokens as sequences: say which it is.
    taken.advantagesPer = perToken ? 'token' : 'sequence';
  }
  if (batch.rolloutSupport !== undefined) taken.rolloutSupport = batch.rolloutSupport;
  return taken as unknown as ResponsesOfPrompted;
}

function take<A extends Float32Array | Float64Array | Uint8Array>(values: A, rows: Int32Array): A {
  const taken = new (values.constructor as new (length: number) => A)(rows.length);
  for (let t = 0; t < rows.length; t++) taken[t] = values[rows[t]];
  return taken;
}
