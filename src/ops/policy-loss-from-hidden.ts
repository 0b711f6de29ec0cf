import { checkBoolean, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import { isTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';
import { type NativeShard, UNSPLIT } from './cross-entropy-from-hidden-shards.js';
import {
  BATCH_KEYS,
  checkBatch,
  checkGroups,
  checkOut,
  disposeAll,
  lossArguments,
  lossOutputs,
  OPTION_NAMES,
  type PolicyLossOptions,
  type PolicyLossOutputs,
  SPELLING,
} from './policy-loss-call.js';
import type { PolicyLossConfig } from './policy-loss-config.js';
import type { ResponseBatch } from './response-batch.js';
import type { SequenceScales } from './sequence-scales.js';

/** A {@link ResponseBatch} whose log-probabilities are still to be computed. */
export interface HiddenBatch extends Omit<ResponseBatch, 'logprobs' | 'entropies'> {
  /** Last hidden state that predicts each token, `[totalTokens, hiddenSize]`, float32, float16 or bfloat16. */
  readonly hidden: Tensor;
  /** The head, `[vocabSize, hiddenSize]`, dtype of hidden. */
  readonly weight: Tensor;
  /** `[vocabSize]`, dtype of hidden. */
  readonly bias?: Tensor;
  /** The tokens, `[totalTokens]` int32; read where `lossMask` is 1. */
  readonly targetIds: Int32Array | Tensor;
}

/** Options of {@link policyLossFromHidden}. */
export interface PolicyLossFromHiddenOptions extends PolicyLossOptions {
  /** Logits are divided by it. Default 1. */
  temperature?: number;
  /** Logits become `softcap * tanh(logit / softcap)` first; 0 is off, the default. */
  softcap?: number;
  /** `false` leaves the gradient of a weight that requires one out (LoRA). Default true. */
  weightGrad?: boolean;
  /** Return the sum of squared probabilities of every row. Default false. */
  sumSquares?: boolean;
  /**
   * Leaves out of the gradient what is too small to matter: tiles of a few rows x 64 words in which
   * no derivative by a logit reaches this share of the largest one by a log-probability (published: `2 ** -12`).
   * Most words of a trained model are such, and so is up to half of the work. What a tile holds depends on
   * the rows around it, so gradients then depend on the pack. 0 is off, the default; CPU only.
   */
  tileFilter?: number;
}

/** Result of {@link policyLossFromHidden}; disposing it disposes its tensors. */
export interface PolicyLossFromHiddenResult extends PolicyLossOutputs {
  /** Of the targets, `[totalTokens]` float32, 0 where masked; differentiable. */
  readonly logprobs: Tensor;
  /** `[totalTokens]` float32, 0 where masked; differentiable. */
  readonly entropies: Tensor;
  /** `[totalTokens]` float32, when asked for; 0 where masked. */
  readonly sumSquares?: Tensor;
}

const OP = 'policyLossFromHidden';
export const HIDDEN_BATCH_KEYS: readonly (keyof HiddenBatch)[] = [
  'hidden',
  'weight',
  'bias',
  'targetIds',
  ...(BATCH_KEYS as (keyof HiddenBatch)[]),
];
export const HIDDEN_OPTION_NAMES: readonly (keyof PolicyLossFromHiddenOptions)[] = [
  ...OPTION_NAMES,
  'temperature',
  'softcap',
  'weightGrad',
  'sumSquares',
  'tileFilter',
];

/**
 * The policy loss of `log_softmax(cap(hidden weight^T + bias) / temperature)` at the targets, with entropy bonus,
 * without the logits: they are computed a tile at a time, and again for the gradient (rl-objectives, K3). Takes a
 * few megabytes per thread beside its results, whatever the number of tokens and words.
 *
 * Log-probabilities, entropies and the gradient of `hidden` are the same bits for any thread count and in any
 * pack; those of weight and bias are float32 sums in token order. Masked rows are never read. Gradients are
 * computed for the inputs that require one.
 *
 * @param batch hidden states, head and targets in place of log-probabilities
 * @param plan the weights of the sequences: an aggregation plan, or its slice for a micro-batch
 * @throws at the call what the configuration and the shapes say: `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE`,
 *   `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_TRUNCATED_SUPPORT`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`; at the read `ERR_VARLEN_INDEX` (a target
 *   outside the vocabulary), `ERR_VARLEN_NON_FINITE`, `ERR_VARLEN_WEIGHT`, `ERR_VARLEN_PLAN_MISMATCH`
 *
 * @example
 * ```ts
 * const out = policyLossFromHidden({ hidden, weight, targetIds, ...batch }, plan, config, { temperature: 0.8 });
 * out.loss.backward();
 * const { approxKl, entropy } = await out.stats.data();
 * ```
 */
export function policyLossFromHidden(
  batch: HiddenBatch,
  plan: SequenceScales,
  config: PolicyLossConfig,
  options?: PolicyLossFromHiddenOptions,
): PolicyLossFromHiddenResult {
  checkBatch(OP, batch);
  const read = readOptions<HiddenBatch>(OP, batch, HIDDEN_BATCH_KEYS);
  const given = readOptions<PolicyLossFromHiddenOptions>(OP, options, HIDDEN_OPTION_NAMES);
  checkHead(OP, read, given);
  return policyLossOfShard(read, plan, config, given, UNSPLIT);
}

/** Refuses what is no head, and options of the head that are out of range. */
export function checkHead(op: string, batch: HiddenBatch, options: PolicyLossFromHiddenOptions): void {
  const { hidden, weight, bias } = batch;
  checkTensor(op, 'hidden', hidden);
  checkTensor(op, 'weight', weight);
  if (bias !== undefined) checkTensor(op, 'bias', bias);
  const { weightGrad = true, tileFilter = 0 } = options;
  checkBoolean(op, 'weightGrad', weightGrad);
  if (typeof tileFilter !== 'number') throw wrongType(op, 'tileFilter', tileFilter, 'a number');
  if (!(tileFilter >= 0 && tileFilter < 1)) {
    const problem = `is out of range; got ${tileFilter}, expected a number >= 0 (0 turns it off) and below 1`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'tileFilter', problem);
  }
  if (tileFilter === 0 || hidden.device.kind !== 'cuda') return;
  const problem = `has no CUDA kernel; got ${tileFilter} for tensors on ${hidden.device}, expected 0 or the CPU`;
  throw argumentError('ERR_VARLEN_UNSUPPORTED', op, 'tileFilter', problem);
}

/** The loss of the words that this rank has, whose statistics are those of all ranks. */
export function policyLossOfShard(
  batch: HiddenBatch,
  plan: SequenceScales,
  config: PolicyLossConfig,
  given: PolicyLossFromHiddenOptions,
  shard: NativeShard,
): PolicyLossFromHiddenResult {
  const { hidden, weight, bias, targetIds, lossMask } = batch;
  const { temperature = 1, softcap = 0, weightGrad = true, sumSquares = false, tileFilter = 0, out } = given;
  const trained = weightGrad ? weight : undefined;
  checkOut(OP, out, isTracked([hidden, trained, bias]));
  const values = lossArguments(OP, batch, plan, config, given);
  values.hidden = hidden;
  values.weight = weight;
  values.bias = bias;
  values.targetIds = targetIds;
  values.temperature = temperature;
  values.softcap = softcap;
  values.wantSumSquares = sumSquares;
  Object.assign(values, shard);
  checkGroups(OP, given.groups, plan.seqScale.length);
  const made = run(OP, values, hidden.device, given.stream, SPELLING);
  const loss = made[0] ?? out!.loss!;
  const dLogprobs = made[1] ?? out!.dLogprobs!;
  const sums = made[2]!;
  const logprobs = made[3]!;
  const entropies = made[4]!;
  const lse = made[5]!;
  const [, , , , , , dEntropies, squares] = made;
  const perTokenLoss = made[8] ?? out?.perTokenLoss;
  const [, , , , , , , , , sequenceLosses, sequenceTokens] = made;
  const ids = keptArray(targetIds);
  const wanted = {
    wantHidden: hidden.requiresGrad,
    wantWeight: trained?.requiresGrad ?? false,
    wantBias: bias?.requiresGrad ?? false,
  };
  const kept = [
    hidden,
    weight,
    bias,
    ids instanceof Tensor ? ids : undefined,
    lossMask,
    dLogprobs,
    dEntropies,
    lse,
    entropies,
  ];
  const outputs = [loss, logprobs, entropies];
  recordCall(OP, [hidden, trained, bias], outputs, kept, (gradients, saved) => {
    const [dLoss, dLogprobsOut, dEntropiesOut] = gradients;
    const [h, w, b, y, mask, byLogprob, byEntropy, lseSaved, entropiesSaved] = saved;
    const backward = {
      ...wanted,
      dLoss,
      dLogprobsOut,
      dEntropiesOut,
      hidden: h,
      weight: w,
      bias: b,
      targetIds: y ?? ids,
      temperature,
      softcap,
      ...shard,
      tileFilter,
      lossMask: mask,
      dLogprobs: byLogprob,
      dEntropies: byEntropy,
      lse: lseSaved,
      entropies: entropiesSaved,
      dHidden: undefined,
      dWeight: undefined,
      dBias: undefined,
    };
    return run('policyLossFromHiddenBackward', backward, h!.device, undefined);
  });
  lse.dispose();
  dEntropies?.dispose();
  return {
    ...lossOutputs({ loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens }, given),
    logprobs,
    entropies,
    ...(squares === undefined ? {} : { sumSquares: squares }),
    [Symbol.dispose]() {
      disposeAll([loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens]);
      disposeAll([logprobs, entropies, squares]);
    },
  };
}
