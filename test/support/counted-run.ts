/**
 * The alignment protocol at full size with windows as mere counts: the real headers, the real
 * decision, the real groups; only samples and their lengths are left out.
 */
import {
  alignRound,
  decodeHeaders,
  encodeHeader,
  HEADER_WORDS,
  type RoundDecision,
} from '../../src/dist/align.js';
import type { ProcessGroup } from '../../src/dist/process-group.js';
import type { VirtualClock } from '../../src/dist/virtual-clock.js';
import { SeededRandom } from '../../src/seeded-random.js';

/** What one rank did. */
export interface CountedEnd {
  samples: number;
  emitted: number;
  steps: number;
  rounds: number;
  idle: number;
}

/** Runs one epoch on every rank: sources of 0 to `2 * mean` samples, windows of `window`. */
export async function countedEpoch(
  groups: readonly ProcessGroup[],
  clock: VirtualClock,
  options: { seed: number; mean: number; window: number; sampleMs: number },
): Promise<PromiseSettledResult<CountedEnd>[]> {
  const size = groups.length;
  // One output per gather for all ranks, and one decision from it: thousands of copies would say the same.
  const headers = [new Int32Array(size * HEADER_WORDS), new Int32Array(size * HEADER_WORDS)];
  const decisions = new Map<number, RoundDecision>();
  const decide = (round: number): RoundDecision => {
    let decision = decisions.get(round);
    if (decision === undefined) {
      decision = alignRound(decodeHeaders(headers[round % 2]));
      decisions.set(round, decision);
    }
    return decision;
  };
  const sums = [new Float64Array(size), new Float64Array(size)];

  const rankEpoch = async (group: ProcessGroup): Promise<CountedEnd> => {
    const random = new SeededRandom(options.seed, group.rank);
    const samples = random.below(2 * options.mean + 1);
    const end: CountedEnd = { samples, emitted: 0, steps: 0, rounds: 0, idle: 0 };
    let unread = samples;
    let carry = 0;
    for (let round = 0; ; round++) {
      const fresh = Math.min(unread, options.window);
      unread -= fresh;
      // Loading takes an exponential time per window: some ranks are always late.
      await clock.sleep(-options.sampleMs * fresh * Math.log(1 - random.uniform()));
      const n = carry + fresh;
      const steps = n === 0 ? 0 : 1 + random.below(n);
      const header = encodeHeader({
        configHash: 7,
        round,
        exhausted: unread === 0,
        abort: false,
        drain: false,
        nonJoin: false,
        samples: n,
        steps,
        maxSteps: 2 ** 31 - 1,
        carryAge: 0,
      });
      await group.allGather(header, headers[round % 2], { tag: 'A' });
      const { target, final } = decide(round);
      end.rounds++;
      // As the fit does: everything, or `target` of the groups with a sample at least each.
      const emit = steps <= target ? n : target + random.below(n - (steps - target) - target + 1);
      carry = n - emit;
      end.emitted += emit;
      end.steps += target;
      end.idle += Math.max(0, target - n);
      if (target > 0) {
        const all = await group.allGather(Float64Array.of(emit), sums[round % 2], { tag: 'B' });
        if (all[group.rank] !== emit)
          throw new Error(`rank ${group.rank} reads ${all[group.rank]} for its ${emit}`);
      }
      if (final) return end;
    }
  };
  return Promise.allSettled(groups.map(rankEpoch));
}
