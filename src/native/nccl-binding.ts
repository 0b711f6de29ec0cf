/** NCCL through the second binary: communicators as numbers, device memory and streams as addresses. */
import { loadDist } from './load-dist.js';

/** Result numbers of NCCL that callers tell apart. */
export const ncclResults = { success: 0, inProgress: 7 } as const;

/** How a call went. */
export interface NcclStatus {
  readonly result: number;
  readonly message: string;
}

/** A collective's numbers: {@link import('../dist/nccl-engine.js')} has checked them. */
export interface NcclCall {
  readonly kind: number;
  readonly send: bigint;
  readonly receive: bigint;
  readonly count: number;
  readonly element: number;
  readonly reduction: number;
  readonly root: number;
  readonly stream: bigint;
}

interface Addon {
  /** The version, or why there is no library. */
  ncclOpen(path: string): number | string;
  ncclUniqueId(): Uint8Array | NcclStatus;
  ncclJoin(id: Uint8Array, rank: number, size: number): number | NcclStatus;
  ncclCall(
    communicator: number,
    kind: number,
    send: bigint,
    receive: bigint,
    count: number,
    element: number,
    reduction: number,
    root: number,
    stream: bigint,
  ): NcclStatus;
  ncclPoll(communicator: number): NcclStatus;
  ncclAbort(communicator: number, limitMs: number): boolean;
  ncclClose(communicator: number): NcclStatus;
}

const addon = (): Addon => loadDist() as Addon;

/** Opens the library: its version, or the reason why there is none. */
export function openNccl(path: string): number | string {
  return addon().ncclOpen(path);
}

/** 128 bytes by which ranks find each other. */
export function ncclUniqueId(): Uint8Array | NcclStatus {
  return addon().ncclUniqueId();
}

/** Begins to join; the communicator's number. */
export function joinNccl(id: Uint8Array, rank: number, size: number): number | NcclStatus {
  return addon().ncclJoin(id, rank, size);
}

/** Enqueues a collective. */
export function callNccl(communicator: number, call: NcclCall): NcclStatus {
  const { kind, send, receive, count, element, reduction, root, stream } = call;
  return addon().ncclCall(communicator, kind, send, receive, count, element, reduction, root, stream);
}

/** What has happened since. */
export function pollNccl(communicator: number): NcclStatus {
  return addon().ncclPoll(communicator);
}

/** False when the library hangs. */
export function abortNccl(communicator: number, limitMs: number): boolean {
  return addon().ncclAbort(communicator, limitMs);
}

/** Flushes and gives back. */
export function closeNccl(communicator: number): NcclStatus {
  return addon().ncclClose(communicator);
}
