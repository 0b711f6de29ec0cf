/**
 * A process group over one primitive: "bring one message of every rank to every rank".
 *
 * Everything that is the same for the in-memory engines lives here: argument checks, sequence numbers,
 * signatures, the queue, reductions in rank order, failure and close. A {@link Transport} only moves bytes.
 */
import { argumentError, type VarlenDistributedError, varlenError } from '../errors.js';
import { checkArray, checkOptions, checkRank, checkRanks, checkTimeout } from './collective-arguments.js';
import type {
  Backend,
  CollectiveArray,
  CollectiveOptions,
  FlightEntry,
  ProcessGroup,
  ReduceOp,
} from './process-group.js';
import { reduceInto, reduceOps } from './reduce.js';
import { type CollectiveOp, encodeMessage, findMismatch, SIGNATURE_BYTES } from './signature.js';

/** All ranks' messages of one exchange, in rank order. Ranks of one process may share the object. */
export interface Arrived {
  readonly messages: readonly Uint8Array[];
  /** Filled in by the first rank that compares the signatures. */
  mismatch?: ReturnType<typeof findMismatch> | null;
  /** Outputs that already hold the gathered bytes, by buffer: their byte offsets. */
  filled?: Map<ArrayBufferLike, number>;
}

/** Why a group ended, as every rank is told. */
export interface GroupFailure {
  readonly code: 'ERR_VARLEN_DIST_TIMEOUT' | 'ERR_VARLEN_DIST_PEER_LOST' | 'ERR_VARLEN_DIST_ABORTED';
  /** The rank that noticed, or that asked for the end. */
  readonly origin: number;
  /** The exchange that failed, or 0. */
  readonly seq: number;
  readonly message: string;
  readonly missingRanks?: readonly number[];
  readonly cause?: unknown;
}

/** What an engine must provide. Each rank of a group has its own. */
export interface Transport {
  readonly rank: number;
  readonly size: number;
  readonly backend: Backend;
  /** Milliseconds on the engine's clock. */
  now(): number;
  /**
   * Resolves with all messages of exchange `seq`. Never rejects: what goes wrong, also a passed
   * deadline, is told once through `onFailure` of every rank, and the promise is then forgotten.
   */
  exchange(seq: number, message: Uint8Array, timeoutMs: number): Promise<Arrived>;
  /** Ends the group on all ranks; the first failure wins. */
  fail(failure: GroupFailure): void;
  /** Set by the group; called at most once. */
  onFailure: (failure: GroupFailure) => void;
  /** The transport of this rank in a group of `ranks`, made by the parent's exchange `seq`. */
  subgroup(ranks: readonly number[], seq: number): Transport;
  /** This rank is done. */
  close(): void;
}

/** One collective of this rank, from its call until it settles. */
class Call<T = unknown> {
  readonly op: CollectiveOp;
  readonly seq: number;
  readonly message: Uint8Array;
  readonly timeoutMs: number;
  readonly request: Request<T>;
  readonly flight: PendingFlight;
  readonly resolve: (value: T) => void;
  readonly reject: (error: unknown) => void;
  /** Takes the listener off the caller's signal. */
  unlisten: (() => void) | undefined;

  constructor(
    op: CollectiveOp,
    seq: number,
    message: Uint8Array,
    timeoutMs: number,
    request: Request<T>,
    flight: PendingFlight,
    resolve: (value: T) => void,
    reject: (error: unknown) => void,
  ) {
    this.op = op;
    this.seq = seq;
    this.message = message;
    this.timeoutMs = timeoutMs;
    this.request = request;
    this.flight = flight;
    this.resolve = resolve;
    this.reject = reject;
  }
}

interface PendingFlight {
  endMs?: number;
  status: FlightEntry['status'];
}

const flightEntries = 2048;

/** Default deadline of a collective: 120 s, that of control operations. */
export const DEFAULT_TIMEOUT_MS = 120_000;

/** A {@link ProcessGroup} on a {@link Transport}. */
export class ExchangeGroup implements ProcessGroup {
  readonly #transport: Transport;
  readonly #timeoutMs: number;
  #state: 'ready' | 'failed' | 'closed' = 'ready';
  failure?: VarlenDistributedError;
  #seq = 0;
  /** The call in progress, then those that wait for it. */
  readonly #calls: Call[] = [];
  readonly #busy = new Set<ArrayBufferLike>();
  readonly #flight: FlightEntry[] = [];

  constructor(transport: Transport, timeoutMs: number) {
    this.#transport = transport;
    this.#timeoutMs = timeoutMs;
    transport.onFailure = (failure) => this.#fail(failure);
  }

  get rank(): number {
    return this.#transport.rank;
  }

  get size(): number {
    return this.#transport.size;
  }

  get backend(): Backend {
    return this.#transport.backend;
  }

  get state(): 'ready' | 'failed' | 'closed' {
    return this.#state;
  }

  barrier(options: CollectiveOptions = {}): Promise<void> {
    return this.#call<void>('barrier', options, () => ({ read() {} }));
  }

  broadcast<T extends CollectiveArray>(buffer: T, root: number, options: CollectiveOptions = {}): Promise<T> {
    return this.#call('broadcast', options, () => {
      const dtype = checkArray('broadcast', 'buffer', buffer);
      checkRank('broadcast', 'root', root, this.size);
      return {
        dtype,
        root,
        bytes: buffer.byteLength,
        buffers: [buffer.buffer],
        payload: this.rank === root ? bytesOf(buffer) : noBytes,
        read({ messages }) {
          bytesOf(buffer).set(payloadOf(messages[root]));
          return buffer;
        },
      };
    });
  }

  allReduce<T extends CollectiveArray>(buffer: T, op: ReduceOp, options: CollectiveOptions = {}): Promise<T> {
    return this.#call('allReduce', options, () => {
      const dtype = checkArray('allReduce', 'buffer', buffer);
      const reduction = reduceOps.indexOf(op);
      if (reduction < 0) {
        const problem = `is not known; got '${String(op)}', expected one of ${reduceOps.join(', ')}`;
        throw argumentError('ERR_VARLEN_OPTION', 'allReduce', 'op', problem);
      }
      return {
        dtype,
        reduction,
        bytes: buffer.byteLength,
        buffers: [buffer.buffer],
        payload: bytesOf(buffer),
        read({ messages }) {
          reduceInto(buffer, messages.map(payloadOf), op);
          return buffer;
        },
      };
    });
  }

  allReduceTensors(): Promise<void> {
    const message = `allReduceTensors: the ${this.backend} engine moves host arrays only; use a gloo or nccl group, or allReduce`;
    return Promise.reject(
      varlenError('ERR_VARLEN_UNSUPPORTED', message, { op: 'allReduceTensors', backend: this.backend }),
    );
  }

  allGather<T extends CollectiveArray>(input: T, output: T, options: CollectiveOptions = {}): Promise<T> {
    return this.#call('allGather', options, () => {
      const dtype = checkArray('allGather', 'input', input);
      if (checkArray('allGather', 'output', output) !== dtype) {
        const problem = "must have the input's element type; got another, expected the same";
        throw argumentError('ERR_VARLEN_DTYPE', 'allGather', 'output', problem);
      }
      if (output.length !== input.length * this.size) {
        const problem = `has the wrong length; got ${output.length}, expected ${input.length} * ${this.size} ranks`;
        throw argumentError('ERR_VARLEN_SHAPE', 'allGather', 'output', problem);
      }
      const overlaps =
        input.buffer === output.buffer &&
        input.byteOffset < output.byteOffset + output.byteLength &&
        output.byteOffset < input.byteOffset + input.byteLength;
      if (overlaps) {
        const problem = 'overlaps the input; got shared bytes, expected none';
        throw argumentError('ERR_VARLEN_BUFFER', 'allGather', 'output', problem);
      }
      return {
        dtype,
        bytes: input.byteLength,
        buffers: [input.buffer, output.buffer],
        payload: bytesOf(input),
        read(arrived) {
          arrived.filled ??= new Map();
          // Ranks of one process may gather into one and the same array: it is written once.
          if (arrived.filled.get(output.buffer) === output.byteOffset) return output;
          const bytes = bytesOf(output);
          arrived.messages.forEach((message, rank) => {
            bytes.set(payloadOf(message), rank * input.byteLength);
          });
          arrived.filled.set(output.buffer, output.byteOffset);
          return output;
        },
      };
    });
  }

  allGatherV(
    input: Uint8Array,
    options: CollectiveOptions & { maxBytes?: number } = {},
  ): Promise<Uint8Array[]> {
    const { maxBytes = 2 ** 31 - 1 } = options;
    return this.#call('allGatherV', options, () => {
      if (checkArray('allGatherV', 'input', input) !== 0) {
        throw argumentError('ERR_VARLEN_TYPE', 'allGatherV', 'input', 'must be bytes; expected a Uint8Array');
      }
      if (!Number.isSafeInteger(maxBytes) || maxBytes < 0) {
        const problem = `is out of range; got ${String(maxBytes)}, expected a number of bytes`;
        throw argumentError('ERR_VARLEN_RANGE', 'allGatherV', 'options.maxBytes', problem);
      }
      if (input.length > maxBytes) {
        const problem = `is longer than options.maxBytes; got ${input.length}, expected at most ${maxBytes}`;
        throw argumentError('ERR_VARLEN_RANGE', 'allGatherV', 'input', problem);
      }
      return {
        buffers: [input.buffer],
        payload: input,
        read: ({ messages }) => {
          const long = messages.findIndex((message) => payloadOf(message).length > maxBytes);
          if (long >= 0) {
            const message = `allGatherV: rank ${long} sent more than options.maxBytes; got ${payloadOf(messages[long]).length}, expected at most ${maxBytes}`;
            throw varlenError('ERR_VARLEN_DIST_MISMATCH', message, { op: 'allGatherV', rank: this.rank });
          }
          return messages.map((message) => payloadOf(message).slice());
        },
      };
    });
  }

  subgroup(ranks: readonly number[], options: CollectiveOptions = {}): Promise<ProcessGroup> {
    return this.#call('subgroup', options, () => {
      checkRanks('subgroup', ranks, this.size);
      // The list is part of the signature, so that different lists are a mismatch on every rank.
      return {
        bytes: 4 * ranks.length,
        tag: `subgroup ${ranks.join()}`,
        read: (_, seq) => {
          if (ranks.includes(this.rank)) {
            return new ExchangeGroup(this.#transport.subgroup(ranks, seq), this.#timeoutMs);
          }
          // Not listed: a group of which this rank is no member, closed from the start.
          const outside = new ExchangeGroup(outsider(this.#transport, ranks.length), this.#timeoutMs);
          outside.#state = 'closed';
          return outside;
        },
      };
    });
  }

  abort(reason?: Error): void {
    if (this.#state !== 'ready') return;
    const why = reason === undefined ? '' : `: ${reason.message}`;
    const message = `rank ${this.rank} aborted the group${why}`;
    const failure = { code: 'ERR_VARLEN_DIST_ABORTED', origin: this.rank, seq: this.#seq, message } as const;
    this.#transport.fail(reason === undefined ? failure : { ...failure, cause: reason });
    // The engine tells the peers in its own time; this rank knows already.
    this.#fail(reason === undefined ? failure : { ...failure, cause: reason });
  }

  flightRecord(): readonly FlightEntry[] {
    return [...this.#flight];
  }

  async close(options: { timeoutMs?: number } = {}): Promise<void> {
    const { timeoutMs = 10_000 } = options;
    checkTimeout('close', 'options.timeoutMs', timeoutMs);
    if (this.#state === 'closed') return;
    // A peer that never comes does not keep this rank: it is gone either way.
    if (this.#state === 'ready') await this.barrier({ timeoutMs, tag: 'varlen.close' }).catch(() => {});
    this.#state = 'closed';
    this.#transport.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Checks, takes a sequence number, and waits its turn. What `prepare` throws takes no number. */
  #call<T>(op: CollectiveOp, options: CollectiveOptions, prepare: () => Request<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const { timeoutMs, tag, signal } = checkOptions(op, options, this.#timeoutMs);
      const request = prepare();
      this.#checkReady(op);
      const {
        dtype = 0,
        reduction = 0,
        root = 0,
        bytes = 0,
        payload = noBytes,
        buffers = noBuffers,
      } = request;
      for (const buffer of buffers) {
        if (!this.#busy.has(buffer)) continue;
        const message = `${op}: a buffer is still in another collective of this rank`;
        throw varlenError('ERR_VARLEN_BUSY', message, { op, argument: 'buffer' });
      }
      if (signal?.aborted) throw signal.reason;

      const seq = ++this.#seq;
      const word = request.tag === undefined ? tag : tag + request.tag;
      const message = encodeMessage({ op, seq, bytes, dtype, reduction, root, tag: word }, payload);
      for (const buffer of buffers) this.#busy.add(buffer);
      const flight = this.#record(op, seq, payload.length, tag);
      const call = new Call(op, seq, message, timeoutMs, request, flight, resolve, reject);
      if (signal !== undefined) this.#listen(call as Call, signal);
      this.#calls.push(call as Call);
      if (this.#calls.length === 1) this.#start(call as Call);
    });
  }

  #listen(call: Call, signal: AbortSignal): void {
    const onAbort = () => {
      this.#settled(call, 'failed');
      call.reject(signal.reason);
      const message = `rank ${this.rank} gave up ${call.op} #${call.seq}: its signal fired`;
      const failure = { code: 'ERR_VARLEN_DIST_ABORTED', origin: this.rank, seq: call.seq, message } as const;
      this.#transport.fail(failure);
      this.#fail(failure);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    call.unlisten = () => signal.removeEventListener('abort', onAbort);
  }

  #settled(call: Call, status: 'done' | 'failed'): void {
    call.unlisten?.();
    for (const buffer of call.request.buffers ?? noBuffers) this.#busy.delete(buffer);
    call.flight.endMs = this.#transport.now();
    call.flight.status = status;
  }

  #start(call: Call): void {
    void this.#transport.exchange(call.seq, call.message, call.timeoutMs).then((arrived) => {
      if (this.#state !== 'ready') return;
      this.#calls.shift();
      this.#finish(call, arrived);
      if (this.#calls.length > 0) this.#start(this.#calls[0]);
    });
  }

  #finish(call: Call, arrived: Arrived): void {
    if (arrived.mismatch === undefined) arrived.mismatch = findMismatch(arrived.messages) ?? null;
    const { mismatch } = arrived;
    try {
      if (mismatch !== null) throw this.#mismatchError(call, mismatch.rank, mismatch.calls);
      const result = call.request.read(arrived, call.seq);
      this.#settled(call, 'done');
      call.resolve(result);
    } catch (error) {
      // A mismatch is seen by every rank alike; what only this rank refuses, the peers must be told.
      if (mismatch === null) {
        const message = `rank ${this.rank} refused the result of ${call.op} #${call.seq}`;
        const origin = this.rank;
        this.#transport.fail({
          code: 'ERR_VARLEN_DIST_ABORTED',
          origin,
          seq: call.seq,
          message,
          cause: error,
        });
      }
      this.#settled(call, 'failed');
      call.reject(error);
      this.#end(error as VarlenDistributedError);
    }
  }

  #mismatchError(call: Call, odd: number, calls: string[]): VarlenDistributedError {
    const message = `${call.op}: ranks call different collectives; got ${calls[odd]} on rank ${odd}, expected ${calls[0]} as on rank 0`;
    const details = { op: call.op, seq: call.seq, rank: this.rank, calls };
    return varlenError('ERR_VARLEN_DIST_MISMATCH', message, details);
  }

  /** A failure that came from outside: pending calls reject with it, later ones with it as their cause. */
  #fail(failure: GroupFailure): void {
    if (this.#state !== 'ready') return;
    const { code, origin, seq, message, missingRanks, cause } = failure;
    // A rank that others miss did not wait for anybody: to it the group was aborted.
    const ownCode =
      code === 'ERR_VARLEN_DIST_TIMEOUT' && missingRanks?.includes(this.rank)
        ? 'ERR_VARLEN_DIST_ABORTED'
        : code;
    const op = this.#calls[0]?.op ?? 'group';
    const details = { op, seq, rank: this.rank, origin, ...(missingRanks ? { missingRanks } : {}) };
    const options = cause === undefined ? undefined : { cause };
    this.#end(varlenError(ownCode, `${op}: ${message}`, details, options));
  }

  #end(error: VarlenDistributedError): void {
    this.#state = 'failed';
    this.failure = error;
    for (const call of this.#calls.splice(0)) {
      this.#settled(call, 'failed');
      call.reject(error);
    }
  }

  #checkReady(op: string): void {
    if (this.#state === 'closed') {
      throw varlenError('ERR_VARLEN_CLOSED', `${op}: the process group is closed`, { op });
    }
    if (this.failure === undefined) return;
    const { code, message, details } = this.failure;
    throw varlenError(
      code,
      `${op}: the group has failed before: ${message}`,
      { ...details, op },
      {
        cause: this.failure,
      },
    );
  }

  #record(op: string, seq: number, bytes: number, tag: string): PendingFlight {
    const startMs = this.#transport.now();
    const entry: FlightEntry =
      tag === ''
        ? { seq, op, bytes, startMs, status: 'pending' }
        : { seq, op, bytes, tag, startMs, status: 'pending' };
    this.#flight.push(entry);
    if (this.#flight.length > flightEntries) this.#flight.shift();
    return entry as PendingFlight;
  }
}

/** A checked collective: what the ranks must agree on, what this one sends, what it does with the answer. */
interface Request<T> {
  readonly dtype?: number;
  readonly reduction?: number;
  readonly root?: number;
  /** Payload bytes that must be equal on all ranks. */
  readonly bytes?: number;
  /** Added to the caller's tag. */
  readonly tag?: string;
  /** Memory that no other collective of this rank may use meanwhile. */
  readonly buffers?: readonly ArrayBufferLike[];
  /** Copied before the call returns. */
  readonly payload?: Uint8Array;
  read(arrived: Arrived, seq: number): T;
}

const noBuffers: readonly ArrayBufferLike[] = [];

/** What a rank holds of a group that does not list it. */
function outsider(parent: Transport, size: number): Transport {
  const never = new Promise<Arrived>(() => {});
  return {
    rank: -1,
    size,
    backend: parent.backend,
    now: () => parent.now(),
    exchange: () => never,
    fail() {},
    onFailure() {},
    subgroup: () => outsider(parent, size),
    close() {},
  };
}

const noBytes = new Uint8Array(0);

function bytesOf(array: CollectiveArray): Uint8Array {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

function payloadOf(message: Uint8Array): Uint8Array {
  return message.subarray(SIGNATURE_BYTES);
}
