/** Optimizer steps made of several aligned steps: one denominator for all their losses. */

/** Micro-steps of an optimizer step that is still open. */
export interface OpenAccumulation {
  readonly steps: number;
  /** Their weight over all ranks. */
  readonly weight: number;
}

/** Where a step stands in its optimizer step. */
export interface Accumulated<T> {
  readonly step: T;
  readonly index: number;
  readonly count: number;
  /** Weight of the whole optimizer step, all ranks and micro-steps. */
  readonly weight: number;
}

/**
 * Groups consecutive steps by `size`. A step is only handed on when its optimizer step is complete,
 * because its loss scale needs the weight of all of them.
 */
export class Accumulator<T extends { readonly globalWeight: number }> {
  readonly #size: number;
  #held: T[] = [];
  /** Micro-steps handed on before a restore. */
  #before: OpenAccumulation;

  constructor(size: number, open: OpenAccumulation = { steps: 0, weight: 0 }) {
    this.#size = size;
    this.#before = open;
  }

  /** The optimizer step that is still open. */
  get open(): OpenAccumulation {
    return {
      steps: this.#before.steps + this.#held.length,
      weight: this.#held.reduce((sum, { globalWeight }) => sum + globalWeight, this.#before.weight),
    };
  }

  /** Adds steps and returns those whose optimizer step is complete; `close` completes the last one short. */
  add(steps: readonly T[], close: boolean): Accumulated<T>[] {
    const ready: Accumulated<T>[] = [];
    for (const step of steps) {
      this.#held.push(step);
      if (this.#before.steps + this.#held.length === this.#size) this.#release(ready);
    }
    if (close && this.#held.length > 0) this.#release(ready);
    if (close) this.#before = { steps: 0, weight: 0 };
    return ready;
  }

  #release(ready: Accumulated<T>[]): void {
    const { steps: count, weight } = this.open;
    this.#held.forEach((step, i) => {
      ready.push({ step, index: this.#before.steps + i, count, weight });
    });
    this.#held = [];
    this.#before = { steps: 0, weight: 0 };
  }
}
