/** Ranks in processes of any machines, joined by Gloo; failures travel through the store. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type VarlenDistributedError, type VarlenError, varlenError } from '../errors.js';
import { fileLimit, type Gathered, GlooEngine, GlooFailure } from '../native/dist-binding.js';
import type { Arrived, DirectCall, GroupFailure, Transport } from './exchange-group.js';
import { ANSWER_MS, Poison, within } from './poison.js';
import type { CollectiveArray } from './process-group.js';
import { type Rendezvous, waitForAll } from './rendezvous.js';
import { SIGNATURE_BYTES } from './signature.js';
import type { StoreClient } from './store-client.js';

/** Every rank holds a connection to each other one; more ranks need groups of groups. */
const MAX_RANKS = 512;
/** Descriptors that a process needs beside the mesh. */
const OTHER_FILES = 64;
/** How often a rank that waits says so, in milliseconds; with many ranks the store gets a write each. */
const BEAT_MS = 100;

/** What a rank says of itself: in no collective, in one, in one that has failed. */
const [away, waiting, failing] = ['0', '1', '2'];

/** A rank that fails gets this long to say so before others take it for dead, in milliseconds. */
const NOTICE_MS = 30;

/** Who serves the store stays this long after a failure: the others read there why, in milliseconds. */
const LINGER_MS = 300;

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
  if (limit >= size + OTHER_FILES) return;
  const message = `init: ${size} ranks need ${size + OTHER_FILES} file descriptors in each process; got a limit of ${limit}; raise it with ulimit -n`;
  throw varlenError('ERR_VARLEN_DIST_STORE', message, { op: 'init', limit, needed: size + OTHER_FILES });
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
  let engine: GlooEngine | undefined;
  try {
    await options.meet?.(store, stop);
    engine = new GlooEngine(rank, size, host);
    const key = (r: number) => `${prefix}/address/${r}`;
    await store.set(key(rank), await engine.listen(left()));
    await waitForAll(store, size, key, 'connect', left(), stop);
    const addresses = await store.multiGet(Array.from({ length: size }, (_, r) => key(r)));
    const made = engine;
    const ends = await interruptible(made.connect(addresses, left()), stop, () => made.abort());
    transport = new GlooTransport(options, engine, poison, ends, addresses);
    return transport;
  } catch (error) {
    engine?.abort();
    engine?.close();
    // A peer that gave up closed its connections, and wrote why.
    if (error instanceof GlooFailure && !stop.aborted) await sleep(LINGER_MS);
    const own = setupError(error, stop, rank);
    // Who was told needs not tell.
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
    poison.close();
    if (rendezvous.serves) linger();
    throw own;
  } finally {
    store.close();
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

function setupError(error: unknown, stop: AbortSignal, rank: number): unknown {
  if (stop.aborted) return stop.reason;
  if (!(error instanceof GlooFailure)) return error;
  const code = error.kind === 'timeout' ? 'ERR_VARLEN_DIST_TIMEOUT' : 'ERR_VARLEN_DIST_STORE';
  const message = `init: the ranks cannot connect to each other: ${error.message}`;
  return varlenError(code, message, { op: 'init', seq: 0, rank }, { cause: error });
}

/** Settles like `promise`, or rejects at once when the signal fires. */
async function interruptible<T>(promise: Promise<T>, signal: AbortSignal, stop: () => void): Promise<T> {
  signal.throwIfAborted();
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => {
      stop();
      reject(signal.reason);
    };
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
  /** What Gloo's errors may call each peer. */
  readonly #peers: readonly (readonly string[])[];
  #seq = 0;
  /** In a collective. */
  #waiting = false;
  /** It has noticed a failure. */
  #failing = false;
  #beats = 0;
  #beating: NodeJS.Timeout | undefined;
  /** When this process was last seen running. */
  #awake = 0;
  #pausedMs = 0;
  #ending = false;
  #hear: () => void = () => {};
  /** Resolves when the first failure is known. */
  readonly #heard: Promise<void> = new Promise((resolve) => {
    this.#hear = resolve;
  });
  #told = false;
  #storeLost = false;

  constructor(
    options: MeshOptions,
    engine: GlooEngine,
    poison: Poison,
    ends: Uint8Array,
    addresses: readonly Uint8Array[],
  ) {
    this.rank = options.rank;
    this.size = options.size;
    this.#options = options;
    this.#engine = engine;
    this.#poison = poison;
    const { rank, size } = options;
    this.#peers = addresses.map((all, peer) => {
      if (peer === rank) return [];
      // A peer lists an address for each of its peers, itself left out.
      const listed = (all.length / (size - 1)) * (rank < peer ? rank : rank - 1);
      return [...spellAddress(ends, (ends.length / size) * peer), ...spellAddress(all, listed)];
    });
    this.directAbove = engine.inlineBytes - SIGNATURE_BYTES;
    options.rendezvous.retain();
  }

  now(): number {
    return performance.now();
  }

  exchange(seq: number, message: Uint8Array, timeoutMs: number, maxBytes: number): Promise<Arrived> {
    return this.#run(seq, this.#engine.exchange(message, maxBytes + SIGNATURE_BYTES, timeoutMs), timeoutMs);
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
    return this.#run(seq, this.#engine.collective(signature, arrays, timeoutMs), timeoutMs);
  }

  fail(failure: GroupFailure): void {
    if (this.#ending) return;
    this.#ending = true;
    // The peers must find the reason before they find the connection closed.
    void this.#poison.propose(failure).then(() => this.#release());
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
    this.#release();
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

  async #run(seq: number, job: Promise<Gathered>, timeoutMs: number): Promise<Arrived> {
    this.#seq = seq;
    this.#waiting = true;
    this.#awake = performance.now();
    this.#pausedMs = 0;
    this.#beating ??= setInterval(() => this.#beat(), this.#beatMs).unref();
    try {
      const gathered = await job;
      this.#waiting = false;
      return decode(gathered, this.size, this.#engine.inlineBytes);
    } catch (error) {
      await this.#lose(error as Error, seq, timeoutMs);
      return new Promise(() => {});
    }
  }

  get #beatMs(): number {
    return Math.max(BEAT_MS, this.size);
  }

  /** Keeps the longest time in this collective in which the process did nothing at all. */
  #notePause(): void {
    const now = performance.now();
    this.#pausedMs = Math.max(this.#pausedMs, now - this.#awake);
    this.#awake = now;
  }

  /** Writes where this rank is, and that it is alive: others can tell who is late. */
  #beat(): void {
    this.#notePause();
    const { rendezvous, prefix, rank } = this.#options;
    const state = `${this.#seq} ${this.#waiting ? (this.#failing ? failing : waiting) : away} ${++this.#beats}`;
    if (!this.#waiting) {
      clearInterval(this.#beating); // away, until it comes back
      this.#beating = undefined;
    }
    rendezvous.commands.set(`${prefix}/progress/${rank}`, state).catch((error) => this.loseStore(error));
  }

  /** This rank noticed a failure: it proposes its account of it and tells the first one. */
  async #lose(error: Error, seq: number, timeoutMs: number): Promise<void> {
    if (this.#ending) return;
    this.#ending = true;
    this.#notePause();
    const asleepMs = this.#pausedMs;
    const kind = error instanceof GlooFailure ? error.kind : 'internal';
    this.#failing = true;
    this.#beat();
    if (kind === 'connection' && (await this.#peerIsFailing(this.#lostRank(error.message)))) {
      // Gloo closes the connections of a rank that fails: that rank knows better who is missing.
      await within(2 * ANSWER_MS, this.#heard);
      if (this.#told) return;
    }
    const missingRanks =
      kind === 'timeout' ? await this.#lateRanks(timeoutMs) : this.#lostRank(error.message);
    const names = missingRanks === undefined ? '' : `; missing ranks ${missingRanks.join(', ')}`;
    const first = await this.#poison.propose({
      code:
        kind === 'timeout'
          ? 'ERR_VARLEN_DIST_TIMEOUT'
          : kind === 'connection'
            ? 'ERR_VARLEN_DIST_PEER_LOST'
            : 'ERR_VARLEN_DIST_ABORTED',
      origin: this.rank,
      seq,
      message:
        kind === 'timeout'
          ? `exchange #${seq} passed its deadline of ${timeoutMs} ms${names}`
          : kind === 'connection'
            ? `a peer was lost in exchange #${seq}${names}: ${error.message}`
            : `exchange #${seq} failed on rank ${this.rank}: ${error.message}`,
      ...(missingRanks === undefined ? {} : { missingRanks }),
      cause: error,
    });
    // Who was stopped wakes to a deadline of its own; without a store nobody tells that the job is over.
    const stopped = kind === 'timeout' && this.#storeLost && asleepMs > timeoutMs / 2;
    const message = `this process was stopped for ${Math.round(asleepMs)} ms in exchange #${seq}; its peers have given it up`;
    this.#tell(stopped ? { ...first, code: 'ERR_VARLEN_DIST_PEER_LOST', message } : first);
  }

  /**
   * Ranks that are not waiting as this one is: they have not come, or do not live. A rank that waits,
   * be it one collective behind, beats; so whoever does not beat for a while is missing.
   */
  async #lateRanks(timeoutMs: number): Promise<readonly number[] | undefined> {
    const before = await this.#readProgress();
    if (before === undefined) return undefined;
    const patience = Math.min(1000, timeoutMs / 10);
    await sleep(Math.max(patience, 2 * this.#beatMs));
    const after = await this.#readProgress();
    if (after === undefined) return undefined;
    const missing = [...after.keys()].filter((rank) => {
      const [, state = away] = after[rank].split(' ');
      return rank !== this.rank && (state === away || after[rank] === before[rank]);
    });
    return missing.length === 0 ? undefined : missing;
  }

  /** True when the peer that seems lost, or some peer if none is named, has noticed a failure itself. */
  async #peerIsFailing(lost: readonly number[] | undefined): Promise<boolean> {
    await sleep(NOTICE_MS);
    const states = await this.#readProgress(lost);
    return states?.some((text, rank) => rank !== this.rank && text.split(' ')[1] === failing) === true;
  }

  /** What each rank wrote last; undefined when the store does not answer. */
  async #readProgress(ranks?: readonly number[]): Promise<string[] | undefined> {
    const { commands } = this.#options.rendezvous;
    const read = async (): Promise<string[]> => {
      const all: string[] = [];
      for (let rank = 0; rank < this.size; rank++) {
        const key = `${this.#options.prefix}/progress/${rank}`;
        if (ranks?.includes(rank) === false) {
          all.push('');
          continue;
        }
        const exists = await commands.check([key]);
        all.push(exists ? Buffer.from((await commands.multiGet([key]))[0]).toString() : '');
      }
      return all;
    };
    const progress = read();
    progress.catch((error) => this.loseStore(error));
    return within(ANSWER_MS, progress);
  }

  /** The peer that a message of Gloo's speaks of. */
  #lostRank(message: string): readonly number[] | undefined {
    const peer = this.#peers.findIndex((names) => names.some((name) => message.includes(name)));
    return peer < 0 ? undefined : [peer];
  }

  #tell(failure: GroupFailure): void {
    if (this.#told) return;
    this.#told = true;
    this.#hear();
    this.#release();
    // Whom the others gave up on has lost them all.
    const givenUp =
      failure.code === 'ERR_VARLEN_DIST_TIMEOUT' && failure.missingRanks?.includes(this.rank) === true;
    const own = givenUp ? { ...failure, code: 'ERR_VARLEN_DIST_PEER_LOST' as const } : failure;
    if (this.#options.rendezvous.serves) linger();
    this.onFailure(own);
  }

  #released = false;
  #release(): void {
    if (this.#released) return;
    this.#released = true;
    clearInterval(this.#beating);
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

/**
 * How Gloo spells the socket address at `at`: `[host]:port`, where the port's bytes may be in the order of
 * the network or in that of the machine. Empty when there is no address.
 */
function spellAddress(bytes: Uint8Array, at: number): string[] {
  const family = bytes[at] + bytes[at + 1] * 256;
  if (family === 0) return [];
  // AF_INET; an IPv6 address has several spellings, of which the port is left.
  const host = family === 2 ? `[${bytes.subarray(at + 4, at + 8).join('.')}]` : ']';
  const [first, second] = bytes.subarray(at + 2, at + 4);
  return [first * 256 + second, second * 256 + first].map((port) => `${host}:${port}`);
}

function bytesOf(array: CollectiveArray): Uint8Array {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}
