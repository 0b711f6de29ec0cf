/**
 * NCCL among the ranks of a group: collectives on device memory, enqueued on a stream.
 *
 * It works on addresses: who has tensors on a device passes where they lie. The library is opened when the
 * first engine is made; a machine without it loses nothing else.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { describe } from '../check.js';
import { argumentError, type VarlenDistributedError, varlenError } from '../errors.js';
import {
  abortNccl,
  callNccl,
  closeNccl,
  joinNccl,
  type NcclStatus,
  ncclResults,
  ncclUniqueId,
  openNccl,
  pollNccl,
} from '../native/nccl-binding.js';
import type { ReduceOp } from './process-group.js';
import { reduceOps } from './reduce.js';
import type { StoreClient } from './store-client.js';

/** What a rank needs to join. */
export interface NcclOptions {
  readonly store: StoreClient;
  /** Begins the keys of the group. */
  readonly prefix: string;
  readonly rank: number;
  readonly size: number;
  readonly timeoutMs: number;
  /** Default: `VARLEN_NCCL_PATH`, else `libnccl.so.2`. */
  readonly library?: string;
}

/** Element types; the index is that of native/dist/reduce.h. */
const dtypes = ['uint8', 'int32', 'float32', 'float64', 'int64'] as const;

/** Where a collective reads and writes, on the device of `stream`. */
export interface DeviceCall {
  /** Address of this rank's elements. */
  readonly send: bigint;
  /** Address of the result; may be `send`. */
  readonly receive: bigint;
  /** Elements of each rank; of a reduce-scatter, elements that each rank gets. */
  readonly count: number;
  readonly dtype: (typeof dtypes)[number];
  /** A `cudaStream_t`. The call returns when the work is enqueued there. */
  readonly stream: bigint;
}

const kinds = ['allReduce', 'allGather', 'reduceScatter', 'broadcast'] as const;

/** How often joining looks whether all have come, in milliseconds. */
const POLL_MS = 10;
/** An abort that takes longer hangs, in milliseconds. */
const ABORT_MS = 30_000;

/** One rank's communicator. */
export class NcclEngine {
  /** Of the library: 10000 times the major, 100 times the minor, the patch. */
  readonly version: number;
  readonly #communicator: number;
  readonly #rank: number;
  readonly #size: number;
  #open = true;

  private constructor(version: number, communicator: number, rank: number, size: number) {
    this.version = version;
    this.#communicator = communicator;
    this.#rank = rank;
    this.#size = size;
  }

  /**
   * Joins the other ranks: rank 0 makes the id, the store brings it to the others.
   *
   * @throws `ERR_VARLEN_DIST_UNAVAILABLE` (no library, with the loader's reason), `ERR_VARLEN_DIST_NCCL`,
   *   `ERR_VARLEN_DIST_TIMEOUT`
   */
  static async join(options: NcclOptions): Promise<NcclEngine> {
    const { store, prefix, rank, size, timeoutMs, library = '' } = options;
    const deadline = performance.now() + timeoutMs;
    const version = openNccl(library);
    if (typeof version === 'string') {
      const message = `nccl: there is no library: ${version}; set VARLEN_NCCL_PATH, or use the gloo engine`;
      throw varlenError('ERR_VARLEN_DIST_UNAVAILABLE', message, { op: 'nccl', rank, reason: version });
    }
    const key = `${prefix}/nccl`;
    if (rank === 0) {
      const id = ncclUniqueId();
      if (!(id instanceof Uint8Array)) throw ncclError('init', rank, id);
      await store.set(key, id);
    }
    const id = await store.get(key, Math.max(1, deadline - performance.now()));
    const communicator = joinNccl(id, rank, size);
    if (typeof communicator !== 'number') throw ncclError('init', rank, communicator);
    const engine = new NcclEngine(version, communicator, rank, size);
    for (;;) {
      const status = pollNccl(communicator);
      if (status.result === ncclResults.success) return engine;
      const late = performance.now() >= deadline;
      if (status.result === ncclResults.inProgress && !late) {
        await sleep(POLL_MS);
        continue;
      }
      engine.abort();
      if (!late) throw ncclError('init', rank, status);
      const message = `init: not all ${size} ranks joined NCCL within ${timeoutMs} ms`;
      throw varlenError('ERR_VARLEN_DIST_TIMEOUT', message, { op: 'init', seq: 0, rank });
    }
  }

  /** Sum, average, least or largest of all ranks' elements, on every rank. */
  allReduce(call: DeviceCall & { readonly op: ReduceOp }): void {
    this.#enqueue('allReduce', call, reduction('allReduce', call.op), 0);
  }

  /** Every rank's elements in rank order: `receive` has room for `count * size`. */
  allGather(call: DeviceCall): void {
    this.#enqueue('allGather', call, 0, 0);
  }

  /** `send` has `count * size` elements; rank r gets the r-th part of their reduction. */
  reduceScatter(call: DeviceCall & { readonly op: ReduceOp }): void {
    this.#enqueue('reduceScatter', call, reduction('reduceScatter', call.op), 0);
  }

  /** The elements of rank `root`, on every rank. */
  broadcast(call: DeviceCall & { readonly root: number }): void {
    const { root } = call;
    if (!Number.isInteger(root) || root < 0 || root >= this.#size) {
      const problem = `is no rank; got ${describe(root)}, expected an integer in [0, ${this.#size - 1}]`;
      throw argumentError('ERR_VARLEN_RANGE', 'broadcast', 'root', problem);
    }
    this.#enqueue('broadcast', call, 0, root);
  }

  /** Throws `ERR_VARLEN_DIST_NCCL` when something has failed here or on a peer since the last call. */
  check(): void {
    this.#checkOpen('check');
    const status = pollNccl(this.#communicator);
    if (status.result === ncclResults.success || status.result === ncclResults.inProgress) return;
    throw ncclError('check', this.#rank, status);
  }

  /**
   * Ends what is in progress, here and on the peers that can hear of it. Idempotent.
   *
   * @throws `ERR_VARLEN_DIST_NCCL` with `details.hangs` when the library does not return: the process should end
   */
  abort(): void {
    if (!this.#open) return;
    this.#open = false;
    if (abortNccl(this.#communicator, ABORT_MS)) return;
    const message = `abort: NCCL has not returned within ${ABORT_MS} ms; the process should end`;
    throw varlenError('ERR_VARLEN_DIST_NCCL', message, { op: 'abort', rank: this.#rank, hangs: true });
  }

  /** Flushes and leaves; all ranks do. Idempotent. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    const status = closeNccl(this.#communicator);
    if (status.result !== ncclResults.success) throw ncclError('close', this.#rank, status);
  }

  #checkOpen(op: string): void {
    if (!this.#open) throw varlenError('ERR_VARLEN_CLOSED', `${op}: the NCCL engine is closed`, { op });
  }

  #enqueue(kind: (typeof kinds)[number], call: DeviceCall, reductionNumber: number, root: number): void {
    this.#checkOpen(kind);
    const { send, receive, count, dtype, stream } = call;
    for (const [name, address] of Object.entries({ send, receive, stream }))
      checkAddress(kind, name, address);
    if (!Number.isSafeInteger(count) || count < 0) {
      const problem = `is out of range; got ${describe(count)}, expected a number of elements`;
      throw argumentError('ERR_VARLEN_RANGE', kind, 'count', problem);
    }
    const element = dtypes.indexOf(dtype);
    if (element < 0) {
      const problem = `is not supported; got ${describe(dtype)}, expected one of ${dtypes.join(', ')}`;
      throw argumentError('ERR_VARLEN_DTYPE', kind, 'dtype', problem);
    }
    if (count === 0) return; // nothing to move, on any rank
    const status = callNccl(this.#communicator, {
      kind: kinds.indexOf(kind),
      send,
      receive,
      count,
      element,
      reduction: reductionNumber,
      root,
      stream,
    });
    if (status.result !== ncclResults.success) throw ncclError(kind, this.#rank, status);
  }
}

function checkAddress(op: string, name: string, address: unknown): void {
  if (typeof address !== 'bigint') {
    const problem = `has the wrong type; got ${describe(address)}, expected a bigint`;
    throw argumentError('ERR_VARLEN_TYPE', op, name, problem);
  }
  if (address > 0n && address < 2n ** 64n) return;
  throw argumentError('ERR_VARLEN_RANGE', op, name, `is no address; got ${address}, expected one of 64 bits`);
}

function reduction(op: string, name: ReduceOp): number {
  const number = reduceOps.indexOf(name);
  if (number >= 0) return number;
  const problem = `is not known; got ${describe(name)}, expected one of ${reduceOps.join(', ')}`;
  throw argumentError('ERR_VARLEN_OPTION', op, 'op', problem);
}

function ncclError(op: string, rank: number, { result, message }: NcclStatus): VarlenDistributedError {
  return varlenError('ERR_VARLEN_DIST_NCCL', `${op}: ${message}`, { op, rank, result });
}
