/**
 * Who waits and who is silent: while a rank is in a collective it writes a line to the store now and then,
 * and when its deadline comes near it reads the lines of the others.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { StoreClient } from './store-client.js';

/** How often a rank that waits says so, in milliseconds; with many ranks the store gets a write each. */
const BEAT_MS = 100;
/** A rank that waits and does not say so for this long is missing, in milliseconds; less for short deadlines. */
const SILENCE_MS = 3000;

/** The lines of one group. */
export class Progress {
  /** Between two lines, in milliseconds. */
  readonly beatMs: number;
  readonly #store: StoreClient;
  readonly #prefix: string;
  readonly #rank: number;
  readonly #size: number;
  readonly #onBeat: () => void;
  readonly #onLost: (error: Error) => void;
  #seq = 0;
  #waiting = false;
  #beats = 0;
  #beating: NodeJS.Timeout | undefined;
  /** The lines that were read last and when, since when they are the same, and whether they are still read. */
  #lines: string[] = [];
  #readAt = 0;
  #since: number[] = [];
  #observing: object | undefined;

  /** `onBeat`: runs before each line; `onLost`: the store does not answer. */
  constructor(
    store: StoreClient,
    { prefix, rank, size }: { readonly prefix: string; readonly rank: number; readonly size: number },
    onBeat: () => void,
    onLost: (error: Error) => void,
  ) {
    this.beatMs = Math.max(BEAT_MS, size);
    this.#store = store;
    this.#prefix = `${prefix}/progress`;
    this.#rank = rank;
    this.#size = size;
    this.#onBeat = onBeat;
    this.#onLost = onLost;
  }

  /** This rank waits in exchange `seq`. */
  enter(seq: number): void {
    this.#seq = seq;
    this.#waiting = true;
    this.#beating ??= setInterval(() => this.#beat(), this.beatMs).unref();
  }

  /** It waits no more. */
  leave(): void {
    this.#waiting = false;
    this.#observing = undefined;
  }

  /** Writes and reads nothing more. */
  stop(): void {
    this.leave();
    clearInterval(this.#beating);
    this.#beating = undefined;
  }

  /** For how long a rank has to be silent under this deadline, in milliseconds. */
  silenceMs(timeoutMs: number): number {
    return Math.max(3 * this.beatMs, Math.min(SILENCE_MS, timeoutMs / 2));
  }

  /** Reads the others' lines from now on. */
  observe(): void {
    if (this.#observing !== undefined) return;
    const turn = {};
    this.#observing = turn;
    this.#lines = new Array(this.#size).fill('');
    this.#readAt = performance.now();
    this.#since = new Array(this.#size).fill(this.#readAt);
    void this.#follow(turn);
  }

  /**
   * The ranks that have been silent for `silenceMs`; undefined when there are none after `patienceMs`. A
   * rank that does not take part is silent, alive or not; one that waits, be it one collective behind, is
   * not missing: it waits for somebody else.
   */
  async missing(silenceMs: number, patienceMs: number): Promise<readonly number[] | undefined> {
    this.observe();
    const turn = this.#observing;
    const end = performance.now() + patienceMs;
    for (;;) {
      const missing = this.#missing(silenceMs);
      if (missing.length > 0) return missing;
      if (performance.now() >= end || this.#observing !== turn) return undefined;
      await sleep(this.beatMs / 2);
    }
  }

  /** While the store does not answer, nobody can be told from those that are silent. */
  #missing(silenceMs: number): readonly number[] {
    return [...this.#lines.keys()].filter(
      (rank) => rank !== this.#rank && this.#readAt - this.#since[rank] >= silenceMs,
    );
  }

  async #follow(turn: object): Promise<void> {
    try {
      while (this.#observing === turn) {
        const lines = await this.#read();
        this.#readAt = performance.now();
        for (const [rank, line] of lines.entries()) {
          if (line !== this.#lines[rank]) this.#since[rank] = this.#readAt;
        }
        this.#lines = lines;
        await sleep(this.beatMs, undefined, { ref: false });
      }
    } catch (error) {
      if (this.#observing === turn) this.#observing = undefined;
      this.#lines = []; // nothing is known of anybody
      this.#onLost(error as Error);
    }
  }

  async #read(): Promise<string[]> {
    const keys = Array.from({ length: this.#size }, (_, rank) => `${this.#prefix}/${rank}`);
    if (await this.#store.check(keys)) return (await this.#store.multiGet(keys)).map(textOf);
    const lines: string[] = [];
    for (const key of keys) {
      lines.push((await this.#store.check([key])) ? textOf((await this.#store.multiGet([key]))[0]) : '');
    }
    return lines;
  }

  #beat(): void {
    if (!this.#waiting) {
      this.stop(); // until it comes back
      return;
    }
    this.#onBeat();
    const line = `${this.#seq} ${++this.#beats}`;
    this.#store.set(`${this.#prefix}/${this.#rank}`, line).catch(this.#onLost);
  }
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString();
}
