/** What an advantage estimator is given, and the checks that must pass before any number is computed. */
import { checkBoolean, describe, wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkFloats, checkNumber, checkWord, rangeError } from '../check-arrays.js';
import { countActive } from '../plan/lengths.js';

/** What every estimator takes. */
export interface ScoringOptions {
  /**
   * An answer whose reward is NaN was not scored: its advantage is 0, and it counts in no group. Default
   * `'mask'`: its tokens leave the loss and every denominator too; `'keep'`: they stay.
   */
  readonly unscored?: 'mask' | 'keep';
}

/** What estimators with a baseline per group take besides. */
export interface BaselineOptions extends ScoringOptions {
  /** Advantage of the only scored answer of a group. Default `'zero'`; `'raw'` is its reward. */
  readonly singleton?: 'zero' | 'raw' | 'error';
  /** Answers of a group without spread leave the loss, its KL term and every denominator. Default false. */
  readonly maskZeroStdGroups?: boolean;
}

/**
 * The estimators, with `R` the reward of an answer, `n` scored answers in its group, their mean `mu`, sample
 * deviation `sigma` (divisor n - 1), and `G_t` the return from token t on.
 *
 * | estimator | advantage | of |
 * |---|---|---|
 * | `grpo` | `(R - mu) / (sigma + eps)` | sequence |
 * | `grpo-nostd` | `R - mu` (Dr. GRPO) | sequence |
 * | `grpo-batchstd` | `(R - mu) / (sigma of all + eps)` | sequence |
 * | `rloo` | `(R - mu) n / (n - 1)` | sequence |
 * | `maxrl` | `(R - mu) / (mu + eps)`, mu above 0 | sequence |
 * | `opo` | `R - sum L R / sum L` | sequence |
 * | `passk` | best: `(R - second best) / (sigma + eps)`, others 0 | sequence |
 * | `gdpo` | `sum_k w_k grpo(R^k)`, whitened | sequence |
 * | `reinforce` | `R` | sequence |
 * | `reinforce-pp-baseline` | `R - mu`, whitened | sequence |
 * | `reinforce-pp` | `G_t`, whitened | token |
 * | `remax` | `G_t - R of the greedy answer` | token |
 * | `gae` | `delta_t + gamma lambda A_next`, whitened unless told not to | token |
 * | `otb` | `G_t - sum G W / sum W` over the group at t | token |
 *
 * Defaults: `eps` 1e-6, `gamma` 1, `lambda` 1, `whiten` true, `weights` all 1.
 */
export type AdvantageOptions =
  | (BaselineOptions & {
      readonly estimator: 'grpo' | 'grpo-batchstd' | 'maxrl' | 'passk';
      readonly eps?: number;
    })
  | (BaselineOptions & {
      readonly estimator: 'grpo-nostd' | 'rloo' | 'opo' | 'reinforce-pp-baseline' | 'otb';
    })
  | (BaselineOptions & {
      readonly estimator: 'gdpo';
      readonly eps?: number;
      /** `[numRewards]`, `w_k`. */
      readonly weights?: readonly number[];
    })
  | (ScoringOptions & { readonly estimator: 'reinforce' | 'remax' })
  | (ScoringOptions & { readonly estimator: 'reinforce-pp'; readonly gamma?: number })
  | (ScoringOptions & {
      readonly estimator: 'gae';
      readonly gamma?: number;
      readonly lambda?: number;
      readonly whiten?: boolean;
    });

/** The name of an estimator. */
export type AdvantageEstimator = AdvantageOptions['estimator'];

/** Rewards and what else an estimator reads. Arrays are float32 or float64. */
export interface AdvantageInput {
  /** `[numSeqs]`, reward of each answer; NaN = not scored. For token estimators: given at its last active token. */
  readonly rewards?: Float32Array | Float64Array;
  /** `[totalTokens]`, reward of each token, instead of `rewards`; token estimators only. */
  readonly tokenRewards?: Float32Array | Float64Array;
  /** `[numRewards][numSeqs]`, instead of `rewards`; `gdpo` only. */
  readonly rewardComponents?: readonly (Float32Array | Float64Array)[];
  /** `[numSeqs]`, equal value = same prompt. Order free; members need not be neighbours. */
  readonly groupIds?: Int32Array;
  /** `[numSeqs + 1]`. Needed by token estimators, `opo` and whatever is whitened, unless `lengths` serves. */
  readonly cuSeqlens?: Int32Array;
  /** `[totalTokens]`, 1 = active. Default: all. */
  readonly lossMask?: Uint8Array;
  /** `[numSeqs]`, active tokens, instead of `cuSeqlens`, for sequence estimators. 0 = inactive, in no group. */
  readonly lengths?: Int32Array;
  /** `[numSeqs]`, reward of the greedy answer to the same prompt; `remax`. */
  readonly greedyRewards?: Float32Array | Float64Array;
  /** `[totalTokens]`, the critic's value of each token; `gae`. */
  readonly values?: Float32Array | Float64Array;
  /** `[totalTokens]`, log-probability of each token; `otb`. */
  readonly logprobs?: Float32Array | Float64Array;
  /** `[totalTokens]`, sum of squared probabilities over the vocabulary; `otb`. */
  readonly sumSquaredProbs?: Float32Array | Float64Array;
}

const COMMON = ['estimator', 'unscored'];
const GROUP = [...COMMON, 'singleton', 'maskZeroStdGroups'];
const WITH_EPS = [...GROUP, 'eps'];

interface Needs {
  readonly options: readonly string[];
  /** Advantages are per token, from `rewards` or `tokenRewards`. */
  readonly token?: boolean;
  readonly groups?: boolean;
  /** Lengths are read, not only used to tell inactive sequences. */
  readonly lengths?: boolean;
  readonly arrays?: readonly ('greedyRewards' | 'values' | 'logprobs' | 'sumSquaredProbs')[];
}

const NEEDS: Readonly<Record<AdvantageEstimator, Needs>> = {
  grpo: { options: WITH_EPS, groups: true },
  'grpo-nostd': { options: GROUP, groups: true },
  'grpo-batchstd': { options: WITH_EPS, groups: true },
  rloo: { options: GROUP, groups: true },
  maxrl: { options: WITH_EPS, groups: true },
  opo: { options: GROUP, groups: true, lengths: true },
  passk: { options: WITH_EPS, groups: true },
  gdpo: { options: [...WITH_EPS, 'weights'], groups: true, lengths: true },
  reinforce: { options: COMMON },
  'reinforce-pp-baseline': { options: GROUP, groups: true, lengths: true },
  'reinforce-pp': { options: [...COMMON, 'gamma'], token: true },
  remax: { options: COMMON, token: true, arrays: ['greedyRewards'] },
  gae: { options: [...COMMON, 'gamma', 'lambda', 'whiten'], token: true, arrays: ['values'] },
  otb: { options: GROUP, token: true, groups: true, arrays: ['logprobs', 'sumSquaredProbs'] },
};

/** The names of all estimators. */
const ADVANTAGE_ESTIMATORS: readonly AdvantageEstimator[] = Object.keys(NEEDS) as AdvantageEstimator[];

const INPUTS = [
  'rewards',
  'tokenRewards',
  'rewardComponents',
  'groupIds',
  'cuSeqlens',
  'lossMask',
  'lengths',
  'greedyRewards',
  'values',
  'logprobs',
  'sumSquaredProbs',
];

/** Input and options after all checks, defaults filled in. */
export interface AdvantageRequest {
  readonly op: string;
  readonly estimator: AdvantageEstimator;
  readonly numSeqs: number;
  /** `[numSeqs]`; 1 each when no lengths were given. */
  readonly lengths: Int32Array;
  /** `[numRewards][numSeqs]`: one array, or the components of `gdpo`. Sums of `tokenRewards` where those came. */
  readonly rewards: readonly ArrayLike<number>[];
  readonly input: AdvantageInput;
  /** `[numSeqs]`, 1 where the answer is active and scored: what statistics count. */
  readonly counts: Uint8Array;
  readonly unscored: 'mask' | 'keep';
  readonly singleton: 'zero' | 'raw' | 'error';
  readonly maskZeroStdGroups: boolean;
  readonly eps: number;
  readonly gamma: number;
  readonly lambda: number;
  readonly whiten: boolean;
  readonly weights: readonly number[];
}

function missing(op: string, argument: string, estimator: string, expected: string): Error {
  const problem = `is needed by '${estimator}'; got none, expected ${expected}`;
  return argumentError('ERR_VARLEN_MISSING_INPUT', op, argument, problem);
}

/** Checks everything and fills in the defaults. */
export function readRequest(op: string, input: AdvantageInput, options: AdvantageOptions): AdvantageRequest {
  if (typeof input !== 'object' || input === null) throw wrongType(op, 'input', input, 'an object');
  if (typeof options !== 'object' || options === null) throw wrongType(op, 'options', options, 'an object');
  for (const key of Object.keys(input)) checkWord(op, key, key, INPUTS);
  const { estimator } = options;
  checkWord(op, 'estimator', estimator, ADVANTAGE_ESTIMATORS);
  const needs = NEEDS[estimator];
  checkOptionKeys(op, estimator, options, needs.options);
  const given = options as unknown as Partial<AdvantageRequest>;
  const { unscored = 'mask', singleton = 'zero', maskZeroStdGroups = false, whiten = true } = given;
  const { eps = 1e-6, gamma = 1, lambda = 1 } = given;
  checkWord(op, 'unscored', unscored, ['mask', 'keep']);
  checkWord(op, 'singleton', singleton, ['zero', 'raw', 'error']);
  checkBoolean(op, 'maskZeroStdGroups', maskZeroStdGroups);
  checkBoolean(op, 'whiten', whiten);
  checkNumber(op, 'eps', eps, { min: 0 });
  checkNumber(op, 'gamma', gamma, { min: 0, max: 1 });
  checkNumber(op, 'lambda', lambda, { min: 0, max: 1 });

  const lengths = readLengths(op, input, estimator, needs);
  const rewards = readRewards(op, input, estimator, needs, lengths?.length);
  const numSeqs = rewards[0].length;
  const weights = given.weights ?? rewards.map(() => 1);
  if (!Array.isArray(weights) || weights.length !== rewards.length) {
    const got = Array.isArray(weights) ? `${weights.length} weights` : describe(weights);
    const problem = `must weigh every reward; got ${got}, expected ${rewards.length}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, 'weights', problem);
  }
  weights.forEach((weight, k) => {
    checkNumber(op, `weights[${k}]`, weight);
  });
  if (needs.groups && input.groupIds === undefined) {
    throw missing(op, 'groupIds', estimator, 'an Int32Array');
  }
  if (input.groupIds !== undefined) checkArray(op, 'groupIds', input.groupIds, 'Int32Array', numSeqs);
  for (const name of needs.arrays ?? []) {
    if (input[name] === undefined) throw missing(op, name, estimator, 'a Float32Array or Float64Array');
    checkFloats(op, name, input[name], name === 'greedyRewards' ? numSeqs : totalTokensOf(input));
  }
  const counts = new Uint8Array(numSeqs);
  for (let i = 0; i < numSeqs; i++) {
    const active = lengths === undefined || lengths[i] > 0;
    counts[i] = active && rewards.every((values) => !Number.isNaN(values[i])) ? 1 : 0;
  }
  checkFinite(op, input, rewards, needs, counts);
  return {
    op,
    estimator,
    numSeqs,
    lengths: lengths ?? new Int32Array(numSeqs).fill(1),
    rewards,
    input,
    counts,
    unscored,
    singleton,
    maskZeroStdGroups,
    eps,
    gamma,
    lambda,
    whiten,
    weights,
  };
}

function checkOptionKeys(op: string, estimator: string, options: object, known: readonly string[]): void {
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    const elsewhere = Object.values(NEEDS).some((needs) => needs.options.includes(key));
    throw argumentError(
      elsewhere ? 'ERR_VARLEN_INCOMPATIBLE' : 'ERR_VARLEN_OPTION',
      op,
      key,
      `does not belong to '${estimator}'; got '${key}', expected one of ${known.join(', ')}`,
    );
  }
}

function totalTokensOf({ cuSeqlens }: AdvantageInput): number {
  return cuSeqlens![cuSeqlens!.length - 1];
}

function readLengths(
  op: string,
  input: AdvantageInput,
  estimator: string,
  needs: Needs,
): Int32Array | undefined {
  const { cuSeqlens, lossMask, lengths } = input;
  if (cuSeqlens !== undefined) {
    if (lengths !== undefined) {
      const problem = 'says again what cuSeqlens says; got both, expected one of them';
      throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'lengths', problem);
    }
    return countActive(op, { cuSeqlens, ...(lossMask && { lossMask }) });
  }
  if (lossMask !== undefined) throw missing(op, 'cuSeqlens', 'lossMask', 'an Int32Array');
  if (needs.token) throw missing(op, 'cuSeqlens', estimator, 'an Int32Array');
  if (lengths === undefined) {
    if (needs.lengths) throw missing(op, 'lengths', estimator, 'an Int32Array, or cuSeqlens');
    return undefined;
  }
  checkArray(op, 'lengths', lengths, 'Int32Array');
  lengths.forEach((length, i) => {
    if (length < 0) throw rangeError(op, `lengths[${i}]`, length, 'an integer >= 0');
  });
  return lengths;
}

function readRewards(
  op: string,
  input: AdvantageInput,
  estimator: string,
  needs: Needs,
  numSeqs: number | undefined,
): readonly ArrayLike<number>[] {
  const { rewards, tokenRewards, rewardComponents } = input;
  const wanted = estimator === 'gdpo' ? 'rewardComponents' : 'rewards';
  for (const [name, value, allowed] of [
    ['rewards', rewards, estimator !== 'gdpo'],
    ['tokenRewards', tokenRewards, needs.token === true],
    ['rewardComponents', rewardComponents, estimator === 'gdpo'],
  ] as const) {
    if (value === undefined || allowed) continue;
    const problem = `is not read by '${estimator}'; got values, expected ${wanted}`;
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, name, problem);
  }
  if (rewards !== undefined && tokenRewards !== undefined) {
    const problem = 'says again what rewards says; got both, expected one of them';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'tokenRewards', problem);
  }
  if (rewardComponents !== undefined) {
    if (!Array.isArray(rewardComponents) || rewardComponents.length === 0) {
      throw wrongType(op, 'rewardComponents', rewardComponents, 'an array of at least one typed array');
    }
    rewardComponents.forEach((values, k) => {
      checkFloats(op, `rewardComponents[${k}]`, values, numSeqs ?? rewardComponents[0].length);
    });
    return rewardComponents;
  }
  if (tokenRewards !== undefined) {
    checkFloats(op, 'tokenRewards', tokenRewards, totalTokensOf(input));
    return [sumTokens(input, tokenRewards)];
  }
  if (rewards === undefined) throw missing(op, wanted, estimator, 'rewards');
  checkFloats(op, 'rewards', rewards, numSeqs);
  return [rewards];
}

/** Sequence rewards from those of active tokens. */
function sumTokens({ cuSeqlens, lossMask }: AdvantageInput, tokenRewards: ArrayLike<number>): Float64Array {
  const sums = new Float64Array(cuSeqlens!.length - 1);
  for (let i = 0; i < sums.length; i++) {
    for (let t = cuSeqlens![i]; t < cuSeqlens![i + 1]; t++) {
      if (lossMask === undefined || lossMask[t] !== 0) sums[i] += tokenRewards[t];
    }
  }
  return sums;
}

/** NaN rewards mean something; infinities, and anything not finite in the other inputs, do not. */
function checkFinite(
  op: string,
  input: AdvantageInput,
  rewards: readonly ArrayLike<number>[],
  needs: Needs,
  counts: Uint8Array,
): void {
  const refuse = (path: string, value: number): never => {
    const problem = `is not finite; got ${value}, expected a finite number`;
    throw argumentError('ERR_VARLEN_NON_FINITE', op, path, problem);
  };
  rewards.forEach((values, k) => {
    const name = input.rewardComponents
      ? `rewardComponents[${k}]`
      : input.rewards
        ? 'rewards'
        : 'tokenRewards';
    for (let i = 0; i < counts.length; i++) {
      if (counts[i] === 1 && !Number.isFinite(values[i])) refuse(`${name}[${i}]`, values[i]);
    }
  });
  for (const name of ['tokenRewards', ...(needs.arrays ?? [])] as const) {
    const values = input[name];
    if (values === undefined) continue;
    for (let i = 0; i < counts.length; i++) {
      // The NaN of a sum may be that of two infinities, so token rewards are looked at one by one.
      if (counts[i] === 0 && name !== 'tokenRewards') continue;
      if (name === 'greedyRewards') {
        if (!Number.isFinite(values[i])) refuse(`${name}[${i}]`, values[i]);
        continue;
      }
      for (let t = input.cuSeqlens![i]; t < input.cuSeqlens![i + 1]; t++) {
        const active = input.lossMask === undefined || input.lossMask[t] !== 0;
        const unscored = name === 'tokenRewards' && Number.isNaN(values[t]);
        if (active && !unscored && !Number.isFinite(values[t])) refuse(`${name}[${t}]`, values[t]);
      }
    }
  }
}
