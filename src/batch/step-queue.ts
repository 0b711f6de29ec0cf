/** A bounded queue between one producer and the consumer's `next()` calls, which it answers in order. */

interface Waiter<T> {
  resolve(result: IteratorResult<T, undefined>): void;
  reject(reason: unknown): void;
}

export class StepQueue<T> {
  readonly #capacity: number;
  #values: T[] = [];
  #waiters: Waiter<T>[] = [];
  #end: { readonly failed: boolean; readonly reason?: unknown } | undefined;
  #wake: () => void = () => {};

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get ended(): boolean {
    return this.#end !== undefined;
  }

  /** Resolves when one more value is wanted, or when nobody will take any. */
  async space(): Promise<void> {
    while (this.#end === undefined && this.#waiters.length === 0 && this.#values.length >= this.#capacity) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  put(value: T): void {
    if (this.#end !== undefined) return;
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#values.push(value);
    else waiter.resolve({ done: false, value });
  }

  next(): Promise<IteratorResult<T, undefined>> {
    const value = this.#values.shift();
    if (value !== undefined) {
      this.#wake();
      return Promise.resolve({ done: false, value });
    }
    if (this.#end !== undefined) {
      const { failed, reason } = this.#end;
      this.#end = { failed: false }; // an error is told once; then the iterator is finished
      return failed ? Promise.reject(reason) : Promise.resolve({ done: true, value: undefined });
    }
    const promise = new Promise<IteratorResult<T, undefined>>((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
    });
    this.#wake();
    return promise;
  }

  /** Ends after the values that are in the queue. */
  end(): void {
    this.#finish({ failed: false });
  }

  /** Fails after the values that are in the queue. */
  fail(reason: unknown): void {
    this.#finish({ failed: true, reason });
  }

  /** Fails now. Returns the values that nobody gets. */
  abort(reason: unknown): T[] {
    const left = this.#values;
    this.#values = [];
    if (this.#end?.failed === false && left.length > 0) this.#end = undefined;
    this.#finish({ failed: true, reason });
    return left;
  }

  /** Ends now. Returns the values that nobody gets. */
  discard(): T[] {
    const left = this.#values;
    this.#values = [];
    this.#end = undefined;
    this.#finish({ failed: false });
    return left;
  }

  #finish(end: { readonly failed: boolean; readonly reason?: unknown }): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    this.#wake();
    const [first, ...rest] = this.#waiters;
    this.#waiters = [];
    if (first === undefined) return;
    if (end.failed) {
      first.reject(end.reason);
      this.#end = { failed: false };
    } else first.resolve({ done: true, value: undefined });
    for (const waiter of rest) waiter.resolve({ done: true, value: undefined });
  }
}
