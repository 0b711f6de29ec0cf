/**
 * The first failure of a group, written where every rank sees it: one rank's end is everybody's end,
 * and all ranks name the same cause.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { GroupFailure } from './exchange-group.js';
import type { StoreClient } from './store-client.js';

/** A store whose machine hangs must not hold up a failure for longer, in milliseconds. */
const ANSWER_MS = 2000;
/** Text of a failure is cut to this many characters. */
const MESSAGE_LENGTH = 512;

/** Resolves to the promise's value, or to undefined when it rejects or takes longer than `ms`. */
async function within<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
  const controller = new AbortController();
  const late = sleep(ms, undefined, { signal: controller.signal }).catch(() => undefined);
  try {
    return await Promise.race([promise.catch(() => undefined), late]);
  } finally {
    controller.abort();
  }
}

/** One rank's access to the failure of its group. */
export class Poison {
  readonly #commands: StoreClient;
  readonly #watcher: StoreClient;
  readonly #key: string;
  readonly #flag: string;

  /** `watcher` is a connection that nothing else uses: a wait occupies it. */
  constructor(commands: StoreClient, watcher: StoreClient, prefix: string) {
    this.#commands = commands;
    this.#watcher = watcher;
    this.#key = `${prefix}/poison`;
    this.#flag = `${prefix}/poison_flag`;
  }

  /** Calls `onFailure` once when a rank has failed, `onLost` when the store is gone. */
  watch(onFailure: (failure: GroupFailure) => void, onLost: (error: Error) => void): void {
    this.#watcher
      .wait([this.#flag], Infinity)
      .then(() => this.#watcher.get(this.#key, ANSWER_MS))
      .then((text) => onFailure(decode(text)))
      .catch(onLost);
  }

  /**
   * Resolves to the failure that was first: this one, or one that another rank wrote before; to undefined
   * when the store does not answer. Nobody closes a connection before that, so who finds one closed finds
   * the reason here.
   */
  async propose(failure: GroupFailure): Promise<GroupFailure | undefined> {
    const written = within(ANSWER_MS, this.#commands.compareSet(this.#key, '', encode(failure)));
    // PyTorch's older server wakes nobody at a compare-and-set, so a plain set follows at once.
    void this.#commands.set(this.#flag, '1').catch(() => {});
    const first = await written;
    if (first === undefined) return undefined;
    const decoded = decode(first);
    // Only the own failure has a cause that is an object of this process.
    return decoded.origin === failure.origin && decoded.message === cut(failure.message) ? failure : decoded;
  }

  close(): void {
    this.#watcher.close();
  }
}

function cut(text: string): string {
  return text.slice(0, MESSAGE_LENGTH);
}

function encode({ code, origin, seq, message, missingRanks, cause }: GroupFailure): string {
  const why = cause instanceof Error ? { cause: { name: cause.name, message: cut(cause.message) } } : {};
  return JSON.stringify({ code, origin, seq, message: cut(message), missingRanks, ...why });
}

function decode(text: Uint8Array): GroupFailure {
  return JSON.parse(Buffer.from(text).toString()) as GroupFailure;
}
