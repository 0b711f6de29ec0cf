/** What a run does, in numbers: the model, the two phases, and how it is measured. */
import { checkBoolean, checkInteger } from '../check.js';
import { argumentError } from '../errors.js';
import type { KlKind } from '../ops/index.js';

/** Shape of a model that starts from random weights; Llama architecture, tied embeddings. */
export interface ModelRecipe {
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly intermediateSize: number;
  readonly ropeTheta: number;
  /** Standard deviation of the random weights. */
  readonly initializerRange: number;
  /** Longest sequence, prompt and response together. */
  readonly maxTokens: number;
}

/** Supervised fine-tuning. */
export interface SftRecipe {
  readonly steps: number;
  /** Budget of one step's batch. */
  readonly packedTokens: number;
  /** Samples that are grouped together. */
  readonly window: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly weightDecay: number;
}

/** How the tokens of an update are weighed against each other; see `planAggregation`. */
export type AggregationName =
  | 'delta-l'
  | 'token-mean'
  | 'seq-mean-token-sum'
  | 'seq-mean-token-mean'
  | 'seq-mean-token-sum-norm'
  | 'group-mean-token-mean';
export const AGGREGATIONS: readonly AggregationName[] = [
  'delta-l',
  'token-mean',
  'seq-mean-token-sum',
  'seq-mean-token-mean',
  'seq-mean-token-sum-norm',
  'group-mean-token-mean',
];

export const KL_KINDS: readonly KlKind[] = ['k1', 'abs', 'k2', 'k3', 'k1+', 'abs+', 'k3+'];

/** Reinforcement learning with verifiable rewards. */
export interface RlRecipe {
  readonly steps: number;
  /** Prompts per update, and responses to each. */
  readonly prompts: number;
  readonly responses: number;
  readonly maxNewTokens: number;
  readonly temperature: number;
  /** Budget of one micro-batch. */
  readonly packedTokens: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly weightDecay: number;
  readonly aggregation: AggregationName;
  /** Of `delta-l`: 0 weighs all tokens alike, 1 all responses. */
  readonly alpha: number;
  readonly clipLow: number;
  readonly clipHigh: number;
  /** Of the penalty on the KL to the policy that RL began with; 0: none is kept. */
  readonly klCoef: number;
  readonly klKind: KlKind;
  /** Advantage Reweighting: share of a token's weight that follows its probability. Published: 0.3; 0: off. */
  readonly reweightAlpha: number;
  /** Lopti: two steps per update, tokens less likely than this first (negative: last). Published: 0.5; 0: off. */
  readonly loptiEta: number;
  /**
   * An update takes the first rollouts that are complete; the others keep their tokens and go on under the
   * next policy (SortedRL). Otherwise it waits for all, and each is of one policy.
   */
  readonly partialRollouts: boolean;
  /** Most updates that the oldest token of a partial rollout may lag behind. */
  readonly maxStaleness: number;
}

/** Measurement on held-out problems. */
export interface EvalRecipe {
  readonly problems: number;
  /** Per problem, at temperature 1. */
  readonly samples: number;
}

/** A whole run. Everything in it decides the result; a checkpoint goes on only under the same one. */
export interface TrainRecipe {
  readonly seed: number;
  readonly model: ModelRecipe;
  readonly sft: SftRecipe;
  readonly rl: RlRecipe;
  readonly evaluation: EvalRecipe;
  readonly betas: readonly [number, number];
  readonly gradientClip: number;
  /** Sequences that are generated side by side. */
  readonly generatorSlots: number;
  /** Steps between two checkpoints. */
  readonly checkpointEvery: number;
}

/** `npm run demo`: five minutes on two cores. */
export const demoRecipe: TrainRecipe = {
  seed: 0,
  model: {
    hiddenSize: 96,
    numLayers: 3,
    numHeads: 4,
    numKvHeads: 4,
    intermediateSize: 256,
    ropeTheta: 10_000,
    // Near 1 / sqrt(hiddenSize), that of wide models is too small for one so narrow.
    initializerRange: 0.05,
    maxTokens: 192,
  },
  sft: {
    steps: 260,
    packedTokens: 5120,
    window: 512,
    learningRate: 1e-3,
    warmupSteps: 20,
    weightDecay: 0.01,
  },
  rl: {
    steps: 80,
    prompts: 64,
    responses: 8,
    maxNewTokens: 160,
    temperature: 1,
    packedTokens: 8192,
    learningRate: 2e-4,
    warmupSteps: 0,
    weightDecay: 0,
    aggregation: 'delta-l',
    alpha: 0.75,
    clipLow: 0.2,
    clipHigh: 0.28,
    klCoef: 0,
    klKind: 'k3',
    reweightAlpha: 0,
    loptiEta: 0,
    partialRollouts: false,
    maxStaleness: 2,
  },
  evaluation: { problems: 200, samples: 8 },
  betas: [0.9, 0.95],
  gradientClip: 1,
  generatorSlots: 512,
  checkpointEvery: 50,
};

/** The same path in a fraction of the time; learns a little, claims nothing. */
export const quickRecipe: TrainRecipe = {
  ...demoRecipe,
  model: { ...demoRecipe.model, hiddenSize: 32, numLayers: 2, intermediateSize: 64 },
  sft: { ...demoRecipe.sft, steps: 30, packedTokens: 1024, window: 64 },
  rl: { ...demoRecipe.rl, steps: 3, prompts: 8, responses: 4, maxNewTokens: 48, packedTokens: 2048 },
  evaluation: { problems: 16, samples: 2 },
  generatorSlots: 64,
  checkpointEvery: 10,
};

const OP = 'train';

function checkNumber(argument: string, value: unknown, low: number, high: number): void {
  if (typeof value === 'number' && value >= low && value <= high) return;
  const problem = `is out of range; got ${String(value)}, expected a number in ${low}..${high}`;
  throw argumentError('ERR_VARLEN_RANGE', OP, argument, problem);
}

function checkWord(argument: string, value: unknown, words: readonly string[]): void {
  if (words.includes(value as string)) return;
  const problem = `is unknown; got '${String(value)}', expected one of ${words.join(', ')}`;
  throw argumentError('ERR_VARLEN_OPTION', OP, argument, problem);
}

/** Refuses numbers that no run can have. @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE` */
export function checkRecipe(recipe: TrainRecipe): void {
  const { model, sft, rl, evaluation } = recipe;
  const counts: [string, unknown, number][] = [
    ['seed', recipe.seed, 0],
    ['model.hiddenSize', model.hiddenSize, 2],
    ['model.numLayers', model.numLayers, 1],
    ['model.numHeads', model.numHeads, 1],
    ['model.numKvHeads', model.numKvHeads, 1],
    ['model.intermediateSize', model.intermediateSize, 1],
    ['model.maxTokens', model.maxTokens, 2],
    ['sft.steps', sft.steps, 0],
    ['sft.packedTokens', sft.packedTokens, 1],
    ['sft.window', sft.window, 1],
    ['sft.warmupSteps', sft.warmupSteps, 0],
    ['rl.steps', rl.steps, 0],
    ['rl.prompts', rl.prompts, 1],
    ['rl.responses', rl.responses, 2],
    ['rl.maxNewTokens', rl.maxNewTokens, 1],
    ['rl.packedTokens', rl.packedTokens, 1],
    ['rl.warmupSteps', rl.warmupSteps, 0],
    ['rl.maxStaleness', rl.maxStaleness, 0],
    ['evaluation.problems', evaluation.problems, 1],
    ['evaluation.samples', evaluation.samples, 1],
    ['generatorSlots', recipe.generatorSlots, 1],
    ['checkpointEvery', recipe.checkpointEvery, 1],
  ];
  for (const [argument, value, least] of counts) checkInteger(OP, argument, value, least);
  for (const [name, phase] of Object.entries({ sft, rl })) {
    checkNumber(`${name}.learningRate`, phase.learningRate, 0, 1);
    checkNumber(`${name}.weightDecay`, phase.weightDecay, 0, 1);
  }
  checkNumber('rl.temperature', rl.temperature, 1e-3, 100);
  checkNumber('rl.alpha', rl.alpha, 0, 1);
  checkNumber('rl.clipLow', rl.clipLow, 0, 1);
  checkNumber('rl.clipHigh', rl.clipHigh, 0, 10);
  checkNumber('rl.klCoef', rl.klCoef, 0, 100);
  checkNumber('rl.reweightAlpha', rl.reweightAlpha, 0, 1);
  checkNumber('rl.loptiEta', rl.loptiEta, -1, 1);
  checkBoolean(OP, 'rl.partialRollouts', rl.partialRollouts);
  checkNumber('gradientClip', recipe.gradientClip, 0, Number.MAX_VALUE);
  checkWord('rl.aggregation', rl.aggregation, AGGREGATIONS);
  checkWord('rl.klKind', rl.klKind, KL_KINDS);
}
