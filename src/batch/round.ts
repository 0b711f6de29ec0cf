/** One round in the middle: what is known once the ranks have told each other what their steps hold. */
import type { GlobalStep, RoundDecision, RoundHeader } from '../dist/align.js';
import type { Collector } from './collector.js';
import type { FittedSteps } from './fit.js';
import type { WindowView } from './window-view.js';

/** A window on its way through one round. */
export interface Round<S> {
  readonly window: Collector<S>;
  readonly view: WindowView;
  readonly groups: number[][];
  readonly headers: readonly RoundHeader[];
  readonly decision: RoundDecision;
  readonly fitted: FittedSteps;
  readonly global: GlobalStep[];
  readonly digest: string;
}

/** The part of a round's steps that is emitted: all, or up to the quota. */
export interface Emission {
  /** Canonical index of each emitted step. */
  readonly order: Int32Array;
  readonly quotaMet: boolean;
}
