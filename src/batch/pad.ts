/** Samples to one padded batch, for models that know no `cuSeqlens`. */
import { argumentError } from '../errors.js';
import { type CollateOptions, checkRows, type ResolvedCollate, readSamples, resolveCollate } from './pack.js';
import { IGNORE, type PlainSequence, type Sample, type Sequence } from './sample.js';

/** A rectangular batch, row-major. */
export interface PaddedBatch {
  readonly kind: 'padded';
  /** `[numSeqs, maxSeqlen]`, like every array below. */
  readonly inputIds: Int32Array;
  /** Counts from each row's first real token; 0 in padding. */
  readonly positionIds: Int32Array;
  readonly labels: Int32Array;
  /** 1 exactly where the label counts. */
  readonly lossMask: Uint8Array;
  /** 1 on real tokens. */
  readonly attentionMask: Uint8Array;
  readonly numSeqs: number;
  /** Columns. */
  readonly maxSeqlen: number;
  /** Real tokens. */
  readonly totalTokens: number;
  readonly numPadTokens: number;
  /** Labels that count. */
  readonly weight: number;
  readonly idle: boolean;
}

function plain(sequence: Sequence): PlainSequence {
  if (sequence.kind === 'plain') return sequence;
  const problem = 'with shared prompts need packed collation; a padded row holds one answer only';
  throw argumentError('ERR_VARLEN_INCOMPATIBLE', 'collatePadded', 'samples', problem);
}

/** {@link collatePadded} on sequences that were read before. `columns` is at least the longest. */
export function padSequences(
  sequences: readonly Sequence[],
  options: ResolvedCollate,
  columns = 0,
): PaddedBatch {
  const rows = sequences.map(plain);
  const longest = rows.reduce((most, { length }) => Math.max(most, length), columns);
  const width = Math.ceil(longest / options.multiple) * options.multiple;
  const height = Math.max(rows.length, columns > 0 ? 1 : 0);
  const size = height * width;
  checkRows('collatePadded', size);
  const inputIds = new Int32Array(size).fill(options.padId);
  const positionIds = new Int32Array(size);
  const labels = new Int32Array(size).fill(IGNORE);
  const lossMask = new Uint8Array(size);
  const attentionMask = new Uint8Array(size);
  let totalTokens = 0;
  let weight = 0;
  const shift = options.labels === 'shifted' ? 1 : 0;
  if (rows.length === 0 && size > 0) attentionMask[0] = 1; // a dummy row must attend to something
  rows.forEach((sequence, row) => {
    const { length } = sequence;
    if (sequence.inputIds.length !== length) {
      const problem = `changed its length after it was read; got ${sequence.inputIds.length}, expected ${length}`;
      throw argumentError('ERR_VARLEN_SAMPLE', 'collatePadded', `samples[${row}].inputIds`, problem);
    }
    const at = row * width + (options.padSide === 'left' ? width - length : 0);
    inputIds.set(sequence.inputIds, at);
    attentionMask.fill(1, at, at + length);
    if (sequence.positionIds !== undefined) {
      if (sequence.positionIds.length !== length) {
        const problem = `must have one axis in padded batches; got ${sequence.positionIds.length / length}`;
        throw argumentError('ERR_VARLEN_SHAPE', 'collatePadded', `samples[${row}].positionIds`, problem);
      }
      positionIds.set(sequence.positionIds, at);
    } else {
      for (let i = 0; i < length; i++) positionIds[at + i] = i;
    }
    for (let token = 1; token < length; token++) {
      if (sequence.lossMask !== undefined && sequence.lossMask[token] === 0) continue;
      const place = token - shift;
      const label = sequence.labels === undefined ? sequence.inputIds[token] : sequence.labels[place];
      labels[at + place] = label;
      if (label !== IGNORE) lossMask[at + place] = 1;
    }
    totalTokens += length;
    weight += sequence.weight;
  });
  return Object.freeze({
    kind: 'padded',
    inputIds,
    positionIds,
    labels,
    lossMask,
    attentionMask,
    numSeqs: rows.length,
    maxSeqlen: width,
    totalTokens,
    numPadTokens: size - totalTokens,
    weight,
    idle: rows.length === 0,
  });
}

/**
 * One padded batch from samples, `[numSeqs, maxSeqlen]`; `padToMultipleOf` rounds the columns up.
 *
 * Labels follow the same rule as in `collatePacked`: a label without a predecessor is IGNORE.
 *
 * Throws `ERR_VARLEN_RANGE` (no samples), `_SAMPLE`, `_TYPE`, `_SHAPE`, `_OVERFLOW`, and
 * `ERR_VARLEN_INCOMPATIBLE` for shared prompts.
 *
 * @example
 * const { attentionMask } = collatePadded([{ inputIds: Int32Array.of(5, 6) }], { padSide: 'left' });
 */
export function collatePadded(samples: readonly Sample[], options: CollateOptions = {}): PaddedBatch {
  const resolved = resolveCollate('collatePadded', options);
  return padSequences(readSamples('collatePadded', samples, resolved.labels), resolved);
}
