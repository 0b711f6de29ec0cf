/** Where samples come from, read one at a time, with a position to come back to. */
import { argumentError, varlenError } from '../errors.js';
import { show } from './limits.js';

/** A source that can be opened for each pass, and that may be able to go back. */
export interface OpenableSource<S> {
  /** The samples of one pass, from the restored position when `restore` was called before. */
  open(epoch: number): AsyncIterable<S> | Iterable<S>;
  /** Position after the last sample handed out; must survive `structuredClone` and JSON. */
  state?(): unknown;
  /** Called before `open`. */
  restore?(state: unknown): void;
  /** Samples per pass, if known. */
  readonly length?: number;
}

/** Anything that yields processed samples. */
export type Source<S> = AsyncIterable<S> | Iterable<S> | OpenableSource<S>;

type AnyIterator<S> = Iterator<S> | AsyncIterator<S>;

function badSource(problem: string): never {
  throw argumentError('ERR_VARLEN_TYPE', 'DynamicBatcher', 'source', problem);
}

/** Throws `ERR_VARLEN_TYPE` when the value cannot be read from. */
export function checkSource(source: unknown): void {
  const usable =
    typeof source === 'object' &&
    source !== null &&
    (typeof (source as OpenableSource<unknown>).open === 'function' ||
      Symbol.asyncIterator in source ||
      Symbol.iterator in source);
  if (!usable) badSource(`must be iterable or have open(); got ${show(source)}`);
}

/** The source's own position methods, when it has both. */
export function positions(
  source: object,
): Required<Pick<OpenableSource<unknown>, 'state' | 'restore'>> | undefined {
  const { state, restore } = source as Partial<OpenableSource<unknown>>;
  if (typeof state !== 'function' || typeof restore !== 'function') return undefined;
  return { state: () => state.call(source), restore: (value) => restore.call(source, value) };
}

/** Samples per pass as the source says, or -1. */
export function sourceLength(source: object): number {
  const length: unknown = (source as { length?: unknown }).length;
  return typeof length === 'number' && Number.isSafeInteger(length) && length >= 0 ? length : -1;
}

export function iterate<S>(source: Source<S>, epoch: number): AnyIterator<S> {
  const opened =
    typeof (source as OpenableSource<S>).open === 'function'
      ? (source as OpenableSource<S>).open(epoch)
      : source;
  if (typeof opened !== 'object' || opened === null)
    badSource(`open() must return an iterable; got ${show(opened)}`);
  if (Symbol.asyncIterator in opened) return (opened as AsyncIterable<S>)[Symbol.asyncIterator]();
  if (Symbol.iterator in opened) return (opened as Iterable<S>)[Symbol.iterator]();
  return badSource('open() must return an iterable; got an object that is none');
}

/** A copy that later changes of the source's own object cannot reach. */
export function snapshot(state: unknown): unknown {
  return typeof state === 'object' ? structuredClone(state) : state;
}

function isThenable<T>(value: unknown): value is PromiseLike<T> {
  return typeof value === 'object' && value !== null && typeof (value as PromiseLike<T>).then === 'function';
}

/** What an iterator's result holds, or undefined at the end. */
function opened<S>(settled: unknown): { value: S } | undefined | Promise<{ value: S }> {
  if (typeof settled !== 'object' || settled === null) {
    return badSource(`iterator result must be an object; got ${show(settled)}`);
  }
  const { done, value } = settled as IteratorResult<S | PromiseLike<S>>;
  if (done) return undefined;
  // A synchronous iterable may yield promises.
  return isThenable<S>(value) ? Promise.resolve(value).then((awaited) => ({ value: awaited })) : { value };
}

/** Where a pass is continued. */
export interface RawStart<S> {
  /** The source's own state, when it has one. */
  readonly sourceState: unknown;
  /** Samples of this pass that lie before the start. */
  readonly read: number;
  /** Samples that were read before the state was saved and come first now (`statePayload`). */
  readonly payload?: { readonly samples: readonly S[]; readonly ended: boolean };
}

/** How {@link RawReader} comes back to a position. */
export type Replay = 'state' | 'skip' | 'payload' | 'none';

/**
 * Reads the samples of one pass as the source gives them.
 *
 * With `'payload'` it keeps what it has read, until {@link forgetBefore} says that nobody will ask.
 */
export class RawReader<S> {
  readonly epoch: number;
  readonly #source: Source<S>;
  readonly #replay: Replay;
  readonly #positions: ReturnType<typeof positions>;
  #iterator: AnyIterator<S> | undefined;
  readonly #pendingPayload: readonly S[];
  #nextPayload = 0;
  #payloadEnded: boolean;
  #skip: number;
  #read: number;
  #sourceState: unknown;
  #ended = false;
  #closed = false;
  #log: S[] = [];
  #logStart: number;

  constructor(source: Source<S>, epoch: number, replay: Replay, start: RawStart<S>) {
    this.epoch = epoch;
    this.#source = source;
    this.#replay = replay;
    this.#positions = replay === 'state' ? positions(source) : undefined;
    this.#read = start.read;
    this.#logStart = this.#read;
    this.#pendingPayload = start.payload?.samples ?? [];
    this.#payloadEnded = start.payload?.ended ?? false;
    this.#skip = replay === 'skip' ? this.#read : 0;
    this.#sourceState = start.sourceState;
    if (start.read > 0 && this.#positions !== undefined) {
      this.#positions.restore(start.sourceState);
    }
  }

  /** Samples of the pass before the next one. */
  get read(): number {
    return this.#read;
  }

  /** The source's state before the next sample. */
  get sourceState(): unknown {
    return this.#sourceState;
  }

  /** What was read at or after `from`, and what waits to be read again. */
  logFrom(from: number): { samples: S[]; ended: boolean } {
    const again = this.#pendingPayload.slice(this.#nextPayload);
    return {
      samples: [...this.#log.slice(Math.max(0, from - this.#logStart)), ...again],
      ended: this.#ended || this.#payloadEnded,
    };
  }

  forgetBefore(read: number): void {
    if (read <= this.#logStart) return;
    this.#log.splice(0, read - this.#logStart);
    this.#logStart = read;
  }

  /**
   * The next sample, or undefined at the end of the pass. A synchronous source answers at once: a
   * promise per sample costs more than the rest of its way into a window.
   */
  next(): { value: S } | undefined | Promise<{ value: S } | undefined> {
    if (this.#ended || this.#closed) return undefined;
    if (this.#nextPayload < this.#pendingPayload.length) {
      return this.#keep(this.#pendingPayload[this.#nextPayload++]);
    }
    if (this.#payloadEnded) {
      this.#ended = true;
      return undefined;
    }
    if (this.#skip > 0) return this.#nextAfterSkip();
    const pulled = this.#pull();
    return pulled instanceof Promise ? pulled.then((result) => this.#accept(result)) : this.#accept(pulled);
  }

  async #nextAfterSkip(): Promise<{ value: S } | undefined> {
    while (this.#skip > 0) {
      if ((await this.#pull()) === undefined) {
        const problem = `ended ${this.#skip} samples before the position to resume from`;
        throw varlenError('ERR_VARLEN_STATE_MISMATCH', `DynamicBatcher: source ${problem}`, {
          op: 'DynamicBatcher',
          argument: 'source',
          field: 'source',
        });
      }
      this.#skip--;
    }
    return this.#accept(await this.#pull());
  }

  /** In the turn in which the source gave it, so that a state never misses it. */
  #accept(result: { value: S } | undefined): { value: S } | undefined {
    if (result === undefined) {
      this.#ended = true;
      return undefined;
    }
    return this.#keep(result.value);
  }

  #keep(value: S): { value: S } {
    this.#read++;
    if (this.#replay === 'payload') this.#log.push(value);
    if (this.#positions !== undefined) this.#sourceState = snapshot(this.#positions.state());
    return { value };
  }

  #pull(): { value: S } | undefined | Promise<{ value: S } | undefined> {
    this.#iterator ??= iterate(this.#source, this.epoch);
    const result: unknown = this.#iterator.next();
    return isThenable(result)
      ? Promise.resolve(result).then((settled) => opened<S>(settled))
      : opened(result);
  }

  /** Tells the source that nobody reads on. A source that is stuck is not waited for. */
  async close(): Promise<void> {
    const iterator = this.#iterator;
    if (this.#ended || this.#closed) return;
    this.#closed = true;
    await iterator?.return?.();
  }
}
