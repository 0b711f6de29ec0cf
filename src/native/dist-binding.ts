/** The only caller of the second binary: Gloo groups as numbers, their jobs as promises. */
import { loadDist } from './load-dist.js';

/** Why a job failed; the index is the number that `Failure` in native/dist/mailbox.h has. */
const failures = ['none', 'timeout', 'connection', 'memory', 'internal'] as const;

/** A job that failed, in the words of the library. */
export class GlooFailure extends Error {
  readonly kind: (typeof failures)[number];

  constructor(kind: (typeof failures)[number], message: string) {
    super(message);
    this.kind = kind;
  }
}

/** What every rank sent. */
export interface Gathered {
  /** A u64 length, then the beginning of each rank's message, `frameBytes` for each rank. */
  readonly frames: Uint8Array;
  /** The messages one after another, when one was too long for its frame. */
  readonly whole: Uint8Array | undefined;
}

interface Addon {
  readonly version: string;
  readonly inlineBytes: number;
  onSettled(
    settle: (
      id: number,
      failure: number,
      message: string,
      frames: Uint8Array | undefined,
      whole: Uint8Array | undefined,
    ) => void,
  ): void;
  open(rank: number, size: number, host: string): number;
  listen(group: number, id: number, timeoutMs: number): void;
  connect(group: number, id: number, addresses: readonly Uint8Array[]): void;
  exchange(group: number, id: number, message: Uint8Array, maxBytes: number): void;
  collective(
    group: number,
    id: number,
    signature: Uint8Array,
    operation: number,
    element: number,
    reduction: number,
    root: number,
    output: Uint8Array,
    input?: Uint8Array,
  ): void;
  fileLimit(): number;
  abort(group: number): void;
  lost(group: number): number[];
  close(group: number): void;
}

interface Pending {
  resolve(gathered: Gathered): void;
  reject(error: Error): void;
  /** Memory that the communication thread uses. */
  readonly arrays: readonly Uint8Array[];
}

interface Binding {
  readonly addon: Addon;
  readonly pending: Map<number, Pending>;
}

let loaded: Binding | undefined;
let nextId = 0;

const noBytes = new Uint8Array(0);

function binding(): Binding {
  if (loaded !== undefined) return loaded;
  const addon = loadDist() as Addon;
  const pending = new Map<number, Pending>();
  addon.onSettled((id, failure, message, frames = noBytes, whole) => {
    const waiting = pending.get(id)!;
    pending.delete(id);
    if (failure === 0) waiting.resolve({ frames, whole });
    else waiting.reject(new GlooFailure(failures[failure], message));
  });
  loaded = { addon, pending };
  return loaded;
}

/** What the collectives of native/dist/engine.h are called; the index is their number. */
export const glooOperations = ['allReduce', 'broadcast', 'allGather'] as const;

/** Arrays of one collective, as bytes. */
export interface GlooArrays {
  readonly operation: (typeof glooOperations)[number];
  readonly element: number;
  readonly reduction: number;
  readonly root: number;
  readonly input?: Uint8Array;
  readonly output: Uint8Array;
}

/** Descriptors that this process may have open; loads the binary. */
export function fileLimit(): number {
  return binding().addon.fileLimit();
}

/** One group of ranks over Gloo. Its jobs run one after another on a thread of its own. */
export class GlooEngine {
  readonly #group: number;
  #open = true;

  constructor(rank: number, size: number, host: string) {
    this.#group = binding().addon.open(rank, size, host);
  }

  /** Bytes of a message that travel in its frame. */
  get inlineBytes(): number {
    return binding().addon.inlineBytes;
  }

  /** Opens a socket for each peer; resolves to their addresses. */
  async listen(timeoutMs: number): Promise<Uint8Array> {
    const { frames } = await this.#run([], (addon, id) => addon.listen(this.#group, id, timeoutMs));
    return frames;
  }

  /** Connects to all peers at what they got from {@link listen}, in rank order. */
  async connect(addresses: readonly Uint8Array[]): Promise<void> {
    await this.#run([], (addon, id) => addon.connect(this.#group, id, addresses));
  }

  /** Brings one message of every rank to every rank. It has no deadline; {@link abort} ends it. */
  exchange(message: Uint8Array, maxBytes: number): Promise<Gathered> {
    return this.#run([], (addon, id) => addon.exchange(this.#group, id, message, maxBytes));
  }

  /** Runs a collective on the arrays if the signatures agree. It has no deadline; {@link abort} ends it. */
  collective(signature: Uint8Array, arrays: GlooArrays): Promise<Gathered> {
    const { operation, element, reduction, root, input, output } = arrays;
    const number = glooOperations.indexOf(operation);
    const used = input === undefined ? [output] : [output, input];
    return this.#run(used, (addon, id) =>
      addon.collective(
        this.#group,
        id,
        signature,
        number,
        element,
        reduction,
        root,
        ...(used as [Uint8Array]),
      ),
    );
  }

  /** The peers that have closed their connection. */
  lost(): readonly number[] {
    return this.#open ? binding().addon.lost(this.#group) : [];
  }

  /** Makes the job in progress fail. */
  abort(): void {
    if (this.#open) binding().addon.abort(this.#group);
  }

  /** Ends the thread after the job in progress. Jobs behind it never settle. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    binding().addon.close(this.#group);
  }

  #run(arrays: readonly Uint8Array[], start: (addon: Addon, id: number) => void): Promise<Gathered> {
    const { addon, pending } = binding();
    const id = nextId++;
    return new Promise((resolve, reject) => {
      start(addon, id);
      pending.set(id, { resolve, reject, arrays });
    });
  }
}
