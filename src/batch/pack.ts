/**
 * Samples to one packed batch: all tokens in one row, sequences marked by `cuSeqlens`, nothing padded.
 *
 * Offsets and the longest length are made here, on the host, once; nothing later derives them from
 * `positionIds`, which multi-axis positions and restarts would defeat.
 */
import { types } from 'node:util';
import { argumentError } from '../errors.js';
import { show } from './limits.js';
import {
  IGNORE,
  type LabelConvention,
  type PlainSequence,
  readSequence,
  type Sample,
  type Sequence,
  type SharedPromptSample,
  type SharedSequence,
} from './sample.js';

/** How samples become arrays. */
export interface CollateOptions {
  /**
   * `'unshifted'` (default): the label of row p is the token at p, and the first label of every
   * sequence is IGNORE. `'shifted'`: it is the token at p + 1, and the last one is IGNORE.
   */
  labels?: LabelConvention;
  /** Rounds the number of rows up; the rest is one trailing segment. Default 1. */
  padToMultipleOf?: number;
  /** Padded batches only. Default `'right'`. */
  padSide?: 'right' | 'left';
  /** Token id of padding and dummy rows. Default 0. */
  padId?: number;
  /** Also emit `seqIds`, the sequence number of every row. Default false. */
  seqIds?: boolean;
  /** Supplies the one buffer behind a packed batch, of at least `bytes` bytes, e.g. from a pool. */
  allocate?: (bytes: number) => ArrayBuffer;
}

/** Rows of the answers to shared prompts: one loss sequence per answer. */
export interface ResponseRows {
  /** Offsets of the answers in the arrays below, `[numResponses + 1]`. */
  readonly cuSeqlens: Int32Array;
  /** Row of each response token, `[numResponseTokens]`. */
  readonly index: Int32Array;
  /**
   * Row whose output predicts each response token: the row before it, and for the first token of an
   * answer the last row of the prompt.
   */
  readonly predictor: Int32Array;
  /** 1 where the response token counts. */
  readonly lossMask: Uint8Array;
}

/** A batch for packed kernels. Arrays are views of one buffer; see {@link transferList}. */
export interface PackedBatch {
  readonly kind: 'packed';
  /** `[totalTokens]`. */
  readonly inputIds: Int32Array;
  /** `[positionAxes * totalTokens]`, axis-major; restarts at 0 per sequence unless given. */
  readonly positionIds: Int32Array;
  readonly positionAxes: number;
  /** `[totalTokens]`, {@link IGNORE} where the loss must not look. */
  readonly labels: Int32Array;
  /** `[totalTokens]`, 1 exactly where the label counts. */
  readonly lossMask: Uint8Array;
  /** Offsets, strictly increasing, ending at `totalTokens`; a padding segment is the last entry. */
  readonly cuSeqlens: Int32Array;
  /** Longest segment, padding included. */
  readonly maxSeqlen: number;
  /** `[totalTokens]`, ends of prefix-tree subtrees relative to the sequence; only with shared prompts. */
  readonly keyEnd?: Int32Array;
  /** `[totalTokens]`, sequence number per row, -1 in padding; only on request. */
  readonly seqIds?: Int32Array;
  /** Only with shared prompts. */
  readonly responseCuSeqlens?: Int32Array;
  readonly responseIndex?: Int32Array;
  readonly responsePredictor?: Int32Array;
  readonly responseLossMask?: Uint8Array;
  /** Real sequences; a padding segment is not counted. */
  readonly numSeqs: number;
  /** Rows, padding included. */
  readonly totalTokens: number;
  readonly numPadTokens: number;
  /** Labels that count. */
  readonly weight: number;
  /** No data: take part in collectives with zero gradients. */
  readonly idle: boolean;
}

/** Options of collation with every default filled in. */
export interface ResolvedCollate {
  readonly labels: LabelConvention;
  readonly multiple: number;
  readonly padSide: 'right' | 'left';
  readonly padId: number;
  readonly seqIds: boolean;
  readonly allocate: (bytes: number) => ArrayBuffer;
}

/** Fills in defaults; throws `ERR_VARLEN_OPTION`, `_RANGE` or `_TYPE`. */
export function resolveCollate(op: string, options: CollateOptions = {}): ResolvedCollate {
  const { labels = 'unshifted', padToMultipleOf = 1, padSide = 'right', padId = 0, seqIds = false } = options;
  const word = (argument: string, value: unknown, allowed: readonly unknown[]): void => {
    if (allowed.includes(value)) return;
    const problem = `must be one of ${allowed.map(show).join(', ')}; got ${show(value)}`;
    throw argumentError('ERR_VARLEN_OPTION', op, argument, problem);
  };
  word('labels', labels, ['unshifted', 'shifted']);
  word('padSide', padSide, ['right', 'left']);
  if (!Number.isSafeInteger(padToMultipleOf) || padToMultipleOf < 1) {
    const problem = `must be a positive integer; got ${show(padToMultipleOf)}`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'padToMultipleOf', problem);
  }
  if (!Number.isInteger(padId) || padId !== (padId | 0)) {
    throw argumentError('ERR_VARLEN_RANGE', op, 'padId', `must be an int32; got ${show(padId)}`);
  }
  const { allocate = (bytes) => new ArrayBuffer(bytes) } = options;
  if (typeof allocate !== 'function') {
    throw argumentError('ERR_VARLEN_TYPE', op, 'allocate', `must be a function; got ${show(allocate)}`);
  }
  return { labels, multiple: padToMultipleOf, padSide, padId, seqIds: seqIds === true, allocate };
}

/** Reads plain samples for a direct call of a collate function. */
export function readSamples(
  op: string,
  samples: readonly (Sample | SharedPromptSample)[],
  labels: LabelConvention,
): Sequence[] {
  if (!Array.isArray(samples)) {
    throw argumentError('ERR_VARLEN_TYPE', op, 'samples', `must be an array; got ${show(samples)}`);
  }
  if (samples.length === 0) {
    throw argumentError('ERR_VARLEN_RANGE', op, 'samples', 'must not be empty; got 0, expected >= 1');
  }
  return samples.map((sample: unknown, i) => {
    if (typeof sample !== 'object' || sample === null) {
      throw argumentError('ERR_VARLEN_TYPE', op, `samples[${i}]`, `must be an object; got ${show(sample)}`);
    }
    const sequence = readSequence(sample, (sample as Sample).id ?? i, labels);
    if (sequence.length === 0) {
      throw argumentError('ERR_VARLEN_SAMPLE', op, `samples[${i}]`, 'must not be empty; got 0 tokens');
    }
    return sequence;
  });
}

/** Throws `ERR_VARLEN_OVERFLOW` when int32 offsets cannot address that many rows. */
export function checkRows(op: string, rows: number): void {
  if (rows < 2 ** 31) return;
  const problem = `hold too many tokens for int32 offsets; got ${rows}, expected < 2^31`;
  throw argumentError('ERR_VARLEN_OVERFLOW', op, 'samples', problem);
}

/** Hands out arrays that lie one after the other in one buffer: one allocation, one transfer. */
class Slab {
  readonly #buffer: ArrayBuffer;
  #word = 0;
  #byte: number;

  /** Bytes lie behind the words, so every int32 array is aligned. */
  constructor(words: number, bytes: number, allocate: (bytes: number) => ArrayBuffer) {
    const needed = 4 * words + bytes;
    this.#buffer = allocate(needed);
    this.#byte = 4 * words;
    if (!types.isArrayBuffer(this.#buffer) || this.#buffer.byteLength < needed) {
      const problem = `must return an ArrayBuffer of at least ${needed} bytes`;
      throw argumentError('ERR_VARLEN_BUFFER', 'collatePacked', 'allocate', problem);
    }
  }

  int32(length: number): Int32Array {
    const array = new Int32Array(this.#buffer, 4 * this.#word, length);
    this.#word += length;
    return array;
  }

  uint8(length: number): Uint8Array {
    const array = new Uint8Array(this.#buffer, this.#byte, length);
    this.#byte += length;
    return array;
  }
}

/** The rows of a batch under construction, and where the next sequence begins. */
interface Rows {
  readonly inputIds: Int32Array;
  readonly positionIds: Int32Array;
  readonly labels: Int32Array;
  readonly lossMask: Uint8Array;
  readonly keyEnd: Int32Array | undefined;
}

/** `0, 1, 2, ...` from row `at`; copied from an earlier segment when one is long enough (a memcpy). */
function countUp(rows: Rows, at: number, length: number, model: { at: number; length: number }): void {
  const { positionIds } = rows;
  const copied = Math.min(length, model.length);
  positionIds.copyWithin(at, model.at, model.at + copied);
  for (let i = copied; i < length; i++) positionIds[at + i] = i;
  if (length > model.length) {
    model.at = at;
    model.length = length;
  }
}

function writePlain(rows: Rows, at: number, sequence: PlainSequence, convention: LabelConvention): void {
  const { length, inputIds, labels, runs } = sequence;
  rows.inputIds.set(inputIds, at);
  if (labels !== undefined) rows.labels.set(labels, at);
  else rows.labels.set(convention === 'shifted' ? inputIds.subarray(1) : inputIds, at);
  let unlabelled = 0;
  for (let i = 0; i < runs.length; i += 2) {
    if (runs[i] > unlabelled) ignore(rows, at + unlabelled, at + runs[i]);
    rows.lossMask.fill(1, at + runs[i], at + runs[i + 1]);
    unlabelled = runs[i + 1];
  }
  if (length > unlabelled) ignore(rows, at + unlabelled, at + length);
}

function ignore({ labels, lossMask }: Rows, from: number, to: number): void {
  if (to - from === 1) {
    labels[from] = IGNORE; // the one row without a prediction: a call of fill costs more than the write
    lossMask[from] = 0;
    return;
  }
  labels.fill(IGNORE, from, to);
  lossMask.fill(0, from, to);
}

/** Rows of the answers of shared prompts, as they are appended. */
class Responses {
  readonly cuSeqlens: Int32Array;
  readonly index: Int32Array;
  readonly predictor: Int32Array;
  readonly lossMask: Uint8Array;
  #answers = 0;
  #tokens = 0;

  constructor(answers: number, tokens: number, slab: Slab) {
    this.cuSeqlens = slab.int32(answers + 1);
    this.index = slab.int32(tokens);
    this.predictor = slab.int32(tokens);
    this.lossMask = slab.uint8(tokens);
    this.cuSeqlens[0] = 0;
  }

  append(row: number, promptEnd: number, length: number, mask: Uint8Array | undefined): void {
    for (let i = 0; i < length; i++) {
      this.index[this.#tokens + i] = row + i;
      this.predictor[this.#tokens + i] = i === 0 ? promptEnd - 1 : row + i - 1;
      this.lossMask[this.#tokens + i] = mask === undefined || mask[i] !== 0 ? 1 : 0;
    }
    this.#tokens += length;
    this.cuSeqlens[++this.#answers] = this.#tokens;
  }
}

/**
 * `[prompt | answer 1 | ... | answer n]`. A prompt row is visible to the whole sequence, a row of an
 * answer to that answer only. Flat labels reach only what the row before predicts: the first token
 * of the second and later answers is IGNORE there, and `responsePredictor` has its true predictor.
 */
function writeShared(
  rows: Rows,
  at: number,
  sequence: SharedSequence,
  convention: LabelConvention,
  responses: Responses,
): void {
  const keyEnd = rows.keyEnd!;
  const promptLength = sequence.promptIds.length;
  rows.inputIds.set(sequence.promptIds, at);
  rows.labels.fill(IGNORE, at, at + sequence.length);
  rows.lossMask.fill(0, at, at + sequence.length);
  keyEnd.fill(sequence.length, at, at + promptLength);
  for (let i = 0; i < promptLength; i++) rows.positionIds[at + i] = i;
  let start = promptLength;
  sequence.responses.forEach(({ ids, lossMask }, answer) => {
    const end = start + ids.length;
    rows.inputIds.set(ids, at + start);
    keyEnd.fill(end, at + start, at + end);
    for (let i = 0; i < ids.length; i++) {
      rows.positionIds[at + start + i] = promptLength + i;
      if ((lossMask !== undefined && lossMask[i] === 0) || (answer > 0 && i === 0)) continue;
      const row = at + start + i - (convention === 'shifted' ? 1 : 0);
      rows.labels[row] = ids[i];
      rows.lossMask[row] = 1;
    }
    responses.append(at + start, at + promptLength, ids.length, lossMask);
    start = end;
  });
}

function positionAxes(sequences: readonly Sequence[]): number {
  let axes = 0;
  for (const sequence of sequences) {
    if (sequence.kind === 'shared' || sequence.positionIds === undefined) continue;
    const own = sequence.positionIds.length / sequence.length;
    if (axes === 0) axes = own;
    if (axes !== own) {
      const problem = `must have as many axes in every sample of a batch; got ${own}, expected ${axes}`;
      throw argumentError('ERR_VARLEN_SHAPE', 'collatePacked', 'positionIds', problem);
    }
  }
  return Math.max(axes, 1);
}

/** {@link collatePacked} on sequences that were read before; none gives an IDLE batch of padding. */
export function packSequences(
  sequences: readonly Sequence[],
  options: ResolvedCollate,
  padTokens = -1,
): PackedBatch {
  const real = sequences.reduce((sum, { length }) => sum + length, 0);
  const total = padTokens >= 0 ? real + padTokens : Math.ceil(real / options.multiple) * options.multiple;
  checkRows('collatePacked', total);
  const numPadTokens = total - real;
  const shared = sequences.filter((sequence) => sequence.kind === 'shared');
  const axes = positionAxes(sequences);
  const segments = sequences.length + (numPadTokens > 0 ? 1 : 0);
  const answers = shared.reduce((sum, { responses }) => sum + responses.length, 0);
  const answerTokens = shared.reduce((sum, { length, promptIds }) => sum + length - promptIds.length, 0);
  const withKeyEnd = answers > 0;
  const perRow = 2 + axes + (withKeyEnd ? 1 : 0) + (options.seqIds ? 1 : 0);
  const words = total * perRow + segments + 1 + (withKeyEnd ? 2 * answerTokens + answers + 1 : 0);
  const slab = new Slab(words, total + answerTokens, options.allocate);
  const rows: Rows = {
    inputIds: slab.int32(total),
    positionIds: slab.int32(axes * total),
    labels: slab.int32(total),
    lossMask: slab.uint8(total),
    keyEnd: withKeyEnd ? slab.int32(total) : undefined,
  };
  const { positionIds, lossMask, keyEnd } = rows;
  const cuSeqlens = slab.int32(segments + 1);
  const seqIds = options.seqIds ? slab.int32(total) : undefined;
  const responses = withKeyEnd ? new Responses(answers, answerTokens, slab) : undefined;

  let at = 0;
  let maxSeqlen = 0;
  let weight = 0;
  const model = { at: 0, length: 0 };
  cuSeqlens[0] = 0;
  sequences.forEach((sequence, i) => {
    const { length } = sequence;
    if (sequence.kind === 'shared') {
      writeShared(rows, at, sequence, options.labels, responses!);
    } else {
      if (sequence.inputIds.length !== length) {
        const problem = `changed its length after it was read; got ${sequence.inputIds.length}, expected ${length}`;
        throw argumentError('ERR_VARLEN_SAMPLE', 'collatePacked', `samples[${i}].inputIds`, problem);
      }
      writePlain(rows, at, sequence, options.labels);
      keyEnd?.fill(length, at, at + length);
      if (sequence.positionIds === undefined) countUp(rows, at, length, model);
      else {
        for (let axis = 0; axis < axes; axis++) {
          const given = sequence.positionIds.subarray(axis * length, (axis + 1) * length);
          positionIds.set(given, axis * total + at);
        }
      }
    }
    if (axes > 1 && (sequence.kind === 'shared' || sequence.positionIds === undefined)) {
      for (let axis = 1; axis < axes; axis++) positionIds.copyWithin(axis * total + at, at, at + length);
    }
    if (seqIds !== undefined) seqIds.fill(i, at, at + length);
    at += length;
    weight += sequence.weight;
    if (length > maxSeqlen) maxSeqlen = length;
    cuSeqlens[i + 1] = at;
  });
  if (numPadTokens > 0) {
    // One segment with rising positions: a run of zeros would read as that many sequences.
    rows.inputIds.fill(options.padId, at);
    rows.labels.fill(IGNORE, at);
    lossMask.fill(0, at);
    keyEnd?.fill(numPadTokens, at);
    seqIds?.fill(-1, at);
    for (let axis = 0; axis < axes; axis++) {
      for (let i = 0; i < numPadTokens; i++) positionIds[axis * total + at + i] = i;
    }
    if (numPadTokens > maxSeqlen) maxSeqlen = numPadTokens;
    cuSeqlens[segments] = total;
  }
  return Object.freeze({
    kind: 'packed',
    inputIds: rows.inputIds,
    positionIds,
    positionAxes: axes,
    labels: rows.labels,
    lossMask,
    cuSeqlens,
    maxSeqlen,
    ...(keyEnd === undefined ? {} : { keyEnd }),
    ...(seqIds === undefined ? {} : { seqIds }),
    ...(responses === undefined
      ? {}
      : {
          responseCuSeqlens: responses.cuSeqlens,
          responseIndex: responses.index,
          responsePredictor: responses.predictor,
          responseLossMask: responses.lossMask,
        }),
    numSeqs: sequences.length,
    totalTokens: total,
    numPadTokens,
    weight,
    idle: sequences.length === 0,
  });
}

/**
 * One packed batch from samples: `cuSeqlens` marks the sequences, nothing is padded unless
 * `padToMultipleOf` asks for it.
 *
 * The first label of every sequence is IGNORE (with `labels: 'shifted'` the last one), because the
 * next-token loss has no prediction for it; `weight` counts the labels that remain. Samples with
 * shared prompts also get `keyEnd` and the rows of each answer.
 *
 * Throws `ERR_VARLEN_RANGE` (no samples), `ERR_VARLEN_SAMPLE`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_SHAPE`
 * (position axes differ), `ERR_VARLEN_OVERFLOW` (2^31 rows or more).
 *
 * @example
 * const { inputIds, cuSeqlens } = collatePacked([{ inputIds: Int32Array.of(5, 6, 7) }]);
 */
export function collatePacked(
  samples: readonly (Sample | SharedPromptSample)[],
  options: CollateOptions = {},
): PackedBatch {
  const resolved = resolveCollate('collatePacked', options);
  return packSequences(readSamples('collatePacked', samples, resolved.labels), resolved);
}

/** The buffers to transfer with a batch to another thread; the batch is unusable here afterwards. */
export function transferList(batch: object): ArrayBuffer[] {
  const buffers = new Set<ArrayBuffer>();
  for (const value of Object.values(batch)) {
    if (ArrayBuffer.isView(value) && value.buffer instanceof ArrayBuffer) buffers.add(value.buffer);
  }
  return [...buffers];
}

/** Arrays that {@link unpack} can cut. */
export type PackedValues = Int32Array | Float32Array | Float64Array | Uint8Array;

/**
 * Each sequence's rows, as views of `values`; the inverse of {@link packRows}.
 *
 * @param values `[totalTokens * width]`; the width follows from the last offset
 * Throws `ERR_VARLEN_CU_SEQLENS` or `ERR_VARLEN_SHAPE`.
 */
export function unpack<T extends PackedValues>(values: T, cuSeqlens: Int32Array): T[] {
  const numSeqs = cuSeqlens.length - 1;
  const total = cuSeqlens[numSeqs];
  const rising = cuSeqlens.every((offset, i) => i === 0 || offset >= cuSeqlens[i - 1]);
  if (numSeqs < 0 || cuSeqlens[0] !== 0 || !rising) {
    throw argumentError('ERR_VARLEN_CU_SEQLENS', 'unpack', 'cuSeqlens', 'must start at 0 and never fall');
  }
  if (total === 0 ? values.length !== 0 : values.length % total !== 0) {
    const problem = `must have a multiple of ${total} entries, one row per token; got ${values.length}`;
    throw argumentError('ERR_VARLEN_SHAPE', 'unpack', 'values', problem);
  }
  const width = total === 0 ? 1 : values.length / total;
  return Array.from(
    { length: numSeqs },
    (_, i) => values.subarray(cuSeqlens[i] * width, cuSeqlens[i + 1] * width) as T,
  );
}

/** Rows of several sequences one after the other, and their offsets; the inverse of {@link unpack} at width 1. */
export function packRows<T extends PackedValues>(rows: readonly T[]): { values: T; cuSeqlens: Int32Array } {
  if (rows.length === 0) {
    throw argumentError('ERR_VARLEN_RANGE', 'packRows', 'rows', 'must not be empty; got 0, expected >= 1');
  }
  const cuSeqlens = new Int32Array(rows.length + 1);
  const total = rows.reduce((sum, row) => sum + row.length, 0);
  checkRows('packRows', total);
  const values = new (rows[0].constructor as new (length: number) => T)(total);
  rows.forEach((row, i) => {
    values.set(row, cuSeqlens[i]);
    cuSeqlens[i + 1] = cuSeqlens[i] + row.length;
  });
  return { values, cuSeqlens };
}
