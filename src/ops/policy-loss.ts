import { readOptions } from '../check.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  BATCH_KEYS,
  checkBatch,
  checkGroups,
  checkLossGradient,
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

export type { PolicyLossOptions, PolicyLossOutputs, PolicyLossStatsReader } from './policy-loss-call.js';

const OP = 'policyLoss';
const OP_BACKWARD = 'policyLossBackward';
const BATCH: readonly (keyof ResponseBatch)[] = ['logprobs', 'entropies', ...BATCH_KEYS];

/** Result of {@link policyLoss}. */
export interface PolicyLossResult extends PolicyLossOutputs {
  /** What {@link policyLossBackward} needs. It names the caller's tensor: keep it until then. */
  readonly saved: { readonly dLogprobs: Tensor; readonly logprobs: Tensor };
}

/**
 * The policy loss of packed responses and its gradient by their log-probabilities, in one call.
 *
 * `sum_i s_i sum_t [ w_t c_t l(x_t, A_t) + coef k_t ]` over active tokens: `s_i` comes from the plan, the
 * surrogate `l`, the penalty `k` and the weights `c` from the configuration (PPO, GSPO, CISPO, SAPO, GMPO,
 * DPPO, VESPO, DRO and REINFORCE are points of that grid). Gradients are the same bits for any number of
 * threads, and for any packing and cut into micro-batches with the same `s_i`.
 *
 * Add micro-batches up; never divide by their number: the plan has done it.
 *
 * @param batch see {@link ResponseBatch}; `entropies` go into the statistics
 * @param plan `planAggregation` of `varlen/rl` makes it; `plan.slice(start, end)` for a micro-batch
 * @throws at the call `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_INCOMPATIBLE`,
 *   `ERR_VARLEN_TRUNCATED_SUPPORT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_DISPOSED`,
 *   `ERR_VARLEN_WEIGHT` (host `tokenWeights` without a `lossMask`), `ERR_VARLEN_PLAN_MISMATCH` (number of
 *   sequences). Reading a result rejects with `ERR_VARLEN_NON_FINITE`, `ERR_VARLEN_LOGPROB_POSITIVE`,
 *   `ERR_VARLEN_WEIGHT`, `ERR_VARLEN_PLAN_MISMATCH` (lengths), and `ERR_VARLEN_CU_SEQLENS` for a tensor.
 *
 * @example
 * ```ts
 * const plan = planAggregation({ lengths: Int32Array.of(2, 3) }, { aggregation: { mode: 'token-mean' } });
 * using out = policyLoss({ cuSeqlens: Int32Array.of(0, 2, 5), logprobs, oldLogprobs, advantages }, plan, {
 *   ratio: { level: 'token' },
 *   clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
 * });
 * out.loss.backward();
 * const { clipFracHigh } = await out.stats.data();
 * ```
 */
export function policyLoss(
  batch: ResponseBatch,
  plan: SequenceScales,
  config: PolicyLossConfig,
  options?: PolicyLossOptions,
): PolicyLossResult {
  checkBatch(OP, batch);
  const given = readOptions<ResponseBatch>(OP, batch, BATCH);
  const chosen = readOptions<PolicyLossOptions>(OP, options, OPTION_NAMES);
  const { logprobs, entropies } = given;
  checkTensor(OP, 'logprobs', logprobs);
  checkOut(OP, chosen.out, isTracked([logprobs]));
  const values = lossArguments(OP, given, plan, config, chosen);
  checkGroups(OP, chosen.groups, plan.seqScale.length);
  values.logprobs = logprobs;
  values.entropies = entropies;
  const made = run(OP, values, logprobs.device, chosen.stream, SPELLING);
  const loss = made[0] ?? chosen.out!.loss!;
  const dLogprobs = made[1] ?? chosen.out!.dLogprobs!;
  const sums = made[2]!;
  const perTokenLoss = made[3] ?? chosen.out?.perTokenLoss;
  const [, , , , sequenceLosses, sequenceTokens] = made;
  const outputs = { loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens };
  const { stream } = chosen;
  recordCall(OP, [logprobs], [loss], [dLogprobs, logprobs], ([dLoss], [gradient, like]) => [
    scaled(dLoss!, gradient!, like!, stream?.disposed ? undefined : stream),
  ]);
  return {
    ...lossOutputs(outputs, chosen),
    saved: { dLogprobs, logprobs },
    [Symbol.dispose]() {
      disposeAll([loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens]);
    },
  };
}

function scaled(dLoss: Tensor, dLogprobs: Tensor, logprobs: Tensor, stream: Stream | undefined): Tensor {
  const values = { dLoss, dLogprobs, logprobs, gradient: undefined };
  return run(OP_BACKWARD, values, logprobs.device, stream)[0]!;
}

/**
 * Gradient of {@link policyLoss} by the log-probabilities, in their dtype, for a gradient of the loss.
 *
 * @param saved `saved` of the forward call
 * @param dLoss a float32 scalar, `[]`
 * @throws as {@link policyLoss}
 *
 * @example
 * ```ts
 * using gradient = policyLossBackward(out.saved, Tensor.from(Float32Array.of(0.5), { shape: [] }));
 * ```
 */
export function policyLossBackward(
  saved: PolicyLossResult['saved'],
  dLoss: Tensor,
  options?: { stream?: Stream },
): Tensor {
  checkLossGradient(OP_BACKWARD, dLoss);
  const { stream } = readOptions<{ stream?: Stream }>(OP_BACKWARD, options, ['stream']);
  checkTensor(OP_BACKWARD, 'saved.logprobs', saved?.logprobs);
  return scaled(dLoss, saved.dLogprobs, saved.logprobs, stream);
}
