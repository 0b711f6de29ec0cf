/** Checkpoints of a batcher: what the consumer has taken, and how to make the rest again. */
import { argumentError, type VarlenError, varlenError } from '../errors.js';
import type { OpenAccumulation } from './accumulate.js';
import { show } from './limits.js';
import type { ReaderPosition } from './reader.js';

/** Everything that a round depends on at its start. */
export interface RoundStart {
  readonly epoch: number;
  readonly round: number;
  /** Where fresh samples begin. */
  readonly position: ReaderPosition;
  /** Steps, samples and tokens of the run before this round, all ranks. */
  readonly step: number;
  readonly emittedSamples: number;
  readonly emittedTokens: number;
  /** Samples of this pass before this round, all ranks. */
  readonly epochSamples: number;
  /** For the mean cost that triggers windows. */
  readonly costSum: number;
  readonly costSamples: number;
  readonly accumulation: OpenAccumulation;
  readonly auditIn: string;
  /** Ids carried into the round, as text. */
  readonly carry: readonly string[];
}

/** The start of pass `epoch`, with the run's counters so far. */
export function passStart(epoch: number, counters?: Partial<RoundStart>): RoundStart {
  return {
    step: 0,
    emittedSamples: 0,
    emittedTokens: 0,
    costSum: 0,
    costSamples: 0,
    accumulation: { steps: 0, weight: 0 },
    auditIn: '0',
    ...counters,
    epoch,
    round: 0,
    position: { sourceState: undefined, read: 0, offset: 0, dropped: 0 },
    epochSamples: 0,
    carry: [],
  };
}

/** A drain that fell into a round: the fresh samples it had by then. */
export interface DrainMark {
  readonly round: number;
  readonly fresh: number;
}

/** What was read but not taken, for a source that cannot go back. */
export interface PayloadState {
  readonly epoch: number;
  /** Base64 of the serialised samples since the base. */
  readonly samples: readonly string[];
  /** The pass ended after them. */
  readonly ended: boolean;
  /** Which of them the consumer has taken, as indices. */
  readonly taken: readonly number[];
  /** Some sample was split, and only some of its parts were taken. */
  readonly partial: boolean;
}

/**
 * A position between two steps; plain JSON.
 *
 * Restoring makes the rounds since `base` again, which needs the same samples but no stored payload:
 * `base` is the last round that no rank entered with carried samples.
 */
export interface BatcherState {
  readonly version: 1;
  readonly configHash: number;
  readonly rank: number;
  readonly worldSize: number;
  readonly seed: number;
  readonly quota: number | null;
  readonly epoch: number;
  readonly round: number;
  readonly stepInRound: number;
  readonly emittedSamples: number;
  readonly emittedTokens: number;
  /** First pass that is not part of the run; null between runs. */
  readonly endEpoch: number | null;
  readonly dropped: number;
  /** Ids that wait for the current round, as text. */
  readonly carry: readonly string[];
  readonly auditIn: string;
  readonly auditOut: string;
  /** Digest of the current round's target and metadata; null before its first step. */
  readonly roundDigest: string | null;
  readonly drain: DrainMark | null;
  readonly base: RoundStart;
  readonly payload: readonly PayloadState[] | null;
}

export function stateMismatch(field: string, got: unknown, expected: unknown): VarlenError {
  const problem = `does not belong to this batcher: ${field}; got ${show(got)}, expected ${show(expected)}`;
  return argumentError('ERR_VARLEN_STATE_MISMATCH', 'DynamicBatcher.restore', 'state', problem, {
    field,
    got,
    expected,
  });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** Checks the shape of a state that may come from a file. */
export function checkState(state: unknown): BatcherState {
  if (!isObject(state)) throw stateMismatch('state', state, 'an object');
  if (state.version !== 1) throw stateMismatch('version', state.version, 1);
  const counts = [
    'rank',
    'worldSize',
    'epoch',
    'round',
    'stepInRound',
    'emittedSamples',
    'emittedTokens',
    'dropped',
  ];
  for (const field of counts) {
    const value = state[field];
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
      throw stateMismatch(field, value, 'a non-negative integer');
    }
  }
  if (!isObject(state.base)) throw stateMismatch('base', state.base, 'an object');
  for (const field of [
    'round',
    'epoch',
    'step',
    'emittedSamples',
    'emittedTokens',
    'epochSamples',
    'costSum',
    'costSamples',
  ]) {
    const value = state.base[field];
    if (typeof value !== 'number' || !(value >= 0 && value < Infinity)) {
      throw stateMismatch(`base.${field}`, value, 'a non-negative number');
    }
  }
  for (const field of ['auditIn', 'auditOut']) {
    const value = state[field];
    if (typeof value !== 'string' || !/^[0-9a-f]{1,32}$/.test(value))
      throw stateMismatch(field, value, 'hex digits');
  }
  if (typeof state.base.auditIn !== 'string' || !/^[0-9a-f]{1,32}$/.test(state.base.auditIn)) {
    throw stateMismatch('base.auditIn', state.base.auditIn, 'hex digits');
  }
  if (!isObject(state.base.accumulation))
    throw stateMismatch('base.accumulation', state.base.accumulation, 'an object');
  if (!isObject(state.base.position)) throw stateMismatch('base.position', state.base.position, 'an object');
  if (state.payload !== null && !Array.isArray(state.payload)) {
    throw stateMismatch('payload', state.payload, 'an array or null');
  }
  return structuredClone(state) as unknown as BatcherState;
}

/**
 * The states of another world size, from the states of all old ranks.
 *
 * Works when every old rank stands between two rounds with nothing carried (`drain()` first, then take
 * the remaining steps), or when the states hold payloads (`statePayload`). Payload samples that were
 * not taken are dealt out in turn. Source states: when all old ones are equal each new rank gets
 * that one; else each new rank's source is restored with `{ shards: [...] }`, the old ones in rank order.
 *
 * Throws `ERR_VARLEN_STATE_MISMATCH { field }`, `ERR_VARLEN_RANGE`.
 *
 * @example
 * const states = redistributeStates(oldStates, 2);
 * batcher.restore(states[group.rank]);
 */
export function redistributeStates(states: readonly BatcherState[], worldSize: number): BatcherState[] {
  if (!Number.isSafeInteger(worldSize) || worldSize < 1) {
    const problem = `must be a positive integer; got ${show(worldSize)}`;
    throw argumentError('ERR_VARLEN_RANGE', 'redistributeStates', 'worldSize', problem);
  }
  const old = states.map(checkState).sort((a, b) => a.rank - b.rank);
  if (old.length === 0) throw stateMismatch('states', 0, 'one per old rank');
  const first = old[0];
  old.forEach((state, rank) => {
    if (state.worldSize !== old.length) throw stateMismatch('worldSize', state.worldSize, old.length);
    if (state.rank !== rank) throw stateMismatch('rank', state.rank, rank);
    for (const field of ['configHash', 'epoch', 'round', 'stepInRound', 'endEpoch'] as const) {
      if (state[field] !== first[field]) throw stateMismatch(field, state[field], first[field]);
    }
    if ((state.payload === null) !== (first.payload === null)) {
      throw stateMismatch('payload', 'on some ranks only', 'on all or none');
    }
  });
  const clean = old.every(
    ({ stepInRound, base, epoch, round }) =>
      stepInRound === 0 && base.epoch === epoch && base.round === round,
  );
  if (first.payload === null && !clean) {
    throw stateMismatch(
      'stepInRound',
      `a position inside round ${first.round}`,
      'a drained batcher, or payloads',
    );
  }
  const payload = first.payload === null ? null : dealPayload(old, worldSize);
  const sourceStates = old.map(({ base }) => base.position.sourceState);
  const same = sourceStates.every((state) => JSON.stringify(state) === JSON.stringify(sourceStates[0]));
  const dropped = old.reduce((sum, state) => sum + state.dropped, 0);
  return Array.from({ length: worldSize }, (_, rank) => {
    const position = {
      sourceState: same ? sourceStates[0] : { shards: sourceStates },
      // A shard's own count means nothing on another shard; it only has to say "not at the start".
      read: Math.max(...old.map(({ base }) => base.position.read)),
      offset: 0,
      dropped: rank === 0 ? dropped : 0,
    };
    return {
      ...first,
      rank,
      worldSize,
      stepInRound: 0,
      dropped: position.dropped,
      carry: [],
      auditIn: rank === 0 ? sumHex(old.map((state) => state.auditOut)) : '0',
      auditOut: rank === 0 ? sumHex(old.map((state) => state.auditOut)) : '0',
      roundDigest: null,
      drain: null,
      payload: payload === null ? null : payload[rank],
      base: {
        ...first.base,
        epoch: first.epoch,
        round: first.round,
        position,
        emittedSamples: first.emittedSamples,
        emittedTokens: first.emittedTokens,
        accumulation: { steps: 0, weight: 0 },
        auditIn: rank === 0 ? sumHex(old.map((state) => state.auditOut)) : '0',
        carry: [],
      },
    };
  });
}

function sumHex(values: readonly string[]): string {
  const sum = values.reduce((total, value) => total + BigInt(`0x${value}`), 0n);
  return (sum & ((1n << 128n) - 1n)).toString(16);
}

/** Untaken payload samples of all old ranks, dealt out in turn, per epoch. */
function dealPayload(old: readonly BatcherState[], worldSize: number): PayloadState[][] {
  const dealt: PayloadState[][] = Array.from({ length: worldSize }, () => []);
  const epochs = [...new Set(old.flatMap(({ payload }) => payload!.map(({ epoch }) => epoch)))].sort(
    (a, b) => a - b,
  );
  for (const epoch of epochs) {
    const parts = old.map(({ payload }) => payload!.find((part) => part.epoch === epoch));
    if (parts.some((part) => part?.partial)) {
      throw varlenError(
        'ERR_VARLEN_STATE_MISMATCH',
        'redistributeStates: states hold a sample of which only some parts were taken; drain first',
        { op: 'redistributeStates', argument: 'states', field: 'payload' },
      );
    }
    const samples = parts.flatMap((part) => {
      const taken = new Set(part?.taken ?? []);
      return (part?.samples ?? []).filter((_, i) => !taken.has(i));
    });
    const ended = parts.every((part) => part?.ended === true);
    for (let rank = 0; rank < worldSize; rank++) {
      const own = samples.filter((_, i) => i % worldSize === rank);
      dealt[rank].push({ epoch, samples: own, ended, taken: [], partial: false });
    }
  }
  return dealt;
}
