/**
 * Ranks in worker threads of one process, joined by shared memory and Atomics: no sockets, no messages.
 *
 * Each rank owns two mailboxes and uses them in turn. A rank can be one exchange ahead of its peers
 * but not two, since the next exchange completes only after all have posted to it, and a rank posts
 * only after it has read the last one. So two alternating boxes need no second barrier; the model
 * test/model/align.pml checks this gather under DOUBLE.
 */
import { argumentError, varlenError } from '../errors.js';
import { checkTimeout } from './collective-arguments.js';
import {
  type Arrived,
  DEFAULT_TIMEOUT_MS,
  ExchangeGroup,
  type GroupFailure,
  type Transport,
} from './exchange-group.js';
import { checkWorldSize } from './local-group.js';
import type { ProcessGroup } from './process-group.js';

/** Options of {@link sharedGroupHandles}. */
export interface SharedGroupOptions {
  /** Default deadline of a collective in milliseconds, an integer in 1..86,400,000. Default 120,000. */
  timeoutMs?: number;
  /** Bytes of one mailbox, at least 64; a longer message travels in several exchanges. Default 65,536. */
  mailboxBytes?: number;
  /** How many subgroups, of subgroups too, may be made. Default 4. */
  subgroups?: number;
}

/** One rank's ticket to the group. Send it to a worker as it is: the memory is shared, not copied. */
export interface SharedGroupHandle {
  readonly memory: SharedArrayBuffer;
  readonly rank: number;
  readonly size: number;
  readonly timeoutMs: number;
  readonly mailboxBytes: number;
  readonly subgroups: number;
}

/**
 * Tickets for `n` ranks that may live in different worker threads; each is used once, by {@link joinSharedGroup}.
 *
 * ```ts
 * const handles = sharedGroupHandles(2);
 * const worker = new Worker('./trainer.js', { workerData: handles[1] });
 * const group = joinSharedGroup(handles[0]);
 * ```
 *
 * @throws VarlenInputError `ERR_VARLEN_RANGE` when `n` or an option is out of range
 */
export function sharedGroupHandles(n: number, options: SharedGroupOptions = {}): SharedGroupHandle[] {
  const op = 'sharedGroupHandles';
  const { timeoutMs = DEFAULT_TIMEOUT_MS, mailboxBytes = 65536, subgroups = 4 } = options;
  checkWorldSize(op, n);
  checkTimeout(op, 'options.timeoutMs', timeoutMs);
  if (
    !Number.isInteger(mailboxBytes) ||
    mailboxBytes < 64 ||
    mailboxBytes % 8 !== 0 ||
    mailboxBytes > 2 ** 28
  ) {
    const problem = `is out of range; got ${String(mailboxBytes)}, expected a multiple of 8 in [64, 2^28]`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'options.mailboxBytes', problem);
  }
  if (!Number.isInteger(subgroups) || subgroups < 0 || subgroups > 1024) {
    const problem = `is out of range; got ${String(subgroups)}, expected an integer in [0, 1024]`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'options.subgroups', problem);
  }
  const bytes = (1 + subgroups) * regionBytes(n, mailboxBytes);
  if (bytes > 2 ** 31) {
    const problem = `needs ${bytes} bytes of shared memory with these mailboxes; expected at most 2^31`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'n', problem);
  }
  const memory = new SharedArrayBuffer(bytes);
  return Array.from({ length: n }, (_, rank) => ({
    memory,
    rank,
    size: n,
    timeoutMs,
    mailboxBytes,
    subgroups,
  }));
}

/**
 * The group that a ticket belongs to, in this thread.
 *
 * A worker that is terminated is noticed by the deadline, which names it in `missingRanks`.
 *
 * @throws VarlenStateError `ERR_VARLEN_BUSY` when the ticket was used before
 */
export function joinSharedGroup(handle: SharedGroupHandle): ProcessGroup {
  const region = new Region(handle, 0, handle.size);
  if (Atomics.exchange(region.control, region.joinedAt(handle.rank), 1) !== 0) {
    const message = `joinSharedGroup: rank ${handle.rank} has joined before; a handle is used once`;
    throw varlenError('ERR_VARLEN_BUSY', message, { op: 'joinSharedGroup', argument: 'handle' });
  }
  return new ExchangeGroup(sharedTransport(handle, region, handle.rank), handle.timeoutMs);
}

/** Words at the start of a region's control block. */
const word = {
  /** Counts completions and failures: what sleepers sleep on. */
  wake: 0,
  /** Exchanges that all ranks have posted to. */
  completed: 1,
  /** Posts to the mailboxes of even and odd exchanges. */
  posted: 2,
  /** 0 none, 1 being written, 2 readable. */
  failure: 4,
  failureLength: 5,
  /** Names the subgroup that took this region; 0: free. */
  owner: 6,
  /** From here on: exchanges entered, by rank; then 1 by rank that has joined. */
  ranks: 8,
} as const;

const failureBytes = 8192;
// Text of a failure is cut to this many characters, so that its JSON fits.
const messageLimit = 512;
// Each mailbox begins with the length of its message, padded to keep the payload aligned.
const boxHeaderBytes = 8;

function controlBytes(size: number): number {
  return 8 * Math.ceil((word.ranks + 2 * size) / 2);
}

function regionBytes(size: number, mailboxBytes: number): number {
  return controlBytes(size) + failureBytes + 2 * size * (boxHeaderBytes + mailboxBytes);
}

/** One board in the shared memory: the group's own is number 0, the others are for subgroups. */
class Region {
  readonly control: Int32Array;
  readonly failureText: Uint8Array;
  readonly #handle: SharedGroupHandle;
  readonly #boxesAt: number;
  readonly #size: number;

  constructor(handle: SharedGroupHandle, index: number, size: number) {
    const at = index * regionBytes(handle.size, handle.mailboxBytes);
    this.#handle = handle;
    this.#size = size;
    this.control = new Int32Array(handle.memory, at, word.ranks + 2 * size);
    this.failureText = new Uint8Array(handle.memory, at + controlBytes(handle.size), failureBytes);
    this.#boxesAt = at + controlBytes(handle.size) + failureBytes;
  }

  joinedAt(rank: number): number {
    return word.ranks + this.#size + rank;
  }

  /** `[length word, payload]` of a rank's mailbox for exchanges of one parity. */
  box(rank: number, parity: number): { length: Int32Array; payload: Uint8Array } {
    const { memory, mailboxBytes } = this.#handle;
    const at = this.#boxesAt + (2 * rank + parity) * (boxHeaderBytes + mailboxBytes);
    return {
      length: new Int32Array(memory, at, 1),
      payload: new Uint8Array(memory, at + boxHeaderBytes, mailboxBytes),
    };
  }
}

function sharedTransport(
  handle: SharedGroupHandle,
  region: Region,
  rank: number,
  size: number = handle.size,
): Transport {
  const { control } = region;
  const { mailboxBytes } = handle;
  let turn = 0;
  let told = false;

  const wake = () => {
    Atomics.add(control, word.wake, 1);
    Atomics.notify(control, word.wake);
  };

  const post = (totalBytes: number, part: Uint8Array): void => {
    const parity = turn & 1;
    const { length, payload } = region.box(rank, parity);
    length[0] = totalBytes;
    payload.set(part);
    Atomics.store(control, word.ranks + rank, turn + 1);
    if (Atomics.add(control, word.posted + parity, 1) + 1 < size) return;
    // The last to post: all have read the previous exchange, whose counter serves the next one.
    Atomics.store(control, word.posted + (1 - parity), 0);
    Atomics.add(control, word.completed, 1);
    wake();
  };

  /** True when exchange `turn` is complete; false when the group has failed. */
  const complete = async (seq: number, deadline: number): Promise<boolean> => {
    // Waiting on Atomics alone does not keep a thread alive.
    const keepAlive = setInterval(() => {}, 2 ** 30);
    try {
      for (;;) {
        const seen = Atomics.load(control, word.wake);
        if (Atomics.load(control, word.completed) > turn) return true;
        if (Atomics.load(control, word.failure) === 2) return tell();
        const left = deadline - performance.now();
        if (left <= 0) {
          const entered = Array.from({ length: size }, (_, r) => Atomics.load(control, word.ranks + r));
          const missingRanks = [...entered.keys()].filter((r) => entered[r] <= turn);
          const message = `exchange #${seq} passed its deadline; missing ranks ${missingRanks.join(', ')}`;
          transport.fail({ code: 'ERR_VARLEN_DIST_TIMEOUT', origin: rank, seq, message, missingRanks });
        }
        const waiting = waitAsync(control, word.wake, seen, Math.max(1, left));
        if (waiting.async) await waiting.value;
      }
    } finally {
      clearInterval(keepAlive);
    }
  };

  const tell = (): false => {
    if (!told) {
      told = true;
      const text = region.failureText.slice(0, Atomics.load(control, word.failureLength));
      transport.onFailure(JSON.parse(new TextDecoder().decode(text)) as GroupFailure);
    }
    return false;
  };

  const exchange = async (
    seq: number,
    message: Uint8Array,
    timeoutMs: number,
  ): Promise<Arrived | undefined> => {
    const deadline = performance.now() + timeoutMs;
    const messages: Uint8Array[] = [];
    let longest = message.length;
    for (let start = 0; start === 0 || start < longest; start += mailboxBytes) {
      if (Atomics.load(control, word.failure) === 2 && !tell()) return undefined;
      post(message.length, message.subarray(start, start + mailboxBytes));
      if (!(await complete(seq, deadline))) return undefined;
      for (let from = 0; from < size; from++) {
        const { length, payload } = region.box(from, turn & 1);
        messages[from] ??= new Uint8Array(length[0]);
        longest = Math.max(longest, length[0]);
        const rest = messages[from].length - start;
        if (rest > 0) messages[from].set(payload.subarray(0, Math.min(rest, mailboxBytes)), start);
      }
      turn++;
    }
    return { messages };
  };

  const transport: Transport = {
    rank,
    size,
    backend: 'local',
    now: () => performance.now(),
    exchange: (seq, message, timeoutMs) =>
      new Promise((resolve) => {
        void exchange(seq, message, timeoutMs).then((arrived) => {
          if (arrived !== undefined) resolve(arrived);
        });
      }),
    fail(failure) {
      if (Atomics.compareExchange(control, word.failure, 0, 1) !== 0) return;
      const { cause, ...plain } = failure;
      const reason =
        cause instanceof Error ? { cause: { name: cause.name, message: cut(cause.message) } } : {};
      // A list of a thousand ranks would not fit; the first ones name the trouble as well.
      const missing = plain.missingRanks ? { missingRanks: plain.missingRanks.slice(0, 256) } : {};
      const json = JSON.stringify({ ...plain, ...missing, ...reason, message: cut(plain.message) });
      const text = new TextEncoder().encode(json);
      region.failureText.set(text);
      Atomics.store(control, word.failureLength, text.length);
      Atomics.store(control, word.failure, 2);
      wake();
    },
    onFailure() {},
    subgroup(ranks, seq) {
      const [index, child] = claim(handle, region, seq, ranks.length);
      if (index < 0) {
        const problem = `are used up; got more than ${handle.subgroups}, raise options.subgroups of sharedGroupHandles`;
        throw argumentError('ERR_VARLEN_UNSUPPORTED', 'subgroup', 'subgroups', problem);
      }
      return sharedTransport(handle, child, ranks.indexOf(rank), ranks.length);
    },
    close() {},
  };
  return transport;
}

/** The region of the subgroup that `parent` made in its exchange `seq`: the first member to come takes it. */
function claim(handle: SharedGroupHandle, parent: Region, seq: number, size: number): [number, Region] {
  // Where the parent lies and which exchange made the subgroup: the same number on every member.
  const parentIndex = parent.control.byteOffset / regionBytes(handle.size, handle.mailboxBytes);
  const owner = parentIndex * 2 ** 21 + (seq % 2 ** 21);
  for (let index = 1; index <= handle.subgroups; index++) {
    const region = new Region(handle, index, size);
    const before = Atomics.compareExchange(region.control, word.owner, 0, owner);
    if (before === 0 || before === owner) return [index, region];
  }
  return [-1, parent];
}

function cut(text: string): string {
  return text.slice(0, messageLimit);
}

/** `Atomics.waitAsync`, which Node has since version 16 and the es2023 library does not declare. */
const waitAsync = (
  Atomics as unknown as {
    waitAsync(
      array: Int32Array,
      index: number,
      value: number,
      timeoutMs: number,
    ):
      | { async: true; value: Promise<'ok' | 'timed-out'> }
      | { async: false; value: 'not-equal' | 'timed-out' };
  }
).waitAsync;
