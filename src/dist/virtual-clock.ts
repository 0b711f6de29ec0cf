/**
 * A clock that jumps from event to event: hours of a thousand ranks pass in milliseconds.
 *
 * Events fire in order of time, then in order of planning. Before the next one fires, every promise
 * that the last one settled has run as far as it can, so code under simulation sees one consistent
 * time. It must wait only for this clock and for groups that run on it: a wait for real input or a real
 * timer takes no virtual time, and the others run ahead of it.
 */
export class VirtualClock {
  #now = 0;
  #running = false;
  #planned = 0;
  /** Binary heap by (time, order of planning). */
  readonly #events: Event[] = [];
  #lastYield = 0;

  /** Milliseconds since the simulation began. */
  now(): number {
    return this.#now;
  }

  /** Events that have fired. */
  fired = 0;

  /** Resolves when `ms` virtual milliseconds have passed; at once in order, never earlier than now. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.after(ms, resolve);
    });
  }

  /** Calls `action` in `ms` virtual milliseconds; the result takes it back. */
  after(ms: number, action: () => void): () => void {
    const event: Event = { at: this.#now + Math.max(0, ms), order: this.#planned++, action };
    this.#push(event);
    if (!this.#running) {
      this.#running = true;
      this.#lastYield = performance.now();
      this.#settled(() => this.#run());
    }
    return () => {
      event.action = undefined;
    };
  }

  #run(): void {
    let event = this.#pop();
    // Events that were taken back must not move time.
    while (event !== undefined && event.action === undefined) event = this.#pop();
    if (event === undefined) {
      this.#running = false;
      return;
    }
    this.#now = event.at;
    this.fired++;
    event.action?.();
    this.#settled(() => this.#run());
  }

  /** Calls back when no promise has anything left to run. */
  #settled(then: () => void): void {
    // Real timers and input must not starve under a long simulation: let them in every 10 ms.
    const now = performance.now();
    if (now - this.#lastYield > 10) {
      this.#lastYield = now;
      setImmediate(then);
      return;
    }
    // Node empties the microtask queue, then runs what nextTick holds: a tick that is asked for inside a
    // microtask comes after all of them. Four times faster than setImmediate.
    void settledPromise.then(() => process.nextTick(then));
  }

  #push(event: Event): void {
    const events = this.#events;
    let hole = events.length;
    while (hole > 0) {
      const parent = (hole - 1) >> 1;
      if (!before(event, events[parent])) break;
      events[hole] = events[parent];
      hole = parent;
    }
    events[hole] = event;
  }

  #pop(): Event | undefined {
    const events = this.#events;
    const first = events[0];
    const moving = events.pop();
    if (events.length === 0 || moving === undefined) return first;
    let hole = 0;
    for (let child = 1; child < events.length; child = 2 * hole + 1) {
      if (child + 1 < events.length && before(events[child + 1], events[child])) child++;
      if (!before(events[child], moving)) break;
      events[hole] = events[child];
      hole = child;
    }
    events[hole] = moving;
    return first;
  }
}

// Its `then` is a plain microtask; queueMicrotask makes an async resource as well.
const settledPromise = Promise.resolve();

interface Event {
  readonly at: number;
  readonly order: number;
  action: (() => void) | undefined;
}

function before(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
