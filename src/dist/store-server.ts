/**
 * The key-value store in which ranks find each other: a server of PyTorch's TCPStore protocol.
 *
 * Anybody who reaches its port may read and write it, so it listens on one address and bounds what a
 * peer can make it hold. It is meant for a trusted network.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { ByteQueue } from './byte-queue.js';
import {
  checked,
  encodeLong,
  encodeString,
  encodeWord,
  join,
  readRequests,
  type StoreRequest,
  WireError,
  type WireLimits,
  waited,
  wireLimits,
} from './store-wire.js';

/** What a {@link StoreServer} holds at most. */
export interface StoreLimits extends WireLimits {
  /** Bytes of all keys, values and unread messages. */
  readonly totalBytes: number;
  readonly connections: number;
  /** Time a connection has to say that it speaks the protocol, in milliseconds. */
  readonly validateMs: number;
}

/** 1 GiB, 10,000 connections, 10 s. */
const storeLimits: StoreLimits = {
  ...wireLimits,
  totalBytes: 2 ** 30,
  connections: 10_000,
  validateMs: 10_000,
};

/** One client. */
interface Connection {
  readonly socket: Socket;
  readonly queue: ByteQueue;
  readonly requests: ReturnType<typeof readRequests>;
  /** Bytes that `requests` asked for. */
  wanted: number;
  /** Keys that it waits for and that do not exist yet; undefined when it waits for none. */
  waiting: Set<string> | undefined;
}

const noBytes = new Uint8Array(0);

/** A server that is listening. */
export class StoreServer {
  readonly #server: Server;
  readonly #limits: StoreLimits;
  readonly #values = new Map<string, Uint8Array>();
  readonly #connections = new Set<Connection>();
  /** Who waits for a key that does not exist. */
  readonly #waiters = new Map<string, Set<Connection>>();
  #bytes = 0;
  #keepsAlive = true;

  private constructor(limits: StoreLimits) {
    this.#limits = limits;
    this.#server = createServer({ noDelay: true }, (socket) => this.#accept(socket));
    this.#server.maxConnections = limits.connections;
  }

  /** Listens on `host` and `port`; port 0 takes a free one. Rejects with the system's error. */
  static listen(host: string, port: number, limits: Partial<StoreLimits> = {}): Promise<StoreServer> {
    const store = new StoreServer({ ...storeLimits, ...limits });
    return new Promise((resolve, reject) => {
      store.#server.once('error', reject);
      store.#server.listen({ host, port, backlog: 1024 }, () => {
        store.#server.off('error', reject);
        // Running out of descriptors while accepting must not end the process: that peer tries again.
        store.#server.on('error', () => {});
        resolve(store);
      });
    });
  }

  get port(): number {
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  /** Keys, values and unread messages, in bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The process may end while the server listens. */
  unref(): this {
    this.#server.unref();
    this.#keepsAlive = false;
    for (const { socket } of this.#connections) socket.unref();
    return this;
  }

  close(): Promise<void> {
    for (const { socket } of this.#connections) socket.destroy();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  #accept(socket: Socket): void {
    const { validateMs, totalBytes } = this.#limits;
    if (!this.#keepsAlive) socket.unref();
    const requests = readRequests(this.#limits);
    const connection: Connection = {
      socket,
      queue: new ByteQueue(),
      requests,
      wanted: requests.next().value as number,
      waiting: undefined,
    };
    this.#connections.add(connection);
    const timer = setTimeout(() => socket.destroy(), validateMs).unref();
    socket.on('error', () => {}); // the 'close' that follows cleans up
    socket.on('close', () => {
      clearTimeout(timer);
      this.#bytes -= connection.queue.length;
      this.#stopWaiting(connection);
      this.#connections.delete(connection);
    });
    socket.on('data', (chunk) => {
      this.#bytes += chunk.length;
      connection.queue.push(chunk);
      if (this.#bytes > totalBytes) {
        socket.destroy();
        return;
      }
      try {
        this.#read(connection, timer);
      } catch (error) {
        if (!(error instanceof WireError)) throw error;
        socket.destroy();
      }
    });
  }

  /** Serves what has arrived in full. */
  #read(connection: Connection, timer: NodeJS.Timeout): void {
    const { queue, requests, socket } = connection;
    while (queue.length >= connection.wanted && !socket.destroyed) {
      const bytes = queue.take(connection.wanted);
      this.#bytes -= bytes.length;
      let next = requests.next(bytes).value;
      while (typeof next === 'object') {
        if (next.kind === 'validate') clearTimeout(timer);
        this.#serve(connection, next);
        next = requests.next(noBytes).value;
      }
      connection.wanted = next;
    }
  }

  #serve(connection: Connection, request: StoreRequest): void {
    const reply = (...parts: Uint8Array[]): void => {
      connection.socket.write(join(parts));
      // A peer that asks and never reads would make us hold its answers.
      if (connection.socket.writableLength > 4 * this.#limits.valueBytes) connection.socket.destroy();
    };
    if (connection.waiting !== undefined && request.kind !== 'cancelWait') {
      throw new WireError('a request on a connection that waits');
    }
    switch (request.kind) {
      case 'validate':
        return;
      case 'ping':
        reply(encodeWord(request.nonce));
        return;
      case 'set':
        this.#set(request.key, request.value);
        return;
      case 'append':
        this.#append(request.key, request.value);
        return;
      case 'compareSet': {
        const { key, expected, desired } = request;
        const current = this.#values.get(key);
        const matches =
          current === undefined ? expected.length === 0 : Buffer.compare(current, expected) === 0;
        if (matches) this.#set(key, desired);
        reply(...encodeString(matches ? desired : (current ?? expected)));
        return;
      }
      case 'get':
        reply(...encodeString(this.#valueOf(request.key)));
        return;
      case 'multiGet':
        this.#checkReply(request.keys);
        reply(...request.keys.flatMap((key) => encodeString(this.#valueOf(key))));
        return;
      case 'multiSet':
        for (const [key, value] of request.pairs) this.#set(key, value);
        return;
      case 'add': {
        const sum = BigInt.asIntN(64, readCounter(this.#values.get(request.key)) + request.delta);
        this.#set(request.key, Buffer.from(String(sum)));
        reply(encodeLong(sum));
        return;
      }
      case 'check': {
        const all = request.keys.every((key) => this.#values.has(key));
        reply(Uint8Array.of(all ? checked.ready : checked.notReady));
        return;
      }
      case 'wait':
        this.#wait(connection, request.keys);
        return;
      case 'cancelWait':
        this.#stopWaiting(connection);
        reply(Uint8Array.of(waited.cancelled));
        return;
      case 'numKeys':
        reply(encodeLong(BigInt(this.#values.size)));
        return;
      case 'deleteKey': {
        const value = this.#values.get(request.key);
        if (value !== undefined) this.#bytes -= request.key.length + value.length;
        reply(encodeLong(this.#values.delete(request.key) ? 1n : 0n));
      }
    }
  }

  /** The same large value asked for thousands of times would be one huge answer. */
  #checkReply(keys: readonly string[]): void {
    let bytes = 0;
    for (const key of keys) bytes += this.#valueOf(key).length;
    if (bytes > 4 * this.#limits.valueBytes) throw new WireError('an answer that is too long');
  }

  #valueOf(key: string): Uint8Array {
    const value = this.#values.get(key);
    if (value === undefined) throw new WireError('a key that does not exist');
    return value;
  }

  #append(key: string, value: Uint8Array): void {
    const before = this.#values.get(key) ?? noBytes;
    if (before.length + value.length > this.#limits.valueBytes) {
      throw new WireError('more than a value may hold');
    }
    this.#set(key, join([before, value]));
  }

  #set(key: string, value: Uint8Array): void {
    const before = this.#values.get(key);
    const grows = value.length - (before === undefined ? -key.length : before.length);
    if (value.length > this.#limits.valueBytes || this.#bytes + grows > this.#limits.totalBytes) {
      throw new WireError('more than the store may hold');
    }
    this.#bytes += grows;
    this.#values.set(key, value);
    const waiters = this.#waiters.get(key);
    if (waiters === undefined) return;
    this.#waiters.delete(key);
    for (const connection of waiters) {
      connection.waiting?.delete(key);
      if (connection.waiting?.size === 0) this.#arrived(connection);
    }
  }

  #wait(connection: Connection, keys: readonly string[]): void {
    const missing = new Set(keys.filter((key) => !this.#values.has(key)));
    if (missing.size === 0) {
      this.#arrived(connection);
      return;
    }
    connection.waiting = missing;
    for (const key of missing) {
      const waiters = this.#waiters.get(key) ?? new Set();
      this.#waiters.set(key, waiters.add(connection));
    }
  }

  #arrived(connection: Connection): void {
    connection.waiting = undefined;
    connection.socket.write(Uint8Array.of(waited.arrived));
  }

  #stopWaiting(connection: Connection): void {
    for (const key of connection.waiting ?? []) {
      const waiters = this.#waiters.get(key);
      waiters?.delete(connection);
      if (waiters?.size === 0) this.#waiters.delete(key);
    }
    connection.waiting = undefined;
  }
}

/** A counter is kept as decimal digits. */
function readCounter(value: Uint8Array | undefined): bigint {
  if (value === undefined) return 0n;
  const text = Buffer.from(value).toString('latin1');
  if (!/^-?\d{1,19}$/.test(text)) throw new WireError('an addition to what is no number');
  return BigInt(text);
}
