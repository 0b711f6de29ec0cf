/** An engine that needs no model: each running rollout makes one token per millisecond of its clock. */
import type { Engine, EngineEvent, PartialOutput } from './engine.js';
import type { RolloutEntry } from './entry.js';

interface Run {
  readonly entry: RolloutEntry;
  readonly startedAt: number;
  readonly endsAt: number;
  readonly truncated: boolean;
}

/** Options of {@link SimulatedEngine}. */
export interface SimulatedEngineOptions {
  /** Rollouts side by side. */
  capacity: number;
  /** Tokens after which a rollout ends by itself, over all interruptions; at least 0. */
  lengthOf: (entry: RolloutEntry) => number;
}

/**
 * Decodes in virtual time: a poll jumps to the next rollout that ends.
 *
 * Token i of a response is the number i, and its log-prob tells the policy that drew it:
 * `-(version + 1) / 1024`, exact in float32, so that tests can follow each token.
 */
export class SimulatedEngine implements Engine {
  readonly capacity: number;
  readonly #lengthOf: (entry: RolloutEntry) => number;
  readonly #runs = new Map<string, Run>();
  #now = 0;
  #version = 0;

  constructor(options: SimulatedEngineOptions) {
    this.capacity = options.capacity;
    this.#lengthOf = options.lengthOf;
  }

  now(): number {
    return this.#now;
  }

  /** Rollouts that run now. */
  get running(): number {
    return this.#runs.size;
  }

  submit(entry: RolloutEntry, maxNew: number): void {
    const left = Math.max(0, this.#lengthOf(entry) - entry.tokens.length);
    this.#runs.set(entry.id, {
      entry,
      startedAt: this.#now,
      endsAt: this.#now + Math.min(left, maxNew),
      truncated: left > maxNew,
    });
  }

  async poll(): Promise<EngineEvent[]> {
    let next = Infinity;
    for (const run of this.#runs.values()) next = Math.min(next, run.endsAt);
    if (next === Infinity) return [];
    this.#now = next;
    const events: EngineEvent[] = [];
    for (const [id, run] of this.#runs) {
      if (run.endsAt > next) continue;
      events.push({ ...this.#output(run), truncated: run.truncated, at: next });
      this.#runs.delete(id);
    }
    return events;
  }

  async abort(ids: string[]): Promise<PartialOutput[]> {
    const outputs: PartialOutput[] = [];
    for (const id of ids) {
      const run = this.#runs.get(id);
      if (run === undefined) continue;
      outputs.push(this.#output(run));
      this.#runs.delete(id);
    }
    return outputs;
  }

  async setPolicy(version: number): Promise<void> {
    this.#version = version;
  }

  #output(run: Run): PartialOutput {
    const count = this.#now - run.startedAt;
    const before = run.entry.tokens.length;
    const tokens = new Int32Array(count);
    for (let i = 0; i < count; i++) tokens[i] = before + i;
    return { id: run.entry.id, tokens, logprobs: new Float32Array(count).fill(-(this.#version + 1) / 1024) };
  }
}
