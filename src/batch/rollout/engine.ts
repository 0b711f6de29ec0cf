/** What the rollout controller asks of a text generator. */
import type { RolloutEntry } from './entry.js';

/** A rollout that has ended by itself. */
export interface EngineEvent {
  readonly id: string;
  /** Tokens since the rollout was submitted last. */
  readonly tokens: Int32Array;
  /** Natural log-probability of each of these tokens under the policy that drew it. */
  readonly logprobs: Float32Array;
  /** It ended because of `maxNew`, not by an end token. */
  readonly truncated: boolean;
  /** When it ended, on the engine's clock. Default: the time of the poll. */
  readonly at?: number;
}

/** What a rollout had when it was stopped. */
export interface PartialOutput {
  readonly id: string;
  /** Tokens since the rollout was submitted last; may be none. */
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
}

/** A generator that runs up to `capacity` rollouts side by side. */
export interface Engine {
  readonly capacity: number;
  /** Starts a rollout, or goes on with one: `entry.tokens` have been generated before. */
  submit(entry: RolloutEntry, maxNew: number): void;
  /** Resolves when at least one rollout has ended; may resolve to none, and is then asked again. */
  poll(): Promise<EngineEvent[]>;
  /** Stops the listed rollouts; resolves to one output for each. */
  abort(ids: string[]): Promise<PartialOutput[]>;
  /** Later tokens come from this policy. Called only while nothing runs. */
  setPolicy(version: number): Promise<void>;
  /** The engine's clock in milliseconds, for the bubble ratio. Default `performance.now()`. */
  now?(): number;
}
