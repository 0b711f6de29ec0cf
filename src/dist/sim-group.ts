/** Thousands of ranks in virtual time, with delays, reordered messages and deaths, all from one seed. */
import { argumentError } from '../errors.js';
import { SeededRandom } from '../seeded-random.js';
import { Board } from './board.js';
import { checkRank, checkTimeout } from './collective-arguments.js';
import { DEFAULT_TIMEOUT_MS, ExchangeGroup } from './exchange-group.js';
import { checkWorldSize } from './local-group.js';
import type { ProcessGroup } from './process-group.js';
import { VirtualClock } from './virtual-clock.js';

/** What happens to one rank at a virtual time. */
export type SimFault =
  /** The rank dies; its peers notice after `noticeMs` (default: the option's), its own calls reject. */
  | { readonly kind: 'crash'; readonly rank: number; readonly atMs: number; readonly noticeMs?: number }
  /** The rank sends nothing any more and nobody is told: peers run into their deadline. */
  | { readonly kind: 'hang'; readonly rank: number; readonly atMs: number }
  /** What the rank sends within `forMs` from `atMs` takes `byMs` longer. */
  | {
      readonly kind: 'delay';
      readonly rank: number;
      readonly atMs: number;
      readonly forMs: number;
      readonly byMs: number;
    };

/** Options of {@link simGroups}. Times are virtual milliseconds. */
export interface SimOptions {
  /** Decides every random delay; an integer. Default 0. */
  seed?: number;
  /** Default deadline of a collective, an integer in 1..86,400,000. Default 120,000. */
  timeoutMs?: number;
  /** Least time of a collective. Default `0.04 * ceil(log2(n))`: 40 us for each level of a tree. */
  latencyMs?: number;
  /**
   * Mean of an exponential delay added to every message on its way out and in, which reorders them.
   * Default 0.
   */
  jitterMs?: number;
  /** Time until peers notice that a rank died; Infinity: never, they run into their deadline. Default 50. */
  noticeMs?: number;
  /** Default none. */
  faults?: readonly SimFault[];
}

/**
 * `n` simulated ranks and the clock they live on: `groups[r]` is rank `r`.
 *
 * Only the passing of time is simulated: the bytes move as in a `local` group, so protocols run
 * unchanged. Simulate work with `clock.sleep`. The same seed gives the same run, event for event.
 * Ranks may gather into one shared output array, which is then written once: with thousands of ranks
 * the copies would cost more than all else.
 *
 * ```ts
 * const { groups, clock } = simGroups(1000, { jitterMs: 5, faults: [{ kind: 'crash', rank: 7, atMs: 90 }] });
 * const ends = await Promise.allSettled(groups.map(async (group) => {
 *   await clock.sleep(100);
 *   await group.barrier(); // ERR_VARLEN_DIST_PEER_LOST, missingRanks [7]
 * }));
 * ```
 *
 * @throws VarlenInputError `ERR_VARLEN_RANGE` when `n` or an option is out of range
 */
export function simGroups(
  n: number,
  options: SimOptions = {},
): { groups: ProcessGroup[]; clock: VirtualClock } {
  const op = 'simGroups';
  checkWorldSize(op, n);
  const {
    seed = 0,
    timeoutMs = DEFAULT_TIMEOUT_MS,
    latencyMs = 0.04 * Math.ceil(Math.log2(n)),
    jitterMs = 0,
    noticeMs = 50,
    faults = [],
  } = options;
  checkTimeout(op, 'options.timeoutMs', timeoutMs);
  if (!Number.isSafeInteger(seed)) {
    const problem = `must be an integer; got ${String(seed)}, expected a safe integer`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'options.seed', problem);
  }
  checkDuration(op, 'options.latencyMs', latencyMs, false);
  checkDuration(op, 'options.jitterMs', jitterMs, false);
  checkDuration(op, 'options.noticeMs', noticeMs, true);
  for (const [i, fault] of faults.entries()) checkFault(op, `options.faults[${i}]`, fault, n);

  const clock = new VirtualClock();
  const random = new SeededRandom(seed, n);
  const jitter = (): number => (jitterMs === 0 ? 0 : -jitterMs * Math.log(1 - random.uniform()));
  const hung = new Uint8Array(n);
  const delays = faults.filter((fault) => fault.kind === 'delay');
  const board = new Board(
    'sim',
    clock,
    {
      sendMs(rank) {
        const now = clock.now();
        let ms = latencyMs + jitter();
        for (const { rank: slow, atMs, forMs, byMs } of delays) {
          if (slow === rank && now >= atMs && now < atMs + forMs) ms += byMs;
        }
        return ms;
      },
      receiveMs: jitter,
      swallows: (rank) => hung[rank] === 1,
    },
    Array.from({ length: n }, (_, rank) => rank),
  );
  const groups = Array.from({ length: n }, (_, rank) => new ExchangeGroup(board.join(rank), timeoutMs));

  for (const fault of faults) {
    if (fault.kind === 'crash') {
      clock.after(fault.atMs, () => board.kill(fault.rank, fault.noticeMs ?? noticeMs));
    } else if (fault.kind === 'hang') {
      clock.after(fault.atMs, () => {
        hung[fault.rank] = 1;
      });
    }
  }
  return { groups, clock };
}

function checkFault(op: string, argument: string, fault: SimFault, n: number): void {
  checkRank(op, `${argument}.rank`, fault.rank, n);
  checkDuration(op, `${argument}.atMs`, fault.atMs, false);
  switch (fault.kind) {
    case 'crash':
      if (fault.noticeMs !== undefined) checkDuration(op, `${argument}.noticeMs`, fault.noticeMs, true);
      return;
    case 'hang':
      return;
    case 'delay':
      checkDuration(op, `${argument}.forMs`, fault.forMs, true);
      checkDuration(op, `${argument}.byMs`, fault.byMs, false);
      return;
    default: {
      const problem = `is not known; got '${String((fault as SimFault).kind)}', expected 'crash', 'hang' or 'delay'`;
      throw argumentError('ERR_VARLEN_OPTION', op, `${argument}.kind`, problem);
    }
  }
}

function checkDuration(op: string, argument: string, ms: number, mayBeInfinite: boolean): void {
  if (ms >= 0 && (ms < Infinity || (mayBeInfinite && ms === Infinity))) return;
  const problem = `is no duration; got ${String(ms)}, expected milliseconds of at least 0`;
  throw argumentError('ERR_VARLEN_RANGE', op, argument, problem);
}
