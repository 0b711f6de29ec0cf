/** `varlen train`: post-trains a small transformer on problems whose answers can be checked. */

import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { init, launch, type ProcessGroup } from '../dist/index.js';
import type { DeviceLike } from '../tensor/index.js';
import {
  AGGREGATIONS,
  type AggregationName,
  demoRecipe,
  KL_KINDS,
  quickRecipe,
  type TrainRecipe,
} from '../trainer/recipe.js';
import type { TrainRecord } from '../trainer/records.js';
import { CHECKPOINT } from '../trainer/run.js';
import { summarize } from '../trainer/summary.js';
import { countdown } from '../trainer/tasks/countdown.js';
import { jsonlTask } from '../trainer/tasks/jsonl.js';
import { knightsAndKnaves } from '../trainer/tasks/knights-and-knaves.js';
import type { Task } from '../trainer/tasks/task.js';
import { type TrainResult, train } from '../trainer/train.js';
import { EXIT, readFlags, say, table, type Usage, UsageError } from './command.js';
import { integerFlag, numberFlag, wordFlag } from './flag-values.js';
import { writeTextFile } from './pack.js';
import { Progress } from './train-progress.js';
import { type ReportedRun, trainPage } from './train-report.js';
import { accuracyRows, figureRows } from './train-table.js';

export const usage: Usage = {
  synopsis: 'varlen train [--task knights-and-knaves|countdown|FILE.jsonl] [flags]',
  summary:
    'Fine-tunes a small model on worked solutions, then trains it by reinforcement learning on what a verifier\nsays of its answers. Writes metrics.jsonl, checkpoint.safetensors, report.html and model/ to --out.\nCtrl-C finishes the step, saves and ends with 130; --resume goes on.',
  flags: [
    [
      '--task NAME',
      'knights-and-knaves (default), countdown, or a file of { "prompt", "response" | "answer" }',
    ],
    [
      '--model DIR',
      'a Hugging Face checkpoint to begin with, such as the model/ of another run; default: random weights',
    ],
    ['--out DIR', 'default varlen-run'],
    ['--resume', "go on from --out's checkpoint"],
    ['--compare A,B', `RL once per aggregation, from the same SFT: ${AGGREGATIONS.join(', ')}`],
    ['--aggregation NAME', 'default delta-l'],
    ['--device cpu|cuda|cuda:N', 'default: CUDA when it can be used'],
    ['--nproc N', 'local ranks that share every step; default 1. torchrun, Slurm and mpirun work too'],
    ['--quick', 'a small model and few steps, for a first look'],
    ['--seed N', 'default 0'],
    ['--sft-steps N --rl-steps N', 'lengths of the phases'],
    ['--sft-lr X --rl-lr X', 'learning rates'],
    ['--prompts N --responses N', 'per policy update'],
    ['--max-new-tokens N', 'longest response'],
    ['--alpha X', 'of delta-l, 0 to 1; default 0.75'],
    [
      '--kl-coef X --kl-kind K',
      `penalty on the KL to the policy after SFT; default 0, k3; ${KL_KINDS.join(', ')}`,
    ],
    ['--reweight X', 'Advantage Reweighting, 0 to 1; published 0.3, default 0: off'],
    [
      '--lopti X',
      'two steps per update, tokens less likely than X first (--lopti=-X: last); published 0.5, default 0: off',
    ],
    [
      '--partial-rollouts',
      'an update takes the first complete rollouts, the others go on under the next policy',
    ],
    ['--max-staleness N', 'of partial rollouts, in updates; default 2'],
    ['--people N,N --depth N', 'of knights-and-knaves; default 2,3 and 1'],
    ['--english', 'knights-and-knaves as English sentences, byte by byte'],
    ['--skip-bad-lines', 'of FILE.jsonl: count them instead of ending'],
    ['--eval-problems N --eval-samples N', 'held-out problems, and samples of each'],
    ['--checkpoint-every N', 'steps'],
    ['--json', 'one JSON record per line on stdout, the summary last'],
  ],
};

/** A step may take so long; then comes the checkpoint. */
export const graceMs = 600_000;

type Values = Readonly<Record<string, string | boolean | undefined>>;

const text = { type: 'string' } as const;
const flag = { type: 'boolean' } as const;
const FLAGS = {
  task: text,
  model: text,
  out: text,
  resume: flag,
  compare: text,
  aggregation: text,
  device: text,
  nproc: text,
  quick: flag,
  seed: text,
  'sft-steps': text,
  'rl-steps': text,
  'sft-lr': text,
  'rl-lr': text,
  prompts: text,
  responses: text,
  'max-new-tokens': text,
  alpha: text,
  'kl-coef': text,
  'kl-kind': text,
  reweight: text,
  lopti: text,
  'partial-rollouts': flag,
  'max-staleness': text,
  people: text,
  depth: text,
  english: flag,
  'skip-bad-lines': flag,
  'eval-problems': text,
  'eval-samples': text,
  'checkpoint-every': text,
  json: flag,
} as const;

function integer(values: Values, name: string, least: number, byDefault: number): number {
  const value = values[name];
  return typeof value === 'string' ? integerFlag(usage, name, value, least) : byDefault;
}

function number(values: Values, name: string, byDefault: number, least = 0): number {
  const value = values[name];
  return typeof value === 'string' ? numberFlag(usage, name, value, least) : byDefault;
}

/** The recipe that the flags ask for. */
function recipeOf(values: Values): TrainRecipe {
  const base = values.quick ? quickRecipe : demoRecipe;
  const { sft, rl, evaluation } = base;
  const aggregation = values.aggregation ?? rl.aggregation;
  return {
    ...base,
    seed: integer(values, 'seed', 0, base.seed),
    sft: {
      ...sft,
      steps: integer(values, 'sft-steps', 0, sft.steps),
      learningRate: number(values, 'sft-lr', sft.learningRate),
    },
    rl: {
      ...rl,
      steps: integer(values, 'rl-steps', 0, rl.steps),
      learningRate: number(values, 'rl-lr', rl.learningRate),
      prompts: integer(values, 'prompts', 1, rl.prompts),
      responses: integer(values, 'responses', 2, rl.responses),
      maxNewTokens: integer(values, 'max-new-tokens', 1, rl.maxNewTokens),
      alpha: number(values, 'alpha', rl.alpha),
      klCoef: number(values, 'kl-coef', rl.klCoef),
      klKind: wordFlag(usage, 'kl-kind', String(values['kl-kind'] ?? rl.klKind), KL_KINDS),
      reweightAlpha: number(values, 'reweight', rl.reweightAlpha),
      loptiEta: number(values, 'lopti', rl.loptiEta, -1),
      partialRollouts: values['partial-rollouts'] === true,
      maxStaleness: integer(values, 'max-staleness', 0, rl.maxStaleness),
      aggregation: wordFlag(usage, 'aggregation', String(aggregation), AGGREGATIONS),
    },
    evaluation: {
      problems: integer(values, 'eval-problems', 1, evaluation.problems),
      samples: integer(values, 'eval-samples', 1, evaluation.samples),
    },
    checkpointEvery: integer(values, 'checkpoint-every', 1, base.checkpointEvery),
  };
}

const PUZZLE_FLAGS = ['people', 'depth', 'english'];

async function taskOf(values: Values, seed: number): Promise<Task> {
  const name = String(values.task ?? 'knights-and-knaves');
  const refuseOthers = (flags: readonly string[], task: string) => {
    const stray = flags.find((other) => values[other] !== undefined);
    if (stray !== undefined) throw new UsageError(`--${stray} belongs to --task ${task}`, usage);
  };
  if (name !== 'knights-and-knaves') refuseOthers(PUZZLE_FLAGS, 'knights-and-knaves');
  if (!name.endsWith('.jsonl')) refuseOthers(['skip-bad-lines'], 'FILE.jsonl');
  if (name === 'countdown') return countdown({ seed }) as Task;
  if (name.endsWith('.jsonl')) {
    return (await jsonlTask(name, { seed, skipBadLines: values['skip-bad-lines'] === true })) as Task;
  }
  if (name !== 'knights-and-knaves') {
    const got = `--task must be knights-and-knaves, countdown or a file that ends in .jsonl; got '${name}'`;
    throw new UsageError(got, usage);
  }
  const [least, most = least] = String(values.people ?? '2,3')
    .split(',')
    .map((part) => integerFlag(usage, 'people', part, 2));
  const options = { seed, people: [least, most] as const, depth: integer(values, 'depth', 1, 1) };
  return knightsAndKnaves({ ...options, text: values.english ? 'english' : 'symbols' }) as Task;
}

/** The rules of `--compare`, or undefined without it. */
function comparedRules(values: Values): AggregationName[] | undefined {
  if (typeof values.compare !== 'string') return undefined;
  const names = values.compare.split(',').map((name) => wordFlag(usage, 'compare', name, AGGREGATIONS));
  if (new Set(names).size !== names.length) throw new UsageError('--compare names a rule twice', usage);
  if (values.aggregation !== undefined) {
    throw new UsageError('--aggregation and --compare exclude each other', usage);
  }
  return names;
}

/** What all runs of one call share. */
interface Call {
  readonly task: Task;
  readonly device: DeviceLike;
  readonly resume: boolean;
  readonly json: boolean;
  readonly signal: AbortSignal | undefined;
  readonly group: ProcessGroup | undefined;
  /** Folder to begin with. */
  readonly model: string | undefined;
}

async function show(call: Call, recipe: TrainRecipe, out: string, weights?: string): Promise<TrainResult> {
  const { task, device, resume, json, signal, group, model } = call;
  const progress = new Progress(process.stderr, { sft: recipe.sft.steps, rl: recipe.rl.steps });
  const onRecord = (record: TrainRecord): void => {
    if (json) process.stdout.write(`${JSON.stringify(record)}\n`);
    else progress.show(record);
  };
  try {
    return await train({
      task,
      recipe,
      out,
      device,
      resume,
      onRecord,
      ...(signal === undefined ? {} : { signal }),
      ...(group === undefined ? {} : { group }),
      ...(weights === undefined ? {} : { weights }),
      ...(model === undefined ? {} : { model }),
    });
  } finally {
    progress.end();
  }
}

/** SFT once, then RL once per rule. */
async function compare(
  call: Call,
  recipe: TrainRecipe,
  out: string,
  rules: readonly AggregationName[],
): Promise<{ runs: ReportedRun[]; interrupted: boolean }> {
  const base = join(out, 'sft');
  const first = await show(call, { ...recipe, rl: { ...recipe.rl, steps: 0 } }, base);
  const runs: ReportedRun[] = [];
  let { interrupted } = first;
  for (const aggregation of rules) {
    if (interrupted) break;
    if (!call.json && !call.group?.rank) say(`\n${aggregation}`);
    const own = { ...recipe, sft: { ...recipe.sft, steps: 0 }, rl: { ...recipe.rl, aggregation } };
    const result = await show(call, own, join(out, aggregation), join(base, CHECKPOINT));
    interrupted = result.interrupted;
    // The curves of SFT belong to all of them; a run's own start is where SFT ended.
    const records = result.records.filter((record) => record.phase !== 'eval' || record.after !== 'start');
    runs.push({ name: aggregation, records: [...first.records, ...records] });
  }
  return { runs, interrupted };
}

/** A rank may wait so long for one whose answers are longer. */
const PATIENCE_MS = 1_800_000;

/** Starts this very command once per rank; the exit code of the first that fails, or 0. */
async function launchRanks(nproc: number): Promise<number> {
  const threads = Math.max(1, Math.floor(availableParallelism() / nproc));
  const env = { VARLEN_NUM_THREADS: process.env.VARLEN_NUM_THREADS ?? String(threads) };
  const { exitCode, failure } = await launch({ nproc, env, graceMs });
  if (failure !== undefined && exitCode !== EXIT.interrupted) {
    const how = failure.signal === null ? `exit code ${failure.code}` : `signal ${failure.signal}`;
    say(`rank ${failure.rank} failed first, with ${how}`);
  }
  return exitCode;
}

/**
 * Runs the command; under a launcher (torchrun, Slurm, mpirun, or its own `--nproc`) as one rank of many.
 *
 * @throws as `train` and, on several ranks, as `init`
 */
export async function main(argv: readonly string[], signal?: AbortSignal): Promise<number> {
  const values: Values = readFlags(usage, argv, FLAGS).values;
  const recipe = recipeOf(values);
  const rules = comparedRules(values);
  const nproc = integer(values, 'nproc', 1, 1);
  const started = process.env.WORLD_SIZE !== undefined;
  if (nproc > 1 && !started) return launchRanks(nproc);
  await using group = started ? await init({ collectiveTimeoutMs: PATIENCE_MS }) : undefined;
  const out = String(values.out ?? 'varlen-run');
  const call: Call = {
    task: await taskOf(values, recipe.seed),
    device: (values.device ?? 'auto') as DeviceLike,
    resume: values.resume === true,
    json: values.json === true,
    signal,
    group,
    model: values.model as string | undefined,
  };
  let runs: ReportedRun[];
  let interrupted: boolean;
  let summary: unknown;
  if (rules === undefined) {
    const result = await show(call, recipe, out);
    ({ interrupted, summary } = result);
    runs = [{ name: recipe.rl.aggregation, records: result.records }];
  } else {
    ({ runs, interrupted } = await compare(call, recipe, out, rules));
  }
  const speaks = group === undefined || group.rank === 0;
  if (interrupted) {
    if (speaks && !call.json) say(`saved; --resume goes on`);
    return EXIT.interrupted;
  }
  if (!speaks) return EXIT.ok;
  const report = join(out, 'report.html');
  writeTextFile('train', report, trainPage(`varlen train: ${call.task.name}`, runs));
  if (call.json) {
    const last = summary ?? Object.fromEntries(runs.map(({ name, records }) => [name, summarize(records)]));
    process.stdout.write(`${JSON.stringify(last)}\n`);
    return EXIT.ok;
  }
  for (const { name, records } of runs) {
    if (runs.length > 1) say(`\n${name}`);
    say(`\n${table(accuracyRows(records))}\n\n${table(figureRows(records))}`);
  }
  say(`\nreport: ${report}`);
  return EXIT.ok;
}
