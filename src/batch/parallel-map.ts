/** Preprocessing ahead of the batcher: several samples at a time, each on its own. */
import { availableParallelism } from 'node:os';
import { argumentError } from '../errors.js';
import { positiveInteger, show } from './limits.js';
import {
  checkSource,
  iterate,
  type OpenableSource,
  positions,
  type Source,
  snapshot,
  sourceLength,
} from './source.js';
import { WorkerPool } from './worker-pool.js';

/** A function that worker threads can load by itself. */
export interface MapModule {
  /** Absolute path, `file:` URL or package name of the module. */
  module: string | URL;
  /** Its exported function, `(value) => result | Promise<result>`. Default `'default'`. */
  name?: string;
}

/** Options of {@link parallelMap}. */
export interface ParallelMapOptions {
  /** Threads, for a {@link MapModule} only. Default one less than the machine has, at least 1. */
  workers?: number;
  /** Results in source order (default), or as they finish. Only ordered results can be resumed. */
  ordered?: boolean;
  /** Samples being worked on or waiting to be taken. Default 64. */
  inFlight?: number;
}

interface Slot<B> {
  readonly result: Promise<B>;
  /** The source's state behind this sample. */
  readonly sourceState: unknown;
}

/**
 * A source of `fn(sample)`, worked on `inFlight` samples at a time.
 *
 * It goes per sample, never per batch: a whole batch of one worker would hold up all the others when
 * one of its samples is slow. A function runs on this thread (good for asynchronous work); a module
 * runs on worker threads, and samples and results travel by structured clone. A failure of `fn` or of
 * the source ends the iteration with that error.
 *
 * Ordered results keep the source's `state`, `restore` and `length`, so a batcher over them can resume.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE`.
 *
 * @example
 * const samples = parallelMap(lines, { module: join(__dirname, 'tokenize.js') }, { workers: 4 });
 */
export function parallelMap<A, B>(
  source: Source<A>,
  fn: ((value: A) => B | Promise<B>) | MapModule,
  options: ParallelMapOptions = {},
): OpenableSource<B> {
  checkSource(source);
  const { ordered = true, inFlight = 64 } = options;
  positiveInteger('parallelMap', 'inFlight', inFlight);
  if (typeof ordered !== 'boolean') {
    throw argumentError(
      'ERR_VARLEN_TYPE',
      'parallelMap',
      'ordered',
      `must be a boolean; got ${show(ordered)}`,
    );
  }
  const workers = options.workers ?? Math.max(1, availableParallelism() - 1);
  positiveInteger('parallelMap', 'workers', workers);
  if (typeof fn === 'function' && options.workers !== undefined) {
    const problem = 'need a module; a function runs on the calling thread';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', 'parallelMap', 'workers', problem);
  }
  const isModule =
    typeof fn === 'object' && fn !== null && (typeof fn.module === 'string' || fn.module instanceof URL);
  if (typeof fn !== 'function' && !isModule) {
    const problem = `must be a function or { module, name }; got ${show(fn)}`;
    throw argumentError('ERR_VARLEN_TYPE', 'parallelMap', 'fn', problem);
  }
  const place = ordered ? positions(source) : undefined;
  let taken: unknown;
  const open = (epoch: number): AsyncIterableIterator<B> => {
    const pool = typeof fn === 'function' ? undefined : new WorkerPool<A, B>(fn, workers);
    const run =
      typeof fn === 'function' ? async (value: A): Promise<B> => fn(value) : (value: A) => pool!.run(value);
    const pump = new Pump(iterate(source, epoch), run, ordered, inFlight, () => snapshot(place?.state()));
    const finish = async (): Promise<void> => {
      await Promise.all([pump.close(), pool?.close()]);
    };
    const iterator: AsyncIterableIterator<B> = {
      [Symbol.asyncIterator]: () => iterator,
      next: async () => {
        try {
          const slot = await pump.next();
          if (slot === undefined) {
            await finish();
            return { done: true, value: undefined };
          }
          const value = await slot.result;
          taken = slot.sourceState;
          return { done: false, value };
        } catch (error) {
          await finish().catch(() => {}); // the first error is the one to tell
          throw error;
        }
      },
      return: async () => {
        await finish();
        return { done: true, value: undefined };
      },
    };
    return iterator;
  };
  const length = sourceLength(source);
  return {
    open,
    ...(place === undefined
      ? {}
      : {
          state: () => taken,
          restore: (state: unknown) => {
            taken = state;
            place.restore(state);
          },
        }),
    ...(length < 0 ? {} : { length }),
  };
}

/** Keeps up to `inFlight` samples on their way, pulling the source one sample at a time. */
class Pump<A, B> {
  readonly #iterator: Iterator<A> | AsyncIterator<A>;
  readonly #run: (value: A) => Promise<B>;
  readonly #ordered: boolean;
  readonly #inFlight: number;
  readonly #sourceState: () => unknown;
  /** Slots to hand out: in source order, or in order of completion. */
  #ready: Slot<B>[] = [];
  #outstanding = 0;
  #pulling = false;
  #ended = false;
  #failure: { readonly reason: unknown } | undefined;
  #wake: () => void = () => {};

  constructor(
    iterator: Iterator<A> | AsyncIterator<A>,
    run: (value: A) => Promise<B>,
    ordered: boolean,
    inFlight: number,
    sourceState: () => unknown,
  ) {
    this.#iterator = iterator;
    this.#run = run;
    this.#ordered = ordered;
    this.#inFlight = inFlight;
    this.#sourceState = sourceState;
  }

  async next(): Promise<Slot<B> | undefined> {
    for (;;) {
      this.#pull();
      const slot = this.#ready.shift();
      if (slot !== undefined) {
        // An ordered slot may still be running; it leaves the flight when it is done and taken.
        if (this.#ordered) await slot.result.catch(() => {});
        this.#outstanding--;
        this.#pull();
        return slot;
      }
      if (this.#ended && this.#outstanding === 0) {
        if (this.#failure !== undefined) throw this.#failure.reason;
        return undefined;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #pull(): void {
    if (this.#pulling || this.#ended || this.#outstanding >= this.#inFlight) return;
    this.#pulling = true;
    this.#pullOne()
      .catch((reason) => {
        this.#ended = true;
        this.#failure = { reason };
      })
      .finally(() => {
        this.#pulling = false;
        this.#pull();
        this.#wake();
      });
  }

  async #pullOne(): Promise<void> {
    const result = await this.#iterator.next();
    if (result.done) {
      this.#ended = true;
      return;
    }
    const value = await result.value;
    const slot = { result: this.#run(value), sourceState: this.#sourceState() };
    this.#outstanding++;
    const settled = (): void => {
      if (!this.#ordered) this.#ready.push(slot);
      this.#wake();
    };
    slot.result.then(settled, settled);
    if (this.#ordered) this.#ready.push(slot);
  }

  async close(): Promise<void> {
    const wasEnded = this.#ended;
    this.#ended = true;
    if (!wasEnded) await this.#iterator.return?.();
  }
}
