/**
 * From raw samples to window items: shuffle, filter, measure, deal with outliers.
 *
 * The reader keeps one unit peeked, so that a rank knows "nothing remains" together with its last
 * sample; its position is always the one before the peeked unit.
 */
import { SeededRandom, seededPermutation } from '../seeded-random.js';
import { exceedsAlone, longestWithin, show } from './limits.js';
import type { DroppedSample, ResolvedOptions } from './options.js';
import {
  type PlainSequence,
  readSequence,
  type Sample,
  type SampleId,
  type Sequence,
  sampleError,
} from './sample.js';
import { RawReader, type RawStart, type Replay, type Source } from './source.js';

/** A sample in a window, measured once. */
export interface Item<S> {
  readonly sample: S;
  /** What the built-in collation reads; absent with a custom collate over other objects. */
  readonly sequence: Sequence | undefined;
  readonly id: SampleId;
  readonly length: number;
  readonly weight: number;
  readonly patches: number;
  readonly sortKey: number;
  /** Alone over a budget, and allowed to be. */
  readonly overBudget: boolean;
  readonly epoch: number;
  /** Position in the source's pass. */
  readonly rawIndex: number;
  /** Window items made from the same source sample. */
  readonly parts: number;
  /** Rounds it has been carried. */
  carryAge: number;
}

/** The numbers of a sample, read once. */
interface Measured {
  readonly sequence: Sequence | undefined;
  readonly length: number;
  readonly weight: number;
  readonly patches: number;
}

/** A place in a pass to come back to. */
export interface ReaderPosition {
  readonly sourceState: unknown;
  /** Raw samples before the current shuffle block. */
  readonly read: number;
  /** Raw samples already handed on from the block. */
  readonly offset: number;
  readonly dropped: number;
}

/** Salts for the random streams that hang on one seed. */
const SHUFFLE_SALT = 1;
const JITTER_SALT = 2;

/** A sample and its position in the source's pass. */
interface RawSample<S> {
  readonly value: S;
  readonly index: number;
}

function numbered<S>(read: { value: S } | undefined, index: number): RawSample<S> | undefined {
  return read && { value: read.value, index };
}

interface Unit<S> {
  readonly items: Item<S>[];
  /** Position after this unit. */
  readonly after: ReaderPosition;
}

export class Reader<S> {
  readonly epoch: number;
  readonly raw: RawReader<S>;
  readonly #options: ResolvedOptions<S, never>;
  readonly #rank: number;
  #block: { samples: S[]; order: Int32Array; start: number; sourceState: unknown } | undefined;
  #offset: number;
  #skipInBlock: number;
  #dropped: number;
  #position: ReaderPosition;
  /** A read that is under way, or has failed. */
  #reading: Promise<Unit<S> | undefined> | undefined;
  #peeked: Unit<S> | 'end' | undefined;
  #seen: Set<SampleId> | undefined;

  constructor(
    source: Source<S>,
    options: ResolvedOptions<S, never>,
    rank: number,
    epoch: number,
    replay: Replay,
    start: { position: ReaderPosition; payload?: RawStart<S>['payload'] },
  ) {
    this.epoch = epoch;
    this.#options = options;
    this.#rank = rank;
    this.#position = start.position;
    this.#dropped = start.position.dropped;
    this.#offset = 0;
    this.#skipInBlock = start.position.offset;
    this.#seen = options.audit === false ? undefined : new Set();
    const { payload } = start;
    this.raw = new RawReader(source, epoch, replay, {
      ...start.position,
      ...(payload === undefined ? {} : { payload }),
    });
  }

  /** Where the next unit begins; what was peeked lies behind it. */
  get position(): ReaderPosition {
    return this.#position;
  }

  /** Items of the next usable source sample (several when it is split), or undefined at the end. */
  peek(): Item<S>[] | undefined | Promise<Item<S>[] | undefined> {
    if (this.#peeked !== undefined) return this.#peeked === 'end' ? undefined : this.#peeked.items;
    if (this.#reading === undefined) {
      try {
        const unit = this.#readUnit();
        if (!(unit instanceof Promise)) return this.#keep(unit);
        this.#reading = unit;
      } catch (error) {
        this.#reading = Promise.reject(error);
      }
    }
    return this.#reading.then((unit) => {
      this.#reading = undefined;
      return this.#keep(unit);
    });
  }

  #keep(unit: Unit<S> | undefined): Item<S>[] | undefined {
    this.#peeked = unit ?? 'end';
    if (unit === undefined) this.#position = this.#here(); // behind unusable samples at the end
    return unit?.items;
  }

  /** Takes what {@link peek} has resolved to. */
  take(): void {
    if (this.#peeked === undefined || this.#peeked === 'end') return;
    this.#position = this.#peeked.after;
    this.#peeked = undefined;
  }

  /** The next unit: at once as long as the source is synchronous. */
  #readUnit(): Unit<S> | undefined | Promise<Unit<S> | undefined> {
    for (;;) {
      const raw = this.#nextRaw();
      if (raw instanceof Promise) return this.#readUnitFrom(raw);
      const unit = this.#unitOf(raw);
      if (unit !== undefined || raw === undefined) return unit;
    }
  }

  async #readUnitFrom(first: Promise<RawSample<S> | undefined>): Promise<Unit<S> | undefined> {
    for (let raw = await first; raw !== undefined; raw = await this.#nextRaw()) {
      const unit = this.#unitOf(raw);
      if (unit !== undefined) return unit;
    }
    return undefined;
  }

  /** Undefined at the end, and for a sample that gives no item. */
  #unitOf(raw: RawSample<S> | undefined): Unit<S> | undefined {
    if (raw === undefined) return undefined;
    const items = this.#measure(raw.value, raw.index);
    return items.length === 0 ? undefined : { items, after: this.#here() };
  }

  #here(): ReaderPosition {
    const block = this.#block;
    const inside = block !== undefined && this.#offset < block.samples.length;
    return {
      sourceState: inside ? block.sourceState : this.raw.sourceState,
      read: inside ? block.start : this.raw.read,
      offset: inside ? this.#offset : 0,
      dropped: this.#dropped,
    };
  }

  #nextRaw(): RawSample<S> | undefined | Promise<RawSample<S> | undefined> {
    if (this.#options.preShuffle >= 2) return this.#nextShuffled();
    const index = this.raw.read;
    const result = this.raw.next();
    return result instanceof Promise ? result.then((read) => numbered(read, index)) : numbered(result, index);
  }

  /**
   * The next sample in reading order. With `preShuffle` blocks of that many samples are permuted as
   * a whole: unlike a sliding reservoir, a block can be made again from its start alone.
   */
  async #nextShuffled(): Promise<RawSample<S> | undefined> {
    const { preShuffle, seed } = this.#options;
    if (this.#block === undefined || this.#offset >= this.#block.samples.length) {
      const start = this.raw.read;
      const sourceState = this.raw.sourceState;
      const samples: S[] = [];
      while (samples.length < preShuffle) {
        const result = await this.raw.next();
        if (result === undefined) break;
        samples.push(result.value);
      }
      if (samples.length === 0) return undefined;
      const order = seededPermutation(samples.length, seed, SHUFFLE_SALT, this.epoch, this.#rank, start);
      this.#block = { samples, order, start, sourceState };
      this.#offset = this.#skipInBlock;
      this.#skipInBlock = 0;
    }
    const { samples, order, start } = this.#block;
    const place = order[this.#offset++];
    return { value: samples[place], index: start + place };
  }

  #drop(dropped: DroppedSample): [] {
    this.#dropped++;
    this.#options.onDrop?.(dropped);
    return [];
  }

  #idOf(sample: S, index: number): SampleId {
    const { idOf } = this.#options;
    const id: unknown =
      idOf !== undefined
        ? idOf(sample)
        : typeof sample === 'object' && sample !== null
          ? (sample as unknown as Sample).id
          : undefined;
    if (id === undefined && idOf === undefined) return `${this.epoch}:${this.#rank}:${index}`;
    if (typeof id === 'string' || typeof id === 'bigint' || (typeof id === 'number' && Number.isFinite(id)))
      return id;
    throw sampleError(index, `must have a string, finite number or bigint for an id; got ${show(id)}`);
  }

  /** Reads every number of a sample once; an unusable sample gives no item or an error. */
  #measure(sample: S, rawIndex: number): Item<S>[] {
    const options = this.#options;
    const id = this.#idOf(sample, rawIndex);
    if (options.filter !== undefined && !options.filter(sample)) {
      return this.#drop({ id, reason: 'filter', length: 0 });
    }
    const measured = this.#lengths(sample, id);
    if (measured.length === 0) return this.#drop({ id, reason: 'empty', length: 0 });
    if (this.#seen?.has(id)) {
      throw sampleError(id, `comes twice in epoch ${this.epoch}`, 'ERR_VARLEN_DUPLICATE_SAMPLE');
    }
    this.#seen?.add(id);
    const tooLong = measured.length > options.maxSampleTokens;
    if (!tooLong && !exceedsAlone(options.limits, measured.length, measured.patches)) {
      return [this.#item(sample, id, rawIndex, measured, false)];
    }
    return this.#outlier(sample, id, rawIndex, measured, tooLong);
  }

  #lengths(sample: S, id: SampleId): Measured {
    const { lengthOf, weightOf, collate, collateOptions, limits } = this.#options;
    const opaque = lengthOf !== undefined && collate !== undefined;
    if (!opaque && (typeof sample !== 'object' || sample === null)) {
      throw sampleError(id, `must be an object; got ${show(sample)}`, 'ERR_VARLEN_TYPE');
    }
    const sequence = opaque ? undefined : readSequence(sample as object, id, collateOptions.labels);
    if (sequence?.kind === 'shared' && limits.mode === 'padded') {
      throw sampleError(id, "has a shared prompt, which needs mode 'packed'", 'ERR_VARLEN_INCOMPATIBLE');
    }
    const length: unknown = lengthOf === undefined ? sequence!.length : lengthOf(sample);
    if (typeof length !== 'number' || !Number.isSafeInteger(length) || length < 0) {
      throw sampleError(
        id,
        `must have a non-negative integer length; got ${show(length)}`,
        'ERR_VARLEN_SAMPLE',
        {
          length,
        },
      );
    }
    const weight: unknown = weightOf === undefined ? (sequence?.weight ?? length) : weightOf(sample);
    if (typeof weight !== 'number' || !(weight >= 0 && weight < Infinity)) {
      throw sampleError(id, `must have a finite weight >= 0; got ${show(weight)}`, 'ERR_VARLEN_SAMPLE', {
        weight,
      });
    }
    const patches: unknown =
      typeof sample === 'object' && sample !== null ? ((sample as unknown as Sample).patches ?? 0) : 0;
    if (typeof patches !== 'number' || !Number.isSafeInteger(patches) || patches < 0) {
      throw sampleError(id, `must have a non-negative integer number of patches; got ${show(patches)}`);
    }
    // A sequence that is empty cannot be collated, whatever `lengthOf` says.
    return { sequence, length: sequence?.length === 0 ? 0 : length, weight, patches };
  }

  #item(
    sample: S,
    id: SampleId,
    rawIndex: number,
    measured: Measured,
    overBudget: boolean,
    parts = 1,
  ): Item<S> {
    const { lengthJitter, seed } = this.#options;
    const sortKey =
      lengthJitter === 0
        ? measured.length
        : measured.length *
          Math.exp(
            lengthJitter * new SeededRandom(seed, JITTER_SALT, this.epoch, this.#rank, rawIndex).normal(),
          );
    const { sequence, length, weight, patches } = measured;
    const { epoch } = this;
    // Field by field: a spread in the middle of a literal takes several times as long.
    return {
      sample,
      sequence,
      id,
      length,
      weight,
      patches,
      sortKey,
      overBudget,
      epoch,
      rawIndex,
      parts,
      carryAge: 0,
    };
  }

  #outlier(sample: S, id: SampleId, rawIndex: number, measured: Measured, tooLong: boolean): Item<S>[] {
    const { limits, maxSampleTokens, outlier, truncate } = this.#options;
    const { length, patches } = measured;
    const limit = longestWithin(limits, Math.min(maxSampleTokens, length));
    const refuse = (why: string, most = limit): never => {
      const problem = `${why}; got ${length} tokens and ${patches} patches, expected at most ${most} tokens`;
      throw sampleError(id, problem, 'ERR_VARLEN_OVERSIZE_SAMPLE', { length, limit: most });
    };
    switch (outlier) {
      case 'single':
        if (tooLong) return refuse('is longer than the model can take (maxSampleTokens)', maxSampleTokens);
        return [this.#item(sample, id, rawIndex, measured, true)];
      case 'error':
        return refuse('alone exceeds a budget');
      case 'drop':
        return this.#drop({ id, reason: 'oversize', length });
      case 'truncate': {
        const shorter = truncate!(sample, limit);
        const again = this.#lengths(shorter, id);
        const fits = again.length <= maxSampleTokens && !exceedsAlone(limits, again.length, again.patches);
        if (again.length === 0) return this.#drop({ id, reason: 'empty', length: 0 });
        return fits
          ? [this.#item(shorter, id, rawIndex, again, false)]
          : refuse('exceeds a budget after truncate');
      }
      case 'split': {
        const { sequence } = measured;
        if (sequence?.kind !== 'plain') return refuse('has a shared prompt and cannot be split');
        if (patches > 0) return refuse('has vision patches and cannot be split');
        return this.#split(sequence, id, rawIndex, limit);
      }
    }
  }

  /** Chunks of at most `limit` tokens, named `id#k`; positions restart in each. */
  #split(sequence: PlainSequence, id: SampleId, rawIndex: number, limit: number): Item<S>[] {
    const parts = Math.ceil(sequence.length / limit);
    return Array.from({ length: parts }, (_, k) => {
      const chunk = cutSequence(sequence, k * limit, Math.min((k + 1) * limit, sequence.length));
      const chunkId = `${id}#${k}`;
      const read = readSequence(chunk, chunkId, this.#options.collateOptions.labels);
      const measured = { sequence: read, length: read.length, weight: read.weight, patches: 0 };
      return this.#item(chunk as S, chunkId, rawIndex, measured, false, parts);
    });
  }
}

/** Tokens `from..to-1` of a sequence as a sample of its own. */
function cutSequence(sequence: PlainSequence, from: number, to: number): Sample {
  const { inputIds, labels, lossMask, positionIds, length } = sequence;
  const chunk: Sample = { inputIds: inputIds.subarray(from, to) };
  if (labels !== undefined) chunk.labels = labels.subarray(from, to);
  if (lossMask !== undefined) chunk.lossMask = lossMask.subarray(from, to);
  if (positionIds !== undefined) {
    const axes = positionIds.length / length;
    const size = to - from;
    const moved = new Int32Array(axes * size);
    for (let axis = 0; axis < axes; axis++) {
      const first = positionIds[axis * length + from];
      for (let i = 0; i < size; i++) moved[axis * size + i] = positionIds[axis * length + from + i] - first;
    }
    chunk.positionIds = moved;
  }
  return chunk;
}
