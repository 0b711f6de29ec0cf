import { checkBoolean, describe, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';
import { type PolicyLossConfig, readPolicyLossConfig } from './policy-loss-config.js';
import { type PolicyLossStats, type PolicyLossSums, SUM_NAMES, statsOf } from './policy-loss-stats.js';
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
export interface PolicyLossFromHiddenOptions {
  /** Logits are divided by it. Default 1. */
  temperature?: number;
  /** Logits become `softcap * tanh(logit / softcap)` first; 0 is off, the default. */
  softcap?: number;
  /** `false` leaves the gradient of a weight that requires one out (LoRA). Default true. */
  weightGrad?: boolean;
  /** Return `perTokenLoss`. Default false. */
  perToken?: boolean;
  /** Return `sumSquares`, the sum of squared probabilities. Default false. */
  sumSquares?: boolean;
  /** Default: the device's own. */
  stream?: Stream;
}

/** Result of {@link policyLossFromHidden}; disposing it disposes its tensors. */
export interface PolicyLossFromHiddenResult extends Disposable {
  /** `[]` float32; differentiable, like the next two. */
  readonly loss: Tensor;
  /** Of the targets, `[totalTokens]` float32, 0 where masked. */
  readonly logprobs: Tensor;
  /** `[totalTokens]` float32, 0 where masked. */
  readonly entropies: Tensor;
  /** Derivative of the loss by each log-probability, `[totalTokens]` float32. */
  readonly dLogprobs: Tensor;
  /** The loss of each token without its sequence's weight, `[totalTokens]` float32. */
  readonly perTokenLoss?: Tensor;
  /** `[totalTokens]` float32. */
  readonly sumSquares?: Tensor;
  /** The statistics, once they are computed. */
  readonly stats: { data(): Promise<PolicyLossStats> };
}

const OP = 'policyLossFromHidden';
const OPTION_KEYS = ['temperature', 'softcap', 'weightGrad', 'perToken', 'sumSquares', 'stream'] as const;
const ADVANTAGES_PER = { sequence: 1, token: 2 } as const;

const BATCH_TENSORS = ['oldLogprobs', 'refLogprobs', 'rolloutLogprobs', 'keptLogMass', 'lossMask', 'klMask'];

/** Refuses batches whose pieces are of the wrong kind, or whose rollout cannot be corrected. */
function checkBatch(batch: HiddenBatch, config: PolicyLossConfig): void {
  if (typeof batch !== 'object' || batch === null) throw wrongType(OP, 'batch', batch, 'an object');
  checkTensor(OP, 'hidden', batch.hidden);
  checkTensor(OP, 'weight', batch.weight);
  if (batch.bias !== undefined) checkTensor(OP, 'bias', batch.bias);
  for (const name of BATCH_TENSORS) {
    const value = (batch as unknown as Record<string, unknown>)[name];
    if (value !== undefined) checkTensor(OP, name, value);
  }
  const { advantagesPer, rolloutSupport = 'full' } = batch;
  if (advantagesPer !== undefined && !Object.hasOwn(ADVANTAGES_PER, advantagesPer)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'advantagesPer',
      `is unknown; got ${describe(advantagesPer)}, expected 'sequence' or 'token'`,
    );
  }
  if (rolloutSupport !== 'full' && rolloutSupport !== 'truncated') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'rolloutSupport',
      `is unknown; got ${describe(rolloutSupport)}, expected 'full' or 'truncated'`,
    );
  }
  if (config.rolloutCorrection === undefined || rolloutSupport === 'full') return;
  if (batch.keptLogMass !== undefined) return;
  throw argumentError(
    'ERR_VARLEN_TRUNCATED_SUPPORT',
    OP,
    'rolloutLogprobs',
    "are normalised over what sampling kept; got rolloutSupport 'truncated' without keptLogMass, expected keptLogMass",
  );
}

/** The plan's numbers by their native names. */
function readPlan(plan: SequenceScales, entropyScale: number | undefined) {
  if (typeof plan !== 'object' || plan === null || !(plan.seqScale instanceof Float32Array)) {
    throw wrongType(OP, 'plan', plan, 'an aggregation plan');
  }
  const { seqScale, lengthHash } = plan;
  return {
    seqScale,
    entropyScale: entropyScale ?? plan.entropyScale,
    hashLow: Number.parseInt(lengthHash.slice(0, 8), 16),
    hashHigh: Number.parseInt(lengthHash.slice(8), 16),
  };
}

/** The statistics in the order in which the native side writes them. */
async function readStats(sums: Tensor): Promise<PolicyLossStats> {
  const values = await sums.data();
  const named = Object.fromEntries(SUM_NAMES.map((name, i) => [name, Number(values[i])]));
  return statsOf({ ...(named as unknown as PolicyLossSums), zeroStdGroups: 0 });
}

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
  const loss = readPolicyLossConfig(OP, config);
  checkBatch(batch, config);
  const given = readOptions<PolicyLossFromHiddenOptions>(OP, options, OPTION_KEYS);
  const { temperature = 1, softcap = 0, weightGrad = true, perToken = false, sumSquares = false } = given;
  checkBoolean(OP, 'weightGrad', weightGrad);
  const { hidden, weight, bias, targetIds, lossMask } = batch;
  const values = {
    hidden,
    weight,
    bias,
    targetIds,
    temperature,
    softcap,
    cuSeqlens: batch.cuSeqlens,
    oldLogprobs: batch.oldLogprobs,
    refLogprobs: batch.refLogprobs,
    rolloutLogprobs: batch.rolloutLogprobs,
    keptLogMass: batch.keptLogMass,
    lossMask,
    klMask: batch.klMask,
    advantages: batch.advantages,
    advantagesPer: batch.advantagesPer === undefined ? 0 : ADVANTAGES_PER[batch.advantagesPer],
    tokenWeights: batch.tokenWeights,
    ...loss,
    ...readPlan(plan, batch.entropyScale),
    perToken,
    perSequence: false,
    wantSumSquares: sumSquares,
  };
  const made = run(OP, values, hidden.device, given.stream);
  const [lossTensor, dLogprobs, sums, logprobs, entropies, lse] = made as Tensor[];
  const dEntropies = made[6];
  const ids = keptArray(targetIds);
  const trained = weightGrad ? weight : undefined;
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
  const outputs = [lossTensor, logprobs, entropies];
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
  const squares = made[7];
  const perTokenLoss = made[8];
  return {
    loss: lossTensor,
    logprobs,
    entropies,
    dLogprobs,
    ...(perTokenLoss === undefined ? {} : { perTokenLoss }),
    ...(squares === undefined ? {} : { sumSquares: squares }),
    stats: { data: () => readStats(sums) },
    [Symbol.dispose]() {
      for (const tensor of [lossTensor, logprobs, entropies, dLogprobs, sums, squares, perTokenLoss]) {
        tensor?.dispose();
      }
    },
  };
}
