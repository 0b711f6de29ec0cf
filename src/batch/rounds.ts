/**
 * One rank's rounds: collect a window, form groups, agree on a target, fit, exchange what the steps
 * hold, order them. All of it is made again, bit for bit, when a run is resumed.
 */
import {
  type AlignmentDriver,
  alignRound,
  type RoundHeader,
  STEP_WORDS,
  stepOrder,
  sumSteps,
} from '../dist/align.js';
import { argumentError } from '../errors.js';
import { digestWords } from '../seeded-random.js';
import { Accumulator } from './accumulate.js';
import { AuditSum } from './audit.js';
import { Collector } from './collector.js';
import { draftSteps } from './draft-steps.js';
import type { ResolvedOptions } from './options.js';
import { type Item, Reader } from './reader.js';
import { type ResumePoint, replayOf } from './resume-point.js';
import type { Emission, Round } from './round.js';
import { describeRound, type RoundReport, reportDropped } from './round-report.js';
import { type Replay, type Source, sourceLength } from './source.js';
import { type DrainMark, passStart, type RoundStart, stateMismatch } from './state.js';
import { stepRow, stepRows } from './step-rows.js';
import {
  completeStep,
  costliestFirst,
  type DraftStep,
  type Marker,
  type PlannedStep,
  trimmedCounts,
} from './steps.js';
import { fitGroups, formGroups } from './window-groups.js';

export class RoundMaker<S> {
  readonly #source: Source<S>;
  readonly #options: ResolvedOptions<S, never>;
  readonly #driver: AlignmentDriver;
  readonly #replay: Replay;
  readonly #resume: ResumePoint<S>;
  readonly #accumulator: Accumulator<DraftStep<S>>;
  readonly #auditIn: AuditSum;
  #reader: Reader<S>;
  #pastReaders: Reader<S>[] = [];
  /** The round to come. */
  #start: RoundStart;
  /** The last round that no rank entered with carried samples. */
  #base: RoundStart;
  #carry: Item<S>[] = [];
  #window: Collector<S> | undefined;
  #endEpoch = 0;
  #quota: number | undefined;
  #drainAsked = false;
  #draining: DrainMark | undefined;
  #failure: { readonly reason: unknown } | undefined;
  #interrupt: () => void = () => {};
  #runEnded = false;
  /** This rank sends nothing more. */
  #silent = false;
  #report: RoundReport | undefined;

  constructor(
    source: Source<S>,
    options: ResolvedOptions<S, never>,
    driver: AlignmentDriver,
    resume: ResumePoint<S>,
  ) {
    this.#source = source;
    this.#options = options;
    this.#driver = driver;
    this.#replay = replayOf(source, options);
    this.#resume = resume;
    this.#base = this.#start = resume.base;
    this.#accumulator = new Accumulator(options.accumulate, resume.base.accumulation);
    this.#auditIn = new AuditSum(resume.base.auditIn);
    this.#reader = this.#openPass();
  }

  get auditIn(): string {
    return this.#auditIn.toString();
  }

  /** The quota in samples of all ranks, known after {@link begin}. */
  get quota(): number | undefined {
    return this.#quota;
  }

  get dropped(): number {
    return this.#reader.position.dropped;
  }

  /** Readers whose logs may still be asked for, oldest first. */
  get readers(): readonly Reader<S>[] {
    return [...this.#pastReaders, this.#reader];
  }

  /** What the last round adds to the metrics; each report is handed out once. */
  takeReport(): RoundReport | undefined {
    const report = this.#report;
    this.#report = undefined;
    return report;
  }

  /** Where the consumer stands once it has taken everything made so far. */
  get marker(): Marker {
    const { epoch, round, emittedSamples, emittedTokens, carry } = this.#start;
    const betweenRuns = this.#runEnded && round === 0;
    return {
      base: this.#base,
      epoch,
      round,
      stepInRound: 0,
      emittedSamples,
      emittedTokens,
      carry,
      digest: null,
      drain: this.#draining ?? null,
      endEpoch: betweenRuns ? null : this.#endEpoch,
      dropped: this.dropped,
    };
  }

  /** Frees what lies before the consumer's position. */
  forgetBefore({ epoch, position }: RoundStart): void {
    this.#pastReaders = this.#pastReaders.filter((reader) => reader.epoch >= epoch);
    for (const reader of this.readers) if (reader.epoch === epoch) reader.raw.forgetBefore(position.read);
  }

  #openPass(): Reader<S> {
    const { epoch, position } = this.#start;
    const payload = this.#resume.payload.find((part) => part.epoch === epoch);
    const start = { position, ...(payload === undefined ? {} : { payload }) };
    return new Reader(this.#source, this.#options, this.#driver.rank, epoch, this.#replay, start);
  }

  /** Ends the run at the next header, here and on all peers. Collecting stops at once. */
  fail(reason: unknown): void {
    this.#failure ??= { reason };
    this.#interrupt();
  }

  /** Ends the run cleanly at the next header: what was read is emitted, nothing more is read. */
  drain(): void {
    this.#drainAsked = true;
    this.#interrupt();
  }

  /** After a failed gather there is nobody left to talk to. */
  async #listen<T>(exchange: Promise<T>): Promise<T> {
    try {
      return await exchange;
    } catch (error) {
      this.#silent = true;
      throw error;
    }
  }

  /** Tells the peers, in place of the header they wait for, that this rank has failed between two rounds. */
  async leave(reason: unknown): Promise<void> {
    this.fail(reason);
    if (this.#silent || this.#runEnded) return;
    this.#silent = true;
    const window = this.#window ?? this.#collect();
    window.stop();
    await this.#driver.exchangeHeaders(this.#header(window, 0)).catch(() => undefined);
  }

  /** Tells the source that nobody reads on. */
  closeSource(): Promise<void> {
    return this.#reader.raw.close();
  }

  /** True while rounds at or before the resumed position are made again. */
  #isReplaying(): boolean {
    return this.#start.epoch === this.#resume.epoch && this.#start.round <= this.#resume.round;
  }

  /** A round that had been drained when its state was saved. */
  #resumedDrain(): DrainMark | undefined {
    const { drain, epoch } = this.#resume;
    const isIt = drain !== null && this.#start.epoch === epoch && this.#start.round === drain.round;
    return isIt ? drain : undefined;
  }

  /**
   * Compares the ranks' starting points, once, before the first round of a run that ends before
   * pass `endEpoch`. With `drain` it ends at its first header.
   */
  async begin(endEpoch: number, drain: boolean): Promise<void> {
    this.#endEpoch = endEpoch;
    this.#runEnded = false;
    this.#drainAsked = drain;
    const { epoch, round, stepInRound } = this.#isReplaying()
      ? this.#resume
      : { ...this.#start, stepInRound: 0 };
    const failed = this.#failure;
    const exchange = this.#driver.exchangePosition({
      configHash: this.#options.configHash,
      epoch,
      round,
      stepInRound,
      length: sourceLength(this.#source),
      abort: failed !== undefined,
    });
    if (failed !== undefined) {
      this.#silent = true;
      await exchange.catch(() => undefined);
      throw failed.reason;
    }
    const lengths = await this.#listen(exchange);
    const { quota } = this.#options;
    if (typeof quota !== 'object') {
      this.#quota = quota;
      return;
    }
    if (lengths.some((length) => length < 0)) {
      this.#silent = true; // every rank finds the same
      const problem = 'in epochs needs a source with a length on every rank';
      throw argumentError('ERR_VARLEN_MISSING_INPUT', 'DynamicBatcher', 'quota', problem);
    }
    this.#quota = quota.epochs * lengths.reduce((sum, length) => sum + length, 0);
  }

  /**
   * The steps of the next round (an empty round has none), or undefined when the run is over.
   *
   * Rejects with the reason given to {@link fail}, the source's error, or an error of the alignment.
   */
  async next(): Promise<PlannedStep<S>[] | undefined> {
    if (this.#runEnded) return undefined;
    const window = await this.#collected();
    const { items } = window;
    const formed =
      this.#failure === undefined ? this.#attempt(() => formGroups(items, this.#options)) : undefined;
    if (formed === undefined) {
      this.#silent = true;
      await this.#driver.exchangeHeaders(this.#header(window, 0)).catch(() => undefined);
      throw this.#failure?.reason;
    }
    const { view, groups } = formed;
    const waitedMs = this.#driver.waitMs;
    const headers = await this.#listen(this.#driver.exchangeHeaders(this.#header(window, groups.length)));
    const decision = alignRound(headers, this.#options.align);
    const { target } = decision;
    if (decision.draining) this.#draining ??= { round: this.#start.round, fresh: window.fresh };

    const fitted = this.#attempt(() => fitGroups(items, view, groups, target, this.#options));
    const rows = fitted && stepRows(fitted.steps, items, view, groups, headers, this.#options);
    const gathered = await this.#exchangeSteps(rows, target);
    const global = sumSteps(gathered, this.#driver.size, target);
    const digest = digestWords(new Int32Array(gathered.buffer, gathered.byteOffset, 2 * gathered.length));
    this.#checkDigest(digest);

    const round = { window, view, groups, headers, decision, fitted: fitted!, global, digest };
    const emission = await this.#chooseEmission(round);
    const alignMs = this.#driver.waitMs - waitedMs;
    this.#report = describeRound(round, emission, { ...this.#start, alignMs });
    return this.#advance(round, emission);
  }

  /** What `make` returns, or undefined when it throws: then this rank has failed. */
  #attempt<T>(make: () => T): T | undefined {
    try {
      return make();
    } catch (reason) {
      this.fail(reason);
      return undefined;
    }
  }

  /** The window of this round: full, or as far as it came when something interrupted it. */
  async #collected(): Promise<Collector<S>> {
    this.#window ??= this.#collect();
    const window = this.#window;
    const interrupted = new Promise<void>((resolve) => {
      this.#interrupt = resolve;
      // A window that needs nothing more from the source completes first.
      if (this.#failure !== undefined || this.#drainAsked) setImmediate(resolve);
    });
    await Promise.race([window.done.catch((reason) => this.fail(reason)), interrupted]);
    window.stop();
    this.#window = undefined;
    return window;
  }

  #collect(): Collector<S> {
    const { window: size, warmup, windowTrigger, align, limits, audit } = this.#options;
    const { epoch, round, costSum, costSamples } = this.#start;
    // ODB's threshold growth: 0, 5 %, 10 %, ... of the window in the first rounds.
    const share = warmup === 'ramp' && epoch === 0 ? Math.min(1, 0.05 * round) : 1;
    const room = Math.max(0, (1 + align.maxDeferRounds) * size - this.#carry.length);
    const wanted = Math.min(Math.max(1, Math.floor(size * share)), room);
    const byCost = windowTrigger === 'cost' && costSamples > 0;
    const target = {
      // Short samples must not grow a window without bound while it waits for its cost.
      fresh: this.#resumedDrain()?.fresh ?? (byCost ? 4 * wanted : wanted),
      cost: byCost ? (wanted * costSum) / costSamples : Infinity,
      costOf: limits.costOf,
      read: this.#draining === undefined,
    };
    const note = audit === false ? () => {} : ({ id }: Item<S>) => this.#auditIn.add(id);
    return new Collector(this.#reader, this.#carry, target, note);
  }

  #header(window: Collector<S>, steps: number): RoundHeader {
    return {
      configHash: this.#options.configHash,
      round: this.#start.round,
      exhausted: window.exhausted,
      abort: this.#failure !== undefined,
      drain: this.#drainAsked || this.#draining !== undefined || this.#resumedDrain() !== undefined,
      nonJoin: this.#options.join === 'none',
      samples: window.items.length,
      steps,
      maxSteps: this.#options.maxStepsPerRound,
      carryAge: window.items.reduce((oldest, { carryAge }) => Math.max(oldest, carryAge), 0),
    };
  }

  /** Gather B. A rank that has failed sends NaN, which ends the run on every rank. */
  async #exchangeSteps(rows: Float64Array | undefined, target: number): Promise<Float64Array> {
    if (target === 0) return new Float64Array(0);
    const { round } = this.#start;
    if (rows !== undefined && this.#failure === undefined) {
      return this.#listen(this.#driver.exchangeSteps(rows, round));
    }
    this.#silent = true;
    const failed = new Float64Array(STEP_WORDS * target).fill(Number.NaN);
    await this.#driver.exchangeSteps(failed, round).catch(() => undefined);
    throw this.#failure?.reason;
  }

  #checkDigest(digest: string): void {
    const { epoch, round, digest: expected } = this.#resume;
    if (expected === null || this.#start.epoch !== epoch || this.#start.round !== round) return;
    if (digest !== expected) throw stateMismatch('roundDigest', digest, expected);
  }

  /** Orders the steps, and cuts them after the first one that meets the quota. */
  async #chooseEmission(round: Round<S>): Promise<Emission> {
    const { order: kind, seed, probe, quotaTrim } = this.#options;
    const { global, decision } = round;
    const { epoch, round: number, emittedSamples } = this.#start;
    const order = stepOrder(decision.target, kind, seed, epoch, number);
    if (probe && epoch === 0 && number === 0 && order.length > 0) costliestFirst(order, global);
    if (this.#quota === undefined) return { order, quotaMet: false };
    let emitted = emittedSamples;
    for (let i = 0; i < order.length; i++) {
      emitted += global[order[i]].samples;
      if (emitted < this.#quota) continue;
      if (quotaTrim && emitted > this.#quota) await this.#trim(round, order[i], emitted - this.#quota);
      return { order: order.slice(0, i + 1), quotaMet: true };
    }
    return { order, quotaMet: false };
  }

  /** Takes `excess` samples out of a step; the rest is exchanged again, since its tokens are known locally only. */
  async #trim({ window, view, fitted, global }: Round<S>, canonical: number, excess: number): Promise<void> {
    const kept = trimmedCounts(global[canonical].samplesByRank, excess)[this.#driver.rank];
    const step = fitted.steps[canonical] ?? [];
    fitted.carry.push(...step.slice(kept));
    const rest = step.slice(0, kept);
    fitted.steps[canonical] = kept === 0 ? null : rest;
    const row = new Float64Array(STEP_WORDS);
    if (kept > 0) row.set(stepRow(rest, window.items, view, this.#options));
    const gathered = await this.#listen(this.#driver.exchangeSteps(row, this.#start.round));
    global[canonical] = sumSteps(gathered, this.#driver.size, 1)[0];
  }

  /** Makes the round's steps and moves to the next round, pass or run. */
  #advance(round: Round<S>, emission: Emission): PlannedStep<S>[] {
    const { window, headers, decision, fitted, global } = round;
    const { draining, target } = decision;
    const { order, quotaMet } = emission;
    const lastPass = draining || this.#start.epoch + 1 >= this.#endEpoch;
    const passEnds = decision.final || quotaMet;
    const runEnds = quotaMet || (decision.final && lastPass);
    const isLast = quotaMet || (decision.lastSteps && lastPass);

    const drafts = this.#draft(round, emission, isLast);
    const close = passEnds || decision.lastSteps || !this.#options.accumulateAcrossRounds;
    const ready = this.#accumulator.add(drafts, close);
    const emitted = Array.from(order, (canonical) => global[canonical]);
    const samples = emitted.reduce((sum, step) => sum + step.samples, 0);
    const counters: RoundStart = {
      ...this.#start,
      step: this.#start.step + order.length,
      emittedSamples: this.#start.emittedSamples + samples,
      emittedTokens: this.#start.emittedTokens + emitted.reduce((sum, { tokens }) => sum + tokens, 0),
      epochSamples: this.#start.epochSamples + samples,
      costSum: this.#start.costSum + emitted.reduce((sum, { cost }) => sum + cost, 0),
      costSamples: this.#start.costSamples + samples,
      accumulation: this.#accumulator.open,
      auditIn: this.auditIn,
    };
    this.#runEnded = runEnds;
    if (passEnds && !runEnds && this.#endEpoch === Infinity && counters.epochSamples === 0) {
      this.#silent = true; // every rank finds the same
      const problem = `gave no step in epoch ${counters.epoch} while the quota is not met`;
      throw argumentError('ERR_VARLEN_MISSING_INPUT', 'DynamicBatcher', 'source', problem, {
        epoch: counters.epoch,
      });
    }
    if (passEnds && !draining) {
      reportDropped(round, emission, this.#options.onDrop);
      this.#nextPass(counters, runEnds);
    } else {
      this.#carry = fitted.carry.map((index) => window.items[index]);
      for (const item of this.#carry) item.carryAge++;
      const carry = this.#carry.map(({ id }) => String(id));
      this.#start = { ...counters, round: counters.round + 1, position: this.#reader.position, carry };
      if (headers.every(({ steps }) => steps <= target)) this.#base = this.#start;
      if (runEnds) this.#draining = undefined;
      else this.#window = this.#collect(); // fills while the consumer works on this round
    }

    const planned = ready.map((step) => completeStep(step, this.#options));
    const last = planned.at(-1);
    if (last !== undefined && last.after === drafts.at(-1)?.after && (!runEnds || draining)) {
      // A consumer that has taken all of a round stands at the start of the next one. After the last
      // step of a run it stays where it is: restored there, the run has nothing left.
      planned[planned.length - 1] = { ...last, after: this.marker };
    }
    return planned;
  }

  #draft(round: Round<S>, emission: Emission, isLast: boolean): DraftStep<S>[] {
    const start = this.#start;
    const marker = {
      base: this.#base,
      epoch: start.epoch,
      round: start.round,
      carry: start.carry,
      digest: round.digest,
      drain: this.#draining ?? null,
      endEpoch: this.#endEpoch,
      dropped: this.dropped,
    };
    const resumedHere = start.round === this.#resume.round;
    const taken = !this.#isReplaying() ? 0 : resumedHere ? this.#resume.stepInRound : Infinity;
    const { rank, size } = this.#driver;
    return draftSteps(round, emission, { rank, size, start, marker, taken, isLast }, this.#options);
  }

  #nextPass(counters: RoundStart, runEnds: boolean): void {
    const { dropped } = this.#reader.position;
    this.#reader.raw.close().catch(() => {}); // nothing more is expected from it
    if (this.#replay === 'payload') this.#pastReaders.push(this.#reader);
    // A finished run starts over with its counters; audit and drop count go on.
    const next = passStart(counters.epoch + 1, runEnds ? { auditIn: counters.auditIn } : counters);
    this.#base = this.#start = { ...next, position: { ...next.position, dropped } };
    this.#carry = [];
    this.#reader = this.#openPass();
  }
}
