/** The online dynamic batcher: groups what a source yields by real lengths, in step with all ranks. */
import { AlignmentDriver } from '../dist/align.js';
import type { StepInfo } from '../dist/step-info.js';
import { argumentError, varlenError } from '../errors.js';
import { AuditSum } from './audit.js';
import { tokenBudget } from './limits.js';
import { type BatcherMetrics, MetricsRecorder } from './metrics.js';
import { type BatcherOptions, type ResolvedOptions, resolveOptions } from './options.js';
import { type PackedBatch, packSequences } from './pack.js';
import { padSequences } from './pad.js';
import { PayloadKeeper } from './payload.js';
import { replayOf } from './resume-point.js';
import { RoundMaker } from './rounds.js';
import type { Sample, SampleId, Sequence } from './sample.js';
import { checkSource, type Source } from './source.js';
import { type BatcherState, checkState, passStart, stateMismatch } from './state.js';
import { StepQueue } from './step-queue.js';
import type { Marker, PlannedStep } from './steps.js';

/** One aligned step of this rank. */
export interface Step<B> {
  readonly batch: B;
  readonly info: StepInfo;
  /** Ids of the samples in the batch, in batch order. */
  readonly ids: readonly SampleId[];
}

interface MadeStep<S, B> {
  readonly step: Step<B>;
  readonly planned: PlannedStep<S>;
}

const OP = 'DynamicBatcher';

/** One iteration: a producer that runs ahead, and the consumer's end of the queue. */
interface Run<S, B> {
  readonly queue: StepQueue<MadeStep<S, B>>;
  /** Settles, without rejecting, when the producer has left the protocol. */
  produced?: Promise<void>;
  /** The consumer has left: steps are made for the peers' sake only. */
  abandoned: boolean;
  /** An early end is wanted. */
  draining: boolean;
}

/**
 * Groups a stream of samples into steps of one token budget, so that every rank performs the same
 * number of steps and every sample is emitted exactly once.
 *
 * ```
 * source -> window of D samples -> groups -> agree with all ranks -> fit -> collate -> step queue
 * ```
 *
 * Iterate it with `for await`; one iterator at a time, over `epochs` passes. Each step has a `batch`,
 * its `info` (multiply the loss by `info.lossScale`) and the sample `ids`. Work on the next round
 * goes on while the consumer trains, at most `prefetchSteps` batches ahead. Memory: the window's at
 * most `(1 + maxDeferRounds) * window` samples, those of the round being emitted, and the prefetched
 * batches.
 *
 * Leaving the loop early ends all ranks after the round at hand (samples of this rank that were read
 * and not taken are reported as `'abandoned'`); iterating again goes on behind it. To continue with
 * exactly the next step, save `state()` and `restore()` it.
 *
 * All options are checked here, synchronously; see `BatcherOptions` for defaults. Errors while
 * iterating: `ERR_VARLEN_SAMPLE`, `_OVERSIZE_SAMPLE`, `_DUPLICATE_SAMPLE` for a bad sample,
 * `ERR_VARLEN_ALIGNMENT` when ranks disagree, `ERR_VARLEN_PEER_ABORTED` when a peer failed,
 * `ERR_VARLEN_DIST_TIMEOUT`, and whatever the source throws.
 *
 * @example
 * const batcher = new DynamicBatcher(samples, { budget: { packedTokens: 8192 } });
 * for await (const { batch, info } of batcher) {
 *   const loss = await trainStep(batch, info.lossScale);
 * }
 */
export class DynamicBatcher<S = Sample, B = PackedBatch> implements AsyncIterable<Step<B>> {
  readonly #source: Source<S>;
  readonly #options: ResolvedOptions<S, B>;
  readonly #driver: AlignmentDriver;
  readonly #metrics: MetricsRecorder;
  readonly #payload: PayloadKeeper<S>;
  #maker: RoundMaker<S>;
  /** What the consumer has taken. */
  #marker: Marker;
  #auditOut = new AuditSum();
  #auditedIds: (readonly SampleId[])[] = [];
  #run: Run<S, B> | undefined;
  #lastRun: Promise<void> = Promise.resolve();
  #hasRun = false;
  #failure: unknown;
  #failed = false;
  #closing: Promise<void> | undefined;

  constructor(source: Source<S>, options: BatcherOptions<S, B>) {
    checkSource(source);
    this.#source = source;
    this.#options = resolveOptions(options);
    const { group, timeoutMs, limits } = this.#options;
    this.#driver = new AlignmentDriver(group, timeoutMs);
    this.#metrics = new MetricsRecorder(this.#driver.size, tokenBudget(limits));
    this.#payload = new PayloadKeeper(this.#options);
    const base = passStart(0);
    this.#marker = {
      ...base,
      base,
      stepInRound: 0,
      digest: null,
      drain: null,
      endEpoch: null,
      dropped: 0,
    };
    this.#maker = this.#newMaker();
  }

  #newMaker(): RoundMaker<S> {
    const options = this.#options as unknown as ResolvedOptions<S, never>;
    return new RoundMaker(this.#source, options, this.#driver, {
      ...this.#marker,
      payload: this.#payload.restored,
    });
  }

  #checkOpen(): void {
    if (this.#closing !== undefined)
      throw varlenError('ERR_VARLEN_CLOSED', `${OP}: is closed`, { op: OP, argument: 'this' });
  }

  #checkIdle(): void {
    this.#checkOpen();
    if (this.#run === undefined) return;
    const details = { op: OP, argument: 'this' };
    throw varlenError('ERR_VARLEN_BUSY', `${OP}: batcher is already being iterated`, details);
  }

  /** Starts an iteration; throws `ERR_VARLEN_BUSY` while another one is active, `ERR_VARLEN_CLOSED` after a failure. */
  [Symbol.asyncIterator](): AsyncIterableIterator<Step<B>, undefined> {
    this.#checkIdle();
    if (this.#failed) {
      const message = `${OP}: the last run failed; restore() a state to go on`;
      throw varlenError('ERR_VARLEN_CLOSED', message, { op: OP, argument: 'this' }, { cause: this.#failure });
    }
    const queue = new StepQueue<MadeStep<S, B>>(this.#options.prefetchSteps);
    const run: Run<S, B> = { queue, abandoned: false, draining: false };
    this.#run = run;
    const start = (): void => {
      run.produced ??= this.#produce(run);
    };
    const { signal } = this.#options;
    const onAbort = (): void => {
      this.#fail(signal!.reason);
      queue.abort(signal!.reason);
      this.#maker.fail(signal!.reason);
    };
    if (signal?.aborted) onAbort();
    else signal?.addEventListener('abort', onAbort, { once: true });
    const finish = (): void => {
      if (this.#run === run) this.#run = undefined;
      signal?.removeEventListener('abort', onAbort);
    };
    const iterator: AsyncIterableIterator<Step<B>, undefined> = {
      [Symbol.asyncIterator]: () => iterator,
      next: async () => {
        if (this.#closing !== undefined && this.#run === run) this.#checkOpen();
        start();
        this.#metrics.begin();
        const asked = performance.now();
        try {
          const result = await queue.next();
          this.#metrics.waitInputMs += performance.now() - asked;
          if (result.done) {
            finish();
            return result;
          }
          this.#taken(result.value.planned);
          return { done: false, value: result.value.step };
        } catch (error) {
          finish();
          throw error;
        }
      },
      return: async () => {
        this.#leave(run);
        // Peers that wait for this rank's first header must still hear of it.
        if (this.#driver.size > 1) start();
        finish();
        return { done: true, value: undefined };
      },
    };
    return iterator;
  }

  /** The consumer takes no more steps: let the peers know, and account for what it leaves. */
  #leave(run: Run<S, B>): void {
    if (run.abandoned) return;
    run.abandoned = true;
    const wasOver = run.queue.ended;
    for (const { planned } of run.queue.discard()) this.#reportAbandoned(planned);
    if (!wasOver) this.#drainRun(run);
  }

  #drainRun(run: Run<S, B>): void {
    run.draining = true;
    if (run.produced !== undefined) this.#maker.drain();
  }

  #reportAbandoned({ items }: PlannedStep<S>): void {
    for (const { id, length } of items) this.#options.onDrop?.({ id, reason: 'abandoned', length });
  }

  #fail(reason: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#failure = reason;
  }

  #taken(planned: PlannedStep<S>): void {
    this.#marker = planned.after;
    this.#payload.take(planned.items, planned.after);
    this.#maker.forgetBefore(planned.after.base);
    const { audit } = this.#options;
    if (audit !== false) {
      for (const { id } of planned.items) this.#auditOut.add(id);
    }
    if (audit === 'list') this.#auditedIds.push(planned.items.map(({ id }) => id));
    this.#metrics.step(planned.info, planned.global.cost);
  }

  async #produce(run: Run<S, B>): Promise<void> {
    const { queue } = run;
    const maker = this.#maker;
    const previous = this.#lastRun;
    let finished = (): void => {};
    this.#lastRun = new Promise((resolve) => {
      finished = resolve;
    });
    try {
      await previous;
      if (this.#hasRun) this.#marker = maker.marker;
      this.#hasRun = true;
      const endEpoch = this.#marker.endEpoch ?? this.#marker.epoch + this.#options.epochs;
      await maker.begin(endEpoch, run.draining);
      for (;;) {
        const planned = await maker.next();
        const report = maker.takeReport();
        if (report !== undefined) {
          this.#metrics.round(report.metrics, report);
          this.#options.onRound?.(report.metrics);
        }
        if (planned === undefined) break;
        for (const step of planned) await this.#emit(run, step);
      }
      queue.end();
    } catch (error) {
      this.#fail(error);
      queue.fail(error);
      await maker.leave(error);
    } finally {
      finished();
    }
  }

  /** Collates one step when there is room for it. A failure is told to the peers at the next header. */
  async #emit(run: Run<S, B>, planned: PlannedStep<S>): Promise<void> {
    const { queue } = run;
    if (planned.replayed) return;
    if (planned.shadowed) return queue.end(); // the peers go on; this rank's iterator is over
    await queue.space();
    if (run.abandoned) return this.#reportAbandoned(planned);
    if (queue.ended) return;
    try {
      const batch = await this.#collate(planned);
      const ids = Object.freeze(planned.items.map(({ id }) => id));
      if (run.abandoned) return this.#reportAbandoned(planned);
      queue.put({ step: Object.freeze({ batch, info: planned.info, ids }), planned });
    } catch (error) {
      this.#fail(error);
      queue.fail(error);
      this.#maker.fail(error);
    }
  }

  #collate({ items, info }: PlannedStep<S>): B | Promise<B> {
    const { collate, limits, collateOptions, idleShape } = this.#options;
    if (collate !== undefined)
      return collate(
        items.map(({ sample }) => sample),
        info,
      );
    const sequences = items.map(({ sequence }) => sequence as Sequence);
    const dummy = info.idle && idleShape === 'dummy';
    const batch =
      limits.mode === 'packed'
        ? packSequences(sequences, collateOptions, dummy ? 1 : -1)
        : padSequences(sequences, collateOptions, dummy ? 1 : 0);
    return batch as B;
  }

  /**
   * The consumer's position: what it has taken, not what was made ahead. Plain JSON.
   *
   * Call it between two `next()` calls. Throws `ERR_VARLEN_MISSING_INPUT` when the source has no
   * `state()`/`restore()` and neither `replay: 'skip'` nor `statePayload` is set.
   */
  state(): BatcherState {
    this.#checkOpen();
    const { configHash, seed } = this.#options;
    const replay = replayOf(this.#source, this.#options as unknown as ResolvedOptions<S, never>);
    if (replay === 'none') {
      const problem = "has no state() and restore(); expected them, replay: 'skip' or statePayload: true";
      throw argumentError('ERR_VARLEN_MISSING_INPUT', `${OP}.state`, 'source', problem);
    }
    const { digest, ...marker } = this.#marker;
    return structuredClone({
      version: 1,
      configHash,
      rank: this.#driver.rank,
      worldSize: this.#driver.size,
      seed,
      quota: this.#maker.quota ?? null,
      epoch: marker.epoch,
      round: marker.round,
      stepInRound: marker.stepInRound,
      emittedSamples: marker.emittedSamples,
      emittedTokens: marker.emittedTokens,
      endEpoch: marker.endEpoch === null || marker.endEpoch === Infinity ? null : marker.endEpoch,
      dropped: marker.dropped,
      carry: marker.carry,
      auditIn: marker.base.auditIn,
      auditOut: this.#auditOut.toString(),
      roundDigest: digest,
      drain: marker.drain,
      base: marker.base,
      payload: replay === 'payload' ? this.#payload.save(this.#maker.readers, marker.base) : null,
    } satisfies BatcherState);
  }

  /**
   * Goes back to a saved position; the next iteration begins with the step after it. All ranks must
   * restore states of the same moment, which the first exchange checks.
   *
   * Throws `ERR_VARLEN_STATE_MISMATCH { field }`, `ERR_VARLEN_BUSY`, `ERR_VARLEN_CLOSED`.
   */
  restore(state: BatcherState): void {
    this.#checkIdle();
    const saved = checkState(state);
    const { configHash, statePayload } = this.#options;
    if (saved.configHash !== configHash) throw stateMismatch('configHash', saved.configHash, configHash);
    if (saved.worldSize !== this.#driver.size)
      throw stateMismatch('worldSize', saved.worldSize, this.#driver.size);
    if (saved.rank !== this.#driver.rank) throw stateMismatch('rank', saved.rank, this.#driver.rank);
    if ((saved.payload !== null) !== statePayload) {
      throw stateMismatch(
        'payload',
        saved.payload === null ? 'none' : 'some',
        statePayload ? 'some' : 'none',
      );
    }
    this.#maker.closeSource().catch(() => {}); // the old position is given up
    const { roundDigest, endEpoch, ...rest } = saved;
    const middle = saved.stepInRound > 0 || saved.round > 0;
    this.#marker = {
      ...rest,
      digest: roundDigest,
      // Without a last pass a run goes on until its quota; a position between runs has no end either.
      endEpoch: endEpoch ?? (middle || saved.emittedSamples > 0 ? Infinity : null),
    };
    this.#auditOut = new AuditSum(saved.auditOut);
    this.#auditedIds = [];
    this.#payload.load(saved);
    this.#failed = false;
    this.#failure = undefined;
    this.#hasRun = false;
    this.#maker = this.#newMaker();
  }

  /**
   * Asks for an early, clean end on all ranks: what was read is emitted, nothing more is read, and the
   * running iteration ends after that. Resolves when the wish is noted; the loop itself is the way
   * to wait for the end. Without a running iteration it does nothing.
   */
  drain(): Promise<void> {
    try {
      this.#checkOpen();
    } catch (error) {
      return Promise.reject(error);
    }
    if (this.#run !== undefined) this.#drainRun(this.#run);
    return Promise.resolve();
  }

  /** A snapshot of the counters; allowed at any time. */
  metrics(): BatcherMetrics {
    return this.#metrics.snapshot(this.#maker.dropped, this.#maker.auditIn, this.#auditOut.toString());
  }

  /** With `audit: 'list'`: the ids of every step taken, in order. */
  auditedIds(): readonly (readonly SampleId[])[] {
    return this.#auditedIds;
  }

  /** Leaves the running iteration, waits until the peers have been told, and closes the source. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const run = this.#run;
    if (run !== undefined) this.#leave(run);
    await (run?.produced ?? this.#lastRun);
    await this.#maker.closeSource();
  }
}
