/** Ranks in processes of any machines, joined by Gloo; failures travel through the store. */
import { type VarlenDistributedError, type VarlenError, varlenError } from '../errors.js';
import { fileLimit, type Gathered, GlooEngine, GlooFailure } from '../native/dist-binding.js';
import type { Arrived, DirectCall, GroupFailure, Transport } from './exchange-group.js';
import { Poison } from './poison.js';
import type { CollectiveArray } from './process-group.js';
import { Progress } from './progress.js';
import { type Rendezvous, waitForAll } from './rendezvous.js';
import { SIGNATURE_BYTES } from './signature.js';
import type { StoreClient } from './store-client.js';

/** Every rank is connected to each other one; more ranks need groups of groups. */
const MAX_RANKS = 512;
/** Descriptors that a process needs beside the mesh. */
const OTHER_FILES = 64;
/** Who says nothing for this long after a connection could not be made is taken for dead, in milliseconds. */
const NOTICE_MS = 1000;

/** A connection that has ended for this long, and the collective still waits: it waits for ever. */
const STUCK_MS = 500;

/** Who serves the store stays this long after a failure: the others read there why, in milliseconds. */
const LINGER_MS = 500;

/** Without a store a rank keeps its connections this long, so that nobody takes it for the lost one. */
const SILENT_LINGER_MS = 1500;

/** A process that runs this late was stopped; what has come meanwhile is read within this time. */
const AWAKE_MS = 250;

/** A store that ends within this time before the group does is no news, in milliseconds. */
const GRACE_MS = 1000;

/** What a mesh is made from. */
export interface MeshOptions {
  readonly rendezvous: Rendezvous;
  /** Begins the keys of this group. */
  readonly prefix: string;
  readonly rank: number;
  readonly size: number;
  /** The address of this machine that peers connect to. */
  readonly host: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  /** Runs before the mesh is made, on a connection that may wait. */
  meet?(store: StoreClient, stop: AbortSignal): Promise<void>;
}

/** Throws `ERR_VARLEN_DIST_WORLD_TOO_LARGE` or `ERR_VARLEN_DIST_STORE` for a group that cannot be. */
export function checkMeshSize(size: number): void {
  if (size > MAX_RANKS) {
    const message = `init: a flat group has at most ${MAX_RANKS} ranks; got ${size}; make a group per machine and one of their first ranks`;
    throw varlenError('ERR_VARLEN_DIST_WORLD_TOO_LARGE', message, { op: 'init', size, limit: MAX_RANKS });
  }
  const limit = fileLimit();
  const needed = size + OTHER_FILES;
  if (limit >= needed) return;
  const message = `init: ${size} ranks need ${needed} file descriptors in each process; got a limit of ${limit}; raise it with ulimit -n`;
  throw varlenError('ERR_VARLEN_DIST_STORE', message, { op: 'init', limit, needed });
}

/**
 * Meets the other ranks and connects to each of them. A rank that fails here tells the others, which
 * then fail with the same cause.
 */
export async function connectMesh(options: MeshOptions): Promise<Transport> {
  const { rendezvous, prefix, rank, size, host, timeoutMs, signal } = options;
  const deadline = performance.now() + timeoutMs;
  const left = () => Math.max(1, Math.ceil(deadline - performance.now()));
  const store = await rendezvous.connect(left(), signal);
  const watcher = await rendezvous.connect(left(), signal);
  const poison = new Poison(rendezvous.commands, watcher, prefix);
  // A failure elsewhere ends the waits here.
  const failed = new AbortController();
  let transport: GlooTransport | undefined;
  poison.watch(
    (failure) => {
      if (transport === undefined) failed.abort(toError(failure, rank));
      else transport.learn(failure);
    },
    (error) => transport?.loseStore(error),
  );
  const stop = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
  const progress = new Progress(
    rendezvous.commands,
    options,
    () => transport?.checkLinks(),
    (error) => transport?.loseStore(error),
  );
  let engine: GlooEngine | undefined;
  try {
    progress.enter(0);
    await options.meet?.(store, stop);
    engine = new GlooEngine(rank, size, host);
    const key = (r: number) => `${prefix}/address/${r}`;
    await store.set(key(rank), await engine.listen(left()));
    await waitForAll(store, size, key, 'connect', left(), stop);
    const addresses = await store.multiGet(Array.from({ length: size }, (_, r) => key(r)));
    await connectAll(engine, addresses, progress, left(), stop);
    progress.leave();
    transport = new GlooTransport(options, engine, poison, progress);
    return transport;
  } catch (error) {
    const own = await setupError(error, stop, progress, rank);
    // Who was told needs not tell. The reason must be there before the connections end.
    if (!failed.signal.aborted) {
      const { message, details } = own as VarlenError;
      const missingRanks = details?.missingRanks as readonly number[] | undefined;
      const code = setupCode(own);
      await poison.propose({
        code,
        origin: rank,
        seq: 0,
        message: message.replace(/^init: /, ''),
        ...(missingRanks ? { missingRanks } : {}),
      });
    }
    engine?.abort();
    engine?.close();
    progress.stop();
    poison.close();
    if (rendezvous.serves) linger();
    throw own;
  } finally {
    store.close();
  }
}

/** Connects to all peers; `ERR_VARLEN_DIST_TIMEOUT` with `missingRanks` at the deadline. */
async function connectAll(
  engine: GlooEngine,
  addresses: readonly Uint8Array[],
  progress: Progress,
  timeoutMs: number,
  stop: AbortSignal,
): Promise<void> {
  const late = new AbortController();
  const connected = engine.connect(addresses);
  connected.catch(() => {}); // after the deadline nobody waits for it
  const observing = setTimeout(() => progress.observe(), timeoutMs - 1.5 * progress.silenceMs(timeoutMs));
  const timer = setTimeout(() => late.abort(), timeoutMs);
  try {
    await until(connected, AbortSignal.any([stop, late.signal]));
  } catch (error) {
    if (!late.signal.aborted || stop.aborted) throw error;
    const missingRanks = await progress.missing(progress.silenceMs(timeoutMs), timeoutMs / 10);
    const names = missingRanks === undefined ? '' : `; missing ranks ${missingRanks.join(', ')}`;
    const message = `init: not all ranks connected within ${timeoutMs} ms${names}`;
    const details = { op: 'init', seq: 0, ...(missingRanks ? { missingRanks } : {}) };
    throw varlenError('ERR_VARLEN_DIST_TIMEOUT', message, details);
  } finally {
    clearTimeout(observing);
    clearTimeout(timer);
  }
}

/** Keeps a process that has nothing else to do. */
function linger(): void {
  setTimeout(() => {}, LINGER_MS);
}

function setupCode(error: unknown): GroupFailure['code'] {
  const { code } = error as VarlenError;
  switch (code) {
    case 'ERR_VARLEN_DIST_TIMEOUT':
    case 'ERR_VARLEN_DIST_PEER_LOST':
    case 'ERR_VARLEN_DIST_MISMATCH':
    case 'ERR_VARLEN_DIST_STORE':
      return code;
    default:
      return 'ERR_VARLEN_DIST_ABORTED';
  }
}

/** What a rank that could not connect says: it was told, or it names those that have fallen silent. */
async function setupError(
  error: unknown,
  stop: AbortSignal,
  progress: Progress,
  rank: number,
): Promise<unknown> {
  if (!(error instanceof GlooFailure)) return stop.aborted ? stop.reason : error;
  // A peer that gave up wrote why before it closed its connections.
  const silent = progress.missing(NOTICE_MS, 2 * NOTICE_MS);
  const missingRanks = await until(silent, stop).catch(() => undefined);
  if (stop.aborted) return stop.reason;
  const code = error.kind === 'timeout' ? 'ERR_VARLEN_DIST_TIMEOUT' : 'ERR_VARLEN_DIST_STORE';
  const names = missingRanks === undefined ? '' : `; missing ranks ${missingRanks.join(', ')}`;
  const message = `init: the ranks cannot connect to each other: ${error.message}${names}`;
  const details = { op: 'init', seq: 0, rank, ...(missingRanks ? { missingRanks } : {}) };
  return varlenError(code, message, details, { cause: error });
}

/** Settles like `promise`, or rejects at once when the signal fires. */
async function until<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

function toError(
  { code, origin, seq, message, missingRanks }: GroupFailure,
  rank: number,
): VarlenDistributedError {
  const details = { op: 'init', seq, rank, origin, ...(missingRanks ? { missingRanks } : {}) };
  return varlenError(code, `init: ${message}`, details);
}

class GlooTransport implements Transport {
  readonly rank: number;
  readonly size: number;
  readonly backend = 'gloo' as const;
  /** What does not fit into a frame beside its signature. */
  readonly directAbove: number;
  onFailure: (failure: GroupFailure) => void = () => {};
  readonly #options: MeshOptions;
  readonly #engine: GlooEngine;
  readonly #poison: Poison;
  readonly #progress: Progress;
  /** The exchange in progress, or the last one. */
  #seq = 0;
  /** Since when a connection has ended under the exchange in progress. */
  #endedAt: number | undefined;
  /** The failure is known, or this rank has closed the group. */
  #ending = false;
  #told = false;
  /** The reason is on its way to the store. */
  #writing = false;
  #storeLost = false;
  #released = false;

  constructor(options: MeshOptions, engine: GlooEngine, poison: Poison, progress: Progress) {
    this.rank = options.rank;
    this.size = options.size;
    this.#options = options;
    this.#engine = engine;
    this.#poison = poison;
    this.#progress = progress;
    this.directAbove = engine.inlineBytes - SIGNATURE_BYTES;
    options.rendezvous.retain();
  }

  now(): number {
    return performance.now();
  }

  exchange(seq: number, message: Uint8Array, timeoutMs: number, maxBytes: number): Promise<Arrived> {
    return this.#run(seq, this.#engine.exchange(message, maxBytes + SIGNATURE_BYTES), timeoutMs);
  }

  collective(seq: number, signature: Uint8Array, call: DirectCall, timeoutMs: number): Promise<Arrived> {
    const { op, dtype, reduction, root, input, output } = call;
    const arrays = {
      operation: op,
      element: dtype,
      reduction,
      root,
      output: bytesOf(output),
      ...(input === undefined ? {} : { input: bytesOf(input) }),
    };
    return this.#run(seq, this.#engine.collective(signature, arrays), timeoutMs);
  }

  fail(failure: GroupFailure): void {
    if (this.#ending) return;
    this.#ending = true;
    this.#writing = true;
    void this.#poison.propose(failure).then(() => {
      this.#writing = false;
      this.#release();
    });
  }

  async subgroup(ranks: readonly number[], seq: number, timeoutMs: number): Promise<Transport> {
    const { rendezvous, prefix, host } = this.#options;
    return connectMesh({
      rendezvous,
      prefix: `${prefix}/${seq}:${ranks.join('.')}`,
      rank: ranks.indexOf(this.rank),
      size: ranks.length,
      host,
      timeoutMs,
      signal: undefined,
    });
  }

  ended(): void {
    this.#ending = true;
    this.#told = true;
    // The peers must find the reason before they find the connection closed.
    if (!this.#writing) this.#release();
  }

  close(): void {
    this.ended();
  }

  /** Another rank has written the first failure. */
  learn(failure: GroupFailure): void {
    this.#ending = true;
    this.#tell(failure);
  }

  /** The mesh does not need the store; failures are then found without the names of ranks. */
  loseStore(error: Error): void {
    if (this.#storeLost) return;
    this.#storeLost = true;
    if (this.#ending) return;
    const text = `the store of the process group is gone (${error.message}); failures will be noticed without the names of ranks`;
    // When the job ends, rank 0 may be gone a moment before this rank has closed.
    setTimeout(() => {
      if (this.#ending) return;
      process.emitWarning(text, { type: 'VarlenWarning', code: 'VARLEN_DIST_STORE_LOST' });
    }, GRACE_MS).unref();
  }

  /**
   * Ends an exchange that waits on a connection that has ended: Gloo does not wake who has received a part
   * of a message.
   */
  checkLinks(): void {
    const now = performance.now();
    if (this.#ending || this.#engine.lost().length === 0) {
      this.#endedAt = undefined;
      return;
    }
    this.#endedAt ??= now;
    if (now - this.#endedAt < STUCK_MS) return;
    void this.#lose(new GlooFailure('connection', 'the connection has ended'));
  }

  async #run(seq: number, job: Promise<Gathered>, timeoutMs: number): Promise<Arrived> {
    this.#seq = seq;
    this.#endedAt = undefined;
    this.#progress.enter(seq);
    const deadline = this.#arm(timeoutMs);
    try {
      return decode(await job, this.size, this.#engine.inlineBytes);
    } catch (error) {
      void this.#lose(error as Error);
      return new Promise(() => {});
    } finally {
      deadline.clear();
      this.#progress.leave();
    }
  }

  /** The deadline of one exchange. Before it comes, the ranks that keep silent are noted. */
  #arm(timeoutMs: number): { clear(): void } {
    const end = performance.now() + timeoutMs;
    let awake = false;
    let timer: NodeJS.Timeout;
    const wait = (ms: number, action: () => void) => {
      timer = setTimeout(action, Math.max(1, ms)).unref();
    };
    const expire = () => {
      // A process that was stopped finds its deadline passed, and what has come meanwhile unread.
      if (!awake && performance.now() > end + AWAKE_MS) {
        awake = true;
        wait(AWAKE_MS, expire);
      } else {
        void this.#expire(timeoutMs);
      }
    };
    wait(timeoutMs - 1.5 * this.#progress.silenceMs(timeoutMs), () => {
      this.#progress.observe();
      wait(end - performance.now(), expire);
    });
    return { clear: () => clearTimeout(timer) };
  }

  async #expire(timeoutMs: number): Promise<void> {
    if (this.#ending) return;
    if (this.#engine.lost().length > 0) {
      await this.#lose(new GlooFailure('connection', `the deadline of ${timeoutMs} ms has passed`));
      return;
    }
    const seq = this.#seq;
    const silenceMs = this.#progress.silenceMs(timeoutMs);
    const missingRanks = await this.#progress.missing(silenceMs, Math.max(timeoutMs / 10, silenceMs));
    if (this.#ending) return;
    this.#ending = true;
    const names = missingRanks === undefined ? '' : `; missing ranks ${missingRanks.join(', ')}`;
    await this.#propose({
      code: 'ERR_VARLEN_DIST_TIMEOUT',
      origin: this.rank,
      seq,
      message: `exchange #${seq} passed its deadline of ${timeoutMs} ms${names}`,
      ...(missingRanks === undefined ? {} : { missingRanks }),
    });
  }

  /** This rank noticed a failure. */
  async #lose(error: Error): Promise<void> {
    if (this.#ending) return;
    this.#ending = true;
    const seq = this.#seq;
    const connection = error instanceof GlooFailure && error.kind === 'connection';
    // Whose connection has ended before anybody wrote why has died.
    const lost = connection ? this.#engine.lost() : [];
    const names = lost.length === 0 ? '' : `; missing ranks ${lost.join(', ')}`;
    await this.#propose({
      code: connection ? 'ERR_VARLEN_DIST_PEER_LOST' : 'ERR_VARLEN_DIST_ABORTED',
      origin: this.rank,
      seq,
      message: connection
        ? `a peer was lost in exchange #${seq}${names}: ${error.message}`
        : `exchange #${seq} failed on rank ${this.rank}: ${error.message}`,
      ...(lost.length === 0 ? {} : { missingRanks: lost }),
      cause: error,
    });
  }

  /** Tells the first account of the failure. */
  async #propose(failure: GroupFailure): Promise<void> {
    this.#writing = true;
    const first = await this.#poison.propose(failure);
    this.#writing = false;
    if (this.#told) this.#release(); // closed meanwhile
    this.#tell(first ?? failure, first === undefined ? SILENT_LINGER_MS : 0);
  }

  #tell(failure: GroupFailure, lingerMs = 0): void {
    if (this.#told) return;
    this.#told = true;
    if (lingerMs > 0) setTimeout(() => this.#release(), lingerMs);
    else this.#release();
    // Whom the others gave up on has lost them all.
    const givenUp =
      failure.code === 'ERR_VARLEN_DIST_TIMEOUT' && failure.missingRanks?.includes(this.rank) === true;
    const own = givenUp ? { ...failure, code: 'ERR_VARLEN_DIST_PEER_LOST' as const } : failure;
    if (this.#options.rendezvous.serves) linger();
    this.onFailure(own);
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#progress.stop();
    this.#engine.abort();
    this.#engine.close();
    this.#poison.close();
    this.#options.rendezvous.release();
  }
}

/** The messages of an exchange. */
function decode({ frames, whole }: Gathered, size: number, inlineBytes: number): Arrived {
  const frameBytes = frames.length / size;
  const view = new DataView(frames.buffer, frames.byteOffset, frames.byteLength);
  const lengths = Array.from({ length: size }, (_, rank) =>
    Number(view.getBigUint64(rank * frameBytes, true)),
  );
  if (whole !== undefined) {
    let end = 0;
    return {
      messages: lengths.map((length) => {
        end += length;
        return whole.subarray(end - length, end);
      }),
    };
  }
  const messages = lengths.map((length, rank) => {
    const start = rank * frameBytes + (frameBytes - inlineBytes);
    return frames.subarray(start, start + Math.min(length, inlineBytes));
  });
  if (lengths.every((length) => length <= inlineBytes)) return { messages };
  return { messages, refused: lengths.map((length) => length - SIGNATURE_BYTES) };
}

function bytesOf(array: CollectiveArray): Uint8Array {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}
