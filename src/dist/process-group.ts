/**
 * The one interface between ranks. Engines implement it (`local`, `sim`, Gloo, NCCL, a user's own
 * collective); the batcher and the objectives only use it.
 */
import type { VarlenDistributedError } from '../errors.js';

/** How `allReduce` combines the ranks' values. */
export type ReduceOp = 'sum' | 'avg' | 'min' | 'max';

/** The arrays a collective moves: fixed element sizes, so every rank's bytes have the same length. */
export type CollectiveArray = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array;

/** What carries the bytes. */
export type Backend = 'gloo' | 'nccl' | 'local' | 'sim' | 'custom';

/** Options of one collective call. */
export interface CollectiveOptions {
  /** Deadline in milliseconds, an integer in 1..86,400,000. Default: the group's (control operations 120 s). */
  timeoutMs?: number;
  /** Ends this call: the caller gets `signal.reason`, everyone else `ERR_VARLEN_DIST_ABORTED`. */
  signal?: AbortSignal;
  /** A word that must be the same on all ranks; part of the call's signature (mismatch: `ERR_VARLEN_DIST_MISMATCH`). */
  tag?: string;
}

/** One past collective, for post-mortems. */
export interface FlightEntry {
  /** Number of the call in its group, from 1. */
  readonly seq: number;
  readonly op: string;
  /** Bytes this rank sent. */
  readonly bytes: number;
  readonly tag?: string;
  /** Milliseconds on the process's monotonic clock (the virtual clock under `sim`). */
  readonly startMs: number;
  /** Undefined while the call is pending. */
  readonly endMs?: number;
  readonly status: 'pending' | 'done' | 'failed';
}

/**
 * What a gradient all-reduce needs to know of a tensor. `Tensor` satisfies it; the group looks up
 * its storage by the handle, so this file stays free of the tensor layer.
 */
export interface ReducibleTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
}

/**
 * A fixed set of ranks that call the same collectives in the same order.
 *
 * Results are in rank order. Concurrent calls of one rank queue in call order. Bad arguments reject
 * with `ERR_VARLEN_TYPE`, `_RANGE` or `_BUFFER` before a sequence number is consumed, so ranks stay
 * aligned. Once one collective fails the group is `'failed'` and every later call rejects with the
 * first failure as its cause.
 *
 * Errors: `VarlenDistributedError` with `{ op, seq, rank, missingRanks? }` in `details`; after
 * `close()`: `ERR_VARLEN_CLOSED`.
 */
export interface ProcessGroup extends AsyncDisposable {
  /** This rank, `0 <= rank < size`. */
  readonly rank: number;
  readonly size: number;
  readonly backend: Backend;
  readonly state: 'ready' | 'failed' | 'closed';
  /** The first failure, once `state` is `'failed'`. */
  readonly failure?: VarlenDistributedError;

  /** Resolves when every rank has called it. */
  barrier(options?: CollectiveOptions): Promise<void>;

  /** Overwrites `buffer` with that of rank `root`; resolves to `buffer`. */
  broadcast<T extends CollectiveArray>(buffer: T, root: number, options?: CollectiveOptions): Promise<T>;

  /** Reduces in place, elementwise, with a fixed order of additions; resolves to `buffer`. */
  allReduce<T extends CollectiveArray>(buffer: T, op: ReduceOp, options?: CollectiveOptions): Promise<T>;

  /** Reduces gradients in place, on the device they live on. */
  allReduceTensors(
    tensors: readonly ReducibleTensor[],
    op: 'sum' | 'avg',
    options?: CollectiveOptions,
  ): Promise<void>;

  /**
   * Fills `output` with every rank's `input`, in rank order; resolves to `output`.
   *
   * @param output `[size * input.length]`, of the same type as `input`, no shared bytes with it
   */
  allGather<T extends CollectiveArray>(input: T, output: T, options?: CollectiveOptions): Promise<T>;

  /**
   * Every rank's bytes, in rank order; lengths may differ.
   *
   * `maxBytes` bounds what one peer may send (default: the engine's).
   */
  allGatherV(input: Uint8Array, options?: CollectiveOptions & { maxBytes?: number }): Promise<Uint8Array[]>;

  /** A new group of the listed ranks. Every rank of this group must call it with the same list. */
  subgroup(ranks: readonly number[], options?: CollectiveOptions): Promise<ProcessGroup>;

  /** Fails the group here and on every peer. Pending and later calls reject. Idempotent. */
  abort(reason?: Error): void;

  /** The last 2048 collectives, oldest first. */
  flightRecord(): readonly FlightEntry[];

  /** Waits for the peers (up to `timeoutMs`, default 10 s), then releases everything. Idempotent. */
  close(options?: { timeoutMs?: number }): Promise<void>;
}
