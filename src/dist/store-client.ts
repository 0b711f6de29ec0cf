/** A client of PyTorch's TCPStore protocol: of our own server and of torchrun's alike. */
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type VarlenDistributedError, varlenError } from '../errors.js';
import { ByteQueue } from './byte-queue.js';
import { checked, encodeRequest, type StoreRequest, waited, wireLimits } from './store-wire.js';

/** Where a store is. */
export interface StoreAddress {
  readonly host: string;
  /** 1..65535. */
  readonly port: number;
}

/** Answers and connections that time out say so by this code of Node's. */
const timedOut = 'ETIMEDOUT';
/** A name that the resolver does not know stays unknown; it gets this long to appear, in milliseconds. */
const RESOLVE_MS = 3000;
/** Between two attempts to connect, in milliseconds: the server may start after its clients. */
const RETRY_MS = 50;

/**
 * One connection. Requests are sent one after another and answered in order; a `wait` occupies the
 * connection until it ends, so who waits for long uses a connection of its own.
 *
 * Rejects with `ERR_VARLEN_DIST_STORE` when the connection ends; `details.timedOut` tells deadlines.
 */
export class StoreClient {
  readonly #socket: Socket;
  readonly #address: StoreAddress;
  readonly #queue = new ByteQueue();
  #wanted:
    | { count: number; resolve: (bytes: Uint8Array) => void; reject: (error: Error) => void }
    | undefined;
  #error: VarlenDistributedError | undefined;
  /** The request in progress, then those behind it. */
  #turn: Promise<unknown> = Promise.resolve();
  /** Requests that keep the process alive. */
  #active = 0;

  private constructor(socket: Socket, address: StoreAddress) {
    this.#socket = socket;
    this.#address = address;
    socket.unref(); // an idle store does not keep the process alive
    socket.on('data', (chunk) => {
      this.#queue.push(chunk);
      this.#deliver();
    });
    socket.on('error', (cause) => this.#end(`lost: ${cause.message}`, cause));
    socket.on('close', () => this.#end('closed by the server'));
  }

  /** Connects, trying again until the deadline: the server may start later. */
  static async connect(address: StoreAddress, timeoutMs: number, signal?: AbortSignal): Promise<StoreClient> {
    const started = performance.now();
    for (;;) {
      signal?.throwIfAborted();
      const spent = performance.now() - started;
      try {
        const socket = await open(address, Math.max(1, timeoutMs - spent), signal);
        const client = new StoreClient(socket, address);
        socket.write(encodeRequest({ kind: 'validate' }));
        return client;
      } catch (cause) {
        signal?.throwIfAborted();
        const code = (cause as NodeJS.ErrnoException).code ?? '';
        const unknownHost = code === 'ENOTFOUND' || code === 'EAI_AGAIN' || code === 'EAI_NODATA';
        const limit = unknownHost ? Math.min(RESOLVE_MS, timeoutMs) : timeoutMs;
        const hopeless = code === 'EMFILE' || code === 'ENFILE' || code === 'EINVAL';
        if (hopeless || performance.now() - started + RETRY_MS >= limit) {
          throw storeError(address, `cannot be reached: ${(cause as Error).message}`, cause);
        }
      }
      await sleep(RETRY_MS, undefined, signal === undefined ? {} : { signal }).catch(() => {});
    }
  }

  /** This machine's address on the connection: one that the peers can reach too. */
  get localAddress(): string {
    return this.#socket.localAddress ?? '127.0.0.1';
  }

  set(key: string, value: Uint8Array | string): Promise<void> {
    return this.#request({ kind: 'set', key, value: bytesOf(value) }, () => Promise.resolve());
  }

  append(key: string, value: Uint8Array | string): Promise<void> {
    return this.#request({ kind: 'append', key, value: bytesOf(value) }, () => Promise.resolve());
  }

  /**
   * Stores `desired` if the key holds `expected`, or if it does not exist and `expected` is empty.
   * Resolves to what the key holds then.
   */
  compareSet(key: string, expected: string, desired: string): Promise<Uint8Array> {
    const request = {
      kind: 'compareSet',
      key,
      expected: bytesOf(expected),
      desired: bytesOf(desired),
    } as const;
    return this.#request(request, () => this.#readString());
  }

  /** The value of a key, once it exists. */
  async get(key: string, timeoutMs: number, signal?: AbortSignal): Promise<Uint8Array> {
    await this.wait([key], timeoutMs, signal);
    return this.#request({ kind: 'get', key }, () => this.#readString());
  }

  /** The values of keys that exist. */
  multiGet(keys: readonly string[]): Promise<Uint8Array[]> {
    return this.#request({ kind: 'multiGet', keys }, async () => {
      const values: Uint8Array[] = [];
      for (const _ of keys) values.push(await this.#readString());
      return values;
    });
  }

  multiSet(pairs: readonly (readonly [string, Uint8Array])[]): Promise<void> {
    return this.#request({ kind: 'multiSet', pairs }, () => Promise.resolve());
  }

  /** Adds to a counter, 0 before its first use; resolves to the sum. */
  add(key: string, delta: number): Promise<number> {
    return this.#request({ kind: 'add', key, delta: BigInt(delta) }, async () =>
      Number(viewOf(await this.#read(8)).getBigInt64(0, true)),
    );
  }

  /** True when all keys exist. */
  check(keys: readonly string[]): Promise<boolean> {
    return this.#request({ kind: 'check', keys }, async () => (await this.#read(1))[0] === checked.ready);
  }

  numKeys(): Promise<number> {
    return this.#request({ kind: 'numKeys' }, async () =>
      Number(viewOf(await this.#read(8)).getBigInt64(0, true)),
    );
  }

  /** True when the key existed. */
  deleteKey(key: string): Promise<boolean> {
    return this.#request(
      { kind: 'deleteKey', key },
      async () => viewOf(await this.#read(8)).getBigInt64(0, true) > 0n,
    );
  }

  /** Resolves when all keys exist; rejects with `details.timedOut` at the deadline. Infinity: none. */
  wait(keys: readonly string[], timeoutMs: number, signal?: AbortSignal): Promise<void> {
    const answer = async (): Promise<void> => {
      let cancelled = false;
      const cancel = () => {
        cancelled = true;
        this.#socket.write(encodeRequest({ kind: 'cancelWait' }));
      };
      const timer = timeoutMs === Infinity ? undefined : setTimeout(cancel, timeoutMs);
      signal?.addEventListener('abort', cancel, { once: true });
      if (signal?.aborted) cancel();
      try {
        let [answer] = await this.#read(1);
        const arrived = answer === waited.arrived;
        // The keys may have come while the cancellation was on its way: then both are answered.
        if (cancelled && arrived) [answer] = await this.#read(1);
        if (arrived) return;
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener('abort', cancel);
      }
      signal?.throwIfAborted();
      const problem = `has no key '${keys[0]}'${keys.length > 1 ? ` or one of ${keys.length - 1} more` : ''}`;
      throw storeError(this.#address, `${problem} after ${timeoutMs} ms`, undefined, { timedOut: true });
    };
    return this.#request({ kind: 'wait', keys }, answer, timeoutMs === Infinity);
  }

  /** Ends the connection; pending requests reject. */
  close(): void {
    this.#end('closed');
    this.#socket.destroy();
  }

  /** Takes its turn, sends, and reads the answer. Only what has a deadline keeps the process alive. */
  #request<T>(request: StoreRequest, answer: () => Promise<T>, endless = false): Promise<T> {
    const run = async (): Promise<T> => {
      if (this.#error !== undefined) throw this.#error;
      this.#socket.write(encodeRequest(request));
      return answer();
    };
    if (!endless && this.#active++ === 0) this.#socket.ref();
    const result = this.#turn.then(run);
    const done = () => {
      if (!endless && --this.#active === 0) this.#socket.unref();
    };
    this.#turn = result.then(done, done);
    return result;
  }

  async #readString(): Promise<Uint8Array> {
    const length = viewOf(await this.#read(8)).getBigUint64(0, true);
    if (length > BigInt(wireLimits.valueBytes)) {
      this.close();
      throw storeError(this.#address, `answers with a value of ${length} bytes; is it a TCPStore?`);
    }
    return length === 0n ? new Uint8Array(0) : await this.#read(Number(length));
  }

  #read(count: number): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (this.#error !== undefined) {
        reject(this.#error);
        return;
      }
      this.#wanted = { count, resolve, reject };
      this.#deliver();
    });
  }

  #deliver(): void {
    const wanted = this.#wanted;
    if (wanted === undefined || this.#queue.length < wanted.count) return;
    this.#wanted = undefined;
    wanted.resolve(this.#queue.take(wanted.count));
  }

  #end(problem: string, cause?: unknown): void {
    this.#error ??= storeError(this.#address, `connection ${problem}`, cause);
    this.#wanted?.reject(this.#error);
    this.#wanted = undefined;
  }
}

function open({ host, port }: StoreAddress, timeoutMs: number, signal?: AbortSignal): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, noDelay: true });
    const stop = (error: Error) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.destroy();
      reject(error);
    };
    const onAbort = () => stop(new Error('aborted'));
    const timer = setTimeout(
      () =>
        stop(Object.assign(new Error(`no answer within ${Math.round(timeoutMs)} ms`), { code: timedOut })),
      timeoutMs,
    );
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.once('error', stop);
    socket.once('connect', () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      socket.off('error', stop);
      resolve(socket);
    });
  });
}

/** `ERR_VARLEN_DIST_STORE`, worded for the address. */
export function storeError(
  { host, port }: StoreAddress,
  problem: string,
  cause?: unknown,
  more: Readonly<Record<string, unknown>> = {},
): VarlenDistributedError {
  const message = `store: ${host}:${port} ${problem}`;
  const details = { op: 'store', host, port, ...more };
  return varlenError('ERR_VARLEN_DIST_STORE', message, details, cause === undefined ? undefined : { cause });
}

function bytesOf(value: Uint8Array | string): Uint8Array {
  return typeof value === 'string' ? Buffer.from(value) : value;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
