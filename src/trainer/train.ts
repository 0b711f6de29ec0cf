/** A whole run: measure, fine-tune, measure, reinforce, measure. */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { ProcessGroup } from '../dist/index.js';
import { argumentError, varlenError } from '../errors.js';
import { CausalLM } from '../nn/index.js';
import { Device, type DeviceLike, readSafetensors } from '../tensor/index.js';
import { evaluate } from './evaluate.js';
import { Ranks } from './ranks.js';
import { checkRecipe, type TrainRecipe } from './recipe.js';
import type { TrainRecord } from './records.js';
import { trainRl } from './rl.js';
import { CHECKPOINT, Run, takeWeights } from './run.js';
import { trainSft } from './sft.js';
import { type Summary, summarize } from './summary.js';
import type { Task } from './tasks/task.js';

/** Options of {@link train}. */
export interface TrainOptions {
  task: Task;
  recipe: TrainRecipe;
  /** Folder of the run; made when it is not there. */
  out: string;
  /** Default `'auto'`. */
  device?: DeviceLike;
  /**
   * Ranks that train together, each calling `train` with the same options. They share the prompts of every
   * step; `rl.prompts` is a multiple of their number. Rank 0 writes the files. Default: this process alone.
   */
  group?: ProcessGroup;
  /** Go on from the folder's checkpoint; begin when there is none. Default false: begin anew. */
  resume?: boolean;
  /** Weights of another run's checkpoint to begin with, in place of random ones or of `model`'s. */
  weights?: string;
  /**
   * Folder of a Hugging Face checkpoint to begin with, e.g. the `model/` of another run: its sizes stand in
   * place of the recipe's. Its vocabulary is the tokenizer's, or begins with it.
   */
  model?: string;
  /** Ends the run after the step at hand, with a checkpoint. */
  signal?: AbortSignal;
  /** Sees every record as it is written. */
  onRecord?: (record: TrainRecord) => void;
}

/** What {@link train} comes to. */
export interface TrainResult {
  readonly records: readonly TrainRecord[];
  readonly summary: Summary;
  /** The signal ended it: `resume` goes on. */
  readonly interrupted: boolean;
}

/** Everything that decides what a run computes, as text. */
function configOf({ task, recipe, weights, model: begun, group }: TrainOptions): string {
  const { checkpointEvery, ...rest } = recipe;
  const { vocabSize } = task.tokenizer;
  const ranks = group?.size ?? 1;
  return JSON.stringify({ task: task.name, vocabSize, ranks, weights, begun, ...rest });
}

/** Where the model is, and how its parameters are kept: tensor cores multiply bfloat16; AdamW has float32 masters. */
function placeOf({ device: like = 'auto' }: TrainOptions): { device: Device; dtype: 'float32' | 'bfloat16' } {
  const device = Device.resolve(like);
  return { device, dtype: device.kind === 'cuda' ? 'bfloat16' : 'float32' };
}

/** A model of the recipe's sizes and random weights. */
function newModel(options: TrainOptions): CausalLM {
  const { task, recipe } = options;
  const { maxTokens, ...sizes } = recipe.model;
  const { vocabSize } = task.tokenizer;
  return CausalLM.create(
    { ...sizes, vocabSize, maxPositionEmbeddings: maxTokens, tieWordEmbeddings: true },
    { seed: recipe.seed, ...placeOf(options) },
  );
}

async function readModel(folder: string, options: TrainOptions): Promise<CausalLM> {
  const { task } = options;
  const model = await CausalLM.fromPretrained(folder, placeOf(options));
  const [has, needs] = [model.config.vocabSize, task.tokenizer.vocabSize];
  if (has >= needs) return model;
  model.dispose();
  const problem = `has too small a vocabulary for the tokenizer; got ${has} words, expected at least ${needs}`;
  throw argumentError('ERR_VARLEN_INCOMPATIBLE', 'train', 'model', problem, { path: folder });
}

async function makeModel(options: TrainOptions): Promise<CausalLM> {
  const { weights, model: folder } = options;
  const model = folder === undefined ? newModel(options) : await readModel(folder, options);
  try {
    if (weights !== undefined) {
      takeWeights(new Map(model.parameters()), (await readSafetensors(weights)).tensors);
    }
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

const parametersOf = (model: CausalLM) => Array.from(model.parameters(), ([, tensor]) => tensor);

/** Refuses prompts that cannot be dealt out evenly. */
function checkShares({ recipe, group }: TrainOptions): void {
  const size = group?.size ?? 1;
  if (recipe.rl.prompts % size === 0) return;
  const problem = `must be a multiple of the ranks; got ${recipe.rl.prompts} for ${size} ranks`;
  throw argumentError('ERR_VARLEN_RANGE', 'train', 'rl.prompts', problem);
}

function makeFolder(path: string): void {
  try {
    mkdirSync(path, { recursive: true });
  } catch (cause) {
    const message = `train: ${path} cannot be made: ${(cause as Error).message}`;
    throw varlenError('ERR_VARLEN_IO', message, { op: 'train', argument: 'out', path }, { cause });
  }
}

/** What is left of the run, phase by phase. */
async function finish(run: Run): Promise<void> {
  const { recipe, task } = run.options;
  if (run.phase === 'sft') {
    if (run.step === 0 && run.records.length === 0) await evaluate(run, 'start');
    if (await run.agree()) return;
    if (task.hasResponses) await trainSft(run);
    if (run.interrupted) return;
    if (recipe.sft.steps > 0) await evaluate(run, 'sft');
    run.enter('rl');
    await run.save();
  }
  if (run.phase === 'rl') {
    if (task.hasAnswers) await trainRl(run);
    if (run.interrupted) return;
    if (recipe.rl.steps > 0) await evaluate(run, 'rl');
    run.enter('done');
  }
}

/**
 * Trains a small model on a task: first on worked solutions, then by its own answers' rewards; held-out
 * problems are measured before, between and after.
 *
 * The folder gets `metrics.jsonl`, one record per step; `checkpoint.safetensors`, the whole state, replaced
 * whole; and at the end `model/`, which `transformers` loads. A run of one seed writes the same records on
 * every run of one device, but for times; one that was killed and resumed too.
 *
 * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE` for a bad recipe, `ERR_VARLEN_IO`,
 *   `ERR_VARLEN_STATE_MISMATCH` and `ERR_VARLEN_CHECKPOINT` for a checkpoint that does not belong to the run,
 *   `ERR_VARLEN_INCOMPATIBLE` for a `model` with too small a vocabulary
 *
 * @example
 * ```ts
 * const { summary } = await train({ task: knightsAndKnaves(), recipe: quickRecipe, out: 'run' });
 * ```
 */
export async function train(options: TrainOptions): Promise<TrainResult> {
  checkRecipe(options.recipe);
  checkShares(options);
  makeFolder(options.out);
  const config = configOf(options);
  const saved = options.resume && existsSync(join(options.out, CHECKPOINT));
  const checkpoint = saved ? await Run.load(options.out, config) : undefined;
  const model = await makeModel(options);
  await using ranks = await Ranks.join(options.group, parametersOf(model));
  using run = new Run(options, model, ranks, config, checkpoint);
  if (!run.done) {
    await finish(run);
    await run.save();
    if (run.done && ranks.rank === 0) await run.model.savePretrained(join(options.out, 'model'));
  }
  return { records: run.records, summary: summarize(run.records), interrupted: !run.done };
}
