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
  ReducibleTensor,
} from './process-group.js';
import { reduceInto, reduceOps } from './reduce.js';
import { type CollectiveOp, encodeMessage, findMismatch, SIGNATURE_BYTES } from './signature.js';
import { stageTensors } from './tensor-stage.js';

/** All ranks' messages of one exchange, in rank order. Ranks of one process may share the object. */
export interface Arrived {
  readonly messages: readonly Uint8Array[];
  /** Filled in by the first rank that compares the signatures. */
  mismatch?: ReturnType<typeof findMismatch> | null;
  /** Outputs that already hold the gathered bytes, by buffer: their byte offsets. */
  filled?: Map<ArrayBufferLike, number>;
  /** Payload bytes by rank, when one passed the limit and the engine therefore moved none. */
  readonly refused?: readonly number[];
}

/** A collective on the arrays themselves, for engines that have an algorithm for it. */
export interface DirectCall {
  readonly op: 'allReduce' | 'broadcast' | 'allGather';
  readonly dtype: number;
  readonly reduction: number;
  readonly root: number;
  /** Of `allGather` only. */
  readonly input?: CollectiveArray;
  /** In place but for `allGather`. */
  readonly output: CollectiveArray;
}

/** Why a group ended, as every rank is told. */
export interface GroupFailure {
  readonly code:
    | 'ERR_VARLEN_DIST_TIMEOUT'
    | 'ERR_VARLEN_DIST_PEER_LOST'
    | 'ERR_VARLEN_DIST_ABORTED'
    | 'ERR_VARLEN_DIST_MISMATCH'
    | 'ERR_VARLEN_DIST_STORE';
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
   * No payload may be longer than `maxBytes`, which ranks need not agree about.
   */
  exchange(seq: number, message: Uint8Array, timeoutMs: number, maxBytes: number): Promise<Arrived>;
  /** Payloads above this many bytes go through {@link collective}. */
  readonly directAbove?: number;
  /**
   * Resolves with all signatures, and with the output filled if they are equal. Fails like
   * {@link exchange}.
   */
  collective?(seq: number, signature: Uint8Array, call: DirectCall, timeoutMs: number): Promise<Arrived>;
  /** Ends the group on all ranks; the first failure wins. */
  fail(failure: GroupFailure): void;
  /** Set by the group; called at most once. */
  onFailure: (failure: GroupFailure) => void;
  /** The transport of this rank in a group of `ranks`, made by the parent's exchange `seq`. */
  subgroup(ranks: readonly number[], seq: number, timeoutMs: number): Transport | Promise<Transport>;
  /** The group has ended with a failure that every rank knows of; nothing more will be asked. */
  ended?(): void;
  /** This rank is done. */
  close(): void;
}

/** One collective of this rank, from its call until it settles. */
class Call<T = unknown> {
  readonly op: CollectiveOp;
  readonly seq: number;
  /** The whole message, or its signature alone while the payload is still to come. */
  message: Uint8Array;
  readonly direct: DirectCall | undefined;
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
    direct: DirectCall | undefined,
    timeoutMs: number,
    request: Request<T>,
    flight: PendingFlight,
    resolve: (value: T) => void,
    reject: (error: unknown) => void,
  ) {
    this.op = op;
    this.seq = seq;
    this.message = message;
    this.direct = direct;
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
        direct: { op: 'broadcast', dtype, reduction: 0, root, output: buffer },
        read({ messages }, _, direct) {
          if (direct) return buffer;
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
        direct: { op: 'allReduce', dtype, reduction, root: 0, output: buffer },
        read({ messages }, _, direct) {
          if (direct) return buffer;
          reduceInto(buffer, messages.map(payloadOf), op);
          return buffer;
        },
      };
    });
  }

  async allReduceTensors(
    tensors: readonly ReducibleTensor[],
    op: 'sum' | 'avg',
    options: CollectiveOptions = {},
  ): Promise<void> {
    const stages = stageTensors(tensors, op);
    // All calls are made before the first one settles: the same numbers on every rank.
    await Promise.all(
      stages.map((stage) =>
        this.#call<void>('allReduceTensors', options, () => {
          const { host, shapes } = stage;
          const reduction = reduceOps.indexOf(op);
          const dtype = checkArray('allReduceTensors', 'tensors', host);
          return {
            dtype,
            reduction,
            bytes: host.byteLength,
            tag: shapes,
            payload: bytesOf(host),
            fill: async () => (this.backend === 'sim' ? stage.readSync() : stage.read()),
            direct: { op: 'allReduce', dtype, reduction, root: 0, output: host },
            read({ messages }, _, direct) {
              if (!direct) reduceInto(host, messages.map(payloadOf), op);
              stage.write();
            },
          };
        }),
      ),
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
        direct: { op: 'allGather', dtype, reduction: 0, root: 0, input, output },
        read(arrived, _, direct) {
          if (direct) return output;
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
        maxBytes,
        read: ({ messages, refused }) => {
          const lengths = refused ?? messages.map((message) => payloadOf(message).length);
          const long = lengths.findIndex((length) => length > maxBytes);
          if (long >= 0) {
            const message = `allGatherV: rank ${long} sent more than options.maxBytes; got ${lengths[long]}, expected at most ${maxBytes}`;
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
            const made = this.#transport.subgroup(ranks, seq, options.timeoutMs ?? this.#timeoutMs);
            return made instanceof Promise
              ? made.then((transport) => new ExchangeGroup(transport, this.#timeoutMs))
              : new ExchangeGroup(made, this.#timeoutMs);
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
      const signature = { op, seq, bytes, dtype, reduction, root, tag: word };
      const { directAbove = Infinity } = this.#transport;
      const direct = bytes > directAbove ? request.direct : undefined;
      const early = direct === undefined && request.fill === undefined;
      const message = encodeMessage(signature, early ? payload : noBytes);
      for (const buffer of buffers) this.#busy.add(buffer);
      const flight = this.#record(op, seq, payload.length, tag);
      const call = new Call(op, seq, message, direct, timeoutMs, request, flight, resolve, reject);
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
    const { request } = call;
    if (request.fill === undefined) {
      this.#send(call);
      return;
    }
    const { payload = noBytes } = request;
    request.fill().then(
      () => {
        if (this.#state !== 'ready') return;
        if (call.direct === undefined) call.message = withPayload(call.message, payload);
        this.#send(call);
      },
      (error) => this.#refuse(call, error),
    );
  }

  #send(call: Call): void {
    const { seq, message, direct, timeoutMs, request } = call;
    const transport = this.#transport;
    const arriving =
      direct === undefined
        ? transport.exchange(seq, message, timeoutMs, request.maxBytes ?? 2 ** 31 - 1)
        : transport.collective!(seq, message, direct, timeoutMs);
    void arriving.then((arrived) => {
      if (this.#state !== 'ready') return;
      this.#calls.shift();
      this.#finish(call, arrived);
      if (this.#calls.length > 0) this.#start(this.#calls[0]);
    });
  }

  #finish(call: Call, arrived: Arrived): void {
    if (arrived.mismatch === undefined) arrived.mismatch = findMismatch(arrived.messages) ?? null;
    const { mismatch } = arrived;
    if (mismatch !== null) {
      // Every rank sees it alike.
      const error = this.#mismatchError(call, mismatch.rank, mismatch.calls);
      this.#settled(call, 'failed');
      call.reject(error);
      this.#end(error);
      this.#transport.ended?.();
      return;
    }
    const done = (result: unknown) => {
      this.#settled(call, 'done');
      call.resolve(result);
    };
    try {
      const result = call.request.read(arrived, call.seq, call.direct !== undefined);
      if (result instanceof Promise) result.then(done, (error) => this.#refuse(call, error));
      else done(result);
    } catch (error) {
      this.#refuse(call, error);
    }
  }

  /** What only this rank cannot do, the peers must be told. */
  #refuse(call: Call, error: unknown): void {
    const message = `rank ${this.rank} failed in ${call.op} #${call.seq}: ${(error as Error).message}`;
    const origin = this.rank;
    this.#transport.fail({ code: 'ERR_VARLEN_DIST_ABORTED', origin, seq: call.seq, message, cause: error });
    this.#settled(call, 'failed');
    call.reject(error);
    this.#end(error as VarlenDistributedError);
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
  /** Copied before the call returns, unless {@link fill} writes it or the call is direct. */
  readonly payload?: Uint8Array;
  /** Writes the payload when the call's turn has come. */
  fill?(): Promise<void>;
  /** Longest payload this rank takes. */
  readonly maxBytes?: number;
  readonly direct?: DirectCall;
  /** `direct`: the engine has filled the output. */
  read(arrived: Arrived, seq: number, direct: boolean): T | Promise<T>;
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

/** A message of its own memory; a Buffer's might lie in a pool, where arrays have no room to align. */
function withPayload(signature: Uint8Array, payload: Uint8Array): Uint8Array {
  const message = new Uint8Array(signature.length + payload.length);
  message.set(signature);
  message.set(payload, signature.length);
  return message;
}

function payloadOf(message: Uint8Array): Uint8Array {
  return message.subarray(SIGNATURE_BYTES);
}
