/**
 * The alignment protocol: every rank performs the same number of steps, and no sample is lost.
 *
 * Per round each rank publishes one header (gather A), all ranks decide the same target from the
 * same headers, fit their window to it, and publish one row per step (gather B). The decision is a
 * pure function of gathered data, so all ranks take the same branch and their calls match: this is
 * why the protocol cannot deadlock. Payload never crosses ranks.
 *
 * The header has eight int32: `[magic | version, configHash, round, flags, nSamples, nSteps, maxSteps, carryAge]`.
 */
import { type ErrorDetails, VarlenError, varlenError } from '../errors.js';
import { seededPermutation } from '../seeded-random.js';
import type { ProcessGroup } from './process-group.js';

/** Words in a header. */
export const HEADER_WORDS = 8;
/** Numbers per step in gather B: samples, tokens, weight, cost. */
export const STEP_WORDS = 4;

/** "VLA" in the high bytes, the protocol's version in the low one. */
const MAGIC_VERSION = 0x564c4101;

/** Bits of the header's flags. */
const HeaderFlag = {
  /** After this window nothing remains unread. */
  EXHAUSTED: 1,
  /** The rank failed; all ranks end. */
  ABORT: 2,
  /** The rank wants an early, clean end. */
  DRAIN: 4,
  /** The pass ends when the first rank runs dry. */
  NONJOIN: 8,
  /** The first header of a run: it carries the position instead of a window. */
  HELLO: 16,
} as const;

/** One rank's view of its window, as gathered. */
export interface RoundHeader {
  /** int32 hash of all options that must agree. */
  configHash: number;
  round: number;
  /** Nothing remains unread after this window. */
  exhausted: boolean;
  abort: boolean;
  drain: boolean;
  nonJoin: boolean;
  /** Samples in the window, `n_r`. */
  samples: number;
  /** Groups it forms, `g_r`: 0 iff `samples` is 0, else `1 <= steps <= samples`. */
  steps: number;
  /** This rank's cap on steps per round. */
  maxSteps: number;
  /** Rounds that its oldest carried sample has been deferred. */
  carryAge: number;
}

/** How a round's target is chosen. */
export interface AlignOptions {
  /**
   * `'split'`: ranks with fewer groups split them. `'defer'`: ranks with more groups carry some
   * over, while no source has ended and no carry is too old. `'auto'` (default): defer only when a
   * rank with samples cannot reach the target even with one sample per step.
   */
  align?: 'auto' | 'split' | 'defer';
  /** Rounds a sample may be carried because of `'defer'`. Default 2; 0 never defers. */
  maxDeferRounds?: number;
}

/** What all ranks decide, alike, from one round's headers. */
export interface RoundDecision {
  /** Steps that every rank performs in this round, `T`. */
  readonly target: number;
  /** Nothing is left after this round: the pass ends. */
  readonly final: boolean;
  /** No later round of this pass has steps (in a non-join pass one empty round may follow). */
  readonly lastSteps: boolean;
  /** Some rank asked for an early end: nobody reads fresh samples any more. */
  readonly draining: boolean;
}

/**
 * The target of a round: a pure function of the gathered headers.
 *
 * Guarantees: if any rank has samples then `target >= 1` (except in a non-join pass that ends), and
 * the pass ends only when every window is exhausted and nothing is carried. A rank carries samples
 * over iff its `steps` exceed the target, so the end is known from the headers alone.
 *
 * @example
 * const { target } = alignRound(headers, { align: 'split' });
 */
export function alignRound(headers: readonly RoundHeader[], options: AlignOptions = {}): RoundDecision {
  const { align = 'auto', maxDeferRounds = 2 } = options;
  let draining = false;
  let nonJoin = false;
  let allExhausted = true;
  let anyExhausted = false;
  let anyDry = false;
  let mostSteps = 0;
  let cap = Infinity;
  let fewestSamples = Infinity;
  let oldest = 0;
  for (const header of headers) {
    draining ||= header.drain;
    nonJoin ||= header.nonJoin;
    allExhausted &&= header.exhausted;
    anyExhausted ||= header.exhausted;
    anyDry ||= header.exhausted && header.samples === 0;
    mostSteps = Math.max(mostSteps, header.steps);
    cap = Math.min(cap, header.maxSteps);
    if (header.samples > 0) fewestSamples = Math.min(fewestSamples, header.samples);
    oldest = Math.max(oldest, header.carryAge);
  }
  // A drain treats every rank as exhausted: what was read is emitted, the rest stays unread. It also
  // closes a non-join pass the way a join pass closes, because nobody needs to drop anything.
  if (draining) allExhausted = anyExhausted = true;
  else if (nonJoin && anyDry) return { target: 0, final: true, lastSteps: true, draining };

  let target = Math.min(mostSteps, cap);
  const mayDefer = !anyExhausted && oldest < maxDeferRounds;
  if (mayDefer && (align === 'defer' || align === 'auto') && fewestSamples < target) target = fewestSamples;

  const final = allExhausted && mostSteps <= target;
  const lastSteps =
    final || (nonJoin && !draining && headers.some((header) => header.exhausted && header.steps <= target));
  return { target, final, lastSteps, draining };
}

/** The int32 form of a header, `[HEADER_WORDS]`. */
export function encodeHeader(header: RoundHeader): Int32Array {
  const flags =
    (header.exhausted ? HeaderFlag.EXHAUSTED : 0) |
    (header.abort ? HeaderFlag.ABORT : 0) |
    (header.drain ? HeaderFlag.DRAIN : 0) |
    (header.nonJoin ? HeaderFlag.NONJOIN : 0);
  return Int32Array.of(
    MAGIC_VERSION,
    header.configHash,
    header.round,
    flags,
    header.samples,
    header.steps,
    header.maxSteps,
    header.carryAge,
  );
}

/** Where a run begins; compared once, before the first round. */
export interface RunPosition {
  configHash: number;
  epoch: number;
  round: number;
  stepInRound: number;
  /** Samples per pass of this rank's source, or -1 when unknown. */
  length: number;
  /** The rank failed before its run began. */
  abort: boolean;
}

/** The int32 form of a run's position, `[HEADER_WORDS]`, marked HELLO. */
function encodePosition(position: RunPosition): Int32Array {
  const { configHash, epoch, round, stepInRound, length } = position;
  return Int32Array.of(
    MAGIC_VERSION,
    configHash,
    round,
    HeaderFlag.HELLO | (position.abort ? HeaderFlag.ABORT : 0),
    epoch,
    stepInRound,
    length | 0,
    Math.floor(length / 2 ** 32),
  );
}

function column(gathered: Int32Array, word: number): number[] {
  const values: number[] = [];
  for (let at = word; at < gathered.length; at += HEADER_WORDS) values.push(gathered[at]);
  return values;
}

/** Throws, on every rank alike, when the ranks' values of one header field differ. */
function checkEqual(
  gathered: Int32Array,
  word: number,
  field: string,
  code: 'ERR_VARLEN_ALIGNMENT' | 'ERR_VARLEN_STATE_MISMATCH' = 'ERR_VARLEN_ALIGNMENT',
): void {
  const byRank = column(gathered, word);
  const odd = byRank.findIndex((value) => value !== byRank[0]);
  if (odd < 0) return;
  const message = `align: ${field} must be equal on all ranks; got ${byRank[odd]} on rank ${odd}, expected ${byRank[0]} as on rank 0`;
  throw varlenError(code, message, { op: 'align', argument: field, field, byRank });
}

/** What both kinds of header must agree on before anything else is read. Returns the flags by rank. */
function checkSender(gathered: Int32Array, hello: boolean): number[] {
  checkEqual(gathered, 0, 'version');
  const flags = column(gathered, 3);
  const aborted = flags.findIndex((flag) => (flag & HeaderFlag.ABORT) !== 0);
  if (aborted >= 0) throw peerAborted(aborted, gathered[2]);
  checkEqual(gathered, 1, 'config');
  // A rank that begins a run while another is inside one: no two fields would mean the same.
  const odd = flags.findIndex((flag) => ((flag & HeaderFlag.HELLO) !== 0) !== hello);
  if (odd >= 0) {
    const message = `align: round must be equal on all ranks; got ${hello ? 'a round' : 'a new run'} on rank ${odd}, expected ${hello ? 'a new run' : 'a round'}`;
    const byRank = flags.map((flag, rank) =>
      (flag & HeaderFlag.HELLO) !== 0 ? 'new run' : gathered[rank * HEADER_WORDS + 2],
    );
    throw varlenError('ERR_VARLEN_ALIGNMENT', message, {
      op: 'align',
      argument: 'round',
      field: 'round',
      byRank,
    });
  }
  return flags;
}

/**
 * Reads gathered headers, `[size * HEADER_WORDS]`, and checks that the ranks speak of the same thing.
 *
 * Throws `ERR_VARLEN_ALIGNMENT { field, byRank }` when version, configuration or round differ and
 * `ERR_VARLEN_PEER_ABORTED { rank }` when a rank failed: the same error on every rank.
 */
export function decodeHeaders(gathered: Int32Array): RoundHeader[] {
  const flags = checkSender(gathered, false);
  checkEqual(gathered, 2, 'round');
  return flags.map((flag, rank) => {
    const at = rank * HEADER_WORDS;
    return {
      configHash: gathered[at + 1],
      round: gathered[at + 2],
      exhausted: (flag & HeaderFlag.EXHAUSTED) !== 0,
      abort: false,
      drain: (flag & HeaderFlag.DRAIN) !== 0,
      nonJoin: (flag & HeaderFlag.NONJOIN) !== 0,
      samples: gathered[at + 4],
      steps: gathered[at + 5],
      maxSteps: gathered[at + 6],
      carryAge: gathered[at + 7],
    };
  });
}

function peerAborted(rank: number, round: number): VarlenError {
  return varlenError(
    'ERR_VARLEN_PEER_ABORTED',
    `align: rank ${rank} aborted in round ${round}; its own error says why`,
    { op: 'align', argument: 'group', rank, round },
  );
}

/** Sums and extremes of one aligned step over all ranks. */
export interface GlobalStep {
  readonly samples: number;
  readonly tokens: number;
  readonly weight: number;
  /** Sum of the ranks' costs. */
  readonly cost: number;
  readonly maxCost: number;
  readonly minCost: number;
  /** Samples per rank; 0 where the rank is IDLE. */
  readonly samplesByRank: readonly number[];
}

/** Adds up gather B, `[size * STEP_WORDS * target]`, per step, in rank order. */
export function sumSteps(gathered: Float64Array, size: number, target: number): GlobalStep[] {
  return Array.from({ length: target }, (_, step) => {
    let samples = 0;
    let tokens = 0;
    let weight = 0;
    let cost = 0;
    let maxCost = 0;
    let minCost = Infinity;
    const samplesByRank = new Array<number>(size);
    for (let rank = 0; rank < size; rank++) {
      const at = (rank * target + step) * STEP_WORDS;
      samplesByRank[rank] = gathered[at];
      samples += gathered[at];
      tokens += gathered[at + 1];
      weight += gathered[at + 2];
      cost += gathered[at + 3];
      maxCost = Math.max(maxCost, gathered[at + 3]);
      minCost = Math.min(minCost, gathered[at + 3]);
    }
    return { samples, tokens, weight, cost, maxCost, minCost, samplesByRank };
  });
}

/**
 * The order in which all ranks emit a round's steps: entry `i` is the canonical index of the i-th
 * emitted step. A function of its arguments only, so ranks cannot drift apart.
 */
export function stepOrder(
  target: number,
  order: 'shuffle' | 'sorted-desc' | 'none',
  seed: number,
  epoch: number,
  round: number,
): Int32Array {
  if (order === 'shuffle') return seededPermutation(target, seed, epoch, round);
  return Int32Array.from({ length: target }, (_, i) => i);
}

/**
 * The thin asynchronous driver: sends what the pure functions above read.
 *
 * Per round exactly one gather A and, iff the target is above 0, one gather B, in that order, on a
 * group of the batcher's own. With one rank nothing is sent.
 */
export class AlignmentDriver {
  readonly #group: ProcessGroup | undefined;
  readonly #timeoutMs: number;
  /** Milliseconds spent waiting in gathers, in total. */
  waitMs = 0;
  /** Bytes this rank sent, in total. */
  sentBytes = 0;

  constructor(group: ProcessGroup | undefined, timeoutMs: number) {
    this.#group = group !== undefined && group.size > 1 ? group : undefined;
    this.#timeoutMs = timeoutMs;
  }

  get rank(): number {
    return this.#group?.rank ?? 0;
  }

  get size(): number {
    return this.#group?.size ?? 1;
  }

  /**
   * Compares where the ranks begin. Resolves to each rank's source length.
   *
   * Rejects with `ERR_VARLEN_ALIGNMENT` or `ERR_VARLEN_STATE_MISMATCH`, on all ranks alike.
   */
  async exchangePosition(position: RunPosition): Promise<number[]> {
    const gathered = await this.#gather(encodePosition(position), 'hello', position.round);
    checkSender(gathered, true);
    checkEqual(gathered, 4, 'epoch', 'ERR_VARLEN_STATE_MISMATCH');
    checkEqual(gathered, 2, 'round', 'ERR_VARLEN_STATE_MISMATCH');
    checkEqual(gathered, 5, 'stepInRound', 'ERR_VARLEN_STATE_MISMATCH');
    const low = column(gathered, 6);
    return column(gathered, 7).map((high, rank) => high * 2 ** 32 + (low[rank] >>> 0));
  }

  /** Gather A: every rank's header, checked. */
  async exchangeHeaders(header: RoundHeader): Promise<RoundHeader[]> {
    return decodeHeaders(await this.#gather(encodeHeader(header), 'A', header.round));
  }

  /**
   * Gather B: `rows` is `[STEP_WORDS * target]`; the result is `[size * STEP_WORDS * target]`.
   *
   * A rank that failed after gather A still owes this call: it sends NaN, and its peers reject with
   * `ERR_VARLEN_PEER_ABORTED`.
   */
  async exchangeSteps(rows: Float64Array, round: number): Promise<Float64Array> {
    const gathered = await this.#gather(rows, 'B', round);
    for (let rank = 0; rank < this.size; rank++) {
      if (Number.isNaN(gathered[rank * rows.length])) throw peerAborted(rank, round);
    }
    return gathered;
  }

  async #gather<T extends Int32Array | Float64Array>(input: T, name: string, round: number): Promise<T> {
    const group = this.#group;
    if (group === undefined) return input;
    const output = new (input.constructor as new (length: number) => T)(input.length * group.size);
    const started = performance.now();
    this.sentBytes += input.byteLength;
    let timer: NodeJS.Timeout | undefined;
    try {
      const options = { timeoutMs: this.#timeoutMs, tag: `varlen.align.${name}` };
      const gathered = group.allGather(input, output, options);
      // The group keeps the same deadline, first, and knows who is missing; ours covers a user's
      // collective that never settles.
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(this.#timeout(name, round)), this.#timeoutMs);
      });
      return await Promise.race([gathered, late]);
    } catch (error) {
      if (
        error instanceof VarlenError &&
        error.code === 'ERR_VARLEN_DIST_TIMEOUT' &&
        !('round' in error.details)
      ) {
        throw this.#timeout(name, round, error.details, error);
      }
      throw error;
    } finally {
      clearTimeout(timer);
      this.waitMs += performance.now() - started;
    }
  }

  #timeout(name: string, round: number, details: ErrorDetails = {}, cause?: unknown): VarlenError {
    const missing = Array.isArray(details.missingRanks)
      ? `; missing ranks ${details.missingRanks.join(', ')}`
      : '';
    return varlenError(
      'ERR_VARLEN_DIST_TIMEOUT',
      `align: gather ${name} of round ${round} passed its deadline of ${this.#timeoutMs} ms${missing}`,
      { op: 'allGather', argument: 'timeoutMs', ...details, rank: this.rank, round },
      cause === undefined ? undefined : { cause },
    );
  }
}
