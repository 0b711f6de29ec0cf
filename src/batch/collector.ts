/** Fills one window from the reader, in the background, until it is full, the source ends or it is stopped. */
import type { Item, Reader } from './reader.js';

/** When a window is full. */
export interface WindowTarget {
  /** Fresh samples at most. */
  readonly fresh: number;
  /** Stop once the fresh samples cost that much. Default never. */
  readonly cost: number;
  readonly costOf: (length: number) => number;
  /** False while draining: nothing is read, not even to see whether anything is left. */
  readonly read: boolean;
}

/** A window on its way. Its items may be read once {@link stop} was called or {@link done} has settled. */
export class Collector<S> {
  /** Carried items first, then fresh ones in source order. */
  readonly items: Item<S>[];
  fresh = 0;
  /** After this window nothing remains unread. */
  exhausted = false;
  fillMs = 0;
  /** Rejects with the source's error. */
  readonly done: Promise<void>;
  #stopped = false;

  constructor(
    reader: Reader<S>,
    carry: readonly Item<S>[],
    target: WindowTarget,
    onFresh: (item: Item<S>) => void,
  ) {
    this.items = [...carry];
    const started = performance.now();
    this.done = this.#fill(reader, target, onFresh).finally(() => {
      this.fillMs = performance.now() - started;
    });
    this.done.catch(() => {}); // reported when the round is due
  }

  /** Whatever arrives from now on stays in the reader. */
  stop(): void {
    this.#stopped = true;
  }

  async #fill(reader: Reader<S>, target: WindowTarget, onFresh: (item: Item<S>) => void): Promise<void> {
    if (!target.read) return;
    await undefined; // whoever asked for the window has it before the first sample
    let cost = 0;
    while (this.fresh < target.fresh && cost < target.cost) {
      const peeked = reader.peek();
      const items = peeked instanceof Promise ? await peeked : peeked;
      if (this.#stopped) return;
      if (items === undefined) break;
      reader.take();
      for (const item of items) {
        this.items.push(item);
        if (target.cost < Infinity) cost += target.costOf(item.length);
        onFresh(item);
      }
      this.fresh += items.length;
    }
    const next = await reader.peek();
    if (!this.#stopped) this.exhausted = next === undefined;
  }
}
