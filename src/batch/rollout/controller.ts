/**
 * Length-aware rollout scheduling (SortedRL, arXiv 2603.23414; the loop below is worked out from its
 * abstract and reviews, no listing is public).
 *
 * More prompts are loaded than the engine holds. As soon as an update's worth of rollouts is complete,
 * generation stops, the shortest complete ones train the policy, and the stopped ones go on (partial
 * mode) or start over (on-policy mode). So the engine never waits for its slowest rollout, and
 * training sees short answers before long ones.
 */
import { argumentError, varlenError } from '../../errors.js';
import type { Engine, EngineEvent, PartialOutput } from './engine.js';
import { appendSegment, newEntry, type RolloutEntry, restart, staleness } from './entry.js';
import { loadEntry, type RolloutState, saveEntry } from './state.js';

/** A prompt to answer. */
export interface RolloutPrompt {
  /** Unique among all prompts of a run. */
  readonly id: string;
  readonly promptIds: Int32Array;
}

/** Options of {@link RolloutController}. */
export interface ControllerOptions {
  /** Prompts loaded together, at least 1. */
  groupPrompts: number;
  /** Responses per prompt, at least 1. Default 1. */
  responsesPerPrompt?: number;
  /** Rollouts per policy update, at least 1. */
  updateBatch: number;
  /** Longest response in tokens, at least 1. */
  maxTokens: number;
  /**
   * `'partial'`: a stopped rollout keeps its tokens and log-probs and goes on under the next policy.
   * `'on-policy'`: it loses them and starts over.
   */
  mode: 'on-policy' | 'partial';
  /**
   * `'grouped'`: the next prompts are loaded when all of the current group have trained; no prompt
   * starves. `'overlap'`: earlier, so that the engine stays full; see `oversubscribe`.
   */
  load: 'grouped' | 'overlap';
  /**
   * Under `'overlap'`, rollouts kept loaded and unfinished per slot of the engine, at least 1: the next
   * group is loaded when fewer than `(oversubscribe - 1) * capacity` wait. 1: when none waits. Default 1.
   */
  oversubscribe?: number;
  /**
   * Most versions that the oldest token of a trained rollout may lag behind the policy it trains.
   * Default 0 on-policy, Infinity in partial mode.
   */
  maxStaleness?: number;
  /** Most times that a rollout is stopped. Default Infinity. */
  maxInterruptions?: number;
  /**
   * What happens to a rollout that would pass a limit at the next update. `'finish'`: the update
   * waits for it, and nothing new starts meanwhile. `'restart'`: it starts over, once; the second
   * time it is finished, or else it would never end. `'drop'`: it is given up. Default `'finish'`.
   * A complete rollout that no batch takes in time starts over, or is dropped under `'drop'`.
   */
  onLimit?: 'finish' | 'restart' | 'drop';
  /** Harvest once so many rollouts, or so many tokens, are complete. Default `{ completed: updateBatch }`. */
  earlyStop?: { completed?: number; tokens?: number };
  /** A batch takes all responses of a prompt or none: needed by group-relative advantages. Default false. */
  keepPromptGroupsTogether?: boolean;
  /** Scores a complete rollout; it can train when the score is there. Default: no score. */
  reward?: (entry: RolloutEntry) => number | Promise<number>;
  /** Told of every rollout that was given up. */
  onDrop?: (entry: RolloutEntry) => void;
  /** Go on from here: the prompts then are those after the last one that had been loaded. */
  resume?: RolloutState;
}

/** Rollouts for one policy update, shortest first. */
export interface UpdateBatch {
  readonly entries: readonly RolloutEntry[];
  /** Policy to train; asking for the next batch says that it has become `version + 1`. */
  readonly version: number;
  /** Fewer rollouts than `updateBatch`: a group, the prompts, or a token limit ended first. */
  readonly short: boolean;
}

/** Totals since the start. */
export interface RolloutMetrics {
  readonly updates: number;
  readonly generatedTokens: number;
  /** Tokens thrown away by restarts and drops. */
  readonly wastedTokens: number;
  readonly consumed: number;
  readonly dropped: number;
  readonly interruptions: number;
  /**
   * `1 - integral of running rollouts / (capacity * elapsed)`, over the time in which the engine was
   * the controller's to fill: training time does not count.
   */
  readonly bubbleRatio: number;
}

/**
 * Feeds an engine and hands out update batches.
 *
 * ```ts
 * for await (const { entries, version } of new RolloutController(prompts, engine, options)) {
 *   await train(entries, version);
 * }
 * ```
 *
 * Every prompt trains exactly once per response, unless `onLimit: 'drop'` gives it up. Leaving the
 * loop stops what runs.
 *
 * @throws VarlenInputError `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION` for bad options (in the
 * constructor), `ERR_VARLEN_DUPLICATE_SAMPLE` for a prompt id seen twice, `ERR_VARLEN_INDEX` and
 * `ERR_VARLEN_SHAPE` for impossible answers of the engine; `ERR_VARLEN_BUSY` for a second loop
 */
export class RolloutController implements AsyncIterable<UpdateBatch> {
  readonly #engine: Engine;
  readonly #options: Required<Omit<ControllerOptions, 'reward' | 'onDrop' | 'earlyStop' | 'resume'>> &
    Pick<ControllerOptions, 'reward' | 'onDrop'> & { completed: number; tokens: number };
  readonly #prompts: AsyncIterator<RolloutPrompt> | Iterator<RolloutPrompt>;
  readonly #seenPrompts = new Set<string>();
  /** Loaded, not yet consumed or dropped, in order of loading. */
  readonly #entries = new Map<string, RolloutEntry>();
  readonly #running = new Map<string, RolloutEntry>();
  /** Complete, not yet chosen. */
  readonly #done = new Set<RolloutEntry>();
  /** Waiting rollouts, the next one last; undefined when it must be made anew. */
  #queue: RolloutEntry[] | undefined;
  /** Rollouts whose score is being computed. */
  readonly #scoring = new Set<Promise<void>>();
  #scoreFailure: { error: unknown } | undefined;
  #promptsLeft = true;
  #groups = 0;
  #version = 0;
  #iterating = false;
  /** A batch is with the consumer. */
  #handedOut = false;

  #updates = 0;
  #generated = 0;
  #wasted = 0;
  #consumed = 0;
  #dropped = 0;
  #interrupted = 0;
  #busyMs = 0;
  #elapsedMs = 0;
  #lastMs: number | undefined;

  constructor(
    prompts: Iterable<RolloutPrompt> | AsyncIterable<RolloutPrompt>,
    engine: Engine,
    options: ControllerOptions,
  ) {
    this.#engine = engine;
    checkCount('engine.capacity', engine.capacity, 1);
    const { mode, reward, onDrop, resume, earlyStop = {}, ...rest } = options;
    const filled = {
      responsesPerPrompt: 1,
      oversubscribe: 1,
      maxStaleness: mode === 'on-policy' ? 0 : Infinity,
      maxInterruptions: Infinity,
      onLimit: 'finish' as const,
      keepPromptGroupsTogether: false,
      ...rest,
      mode,
      completed: earlyStop.completed ?? options.updateBatch,
      tokens: earlyStop.tokens ?? Infinity,
    };
    checkOptions(filled);
    this.#options = { ...filled, ...(reward ? { reward } : {}), ...(onDrop ? { onDrop } : {}) };
    this.#prompts = Symbol.iterator in prompts ? prompts[Symbol.iterator]() : prompts[Symbol.asyncIterator]();
    if (resume !== undefined) this.#restore(resume);
  }

  /**
   * What it has in hand, for a checkpoint: ask inside the loop, when the batch has trained the policy.
   *
   * @throws `ERR_VARLEN_BUSY` while rollouts run
   */
  state(): RolloutState {
    if (this.#running.size > 0) {
      const message = 'RolloutController: state() is for the time between two batches; rollouts run';
      throw varlenError('ERR_VARLEN_BUSY', message, { op: 'RolloutController' });
    }
    return {
      version: this.#version + (this.#handedOut ? 1 : 0),
      groups: this.#groups,
      entries: Array.from(this.#entries.values(), saveEntry),
    };
  }

  #restore({ version, groups, entries }: RolloutState): void {
    this.#version = version;
    this.#groups = groups;
    for (const saved of entries) {
      const entry = loadEntry(saved);
      this.#entries.set(entry.id, entry);
      this.#seenPrompts.add(entry.promptId);
      if (entry.status === 'done') this.#done.add(entry);
    }
  }

  /** Totals so far. */
  metrics(): RolloutMetrics {
    return {
      updates: this.#updates,
      generatedTokens: this.#generated,
      wastedTokens: this.#wasted,
      consumed: this.#consumed,
      dropped: this.#dropped,
      interruptions: this.#interrupted,
      bubbleRatio: this.#elapsedMs === 0 ? 0 : 1 - this.#busyMs / (this.#engine.capacity * this.#elapsedMs),
    };
  }

  async *[Symbol.asyncIterator](): AsyncIterator<UpdateBatch> {
    if (this.#iterating) {
      const message = 'RolloutController: is already being iterated';
      throw varlenError('ERR_VARLEN_BUSY', message, { op: 'RolloutController' });
    }
    this.#iterating = true;
    try {
      await this.#engine.setPolicy(this.#version);
      for (;;) {
        const batch = await this.#generate();
        if (batch === undefined) return;
        this.#handedOut = true;
        yield batch;
        this.#handedOut = false;
        await this.#engine.setPolicy(++this.#version);
      }
    } finally {
      if (this.#running.size > 0) await this.#stop([...this.#running.keys()]);
      if (this.#promptsLeft) await this.#prompts.return?.();
    }
  }

  /** Runs the engine until a batch is due; undefined when every prompt is done with. */
  async #generate(): Promise<UpdateBatch | undefined> {
    this.#lastMs = this.#now();
    let harvesting = false;
    for (;;) {
      if (this.#scoreFailure !== undefined) throw this.#scoreFailure.error;
      const ready = this.#ready();
      harvesting ||= this.#isDue(ready);
      if (!harvesting) {
        // Only now: what starts just before a harvest would be stopped at once.
        await this.#load();
        this.#fill(() => true);
      }
      if (harvesting) {
        if (!this.#mustFinish()) return await this.#harvest(ready);
        this.#fill((entry) => this.#limitAction(entry) === 'finish');
      }
      if (this.#running.size > 0) {
        // A score may complete the batch before the next rollout does.
        const scored = ready.length + this.#scoring.size >= this.#options.completed && !harvesting;
        const events = await (scored
          ? Promise.race([this.#poll(), ...this.#scoring]).then(() => this.#polled.splice(0))
          : this.#poll().then(() => this.#polled.splice(0)));
        for (const event of events) {
          this.#tick(event.at);
          this.#finish(event);
        }
        this.#tick();
      } else if (this.#scoring.size > 0) {
        await Promise.race(this.#scoring);
        this.#tick();
      } else if (ready.length > 0) {
        harvesting = true;
      } else if (this.#entries.size === 0 && !this.#promptsLeft) {
        return undefined;
      }
    }
  }

  readonly #polled: EngineEvent[] = [];
  #polling: Promise<void> | undefined;

  /** One poll at a time: a score that arrives first leaves it in flight for the next turn. */
  #poll(): Promise<void> {
    this.#polling ??= this.#engine.poll().then((events) => {
      this.#polled.push(...events);
      this.#polling = undefined;
    });
    return this.#polling;
  }

  async #load(): Promise<void> {
    const { load, oversubscribe, groupPrompts } = this.#options;
    while (this.#promptsLeft) {
      if (load === 'grouped' && this.#entries.size > 0) return;
      // What still waits when the engine's free slots are filled.
      const { capacity } = this.#engine;
      const waiting = this.#entries.size - this.#done.size - capacity;
      if (load === 'overlap' && waiting >= Math.max(1, (oversubscribe - 1) * capacity)) return;
      const group = this.#groups++;
      for (let i = 0; i < groupPrompts && this.#promptsLeft; i++) await this.#loadPrompt(group);
    }
  }

  async #loadPrompt(group: number): Promise<void> {
    const { done, value } = await this.#prompts.next();
    if (done) {
      this.#promptsLeft = false;
      return;
    }
    if (this.#seenPrompts.has(value.id)) {
      const problem = `was loaded before; got '${value.id}' twice, expected unique ids`;
      throw argumentError('ERR_VARLEN_DUPLICATE_SAMPLE', 'RolloutController', 'prompts', problem);
    }
    this.#seenPrompts.add(value.id);
    this.#queue = undefined;
    const { responsesPerPrompt } = this.#options;
    for (let k = 0; k < responsesPerPrompt; k++) {
      const id = responsesPerPrompt === 1 ? value.id : `${value.id}#${k}`;
      this.#entries.set(id, newEntry(id, value.id, value.promptIds, group));
    }
  }

  /** Starts those waiting rollouts that `may` start while the engine has room. */
  #fill(may: (entry: RolloutEntry) => boolean): void {
    this.#queue ??= this.#waiting();
    const queue = this.#queue;
    for (let i = queue.length - 1; i >= 0 && this.#running.size < this.#engine.capacity; i--) {
      const entry = queue[i];
      if (!may(entry)) continue;
      queue.splice(i, 1);
      entry.status = 'running';
      if (entry.admitted < 0) entry.admitted = this.#version;
      this.#running.set(entry.id, entry);
      this.#engine.submit(entry, this.#options.maxTokens - entry.tokens.length);
    }
  }

  /** Interrupted rollouts first, the longest of them ahead; then new ones; then restarted ones. Last comes next. */
  #waiting(): RolloutEntry[] {
    const turn = (entry: RolloutEntry) => (entry.status === 'partial' ? 0 : entry.restarts === 0 ? 1 : 2);
    return (
      [...this.#entries.values()]
        .filter((entry) => entry.status === 'pending' || entry.status === 'partial')
        // The sort is stable: equal ones keep the order of loading.
        .sort((a, b) => turn(a) - turn(b) || b.tokens.length - a.tokens.length)
        .reverse()
    );
  }

  /** Complete and scored rollouts; with prompt groups kept together, only those of complete groups. */
  #ready(): RolloutEntry[] {
    const { reward, keepPromptGroupsTogether, responsesPerPrompt } = this.#options;
    const done = [...this.#done].filter((entry) => reward === undefined || entry.reward !== undefined);
    if (!keepPromptGroupsTogether) return done;
    const counts = new Map<string, number>();
    for (const { promptId } of done) counts.set(promptId, (counts.get(promptId) ?? 0) + 1);
    return done.filter(({ promptId }) => counts.get(promptId) === responsesPerPrompt);
  }

  #isDue(ready: readonly RolloutEntry[]): boolean {
    if (ready.length >= this.#options.completed) return true;
    if (this.#options.tokens === Infinity) return false;
    return ready.reduce((sum, entry) => sum + entry.tokens.length, 0) >= this.#options.tokens;
  }

  /** True while there is a rollout, running or stopped, that must not see the next policy unfinished. */
  #mustFinish(): boolean {
    for (const entry of this.#entries.values()) if (this.#limitAction(entry) === 'finish') return true;
    return false;
  }

  /** What must happen to an unfinished rollout before the next update; undefined: it may be stopped. */
  #limitAction(entry: RolloutEntry): 'finish' | 'restart' | 'drop' | undefined {
    const { mode, maxStaleness, maxInterruptions, onLimit } = this.#options;
    const runs = entry.status === 'running';
    if (!runs && entry.status !== 'partial') return undefined;
    // Tokens of the current run, which the engine still holds, bear the current version.
    const oldest = entry.versions.length > 0 ? entry.versions[0] : this.#version;
    const tooOld = mode === 'partial' && this.#version + 1 - oldest > maxStaleness;
    const tooOften = runs && entry.interruptions + 1 > maxInterruptions;
    if (!tooOld && !tooOften) return undefined;
    return onLimit === 'restart' && entry.restarts > 0 ? 'finish' : onLimit;
  }

  async #harvest(ready: RolloutEntry[]): Promise<UpdateBatch> {
    const { updateBatch, maxStaleness, onLimit } = this.#options;
    const overdue = (entry: RolloutEntry) => staleness(entry, this.#version + 1) > maxStaleness;
    const chosen = this.#choose(ready, overdue);
    for (const entry of chosen) {
      entry.status = 'consumed';
      this.#done.delete(entry);
      this.#entries.delete(entry.id);
    }
    this.#consumed += chosen.length;

    // Before the stop: afterwards the limits of those that ran have been seen to.
    const aged = [...this.#entries.values()].filter(
      (entry) => entry.status === 'partial' && this.#limitAction(entry) !== undefined,
    );
    await this.#stop([...this.#running.keys()]);
    for (const entry of aged) {
      if (entry.status !== 'partial') continue;
      if (onLimit === 'drop') this.#drop(entry);
      else this.#wasted += restart(entry);
    }
    // Complete rollouts that will be too old for the next policy; their prompt gets another try.
    for (const entry of this.#done) {
      if (!overdue(entry)) continue;
      this.#done.delete(entry);
      if (onLimit === 'drop') this.#drop(entry);
      else this.#wasted += restart(entry);
    }
    this.#updates++;
    return { entries: chosen, version: this.#version, short: chosen.length < updateBatch };
  }

  /** The shortest, after those that cannot wait; whole prompt groups when they are kept together. */
  #choose(ready: readonly RolloutEntry[], overdue: (entry: RolloutEntry) => boolean): RolloutEntry[] {
    const { updateBatch, keepPromptGroupsTogether } = this.#options;
    const units = new Map<string, RolloutEntry[]>();
    for (const entry of ready) {
      const key = keepPromptGroupsTogether ? entry.promptId : entry.id;
      const unit = units.get(key);
      if (unit) unit.push(entry);
      else units.set(key, [entry]);
    }
    const ranked = [...units.values()].map((entries) => ({
      entries,
      // Those that were thrown away before go first: nobody is passed over for ever.
      urgency: entries.some(overdue) ? 1 + Math.max(...entries.map((e) => e.restarts)) : 0,
      tokens: entries.reduce((sum, entry) => sum + entry.tokens.length, 0),
      id: entries[0].id,
    }));
    ranked.sort((a, b) => b.urgency - a.urgency || a.tokens - b.tokens || (a.id < b.id ? -1 : 1));
    const chosen: RolloutEntry[] = [];
    for (const { entries } of ranked) {
      if (chosen.length + entries.length > updateBatch) break;
      chosen.push(...entries);
    }
    return chosen.sort((a, b) => a.tokens.length - b.tokens.length || (a.id < b.id ? -1 : 1));
  }

  /** Stops running rollouts and does with each what its limits and the mode say. */
  async #stop(ids: string[]): Promise<void> {
    this.#queue = undefined;
    if (ids.length === 0) return;
    const outputs = await this.#engine.abort(ids);
    const givenUp = new Set<string>();
    this.#tick();
    // A rollout may have ended while the stop was under way: then it is complete, not stopped.
    for (const event of this.#polled.splice(0)) this.#finish(event);
    for (const output of outputs) {
      if (!this.#running.has(output.id)) continue;
      const entry = this.#take(output);
      const action = this.#limitAction(entry);
      entry.interruptions++;
      this.#interrupted++;
      this.#append(entry, output);
      // Dropped when all have been stopped: the rest of its prompt group goes with it.
      if (action === 'drop') givenUp.add(entry.id);
      if (entry.tokens.length === 0) entry.status = 'pending';
      else if (action === 'restart' || this.#options.mode === 'on-policy') this.#wasted += restart(entry);
      else entry.status = 'partial';
    }
    if (this.#running.size > 0) {
      const [missing] = this.#running.keys();
      const problem = `must return an output for each rollout; got none for '${missing}'`;
      throw argumentError('ERR_VARLEN_INDEX', 'RolloutController', 'engine.abort', problem);
    }
    for (const id of givenUp) {
      const entry = this.#entries.get(id);
      if (entry !== undefined) this.#drop(entry);
    }
  }

  #finish(event: EngineEvent): void {
    const entry = this.#take(event);
    this.#append(entry, event);
    entry.status = 'done';
    this.#done.add(entry);
    entry.truncated = event.truncated;
    const { reward } = this.#options;
    if (reward === undefined) return;
    // Also a reward that throws at once must end the loop, not the poll.
    const scoring: Promise<void> = new Promise<number>((resolve) => resolve(reward(entry)))
      .then(
        (value) => {
          entry.reward = value;
        },
        (error) => {
          this.#scoreFailure ??= { error };
        },
      )
      .finally(() => this.#scoring.delete(scoring));
    this.#scoring.add(scoring);
  }

  #take(output: PartialOutput): RolloutEntry {
    const entry = this.#running.get(output.id);
    if (entry === undefined) {
      const problem = `names a rollout that does not run; got '${output.id}'`;
      throw argumentError('ERR_VARLEN_INDEX', 'RolloutController', 'engine', problem);
    }
    const { maxTokens } = this.#options;
    const { tokens, logprobs } = output;
    if (tokens.length !== logprobs.length || entry.tokens.length + tokens.length > maxTokens) {
      const problem = `returned ${tokens.length} tokens and ${logprobs.length} log-probs for '${output.id}', expected equal numbers and at most ${maxTokens - entry.tokens.length}`;
      throw argumentError('ERR_VARLEN_SHAPE', 'RolloutController', 'engine', problem);
    }
    this.#running.delete(output.id);
    return entry;
  }

  #append(entry: RolloutEntry, { tokens, logprobs }: PartialOutput): void {
    this.#generated += tokens.length;
    appendSegment(entry, tokens, logprobs, this.#version);
  }

  #drop(entry: RolloutEntry): void {
    entry.status = 'dropped';
    this.#entries.delete(entry.id);
    this.#done.delete(entry);
    this.#wasted += entry.tokens.length;
    this.#dropped++;
    this.#options.onDrop?.(entry);
    if (!this.#options.keepPromptGroupsTogether) return;
    // Without one of its answers a prompt group can never be whole: the others go as well.
    for (const other of this.#entries.values()) {
      if (other.promptId === entry.promptId && other.status !== 'running') this.#drop(other);
    }
  }

  #now(): number {
    return this.#engine.now?.() ?? performance.now();
  }

  /** Adds the time from the last call to `until` to the bubble account. */
  #tick(until: number = this.#now()): void {
    const passed = Math.max(0, until - (this.#lastMs ?? until));
    this.#lastMs = (this.#lastMs ?? until) + passed;
    this.#elapsedMs += passed;
    this.#busyMs += passed * this.#running.size;
  }
}

function checkOptions(options: {
  groupPrompts: number;
  responsesPerPrompt: number;
  updateBatch: number;
  maxTokens: number;
  oversubscribe: number;
  maxStaleness: number;
  maxInterruptions: number;
  completed: number;
  tokens: number;
  mode: string;
  load: string;
  onLimit: string;
  keepPromptGroupsTogether: boolean;
}): void {
  for (const key of [
    'groupPrompts',
    'responsesPerPrompt',
    'updateBatch',
    'maxTokens',
    'completed',
  ] as const) {
    checkCount(`options.${key === 'completed' ? 'earlyStop.completed' : key}`, options[key], 1);
  }
  if (options.maxStaleness !== Infinity) checkCount('options.maxStaleness', options.maxStaleness, 0);
  if (options.maxInterruptions !== Infinity) {
    checkCount('options.maxInterruptions', options.maxInterruptions, 0);
  }
  if (options.tokens !== Infinity) checkCount('options.earlyStop.tokens', options.tokens, 1);
  if (!(options.oversubscribe >= 1 && options.oversubscribe < Infinity)) {
    const problem = `is out of range; got ${String(options.oversubscribe)}, expected a finite number of at least 1`;
    throw argumentError('ERR_VARLEN_RANGE', 'RolloutController', 'options.oversubscribe', problem);
  }
  checkWord('mode', options.mode, ['on-policy', 'partial']);
  checkWord('load', options.load, ['grouped', 'overlap']);
  checkWord('onLimit', options.onLimit, ['finish', 'restart', 'drop']);
  if (options.keepPromptGroupsTogether && options.updateBatch % options.responsesPerPrompt !== 0) {
    const problem = `must be a multiple of responsesPerPrompt when prompt groups stay together; got ${options.updateBatch}, expected a multiple of ${options.responsesPerPrompt}`;
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', 'RolloutController', 'options.updateBatch', problem);
  }
}

function checkCount(argument: string, value: number, minimum: number): void {
  if (Number.isSafeInteger(value) && value >= minimum) return;
  const problem = `is out of range; got ${String(value)}, expected an integer of at least ${minimum}`;
  throw argumentError('ERR_VARLEN_RANGE', 'RolloutController', argument, problem);
}

function checkWord(key: string, value: string, words: readonly string[]): void {
  if (words.includes(value)) return;
  const expected = words.map((word) => `'${word}'`).join(', ');
  const problem = `is not known; got '${String(value)}', expected one of ${expected}`;
  throw argumentError('ERR_VARLEN_OPTION', 'RolloutController', `options.${key}`, problem);
}
