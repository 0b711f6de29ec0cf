/**
 * The wire protocol of PyTorch's c10d TCPStore, as pure functions over bytes: a key-value store over
 * TCP in which ranks find each other. Little-endian; a string is a u64 length, then its bytes; keys are
 * bytes too, held here as strings of one character per byte.
 *
 * Source: torch/csrc/distributed/c10d/TCPStoreBackend (codes and frames; the revision without a magic
 * number before each message).
 */

/** First byte of a request. */
const query = {
  validate: 0,
  set: 1,
  compareSet: 2,
  get: 3,
  add: 4,
  check: 5,
  wait: 6,
  numKeys: 7,
  deleteKey: 8,
  append: 9,
  multiGet: 10,
  multiSet: 11,
  cancelWait: 12,
  ping: 13,
} as const;

/** What a connection says first, after a `validate` byte. */
const VALIDATION = 0x3c85f7ce;

/** Answers of `check`. */
export const checked = { ready: 0, notReady: 1 } as const;
/** Answers of `wait`. */
export const waited = { arrived: 0, cancelled: 1 } as const;

/** One request of a client. */
export type StoreRequest =
  | { readonly kind: 'validate' | 'numKeys' | 'cancelWait' }
  /** PyTorch's newer clients begin with it; the nonce comes back. */
  | { readonly kind: 'ping'; readonly nonce: number }
  | { readonly kind: 'get' | 'deleteKey'; readonly key: string }
  | { readonly kind: 'set' | 'append'; readonly key: string; readonly value: Uint8Array }
  | {
      readonly kind: 'compareSet';
      readonly key: string;
      readonly expected: Uint8Array;
      readonly desired: Uint8Array;
    }
  | { readonly kind: 'add'; readonly key: string; readonly delta: bigint }
  | { readonly kind: 'check' | 'wait' | 'multiGet'; readonly keys: readonly string[] }
  | { readonly kind: 'multiSet'; readonly pairs: readonly (readonly [string, Uint8Array])[] };

/** What a server accepts from peers that it does not trust. */
export interface WireLimits {
  readonly keyBytes: number;
  readonly valueBytes: number;
  /** Keys in one message. */
  readonly keys: number;
}

/** Keys up to 64 KiB, values up to 64 MiB, 65,536 keys in a message. */
export const wireLimits: WireLimits = { keyBytes: 2 ** 16, valueBytes: 2 ** 26, keys: 2 ** 16 };

/** Bytes that are no request. */
export class WireError extends Error {}

type Reading<T> = Generator<number | StoreRequest, T, Uint8Array>;

/**
 * Reads requests for ever. Yields a number when it wants that many bytes next, at least 1, and a request
 * when one is complete. The first one must be `validate`.
 *
 * @throws WireError at bytes that no client of this protocol sends
 */
export function* readRequests(limits: WireLimits = wireLimits): Reading<never> {
  if ((yield* readByte()) !== query.validate || (yield* readWord()) !== VALIDATION) {
    throw new WireError('the connection does not begin with the validation of a TCPStore client');
  }
  yield { kind: 'validate' };
  for (;;) yield yield* readRequest(yield* readByte(), limits);
}

function* readRequest(code: number, limits: WireLimits): Reading<StoreRequest> {
  switch (code) {
    case query.set:
    case query.append: {
      const key = yield* readKey(limits);
      return { kind: code === query.set ? 'set' : 'append', key, value: yield* readValue(limits) };
    }
    case query.compareSet: {
      const key = yield* readKey(limits);
      const expected = yield* readValue(limits);
      return { kind: 'compareSet', key, expected, desired: yield* readValue(limits) };
    }
    case query.get:
      return { kind: 'get', key: yield* readKey(limits) };
    case query.deleteKey:
      return { kind: 'deleteKey', key: yield* readKey(limits) };
    case query.add: {
      const key = yield* readKey(limits);
      return { kind: 'add', key, delta: viewOf(yield* readBytes(8)).getBigInt64(0, true) };
    }
    case query.check:
      return { kind: 'check', keys: yield* readKeys(limits) };
    case query.wait:
      return { kind: 'wait', keys: yield* readKeys(limits) };
    case query.multiGet:
      return { kind: 'multiGet', keys: yield* readKeys(limits) };
    case query.multiSet: {
      const count = yield* readLength('keys in a message', limits.keys);
      const pairs: [string, Uint8Array][] = [];
      for (let i = 0; i < count; i++) pairs.push([yield* readKey(limits), yield* readValue(limits)]);
      return { kind: 'multiSet', pairs };
    }
    case query.numKeys:
      return { kind: 'numKeys' };
    case query.cancelWait:
      return { kind: 'cancelWait' };
    case query.ping:
      return { kind: 'ping', nonce: yield* readWord() };
    default:
      throw new WireError(`${code} is no request`);
  }
}

function* readBytes(count: number): Reading<Uint8Array> {
  return count === 0 ? new Uint8Array(0) : yield count;
}

function* readByte(): Reading<number> {
  return (yield* readBytes(1))[0];
}

function* readWord(): Reading<number> {
  return viewOf(yield* readBytes(4)).getUint32(0, true);
}

function* readLength(what: string, limit: number): Reading<number> {
  const length = viewOf(yield* readBytes(8)).getBigUint64(0, true);
  if (length > BigInt(limit)) throw new WireError(`${length} ${what}; at most ${limit} are allowed`);
  return Number(length);
}

function* readKey({ keyBytes }: WireLimits): Reading<string> {
  return latin1(yield* readBytes(yield* readLength('bytes of a key', keyBytes)));
}

function* readValue({ valueBytes }: WireLimits): Reading<Uint8Array> {
  return yield* readBytes(yield* readLength('bytes of a value', valueBytes));
}

function* readKeys(limits: WireLimits): Reading<string[]> {
  const count = yield* readLength('keys in a message', limits.keys);
  const keys: string[] = [];
  for (let i = 0; i < count; i++) keys.push(yield* readKey(limits));
  return keys;
}

/** The bytes of a request. */
export function encodeRequest(request: StoreRequest): Uint8Array {
  switch (request.kind) {
    case 'validate':
      return join([Uint8Array.of(query.validate), encodeWord(VALIDATION)]);
    case 'numKeys':
    case 'cancelWait':
      return Uint8Array.of(query[request.kind]);
    case 'ping':
      return join([Uint8Array.of(query.ping), encodeWord(request.nonce)]);
    case 'get':
    case 'deleteKey':
      return join([Uint8Array.of(query[request.kind]), ...encodeText(request.key)]);
    case 'set':
    case 'append':
      return join([
        Uint8Array.of(query[request.kind]),
        ...encodeText(request.key),
        ...encodeString(request.value),
      ]);
    case 'compareSet':
      return join([
        Uint8Array.of(query.compareSet),
        ...encodeText(request.key),
        ...encodeString(request.expected),
        ...encodeString(request.desired),
      ]);
    case 'add':
      return join([Uint8Array.of(query.add), ...encodeText(request.key), encodeLong(request.delta)]);
    case 'check':
    case 'wait':
    case 'multiGet':
      return join([
        Uint8Array.of(query[request.kind]),
        encodeLong(BigInt(request.keys.length)),
        ...request.keys.flatMap(encodeText),
      ]);
    case 'multiSet':
      return join([
        Uint8Array.of(query.multiSet),
        encodeLong(BigInt(request.pairs.length)),
        ...request.pairs.flatMap(([key, value]) => [...encodeText(key), ...encodeString(value)]),
      ]);
  }
}

/** A string on the wire: length and bytes. */
export function encodeString(bytes: Uint8Array): Uint8Array[] {
  return [encodeLong(BigInt(bytes.length)), bytes];
}

/** An i64 on the wire. */
export function encodeLong(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigInt64(0, value, true);
  return bytes;
}

/** The parts one after another. */
export function join(parts: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat(parts);
}

function encodeText(key: string): Uint8Array[] {
  return encodeString(Buffer.from(key, 'latin1'));
}

/** A u32 on the wire. */
export function encodeWord(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return bytes;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
