/** Where a run begins, and how its source gets there again. */
import type { ResolvedOptions } from './options.js';
import { positions, type Replay, type Source } from './source.js';
import type { DrainMark, RoundStart } from './state.js';

/** Where a run begins: at the start of a pass, or where a checkpoint says. */
export interface ResumePoint<S> {
  readonly base: RoundStart;
  readonly epoch: number;
  readonly round: number;
  readonly stepInRound: number;
  readonly digest: string | null;
  readonly drain: DrainMark | null;
  readonly payload: readonly {
    readonly epoch: number;
    readonly samples: readonly S[];
    readonly ended: boolean;
  }[];
}

/** How a state of this source can be restored: the source's own way, or one of the options. */
export function replayOf<S>(
  source: Source<S>,
  options: Pick<ResolvedOptions<S, never>, 'statePayload' | 'replay'>,
): Replay {
  if (options.statePayload) return 'payload';
  if (options.replay) return 'skip';
  return positions(source) === undefined ? 'none' : 'state';
}
