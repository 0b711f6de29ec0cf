import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';
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

const OP = 'policyLossFromLogits';
const OP_BACKWARD = 'policyLossFromLogitsBackward';

/** Responses with logits in place of log-probabilities. */
export interface LogitsBatch extends Omit<ResponseBatch, 'logprobs' | 'entropies'> {
  /** `[totalTokens, vocabSize]`, float32, float16 or bfloat16; rows may be apart, words may not. */
  readonly logits: Tensor;
  /** The word at each position, `[totalTokens]`; anything at masked positions. */
  readonly targetIds: Int32Array | Tensor;
}

/** Options of {@link policyLossFromLogits}. */
export interface PolicyLossFromLogitsOptions extends PolicyLossOptions {
  /** Logits are divided by it. Default 1. */
  temperature?: number;
  /** Return the entropies, which then are in the statistics too. Default: when the bonus needs them. */
  entropies?: boolean;
  /** Return the sum of squared probabilities of every row. Default false. */
  sumSquares?: boolean;
}

/** What {@link policyLossFromLogitsBackward} needs. `logits` and `targetIds` are the caller's: keep them until then. */
export interface SavedLogits {
  readonly logits: Tensor;
  readonly targetIds: Int32Array | Tensor;
  readonly dLogprobs: Tensor;
  readonly lse: Tensor;
  readonly entropies: Tensor | undefined;
  readonly dEntropies: Tensor | undefined;
  readonly temperature: number;
}

/** Result of {@link policyLossFromLogits}. */
export interface PolicyLossFromLogitsResult extends PolicyLossOutputs {
  /** `[totalTokens]` float32; 0 at masked positions. */
  readonly logprobs: Tensor;
  /** `[totalTokens]` float32, when asked for or needed; 0 at masked positions. */
  readonly entropies?: Tensor;
  /** `[totalTokens]` float32, when asked for; 0 at masked positions. */
  readonly sumSquares?: Tensor;
  readonly saved: SavedLogits;
}

const BATCH: readonly (keyof LogitsBatch)[] = [
  'logits',
  'targetIds',
  ...(BATCH_KEYS as (keyof LogitsBatch)[]),
];
const OPTIONS: readonly (keyof PolicyLossFromLogitsOptions)[] = [
  ...OPTION_NAMES,
  'temperature',
  'entropies',
  'sumSquares',
];

/**
 * The policy loss of packed responses from logits: log-softmax, {@link policyLoss} and, with an entropy
 * coefficient, the bonus `- coef * sum_t h_t H_t`. `loss.backward()` gives the gradient of the logits.
 *
 * Rows whose mask is 0 are never read, and get a gradient of 0.
 *
 * @throws as {@link policyLoss}, and `ERR_VARLEN_INDEX` for a target outside the vocabulary on an active
 *   row: at the call for ids on the host without a `lossMask`, else when a result is read
 *
 * @example
 * ```ts
 * using out = policyLossFromLogits({ logits, targetIds, cuSeqlens, oldLogprobs, advantages }, plan, config);
 * out.loss.backward(); // logits.grad
 * ```
 */
export function policyLossFromLogits(
  batch: LogitsBatch,
  plan: SequenceScales,
  config: PolicyLossConfig,
  options?: PolicyLossFromLogitsOptions,
): PolicyLossFromLogitsResult {
  checkBatch(OP, batch);
  const given = readOptions<LogitsBatch>(OP, batch, BATCH);
  const chosen = readOptions<PolicyLossFromLogitsOptions>(OP, options, OPTIONS);
  const { logits, targetIds } = given;
  checkTensor(OP, 'logits', logits);
  const tracked = isTracked([logits]);
  checkOut(OP, chosen.out, tracked);
  const { temperature = 1, stream, out } = chosen;
  const values = lossArguments(OP, given, plan, config, chosen);
  checkGroups(OP, chosen.groups, plan.seqScale.length);
  values.logits = logits;
  values.targetIds = targetIds;
  values.temperature = temperature;
  values.wantEntropies = chosen.entropies ?? false;
  values.wantSquares = chosen.sumSquares ?? false;
  const made = run(OP, values, logits.device, stream, SPELLING);
  const loss = made[0] ?? out!.loss!;
  const dLogprobs = made[1] ?? out!.dLogprobs!;
  const sums = made[2]!;
  const logprobs = made[3]!;
  const lse = made[4]!;
  const perTokenLoss = made[5] ?? out?.perTokenLoss;
  const [, , , , , , sequenceLosses, sequenceTokens, entropies, dEntropies, sumSquares] = made;
  const ids = targetIds instanceof Tensor ? targetIds : tracked ? keptArray(targetIds) : targetIds;
  const saved: SavedLogits = {
    logits,
    targetIds: ids,
    dLogprobs,
    lse,
    entropies,
    dEntropies,
    temperature,
  };
  const idsTensor = ids instanceof Tensor ? ids : undefined;
  recordCall(
    OP,
    [logits],
    [loss],
    [logits, idsTensor, dLogprobs, lse, entropies, dEntropies],
    ([dLoss], [ownLogits, ownIds, ownGradient, ownLse, ownEntropies, ownSlopes]) => [
      differentiate(
        dLoss!,
        {
          logits: ownLogits!,
          targetIds: ownIds ?? ids,
          dLogprobs: ownGradient!,
          lse: ownLse!,
          entropies: ownEntropies,
          dEntropies: ownSlopes,
          temperature,
        },
        undefined,
        stream?.disposed ? undefined : stream,
      ),
    ],
  );
  const outputs = { loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens };
  return {
    ...lossOutputs(outputs, chosen),
    logprobs,
    ...(entropies === undefined ? {} : { entropies }),
    ...(sumSquares === undefined ? {} : { sumSquares }),
    saved,
    [Symbol.dispose]() {
      disposeAll([loss, dLogprobs, sums, perTokenLoss, sequenceLosses, sequenceTokens]);
      disposeAll([logprobs, lse, entropies, dEntropies, sumSquares]);
    },
  };
}

function differentiate(
  dLoss: Tensor,
  saved: SavedLogits,
  dLogits: Tensor | undefined,
  stream: Stream | undefined,
): Tensor {
  const { logits, ...rest } = saved;
  const inPlace = dLogits === logits;
  const values = {
    ...rest,
    dLoss,
    logits: inPlace ? undefined : logits,
    overwrite: inPlace ? [logits] : [],
    dLogits: inPlace ? undefined : dLogits,
  };
  return run(OP_BACKWARD, values, logits.device, stream)[0] ?? dLogits!;
}

/** Options of {@link policyLossFromLogitsBackward}. */
export interface PolicyLossFromLogitsBackwardOptions {
  /** Receives the result; the logits themselves save the memory of another such tensor. */
  dLogits?: Tensor;
  stream?: Stream;
}

/**
 * Gradient of {@link policyLossFromLogits} by the logits, in their dtype, for a gradient of the loss.
 *
 * @param saved `saved` of the forward call
 * @param dLoss a float32 scalar, `[]`
 * @throws as {@link policyLossFromLogits}
 *
 * @example
 * ```ts
 * const one = Tensor.from(Float32Array.of(1), { shape: [] });
 * policyLossFromLogitsBackward(out.saved, one, { dLogits: logits }); // in place
 * ```
 */
export function policyLossFromLogitsBackward(
  saved: SavedLogits,
  dLoss: Tensor,
  options?: PolicyLossFromLogitsBackwardOptions,
): Tensor {
  checkLossGradient(OP_BACKWARD, dLoss);
  const { dLogits, stream } = readOptions<PolicyLossFromLogitsBackwardOptions>(OP_BACKWARD, options, [
    'dLogits',
    'stream',
  ]);
  checkTensor(OP_BACKWARD, 'saved.logits', saved?.logits);
  if (dLogits === saved.logits && saved.logits.requiresGrad) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      OP_BACKWARD,
      'dLogits',
      'would overwrite logits that the tape may still read; got tracked logits, expected detached ones',
    );
  }
  return differentiate(dLoss, saved, dLogits, stream);
}
