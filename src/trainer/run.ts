/** What the phases of a run share: the model, its optimizer, the records, and the way to save it all. */
import { join } from 'node:path';
import type { BatcherState } from '../batch/index.js';
import { varlenError } from '../errors.js';
import type { CausalLM } from '../nn/index.js';
import { writeRows } from '../ops/index.js';
import { AdamW, clipGradNorm } from '../optim/index.js';
import { memoryStats, scope, Tensor } from '../tensor/index.js';
import {
  type Checkpoint,
  loadCheckpoint,
  type RolloutsState,
  type RunState,
  STATE_VERSION,
  saveCheckpoint,
} from './checkpoint.js';
import { TextGenerator } from './generate.js';
import { MetricsFile, readMetrics } from './metrics-file.js';
import type { Ranks } from './ranks.js';
import type { TrainRecipe } from './recipe.js';
import type { MachineRecord, TrainRecord } from './records.js';
import { frozenCopy } from './rl/reference.js';
import { sum } from './statistics.js';
import type { Task } from './tasks/task.js';

/** What a run was asked for. */
export interface RunOptions {
  readonly task: Task;
  readonly recipe: TrainRecipe;
  /** Folder of the run: checkpoint, records, model. */
  readonly out: string;
  readonly signal?: AbortSignal | undefined;
  readonly onRecord?: ((record: TrainRecord) => void) | undefined;
}

/** Wall time by part, in milliseconds. */
export class Stopwatch {
  readonly ms: Record<string, number> = {};
  #last = performance.now();

  /** Everything since the last call goes to `part`. */
  lap(part: string): void {
    const now = performance.now();
    this.ms[part] = (this.ms[part] ?? 0) + now - this.#last;
    this.#last = now;
  }
}

/** Name of the checkpoint in a run's folder. */
export const CHECKPOINT = 'checkpoint.safetensors';
/** Name of the records in a run's folder. */
const METRICS = 'metrics.jsonl';

type Phase = RunState['phase'];

/** A run while it goes on. */
export class Run implements Disposable {
  readonly options: RunOptions;
  readonly model: CausalLM;
  readonly ranks: Ranks;
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly records: TrainRecord[];
  phase: Phase = 'sft';
  /** Steps of the phase that are done. */
  step = 0;
  /** Where this rank's rollouts stand; null before RL and after it. */
  rollouts: RolloutsState | null = null;
  /** The policy that RL began with; none without a KL penalty. */
  reference: CausalLM | undefined;
  idleSteps = 0;
  batcher: BatcherState | null = null;
  optimizer: AdamW;
  readonly #config: string;
  /** Rank 0 writes for all. */
  readonly #metrics: MetricsFile | undefined;
  #generator: TextGenerator | undefined;

  /** Begins, or goes on from `checkpoint`. */
  constructor(options: RunOptions, model: CausalLM, ranks: Ranks, config: string, checkpoint?: Checkpoint) {
    this.options = options;
    this.model = model;
    this.ranks = ranks;
    this.parameters = new Map(model.parameters());
    this.#config = config;
    const state = checkpoint?.state;
    if (state !== undefined) {
      ({ phase: this.phase, step: this.step } = state);
      this.rollouts = state.rollouts?.[ranks.rank] ?? null;
      this.idleSteps = state.idleSteps;
      this.batcher = state.batchers?.[ranks.rank] ?? null;
    }
    const path = join(options.out, METRICS);
    const bytes = state?.metricsBytes ?? 0;
    this.#metrics = ranks.rank === 0 ? new MetricsFile(path, bytes) : undefined;
    this.records = state === undefined ? [] : readMetrics(path).slice(0, state.records);
    this.optimizer = this.#newOptimizer();
    if (checkpoint !== undefined) this.#restore(checkpoint);
  }

  /** Reads the run's checkpoint. @throws as `loadCheckpoint` */
  static load(out: string, config: string): Promise<Checkpoint> {
    return loadCheckpoint(join(out, CHECKPOINT), config);
  }

  #newOptimizer(): AdamW {
    const { betas, sft, rl } = this.options.recipe;
    const { weightDecay } = this.phase === 'sft' ? sft : rl;
    // The rate of a step is its factor: a schedule of the trainer's own.
    return new AdamW([{ params: this.parameters }], { lr: 1, betas, weightDecay });
  }

  /**
   * Clips the gradients, steps at `learningRate` and drops them; a norm that is not finite changes nothing.
   *
   * @returns the norm before clipping
   */
  async optimize(learningRate: number): Promise<number> {
    using gradientNorm = clipGradNorm(this.parameters, this.options.recipe.gradientClip);
    this.optimizer.step({ gradientNorm, lrFactor: learningRate });
    this.optimizer.zeroGrad();
    return Number((await gradientNorm.data())[0]);
  }

  #restore({ tensors, state }: Checkpoint): void {
    takeWeights(this.parameters, tensors);
    this.#refer();
    if (this.reference !== undefined) {
      takeWeights(new Map(this.reference.parameters()), tensors, 'reference.');
    }
    this.optimizer.loadStateDict({ steps: state.optimizerSteps, tensors: partOf(tensors, 'optimizer.') });
  }

  /** A generator over the model, made once. */
  get generator(): TextGenerator {
    if (this.#generator === undefined) {
      const { task, recipe } = this.options;
      this.#generator = new TextGenerator(this.model, {
        slots: recipe.generatorSlots,
        slotTokens: recipe.model.maxTokens,
        stopIds: [task.tokenizer.eosId],
        seed: recipe.seed,
      });
    }
    return this.#generator;
  }

  /** True when nothing is left to do. */
  get done(): boolean {
    return this.phase === 'done';
  }

  /** True when this rank was asked for an end. */
  get asked(): boolean {
    return this.options.signal?.aborted ?? false;
  }

  /** All ranks agreed on an end after the step at hand. */
  interrupted = false;

  /** Agrees with the other ranks whether to end here. */
  async agree(): Promise<boolean> {
    this.interrupted ||= (await this.ranks.max(this.asked ? 1 : 0)) > 0;
    return this.interrupted;
  }

  /** Writes a record down and shows it. */
  record(record: TrainRecord): void {
    this.#metrics?.write(record);
    this.records.push(record);
    if (this.ranks.rank === 0) this.options.onRecord?.(record);
  }

  /** The machine's part of a record. */
  machine(phase: TrainRecord['phase'], watch: Stopwatch, tokens: number): MachineRecord {
    const own = sum(Object.values(watch.ms)) / 1000;
    const before = this.records.filter((record) => record.phase === phase);
    const seconds = own + sum(before.map(({ machine }) => sum(Object.values(machine.ms)) / 1000));
    return { seconds, ms: watch.ms, tokensPerSecond: tokens / own, peakBytes: memoryStats().peak };
  }

  /** Keeps a copy of the policy where RL needs one. */
  #refer(): void {
    this.reference?.dispose();
    const needed = this.phase === 'rl' && this.options.recipe.rl.klCoef > 0;
    this.reference = needed ? frozenCopy(this.model) : undefined;
  }

  /** Goes to the next phase, with a fresh optimizer. */
  enter(phase: Phase): void {
    this.phase = phase;
    this.step = 0;
    this.batcher = null;
    this.rollouts = null;
    this.#refer();
    this.optimizer[Symbol.dispose]();
    this.optimizer = this.#newOptimizer();
  }

  /** Saves everything; all ranks together. @throws `ERR_VARLEN_IO`, the old checkpoint intact */
  async save(): Promise<void> {
    const batchers = await this.ranks.gather(this.batcher);
    const rollouts = await this.ranks.gather(this.rollouts);
    if (this.#metrics === undefined) return;
    const tensors = new Map<string, Tensor>();
    for (const [name, tensor] of this.parameters) tensors.set(`model.${name}`, tensor);
    for (const [name, tensor] of this.reference?.parameters() ?? []) tensors.set(`reference.${name}`, tensor);
    const { steps, tensors: moments } = this.optimizer.stateDict();
    for (const [name, tensor] of Object.entries(moments)) tensors.set(`optimizer.${name}`, tensor);
    await saveCheckpoint(join(this.options.out, CHECKPOINT), tensors, {
      version: STATE_VERSION,
      config: this.#config,
      phase: this.phase,
      step: this.step,
      batchers: batchers.includes(null) ? null : (batchers as BatcherState[]),
      rollouts: rollouts.includes(null) ? null : (rollouts as RolloutsState[]),
      optimizerSteps: steps,
      metricsBytes: this.#metrics.bytes,
      records: this.records.length,
      idleSteps: this.idleSteps,
    });
  }

  [Symbol.dispose](): void {
    this.#metrics?.[Symbol.dispose]();
    this.optimizer[Symbol.dispose]();
    this.#generator?.[Symbol.dispose]();
    this.reference?.dispose();
    this.model.dispose();
  }
}

function entryOf(name: string, like: Tensor, tensors: Checkpoint['tensors']) {
  const entry = tensors[name];
  if (entry !== undefined && entry.dtype === like.dtype && String(entry.shape) === String(like.shape)) {
    return entry;
  }
  const got = entry === undefined ? 'none' : `${entry.dtype} [${entry.shape}]`;
  const message = `loadCheckpoint: ${name} does not fit the model; got ${got}, expected ${like.dtype} [${like.shape}]`;
  throw varlenError('ERR_VARLEN_CHECKPOINT', message, { op: 'loadCheckpoint', argument: name });
}

/** The tensors whose names begin with `prefix`, without it. */
function partOf(tensors: Checkpoint['tensors'], prefix: string): Checkpoint['tensors'] {
  const part = Object.entries(tensors).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(part.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

/** Gives parameters the values that a checkpoint has for them. @throws `ERR_VARLEN_CHECKPOINT` naming a tensor */
export function takeWeights(
  parameters: ReadonlyMap<string, Tensor>,
  tensors: Checkpoint['tensors'],
  prefix: 'model.' | 'reference.' = 'model.',
): void {
  for (const [name, parameter] of parameters) {
    using saved = Tensor.from(entryOf(`${prefix}${name}`, parameter, tensors), { device: parameter.device });
    overwrite(parameter, saved);
  }
}

/** Copies all elements of `source` into `target`, which stays the tensor that it is. */
function overwrite(target: Tensor, source: Tensor): void {
  scope(() => {
    const row = [1, source.size];
    writeRows(target.detach().view(row), Int32Array.of(0), source.view(row));
  });
}
