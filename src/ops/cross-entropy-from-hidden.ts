import { readOptions } from '../check.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import { Tensor } from '../tensor/tensor.js';
import { type NativeShard, UNSPLIT } from './cross-entropy-from-hidden-shards.js';
import {
  CROSS_ENTROPY_KEYS,
  CROSS_ENTROPY_OUTPUTS,
  type CrossEntropyOptions,
  type CrossEntropyResult,
  crossEntropyResult,
  type NativeCrossEntropyOptions,
  nativeCrossEntropyOptions,
} from './cross-entropy-options.js';

/** Options of {@link crossEntropyFromHidden}. */
export interface CrossEntropyFromHiddenOptions extends CrossEntropyOptions {
  /** `[vocabSize]`, dtype of hidden, added to the logits. Default: none. */
  bias?: Tensor | undefined;
}

const OP = 'crossEntropyFromHidden';
export const CROSS_ENTROPY_FROM_HIDDEN_KEYS: readonly (keyof CrossEntropyFromHiddenOptions)[] = [
  ...CROSS_ENTROPY_KEYS,
  'bias',
];

/**
 * `crossEntropy` of the logits `hidden weight^T + bias`, which never exist: they are computed a tile at a
 * time, and again for the gradient. Takes a few megabytes per thread beside its results, whatever the number
 * of tokens and words. Also the way to log-probabilities of given tokens: `logprobs` of the result.
 *
 * A token's results and its row of the gradient of `hidden` are the same bits for any thread count and in any
 * pack. The gradients of weight and bias are float32 sums in token order. Tokens whose mask or weight is 0 are
 * never read. Gradients are computed for the inputs that require one.
 *
 * @param hidden `[totalTokens, hiddenSize]`, float32, float16 or bfloat16; rows may be strided
 * @param weight `[vocabSize, hiddenSize]`, dtype of hidden
 * @param targetIds `[totalTokens]` int32
 * @throws as `crossEntropy`
 *
 * @example
 * ```ts
 * const { loss, logprobs } = crossEntropyFromHidden(hidden, weight, targetIds, { lossMask, zLoss: 1e-4 });
 * loss.backward();
 * ```
 */
export function crossEntropyFromHidden(
  hidden: Tensor,
  weight: Tensor,
  targetIds: Int32Array | Tensor,
  options?: CrossEntropyFromHiddenOptions,
): CrossEntropyResult {
  checkTensor(OP, 'hidden', hidden);
  checkTensor(OP, 'weight', weight);
  const given = readOptions<CrossEntropyFromHiddenOptions>(OP, options, CROSS_ENTROPY_FROM_HIDDEN_KEYS);
  if (given.bias !== undefined) checkTensor(OP, 'bias', given.bias);
  return crossEntropyOfShard(hidden, weight, targetIds, given, nativeCrossEntropyOptions(OP, given), UNSPLIT);
}

/** The loss of the words that this rank has, whose statistics are those of all ranks. */
export function crossEntropyOfShard(
  hidden: Tensor,
  weight: Tensor,
  targetIds: Int32Array | Tensor,
  given: CrossEntropyFromHiddenOptions,
  native: NativeCrossEntropyOptions,
  shard: NativeShard,
): CrossEntropyResult {
  const { bias } = given;
  const values = { hidden, weight, bias, targetIds, ...native, ...shard, ...CROSS_ENTROPY_OUTPUTS };
  const made = run(OP, values, hidden.device, given.stream) as Tensor[];
  const [, , , entropies, lse] = made;
  const ids = keptArray(targetIds);
  const wanted = {
    wantHidden: hidden.requiresGrad,
    wantWeight: weight.requiresGrad,
    wantBias: bias?.requiresGrad ?? false,
  };
  const kept = [
    hidden,
    weight,
    bias,
    ids instanceof Tensor ? ids : undefined,
    native.lossMask,
    native.weights,
    lse,
    entropies,
  ];
  recordCall(OP, [hidden, weight, bias], made.slice(0, 4), kept, (gradients, saved) => {
    const [dLoss, dPerToken, dLogprobs, dEntropies] = gradients;
    const [h, w, b, y, lossMask, weights, sums, ownEntropies] = saved;
    const backward = {
      ...native,
      ...shard,
      ...wanted,
      dLoss,
      dPerToken,
      dLogprobs,
      dEntropies,
      hidden: h,
      weight: w,
      bias: b,
      targetIds: y ?? ids,
      lossMask,
      weights,
      lse: sums,
      entropies: ownEntropies,
      dHidden: undefined,
      dWeight: undefined,
      dBias: undefined,
    };
    return run('crossEntropyFromHiddenBackward', backward, h!.device, undefined);
  });
  lse.dispose();
  return crossEntropyResult(made);
}
