/** Ranks inside one JavaScript thread: for tests, for one machine, and as the model of the other engines. */
import { argumentError } from '../errors.js';
import { Board, type TimeSource } from './board.js';
import { checkRank, checkTimeout } from './collective-arguments.js';
import { DEFAULT_TIMEOUT_MS, ExchangeGroup } from './exchange-group.js';
import type { ProcessGroup } from './process-group.js';

/** A fault of one rank, at its `seq`-th collective (counted from 1). */
export interface LocalFault {
  readonly rank: number;
  readonly seq: number;
  /** `'hang'`: the rank's message never arrives. `'crash'`: the rank dies in the call, and its peers are told. */
  readonly kind: 'hang' | 'crash';
}

/** Options of {@link localGroups}. */
export interface LocalOptions {
  /** Default deadline of a collective in milliseconds, an integer in 1..86,400,000. Default 120,000. */
  timeoutMs?: number;
  /** Milliseconds that a rank's message of its `seq`-th collective takes; 0 or less: none. Default none. */
  delayMs?: (rank: number, seq: number) => number;
  /** Scripted faults. Default none. */
  faults?: readonly LocalFault[];
}

/**
 * `n` ranks in this thread, joined in memory: `groups[r]` is rank `r`.
 *
 * Start one asynchronous function per rank; each may only wait for its own group.
 * For ranks in worker threads see `sharedGroupHandles`.
 *
 * ```ts
 * const groups = localGroups(4);
 * await Promise.all(groups.map(async (group) => {
 *   const sum = await group.allReduce(Float64Array.of(group.rank), 'sum'); // [6]
 * }));
 * ```
 *
 * @throws VarlenInputError `ERR_VARLEN_RANGE` when `n` or an option is out of range
 */
export function localGroups(n: number, options: LocalOptions = {}): ProcessGroup[] {
  const { timeoutMs = DEFAULT_TIMEOUT_MS, delayMs, faults = [] } = options;
  checkWorldSize('localGroups', n);
  checkTimeout('localGroups', 'options.timeoutMs', timeoutMs);
  for (const [i, { rank, kind }] of faults.entries()) {
    checkRank('localGroups', `options.faults[${i}].rank`, rank, n);
    if (kind !== 'hang' && kind !== 'crash') {
      const problem = `is not known; got '${String(kind)}', expected 'hang' or 'crash'`;
      throw argumentError('ERR_VARLEN_OPTION', 'localGroups', `options.faults[${i}].kind`, problem);
    }
  }

  const faultOf = (rank: number, seq: number) => faults.find((f) => f.rank === rank && f.seq === seq)?.kind;
  const board = new Board(
    'local',
    realTime,
    {
      sendMs: (rank, seq) => delayMs?.(rank, seq) ?? 0,
      receiveMs: () => 0,
      swallows(rank, seq) {
        const fault = faultOf(rank, seq);
        if (fault === 'crash') board.kill(rank, 0);
        return fault !== undefined;
      },
    },
    Array.from({ length: n }, (_, rank) => rank),
  );
  return Array.from({ length: n }, (_, rank) => new ExchangeGroup(board.join(rank), timeoutMs));
}

/** Throws `ERR_VARLEN_RANGE` unless `n` is a number of ranks. */
export function checkWorldSize(op: string, n: number): void {
  if (Number.isInteger(n) && n >= 1 && n <= 2 ** 20) return;
  const problem = `is no number of ranks; got ${String(n)}, expected an integer in [1, ${2 ** 20}]`;
  throw argumentError('ERR_VARLEN_RANGE', op, 'n', problem);
}

const realTime: TimeSource = {
  now: () => performance.now(),
  after(ms, action) {
    const timer = setTimeout(action, ms);
    return () => clearTimeout(timer);
  },
};
