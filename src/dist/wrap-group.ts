/** A user's own collective as a {@link ProcessGroup}. */
import { argumentError } from '../errors.js';
import { checkRank, checkTimeout } from './collective-arguments.js';
import { type Arrived, DEFAULT_TIMEOUT_MS, ExchangeGroup, type Transport } from './exchange-group.js';
import { checkWorldSize } from './local-group.js';
import type { ProcessGroup } from './process-group.js';

/** What {@link wrapGroup} needs of a user's own communication. */
export interface CustomCollective {
  readonly rank: number;
  readonly size: number;
  /** Every rank's bytes in rank order; lengths may differ. Rejects when a peer is lost. */
  allGather(send: Uint8Array): Promise<Uint8Array[]>;
  /** The collective of the listed ranks, which this one is among. Without it there are no subgroups. */
  subgroup?(ranks: readonly number[]): CustomCollective | Promise<CustomCollective>;
  /** Default deadline of a collective in milliseconds. Default 120,000. */
  readonly timeoutMs?: number;
}

/**
 * A process group over one function that gathers bytes.
 *
 * `abort()` and failures stay local: `allGather` has no way to tell peers, so that they end at their
 * own deadline. `subgroup` rejects with `ERR_VARLEN_UNSUPPORTED` unless the collective brings its own.
 *
 * @throws VarlenInputError `ERR_VARLEN_RANGE`, `ERR_VARLEN_TYPE`
 */
export function wrapGroup(collective: CustomCollective): ProcessGroup {
  return new ExchangeGroup(wrappedTransport(collective), collective.timeoutMs ?? DEFAULT_TIMEOUT_MS);
}

function wrappedTransport(collective: CustomCollective): Transport {
  const op = 'wrapGroup';
  const { rank, size, timeoutMs = DEFAULT_TIMEOUT_MS } = collective;
  checkWorldSize(op, size);
  checkRank(op, 'rank', rank, size);
  checkTimeout(op, 'timeoutMs', timeoutMs);
  if (typeof collective.allGather !== 'function') {
    const problem = `must be a function; got ${typeof collective.allGather}`;
    throw argumentError('ERR_VARLEN_TYPE', op, 'allGather', problem);
  }

  const transport: Transport = {
    rank,
    size,
    backend: 'custom',
    now: () => performance.now(),
    exchange: (seq, message, deadlineMs) =>
      new Promise((resolve) => {
        const fail = (
          code: 'ERR_VARLEN_DIST_TIMEOUT' | 'ERR_VARLEN_DIST_PEER_LOST',
          text: string,
          cause?: unknown,
        ) => transport.onFailure({ code, origin: rank, seq, message: text, cause });
        const timer = setTimeout(
          () => fail('ERR_VARLEN_DIST_TIMEOUT', `exchange #${seq} passed its deadline of ${deadlineMs} ms`),
          deadlineMs,
        );
        const settled = (done: () => void) => {
          clearTimeout(timer);
          done();
        };
        // The call itself may throw instead of rejecting.
        new Promise<Uint8Array[]>((start) => start(collective.allGather(message))).then(
          (messages) => settled(() => deliver(messages, resolve, fail, size)),
          (error) =>
            settled(() => fail('ERR_VARLEN_DIST_PEER_LOST', 'the wrapped allGather rejected', error)),
        );
      }),
    fail() {},
    onFailure() {},
    async subgroup(ranks) {
      if (collective.subgroup !== undefined) return wrappedTransport(await collective.subgroup(ranks));
      const problem = 'cannot be made from this wrapped collective; give it a function `subgroup`';
      throw argumentError('ERR_VARLEN_UNSUPPORTED', 'subgroup', 'ranks', problem);
    },
    close() {},
  };
  return transport;
}

function deliver(
  messages: unknown,
  resolve: (arrived: Arrived) => void,
  fail: (code: 'ERR_VARLEN_DIST_PEER_LOST', text: string) => void,
  size: number,
): void {
  const whole =
    Array.isArray(messages) && messages.length === size && messages.every((m) => m instanceof Uint8Array);
  // A Buffer slices without a copy: plain arrays from here on.
  const plain = (m: Uint8Array) => new Uint8Array(m.buffer as ArrayBuffer, m.byteOffset, m.length);
  if (whole) resolve({ messages: (messages as Uint8Array[]).map(plain) });
  else fail('ERR_VARLEN_DIST_PEER_LOST', `the wrapped allGather must resolve to ${size} Uint8Arrays`);
}
