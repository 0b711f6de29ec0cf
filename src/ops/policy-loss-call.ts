import { wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';
import { NativeLossConfig, type PolicyLossConfig, readPolicyLossConfig } from './policy-loss-config.js';
import {
  type GroupStats,
  type PolicyLossStats,
  type PolicyLossSums,
  SUM_NAMES,
  statsOf,
} from './policy-loss-stats.js';
import type { ResponseBatch } from './response-batch.js';
import type { SequenceScales } from './sequence-scales.js';

/** What the ops of the policy loss share: their arguments in native form, their options and results. */

/** Options of {@link policyLoss} that the other ops of this loss have too. */
export interface PolicyLossOptions {
  /** Return the bracket of every token, `[totalTokens]`: loss and penalty without `s_i`. Default false. */
  perTokenLoss?: boolean;
  /** Return its sum and the active tokens of every sequence. Default false. */
  sequenceLosses?: boolean;
  /** Group the lengths and rewards of the statistics; both `[numSeqs]`. */
  groups?: { readonly groupIds: Int32Array; readonly rewards: ArrayLike<number> };
  /** Groups without spread, as the advantage estimator counted them, for the statistics. Default 0. */
  zeroStdGroups?: number;
  /** Receive the results. */
  out?: { readonly loss?: Tensor; readonly dLogprobs?: Tensor; readonly perTokenLoss?: Tensor };
  /** Default: the device's own. */
  stream?: Stream;
}

/** Statistics of a call that may still be running. */
export interface PolicyLossStatsReader extends Disposable {
  /** Rejects as reading any other output of the call does. */
  data(): Promise<PolicyLossStats>;
  /** The same, blocking. */
  dataSync(): PolicyLossStats;
  /** The sums as they lie on the device, float64, in the order of `PolicyLossSums` without `zeroStdGroups`. */
  readonly sums: Tensor;
}

/** What every op of this loss returns; disposing it disposes its tensors. */
export interface PolicyLossOutputs extends Disposable {
  /** The loss, a float32 scalar; differentiable. `stats` has it in float64. */
  readonly loss: Tensor;
  /** Derivative of the loss by the log-probabilities, `[totalTokens]` float32; 0 at masked positions. */
  readonly dLogprobs: Tensor;
  readonly stats: PolicyLossStatsReader;
  /** `[totalTokens]` float32, when asked for. */
  readonly perTokenLoss?: Tensor;
  /** `[numSeqs]` float32, when asked for. */
  readonly sequenceLosses?: Tensor;
  /** Active tokens, `[numSeqs]` int32, when asked for. */
  readonly sequenceTokens?: Tensor;
}

export const OPTION_NAMES: readonly (keyof PolicyLossOptions)[] = [
  'perTokenLoss',
  'sequenceLosses',
  'groups',
  'zeroStdGroups',
  'out',
  'stream',
];

export const BATCH_KEYS: readonly (keyof ResponseBatch)[] = [
  'cuSeqlens',
  'oldLogprobs',
  'refLogprobs',
  'rolloutLogprobs',
  'rolloutSupport',
  'keptLogMass',
  'lossMask',
  'advantages',
  'advantagesPer',
  'tokenWeights',
  'klMask',
  'entropyScale',
];

/** Names that errors of the native side take for the caller's. */
export const SPELLING: Readonly<Record<string, string>> = {
  seqScale: 'plan',
  advantagesPer: 'advantagesPer',
};

const PER = { sequence: 1, token: 2 };
const PER_WORDS = Object.keys(PER);
const SUPPORT = ['full', 'truncated'];

function checkWord(op: string, argument: string, value: unknown, words: readonly string[]): void {
  if (words.includes(value as string)) return;
  const problem = `is unknown; got ${String(value)}, expected '${words.join("' or '")}'`;
  throw argumentError('ERR_VARLEN_OPTION', op, argument, problem);
}

/** Log-probabilities of a truncated support are biased by the mass that was cut off. */
function checkSupport(op: string, batch: Omit<ResponseBatch, 'logprobs'>, correction: number): void {
  const { rolloutSupport = 'full', keptLogMass } = batch;
  checkWord(op, 'rolloutSupport', rolloutSupport, SUPPORT);
  if (rolloutSupport === 'truncated' && correction !== 0 && keptLogMass === undefined) {
    throw argumentError(
      'ERR_VARLEN_TRUNCATED_SUPPORT',
      op,
      'keptLogMass',
      "is required by rolloutCorrection with rolloutSupport 'truncated'; got nothing, expected the log of the kept probability",
    );
  }
  if (rolloutSupport === 'full' && keptLogMass !== undefined) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      op,
      'keptLogMass',
      "is 0 where the support is full; got a tensor, expected rolloutSupport: 'truncated' beside it",
    );
  }
}

function checkPlan(op: string, plan: SequenceScales): void {
  if (typeof plan !== 'object' || plan === null) throw wrongType(op, 'plan', plan, 'an aggregation plan');
  if (!(plan.seqScale instanceof Float32Array)) {
    throw wrongType(op, 'plan.seqScale', plan.seqScale, 'a Float32Array');
  }
  if (typeof plan.lengthHash !== 'string' || !/^[0-9a-f]{16}$/.test(plan.lengthHash)) {
    throw wrongType(op, 'plan.lengthHash', plan.lengthHash, '16 hex digits');
  }
}

/**
 * Arguments of the ops of this loss by their native names. All are there from the start, also those that one
 * of the ops alone has: an object that grows by a dozen keys becomes a dictionary, and a call reads fifty.
 */
export class LossArguments extends NativeLossConfig {
  cuSeqlens: unknown = undefined;
  oldLogprobs: unknown = undefined;
  refLogprobs: unknown = undefined;
  rolloutLogprobs: unknown = undefined;
  keptLogMass: unknown = undefined;
  lossMask: unknown = undefined;
  klMask: unknown = undefined;
  advantages: unknown = undefined;
  advantagesPer = 0;
  tokenWeights: unknown = undefined;
  seqScale: unknown = undefined;
  entropyScale: unknown = undefined;
  hashLow = 0;
  hashHigh = 0;
  perToken = false;
  perSequence = false;
  loss: unknown = undefined;
  dLogprobs: unknown = undefined;
  perTokenLoss: unknown = undefined;
  sums: unknown = undefined;
  sequenceLosses: unknown = undefined;
  sequenceTokens: unknown = undefined;

  // Inputs of one op, outputs of another.
  logprobs: unknown = undefined;
  entropies: unknown = undefined;

  // From logits and from hidden states.
  logits: unknown = undefined;
  hidden: unknown = undefined;
  weight: unknown = undefined;
  bias: unknown = undefined;
  targetIds: unknown = undefined;
  temperature = 1;
  softcap = 0;
  wantEntropies = false;
  wantSquares = false;
  wantSumSquares = false;
  firstWord = 0;
  totalWords = 0;
  statistics: unknown = undefined;
  lse: unknown = undefined;
  dEntropies: unknown = undefined;
  sumSquares: unknown = undefined;
}

/** Arguments of the native ops that come from batch, plan and configuration. */
export function lossArguments(
  op: string,
  batch: Omit<ResponseBatch, 'logprobs'>,
  plan: SequenceScales,
  config: PolicyLossConfig,
  options: PolicyLossOptions,
): LossArguments {
  const native = readPolicyLossConfig(op, config, new LossArguments());
  checkPlan(op, plan);
  checkSupport(op, batch, native.correction);
  const { advantagesPer, entropyScale = plan.entropyScale } = batch;
  if (advantagesPer !== undefined) checkWord(op, 'advantagesPer', advantagesPer, PER_WORDS);
  if (typeof entropyScale === 'number' && !(entropyScale >= 0 && entropyScale < Infinity)) {
    const problem = `is out of range; got ${entropyScale}, expected a finite number >= 0`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'entropyScale', problem);
  }
  const { perTokenLoss = false, sequenceLosses = false, groups, out } = options;
  native.cuSeqlens = batch.cuSeqlens;
  native.oldLogprobs = batch.oldLogprobs;
  native.refLogprobs = batch.refLogprobs;
  native.rolloutLogprobs = batch.rolloutLogprobs;
  native.keptLogMass = batch.keptLogMass;
  native.lossMask = batch.lossMask;
  native.klMask = batch.klMask;
  native.advantages = batch.advantages;
  if (advantagesPer !== undefined) native.advantagesPer = PER[advantagesPer];
  native.tokenWeights = batch.tokenWeights;
  native.seqScale = plan.seqScale;
  native.entropyScale = entropyScale;
  native.hashLow = Number.parseInt(plan.lengthHash.slice(0, 8), 16);
  native.hashHigh = Number.parseInt(plan.lengthHash.slice(8), 16);
  native.perToken = perTokenLoss;
  native.perSequence = sequenceLosses || groups !== undefined;
  native.loss = out?.loss;
  native.dLogprobs = out?.dLogprobs;
  native.perTokenLoss = out?.perTokenLoss;
  return native;
}

/** Refuses caller's outputs where the tape would keep them. */
export function checkOut(op: string, out: PolicyLossOptions['out'], tracked: boolean): void {
  if (out === undefined) return;
  if (typeof out !== 'object' || out === null) throw wrongType(op, 'out', out, 'an object of tensors');
  if (!tracked) return;
  throw argumentError(
    'ERR_VARLEN_INCOMPATIBLE',
    op,
    'out',
    'cannot be given for a recorded call; got out beside a tensor that requires a gradient, expected noGrad or no out',
  );
}

/** Refuses groups that are not of this batch. */
export function checkGroups(op: string, groups: PolicyLossOptions['groups'], numSeqs: number): void {
  if (groups === undefined) return;
  for (const name of ['groupIds', 'rewards'] as const) {
    const got = groups[name]?.length;
    if (got === numSeqs) continue;
    const problem = `has the wrong length; got ${got}, expected ${numSeqs}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, `groups.${name}`, problem);
  }
}

function groupStats(
  { groupIds, rewards }: NonNullable<PolicyLossOptions['groups']>,
  lengths: ArrayLike<number>,
): GroupStats[] {
  const groups = new Map<number, { seqs: number; tokens: number; reward: number }>();
  for (let i = 0; i < groupIds.length; i++) {
    let group = groups.get(groupIds[i]);
    if (group === undefined) {
      group = { seqs: 0, tokens: 0, reward: 0 };
      groups.set(groupIds[i], group);
    }
    if (lengths[i] === 0) continue;
    group.seqs++;
    group.tokens += lengths[i];
    group.reward += rewards[i];
  }
  const mean = (sum: number, seqs: number): number => (seqs === 0 ? 0 : sum / seqs);
  return Array.from(groups, ([groupId, { seqs, tokens, reward }]) => ({
    groupId,
    activeSeqs: seqs,
    tokens,
    meanLength: mean(tokens, seqs),
    meanReward: mean(reward, seqs),
  }));
}

/** Reads the sums of a call when it is asked to. */
class StatsReader implements PolicyLossStatsReader {
  constructor(
    readonly sums: Tensor,
    private readonly tokens: Tensor | undefined,
    private readonly groups: PolicyLossOptions['groups'],
    private readonly zeroStdGroups: number,
  ) {}

  async data(): Promise<PolicyLossStats> {
    const [sums, tokens] = await Promise.all([this.sums.data(), this.tokens?.data()]);
    return this.#stats(sums as Float64Array, tokens as Int32Array | undefined);
  }

  dataSync(): PolicyLossStats {
    const sums = this.sums.dataSync() as Float64Array;
    return this.#stats(sums, this.tokens?.dataSync() as Int32Array | undefined);
  }

  #stats(values: Float64Array, tokens: Int32Array | undefined): PolicyLossStats {
    const sums = { zeroStdGroups: this.zeroStdGroups } as PolicyLossSums;
    for (const [i, name] of SUM_NAMES.entries()) sums[name] = values[i];
    const { groups } = this;
    return groups === undefined || tokens === undefined
      ? statsOf(sums)
      : statsOf(sums, groupStats(groups, tokens));
  }

  [Symbol.dispose](): void {
    this.sums.dispose();
    if (this.groups !== undefined) this.tokens?.dispose();
  }
}

/** The results of a call in the form that callers see. */
export function lossOutputs(
  made: {
    readonly loss: Tensor;
    readonly dLogprobs: Tensor;
    readonly sums: Tensor;
    readonly perTokenLoss: Tensor | undefined;
    readonly sequenceLosses: Tensor | undefined;
    readonly sequenceTokens: Tensor | undefined;
  },
  options: PolicyLossOptions,
): Omit<PolicyLossOutputs, typeof Symbol.dispose> {
  const { perTokenLoss, sequenceLosses, sequenceTokens } = made;
  const { groups, zeroStdGroups = 0 } = options;
  return {
    loss: made.loss,
    dLogprobs: made.dLogprobs,
    stats: new StatsReader(made.sums, sequenceTokens, groups, zeroStdGroups),
    ...(perTokenLoss === undefined ? {} : { perTokenLoss }),
    ...(sequenceLosses === undefined ? {} : { sequenceLosses }),
    ...(sequenceTokens === undefined ? {} : { sequenceTokens }),
  };
}

/** Disposes every tensor among `values`. */
export function disposeAll(values: readonly (Disposable | undefined)[]): void {
  for (const value of values) value?.[Symbol.dispose]();
}

/** The scalar that a gradient of the loss must be. */
export function checkLossGradient(op: string, dLoss: unknown): asserts dLoss is Tensor {
  if (!(dLoss instanceof Tensor)) throw wrongType(op, 'dLoss', dLoss, 'a Tensor');
}

/** Refuses a batch that is no object. */
export function checkBatch(op: string, batch: unknown): void {
  if (typeof batch === 'object' && batch !== null) return;
  throw varlenError(
    'ERR_VARLEN_TYPE',
    `${op}: batch has the wrong type; got ${String(batch)}, expected an object`,
    {
      op,
      argument: 'batch',
    },
  );
}
