/**
 * Ranks of one process meet at a board: each exchange collects one message per rank and hands the
 * same list to all of them. Time, delays and faults come from outside, so the same board serves the
 * `local` group (real time) and the `sim` group (virtual time).
 */
import type { Arrived, GroupFailure, Transport } from './exchange-group.js';
import type { Backend } from './process-group.js';

/** A clock that can call back. */
export interface TimeSource {
  /** Milliseconds. */
  now(): number;
  /** Calls `action` in `ms` milliseconds; the result takes it back. */
  after(ms: number, action: () => void): () => void;
}

/** What may go wrong or slow on the way, by rank of the outermost group. */
export interface BoardRules {
  /** Milliseconds until a rank's message reaches the others. 0: at once. */
  sendMs(rank: number, seq: number): number;
  /** Milliseconds until a rank learns that all messages, or a failure, are there. 0: at once. */
  receiveMs(rank: number, seq: number): number;
  /** True when the message is never sent: the rank hangs. */
  swallows(rank: number, seq: number): boolean;
}

interface Exchange {
  readonly messages: (Uint8Array | undefined)[];
  missing: number;
  readonly resolve: (((arrived: Arrived) => void) | undefined)[];
  readonly cancels: (() => void)[];
  /** Earliest deadline so far, on the clock. */
  deadline: number;
}

/** The meeting point of `size` ranks. */
export class Board {
  readonly size: number;
  readonly #backend: Backend;
  readonly #time: TimeSource;
  readonly #rules: BoardRules;
  /** Rank of the outermost group, by rank of this board. */
  readonly #outer: readonly number[];
  readonly #members: (Transport | undefined)[];
  readonly #exchanges = new Map<number, Exchange>();
  /** Groups made from this one, by the exchange that made them and their ranks. */
  readonly #children = new Map<string, { board: Board; ranks: readonly number[] }>();
  #failure: GroupFailure | undefined;

  constructor(backend: Backend, time: TimeSource, rules: BoardRules, outer: readonly number[]) {
    this.size = outer.length;
    this.#backend = backend;
    this.#time = time;
    this.#rules = rules;
    this.#outer = outer;
    this.#members = new Array(outer.length);
  }

  /** The transport of one rank. */
  join(rank: number): Transport {
    const member: Transport = {
      rank,
      size: this.size,
      backend: this.#backend,
      now: () => this.#time.now(),
      exchange: (seq, message, timeoutMs) => this.#exchange(rank, seq, message, timeoutMs),
      fail: (failure) => this.fail(failure),
      onFailure() {},
      subgroup: (ranks, seq) => this.#child(ranks, seq).join(ranks.indexOf(rank)),
      close: () => {
        this.#members[rank] = undefined;
      },
    };
    this.#members[rank] = member;
    return member;
  }

  /** Tells every rank, once, that the group has ended. */
  fail(failure: GroupFailure): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    for (const exchange of this.#exchanges.values()) for (const cancel of exchange.cancels) cancel();
    this.#exchanges.clear();
    this.#members.forEach((member, rank) => {
      this.#later(this.#rules.receiveMs(this.#outer[rank], failure.seq), () => member?.onFailure(failure));
    });
  }

  /**
   * The rank stops as a killed process does. It is told so at once, as a stand-in for ceasing to be;
   * its peers learn it after `noticeMs`, here and in every group made from this one.
   */
  kill(rank: number, noticeMs: number): void {
    const message = `rank ${rank} died`;
    const member = this.#members[rank];
    this.#members[rank] = undefined;
    member?.onFailure({ code: 'ERR_VARLEN_DIST_ABORTED', origin: rank, seq: 0, message });
    const lost = { code: 'ERR_VARLEN_DIST_PEER_LOST', origin: rank, seq: 0, message } as const;
    if (noticeMs < Infinity) {
      this.#later(noticeMs, () => this.fail({ ...lost, missingRanks: [rank] }));
    }
    for (const { board, ranks } of this.#children.values()) {
      const inner = ranks.indexOf(rank);
      if (inner >= 0) board.kill(inner, noticeMs);
    }
  }

  #exchange(rank: number, seq: number, message: Uint8Array, timeoutMs: number): Promise<Arrived> {
    const outer = this.#outer[rank];
    return new Promise((resolve) => {
      if (this.#failure !== undefined) return; // this rank is being told
      let exchange = this.#exchanges.get(seq);
      if (exchange === undefined) {
        const messages = new Array(this.size).fill(undefined);
        const waiting = new Array(this.size).fill(undefined);
        exchange = { messages, missing: this.size, resolve: waiting, cancels: [], deadline: Infinity };
        this.#exchanges.set(seq, exchange);
      }
      exchange.resolve[rank] = resolve;
      this.#arm(exchange, rank, seq, timeoutMs);
      if (this.#rules.swallows(outer, seq)) return;
      const posted = exchange;
      this.#later(this.#rules.sendMs(outer, seq), () => this.#post(posted, rank, seq, message));
    });
  }

  #post(exchange: Exchange, rank: number, seq: number, message: Uint8Array): void {
    if (this.#failure !== undefined || this.#members[rank] === undefined) return;
    exchange.messages[rank] = message;
    if (--exchange.missing > 0) return;
    this.#exchanges.delete(seq);
    for (const cancel of exchange.cancels) cancel();
    const arrived: Arrived = { messages: exchange.messages as Uint8Array[] };
    for (let to = 0; to < this.size; to++) {
      this.#later(this.#rules.receiveMs(this.#outer[to], seq), () => exchange.resolve[to]?.(arrived));
    }
  }

  /** One timer serves all ranks with the same deadline or a later one. */
  #arm(exchange: Exchange, rank: number, seq: number, timeoutMs: number): void {
    const deadline = this.#time.now() + timeoutMs;
    if (deadline >= exchange.deadline) return;
    exchange.deadline = deadline;
    const cancel = this.#time.after(timeoutMs, () => {
      const missingRanks = [...exchange.messages.keys()].filter((r) => exchange.messages[r] === undefined);
      const message = `exchange #${seq} passed its deadline of ${timeoutMs} ms; missing ranks ${missingRanks.join(', ')}`;
      this.fail({ code: 'ERR_VARLEN_DIST_TIMEOUT', origin: rank, seq, message, missingRanks });
    });
    exchange.cancels.push(cancel);
  }

  #child(ranks: readonly number[], seq: number): Board {
    const key = `${seq}:${ranks.join()}`;
    let child = this.#children.get(key);
    if (child === undefined) {
      const outer = ranks.map((rank) => this.#outer[rank]);
      child = { board: new Board(this.#backend, this.#time, this.#rules, outer), ranks };
      this.#children.set(key, child);
    }
    return child.board;
  }

  #later(ms: number, action: () => void): void {
    if (ms > 0) this.#time.after(ms, action);
    else action();
  }
}
