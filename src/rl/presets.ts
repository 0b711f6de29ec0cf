/** Known recipes as points in the grid of independent choices. */

import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import type { ClipRule, PolicyLossConfig, RatioLevel } from '../ops/policy-loss-config.js';
import type { AdvantageOptions } from './advantages/options.js';
import { checkNumber, checkWord } from './check-arrays.js';
import type { Aggregation } from './plan/aggregation.js';

/**
 * What a recipe chooses: one value for each of the three calls of a step. Change a field by spreading; another
 * rule must be one of the recipe's level.
 */
export interface Recipe<Level extends RatioLevel = RatioLevel> {
  /** For `planAggregation`. */
  readonly aggregation: Aggregation;
  /** For `policyLoss`. */
  readonly config: PolicyLossConfig<Level>;
  /** For `estimateAdvantages`. */
  readonly advantages: AdvantageOptions;
}

/** A KL penalty of kind `k3` towards the reference policy; none by default. */
export interface PenaltyOptions {
  readonly klCoef?: number;
}

/** The ratio's bounds `[1 - clipLow, 1 + clipHigh]` (`gmpo`: the log ratio's, `[-clipLow, clipHigh]`). */
export interface ClipOptions extends PenaltyOptions {
  readonly clipLow?: number;
  readonly clipHigh?: number;
}

/** A constant in place of a length, usually the longest allowed answer. It must not change between steps. */
export interface NormOptions extends ClipOptions {
  readonly normConstant: number;
}

function penalty(op: string, { klCoef = 0 }: PenaltyOptions): Pick<PolicyLossConfig, 'kl'> {
  checkNumber(op, 'klCoef', klCoef, { min: 0 });
  return klCoef === 0 ? {} : { kl: { kind: 'k3', coef: klCoef } };
}

function bounds(op: string, options: ClipOptions, low: number, high: number): [low: number, high: number] {
  const { clipLow = low, clipHigh = high } = options;
  checkNumber(op, 'clipLow', clipLow, { min: 0 });
  checkNumber(op, 'clipHigh', clipHigh, { min: 0 });
  return [clipLow, clipHigh];
}

function constant(op: string, normConstant: unknown): number {
  if (normConstant === undefined) {
    const problem = 'is needed; got none, expected a number above 0';
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'normConstant', problem);
  }
  checkNumber(op, 'normConstant', normConstant, { above: 0 });
  return normConstant;
}

function config<Level extends RatioLevel>(
  op: string,
  chosen: PolicyLossConfig<Level>,
  options: PenaltyOptions,
): PolicyLossConfig<Level> {
  return { ...chosen, ...penalty(op, options) };
}

/** PPO's clip at a level, with a recipe's own bounds. */
function clipped<Level extends Exclude<RatioLevel, 'none'>>(
  op: string,
  level: Level,
  options: ClipOptions,
  low: number,
  high: number,
): PolicyLossConfig<Level> {
  const [clipLow, clipHigh] = bounds(op, options, low, high);
  const chosen = { ratio: { level }, clip: { kind: 'ppo', clipLow, clipHigh } } as const;
  return config(op, chosen as PolicyLossConfig<Level>, options);
}

const CLIP = ['clipLow', 'clipHigh', 'klCoef'] as const;
const NORM = ['normConstant', ...CLIP] as const;

const GRPO = { estimator: 'grpo' } as const;

/** GRPO (Shao et al. 2024): sample mean, clip 0.2 / 0.2. */
function grpo(options: ClipOptions = {}): Recipe<'token'> {
  const op = 'presets.grpo';
  const read = readOptions(op, options, CLIP);
  const aggregation = { mode: 'seq-mean-token-mean' } as const;
  return { aggregation, config: clipped(op, 'token', read, 0.2, 0.2), advantages: GRPO };
}

/** Dr. GRPO (Liu et al. 2025): no length and no deviation in any denominator, clip 0.2 / 0.2. */
function drGrpo(options: NormOptions): Recipe<'token'> {
  const op = 'presets.drGrpo';
  const read = readOptions(op, options, NORM);
  return {
    aggregation: { mode: 'seq-mean-token-sum-norm', normConstant: constant(op, read.normConstant) },
    config: clipped(op, 'token', read, 0.2, 0.2),
    advantages: { estimator: 'grpo-nostd' },
  };
}

/** DAPO (Yu et al. 2025) as implemented: token mean, clip-higher 0.2 / 0.28. */
function dapo(options: ClipOptions = {}): Recipe<'token'> {
  const op = 'presets.dapo';
  const read = readOptions(op, options, CLIP);
  return {
    aggregation: { mode: 'token-mean' },
    config: clipped(op, 'token', read, 0.2, 0.28),
    advantages: GRPO,
  };
}

/** GSPO (Zheng et al. 2025): the geometric mean ratio of the answer, clip 3e-4 / 4e-4; or GSPO-token. */
function gspo<Level extends 'sequence' | 'sequence-token' = 'sequence'>(
  options: ClipOptions & { readonly level?: Level } = {},
): Recipe<Level> {
  const op = 'presets.gspo';
  const read = readOptions(op, options, ['level', ...CLIP]);
  const level = read.level ?? ('sequence' as Level);
  checkWord(op, 'level', level, ['sequence', 'sequence-token']);
  const aggregation = { mode: 'seq-mean-token-mean' } as const;
  return { aggregation, config: clipped(op, level, read, 3e-4, 4e-4), advantages: GRPO };
}

/** GMPO (Zhao et al. 2025): geometric mean of clipped ratios, log ratio within 0.4. */
function gmpo(options: ClipOptions = {}): Recipe<'sequence'> {
  const op = 'presets.gmpo';
  const read = readOptions(op, options, CLIP);
  const [clipLow, clipHigh] = bounds(op, read, 0.4, 0.4);
  return {
    aggregation: { mode: 'seq-mean-token-mean' },
    config: config<'sequence'>(
      op,
      { ratio: { level: 'sequence' }, clip: { kind: 'gmpo', clipLow, clipHigh } },
      read,
    ),
    advantages: GRPO,
  };
}

/** SAPO (Gao et al. 2025): a soft gate in place of the clip, temperatures 1 / 1.05. */
function sapo(
  options: PenaltyOptions & { readonly tauPositive?: number; readonly tauNegative?: number } = {},
): Recipe<'token'> {
  const op = 'presets.sapo';
  const read = readOptions(op, options, ['tauPositive', 'tauNegative', 'klCoef']);
  const { tauPositive = 1, tauNegative = 1.05 } = read;
  checkNumber(op, 'tauPositive', tauPositive, { above: 0 });
  checkNumber(op, 'tauNegative', tauNegative, { above: 0 });
  return {
    aggregation: { mode: 'seq-mean-token-mean' },
    config: config<'token'>(
      op,
      { ratio: { level: 'token' }, clip: { kind: 'sapo', tauPositive, tauNegative } },
      read,
    ),
    advantages: GRPO,
  };
}

/** CISPO (MiniMax 2025): clipped ratio as a constant weight, absolute bounds 0 / 1.28, token mean. */
function cispo(
  options: PenaltyOptions & { readonly low?: number; readonly high?: number } = {},
): Recipe<'token'> {
  const op = 'presets.cispo';
  const read = readOptions(op, options, ['low', 'high', 'klCoef']);
  const { low = 0, high = 1.28 } = read;
  checkNumber(op, 'low', low, { min: 0 });
  checkNumber(op, 'high', high, { min: low });
  return {
    aggregation: { mode: 'token-mean' },
    config: config<'token'>(op, { ratio: { level: 'token' }, clip: { kind: 'cispo', low, high } }, read),
    advantages: GRPO,
  };
}

/** RLOO (Ahmadian et al. 2024): REINFORCE on whole answers with the others' mean as baseline. */
function rloo(options: PenaltyOptions = {}): Recipe<'none'> {
  const op = 'presets.rloo';
  const read = readOptions(op, options, ['klCoef']);
  return {
    aggregation: { mode: 'seq-mean-token-sum' },
    config: config<'none'>(op, { ratio: { level: 'none' }, clip: { kind: 'none' } }, read),
    advantages: { estimator: 'rloo' },
  };
}

/** REINFORCE++ (Hu et al. 2025): whitened returns, token mean, clip 0.2 / 0.2; `baseline` subtracts the group's mean. */
function reinforcePlusPlus(
  options: ClipOptions & { readonly baseline?: boolean; readonly gamma?: number } = {},
): Recipe<'token'> {
  const op = 'presets.reinforcePlusPlus';
  const read = readOptions(op, options, ['baseline', 'gamma', ...CLIP]);
  const { baseline = false, gamma = 1 } = read;
  checkNumber(op, 'gamma', gamma, { min: 0, max: 1 });
  if (baseline && read.gamma !== undefined) {
    const problem = 'has no use with a baseline per answer; got both, expected one of them';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'gamma', problem);
  }
  return {
    aggregation: { mode: 'token-mean' },
    config: clipped(op, 'token', read, 0.2, 0.2),
    advantages: baseline ? { estimator: 'reinforce-pp-baseline' } : { estimator: 'reinforce-pp', gamma },
  };
}

/** Delta-L Normalization (He et al. 2025): weights `L^-alpha`, alpha 0.75, clip 0.2 / 0.3, as published. */
function deltaL(options: NormOptions & { readonly alpha?: number }): Recipe<'token'> {
  const op = 'presets.deltaL';
  const read = readOptions(op, options, ['alpha', ...NORM]);
  const { alpha = 0.75 } = read;
  checkNumber(op, 'alpha', alpha, { min: 0 });
  return {
    aggregation: { mode: 'delta-l', alpha, normConstant: constant(op, read.normConstant) },
    config: clipped(op, 'token', read, 0.2, 0.3),
    advantages: GRPO,
  };
}

/** LUSPO: GSPO's ratio with a sum over tokens, so that an answer's weight does not shrink with its length. */
function luspo(options: ClipOptions = {}): Recipe<'sequence'> {
  const op = 'presets.luspo';
  const read = readOptions(op, options, CLIP);
  return {
    aggregation: { mode: 'seq-mean-token-sum' },
    config: clipped(op, 'sequence', read, 3e-4, 4e-4),
    advantages: GRPO,
  };
}

/** VESPO: a smooth weight of the answer's whole ratio in place of a clip, token mean. */
function vespo(
  options: PenaltyOptions & Omit<Extract<ClipRule, { kind: 'vespo' }>, 'kind'> = {},
): Recipe<'token'> {
  const op = 'presets.vespo';
  const { klCoef, ...shape } = readOptions(op, options, ['positive', 'negative', 'klCoef']);
  return {
    aggregation: { mode: 'token-mean' },
    config: config<'token'>(
      op,
      { ratio: { level: 'token' }, clip: { kind: 'vespo', ...shape } },
      klCoef === undefined ? {} : { klCoef },
    ),
    advantages: GRPO,
  };
}

/** DPPO: trust region in probability, by total variation (0.15) or binary KL (0.05), ratio at most 20. */
function dppo(
  options: PenaltyOptions & {
    readonly divergence?: 'tv' | 'kl';
    readonly deltaLow?: number;
    readonly deltaHigh?: number;
    readonly cap?: number;
  } = {},
): Recipe<'token'> {
  const op = 'presets.dppo';
  const read = readOptions(op, options, ['divergence', 'deltaLow', 'deltaHigh', 'cap', 'klCoef']);
  const { divergence = 'tv', cap = 20 } = read;
  checkWord(op, 'divergence', divergence, ['tv', 'kl']);
  const delta = divergence === 'tv' ? 0.15 : 0.05;
  const { deltaLow = delta, deltaHigh = delta } = read;
  checkNumber(op, 'deltaLow', deltaLow, { min: 0 });
  checkNumber(op, 'deltaHigh', deltaHigh, { min: 0 });
  checkNumber(op, 'cap', cap, { above: 0 });
  return {
    aggregation: { mode: 'token-mean' },
    config: config<'token'>(
      op,
      { ratio: { level: 'token' }, clip: { kind: `dppo-${divergence}`, deltaLow, deltaHigh, cap } },
      read,
    ),
    advantages: GRPO,
  };
}

/**
 * Known recipes. Each function returns plain values for the plan, the loss and the advantages; defaults are
 * the published ones. A recipe is a starting point, not a type: any field can be replaced.
 *
 * Throws `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE` and, for a missing `normConstant`,
 * `ERR_VARLEN_MISSING_INPUT`.
 *
 * @example
 * const { aggregation, config, advantages } = presets.dapo({ clipHigh: 0.3 });
 * const plan = planAggregation({ lengths }, { aggregation });
 */
export const presets: {
  readonly grpo: (options?: ClipOptions) => Recipe<'token'>;
  readonly drGrpo: (options: NormOptions) => Recipe<'token'>;
  readonly dapo: (options?: ClipOptions) => Recipe<'token'>;
  readonly gspo: <Level extends 'sequence' | 'sequence-token' = 'sequence'>(
    options?: ClipOptions & { readonly level?: Level },
  ) => Recipe<Level>;
  readonly gmpo: (options?: ClipOptions) => Recipe<'sequence'>;
  readonly sapo: (
    options?: PenaltyOptions & { readonly tauPositive?: number; readonly tauNegative?: number },
  ) => Recipe<'token'>;
  readonly cispo: (
    options?: PenaltyOptions & { readonly low?: number; readonly high?: number },
  ) => Recipe<'token'>;
  readonly rloo: (options?: PenaltyOptions) => Recipe<'none'>;
  readonly reinforcePlusPlus: (
    options?: ClipOptions & { readonly baseline?: boolean; readonly gamma?: number },
  ) => Recipe<'token'>;
  readonly deltaL: (options: NormOptions & { readonly alpha?: number }) => Recipe<'token'>;
  readonly luspo: (options?: ClipOptions) => Recipe<'sequence'>;
  readonly vespo: (
    options?: PenaltyOptions & Omit<Extract<ClipRule, { kind: 'vespo' }>, 'kind'>,
  ) => Recipe<'token'>;
  readonly dppo: (
    options?: PenaltyOptions & {
      readonly divergence?: 'tv' | 'kl';
      readonly deltaLow?: number;
      readonly deltaHigh?: number;
      readonly cap?: number;
    },
  ) => Recipe<'token'>;
} = Object.freeze({
  grpo,
  drGrpo,
  dapo,
  gspo,
  gmpo,
  sapo,
  cispo,
  rloo,
  reinforcePlusPlus,
  deltaL,
  luspo,
  vespo,
  dppo,
});
