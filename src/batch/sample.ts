/** What a batcher accepts, and the checked form of it that collation reads. */
import { types } from 'node:util';
import { argumentError, type VarlenError } from '../errors.js';
import { show } from './limits.js';

/** Names a sample. Numbers, strings and bigints are different ids: `1`, `'1'` and `1n`. */
export type SampleId = string | number | bigint;

/** The label that the loss ignores. */
export const IGNORE = -100;

/** One processed training item. */
export interface Sample {
  /** Default `${epoch}:${rank}:${position in the source}`. */
  id?: SampleId;
  /** Token ids, at least one. */
  inputIds: Int32Array;
  /** One per token, {@link IGNORE} where the loss must not look. Default: the tokens themselves. */
  labels?: Int32Array;
  /** 1 where the token counts as a target; one per token, before any shift. */
  lossMask?: Uint8Array;
  /** `[length]`, or `[axes * length]` axis-major for multi-axis rotary embeddings. Default `0..length-1`. */
  positionIds?: Int32Array;
  /** Vision patches. Default 0. */
  patches?: number;
  /** Reaches a custom `collate` untouched. */
  extra?: Record<string, unknown>;
}

/** One answer of a {@link SharedPromptSample}. */
export interface SharedResponse {
  id?: SampleId;
  /** Token ids, at least one. */
  ids: Int32Array;
  /** 1 where the token counts as a target. Default all. */
  lossMask?: Uint8Array;
}

/** Several answers to one prompt, packed as one sequence that holds the prompt once. Packed mode only. */
export interface SharedPromptSample {
  id?: SampleId;
  /** Token ids, at least one. */
  promptIds: Int32Array;
  /** At least one. */
  responses: readonly SharedResponse[];
  patches?: number;
  extra?: Record<string, unknown>;
}

/** Where a label sits: at its own token, or at the token before it. */
export type LabelConvention = 'unshifted' | 'shifted';

/** A sample whose properties were read once and checked; later changes of the object do not matter. */
export interface PlainSequence {
  readonly kind: 'plain';
  readonly length: number;
  /** Labels that count. */
  readonly weight: number;
  readonly inputIds: Int32Array;
  readonly labels: Int32Array | undefined;
  readonly lossMask: Uint8Array | undefined;
  /**
   * Rows whose label counts, as `[start, end, start, end, ...]`. Collation fills whole runs instead of
   * looking at every row: supervised tokens come in a few long runs.
   */
  readonly runs: readonly number[];
  readonly positionIds: Int32Array | undefined;
}

/** The checked form of a {@link SharedPromptSample}. */
export interface SharedSequence {
  readonly kind: 'shared';
  /** Packed rows: the prompt once, then every answer. */
  readonly length: number;
  readonly weight: number;
  readonly promptIds: Int32Array;
  readonly responses: readonly { readonly ids: Int32Array; readonly lossMask: Uint8Array | undefined }[];
}

export type Sequence = PlainSequence | SharedSequence;

/** The error of one bad sample, naming it. */
export function sampleError(
  id: unknown,
  problem: string,
  code:
    | 'ERR_VARLEN_SAMPLE'
    | 'ERR_VARLEN_TYPE'
    | 'ERR_VARLEN_OVERSIZE_SAMPLE'
    | 'ERR_VARLEN_DUPLICATE_SAMPLE'
    | 'ERR_VARLEN_INCOMPATIBLE' = 'ERR_VARLEN_SAMPLE',
  details: Record<string, unknown> = {},
): VarlenError {
  return argumentError(code, 'batcher', `sample ${show(id)}`, problem, { id, ...details });
}

function int32(id: unknown, name: string, value: unknown): Int32Array {
  if (types.isInt32Array(value)) return value;
  throw sampleError(id, `${name} must be an Int32Array; got ${show(value)}`, 'ERR_VARLEN_TYPE');
}

/** Checks that a per-token array has one entry per token. */
function perToken<T extends { length: number }>(id: unknown, name: string, array: T, length: number): T {
  if (array.length === length) return array;
  const problem = `${name} must have one entry per token; got ${array.length}, expected ${length}`;
  throw sampleError(id, problem, 'ERR_VARLEN_SAMPLE', { [name]: array.length, length });
}

function maskOf(id: unknown, name: string, value: unknown, length: number): Uint8Array | undefined {
  if (value === undefined) return undefined;
  if (!types.isUint8Array(value)) {
    throw sampleError(id, `${name} must be a Uint8Array; got ${show(value)}`, 'ERR_VARLEN_TYPE');
  }
  return perToken(id, name, value, length);
}

/** Runs of rows whose label counts, under the rule "no label without a predecessor". */
function supervisedRuns(
  length: number,
  labels: Int32Array | undefined,
  mask: Uint8Array | undefined,
  convention: LabelConvention,
): number[] {
  // `token` is the predicted token; its label sits at `token - shift`. The first has no predecessor.
  const shift = convention === 'shifted' ? 1 : 0;
  if (labels === undefined && mask === undefined) return length > 1 ? [1 - shift, length - shift] : [];
  const runs: number[] = [];
  for (let token = 1; token < length; ) {
    while (token < length && mask?.[token] === 0) token++;
    // The native search finds the end of what counts faster than a loop can.
    const masked = mask === undefined ? -1 : mask.indexOf(0, token);
    const end = masked < 0 ? length : masked;
    if (labels === undefined) {
      if (end > token) runs.push(token - shift, end - shift);
      token = end;
      continue;
    }
    while (token < end) {
      while (token < end && labels[token - shift] === IGNORE) token++;
      const ignored = token < end ? labels.indexOf(IGNORE, token - shift) : -1;
      const stop = ignored < 0 ? end : Math.min(end, ignored + shift);
      if (stop > token) runs.push(token - shift, stop - shift);
      token = stop;
    }
  }
  return runs;
}

function rowsIn(runs: readonly number[]): number {
  let rows = 0;
  for (let i = 0; i < runs.length; i += 2) rows += runs[i + 1] - runs[i];
  return rows;
}

/** Labels of a shared sequence that count in the flat label array (see `pack.ts`). */
function sharedWeight(responses: SharedSequence['responses']): number {
  let weight = 0;
  responses.forEach(({ ids, lossMask }, answer) => {
    // The row before a later answer belongs to another answer: its first token has no flat label.
    for (let i = answer === 0 ? 0 : 1; i < ids.length; i++) {
      if (lossMask === undefined || lossMask[i] !== 0) weight++;
    }
  });
  return weight;
}

/**
 * Reads every property of a sample once, and checks it. A sample of length 0 gives a sequence of
 * length 0, unchecked otherwise.
 *
 * Throws `ERR_VARLEN_SAMPLE` or `ERR_VARLEN_TYPE`, naming the sample.
 */
export function readSequence(sample: object, id: unknown, convention: LabelConvention): Sequence {
  const promptIds = (sample as SharedPromptSample).promptIds as unknown;
  if (promptIds !== undefined) return readShared(sample as SharedPromptSample, promptIds, id);
  const source = sample as Sample;
  const inputIds = int32(id, 'inputIds', source.inputIds);
  const length = inputIds.length;
  if (length === 0) {
    return {
      kind: 'plain',
      length,
      weight: 0,
      inputIds,
      labels: undefined,
      lossMask: undefined,
      runs: [],
      positionIds: undefined,
    };
  }
  const rawLabels: unknown = source.labels;
  const labels =
    rawLabels === undefined ? undefined : perToken(id, 'labels', int32(id, 'labels', rawLabels), length);
  const lossMask = maskOf(id, 'lossMask', source.lossMask, length);
  const rawPositions: unknown = source.positionIds;
  const positionIds = rawPositions === undefined ? undefined : int32(id, 'positionIds', rawPositions);
  if (positionIds !== undefined && (positionIds.length === 0 || positionIds.length % length !== 0)) {
    const problem = `positionIds must have a multiple of the length; got ${positionIds.length}, expected axes * ${length}`;
    throw sampleError(id, problem, 'ERR_VARLEN_SAMPLE', { positionIds: positionIds.length, length });
  }
  const runs = supervisedRuns(length, labels, lossMask, convention);
  return { kind: 'plain', length, weight: rowsIn(runs), inputIds, labels, lossMask, runs, positionIds };
}

function readShared(sample: SharedPromptSample, rawPrompt: unknown, id: unknown): SharedSequence {
  const promptIds = int32(id, 'promptIds', rawPrompt);
  if (promptIds.length === 0)
    throw sampleError(id, 'promptIds must not be empty; got 0 tokens, expected >= 1');
  const rawResponses: unknown = sample.responses;
  if (!Array.isArray(rawResponses)) {
    throw sampleError(id, `responses must be an array; got ${show(rawResponses)}`, 'ERR_VARLEN_TYPE');
  }
  if (rawResponses.length === 0) throw sampleError(id, 'responses must not be empty; got 0, expected >= 1');
  let length = promptIds.length;
  const responses = rawResponses.map((response: unknown, answer) => {
    if (typeof response !== 'object' || response === null) {
      throw sampleError(
        id,
        `responses[${answer}] must be an object; got ${show(response)}`,
        'ERR_VARLEN_TYPE',
      );
    }
    const ids = int32(id, `responses[${answer}].ids`, (response as SharedResponse).ids);
    if (ids.length === 0) {
      throw sampleError(id, `responses[${answer}].ids must not be empty; got 0 tokens, expected >= 1`);
    }
    length += ids.length;
    const name = `responses[${answer}].lossMask`;
    return { ids, lossMask: maskOf(id, name, (response as SharedResponse).lossMask, ids.length) };
  });
  return { kind: 'shared', length, weight: sharedWeight(responses), promptIds, responses };
}
