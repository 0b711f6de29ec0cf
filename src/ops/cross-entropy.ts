import { readOptions } from '../check.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import { Tensor } from '../tensor/tensor.js';
import {
  CROSS_ENTROPY_KEYS,
  CROSS_ENTROPY_OUTPUTS,
  type CrossEntropyOptions,
  type CrossEntropyResult,
  crossEntropyResult,
  nativeCrossEntropyOptions,
} from './cross-entropy-options.js';

const OP = 'crossEntropy';

/**
 * Weighted cross entropy of logits, with label smoothing and z-loss:
 * `ell = (1 - eps) (lse - z[y]) + eps (lse - mean(z)) + zLoss * lse ** 2`, `loss = scale * sum(w * ell) / sum(w)`.
 *
 * Tokens whose mask or weight is 0 are never read, not even their target. Without any token the loss is 0.
 * Where the logits come from a linear layer, `crossEntropyFromHidden` needs none of their memory.
 *
 * @param logits `[totalTokens, vocabSize]`, float32, float16 or bfloat16; rows may be strided
 * @param targetIds `[totalTokens]` int32
 * @throws `ERR_VARLEN_INDEX` (a target outside the vocabulary) and `ERR_VARLEN_WEIGHT`, at the read;
 *   `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_TYPE`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using logits = Tensor.from(Float32Array.of(2, 1, 0, 0, 0, 0), { shape: [2, 3], requiresGrad: true });
 * using result = crossEntropy(logits, Int32Array.of(0, 2));
 * result.loss.backward(); // logits.grad = (softmax - onehot) / 2
 * ```
 */
export function crossEntropy(
  logits: Tensor,
  targetIds: Int32Array | Tensor,
  options?: CrossEntropyOptions,
): CrossEntropyResult {
  checkTensor(OP, 'logits', logits);
  const given = readOptions<CrossEntropyOptions>(OP, options, CROSS_ENTROPY_KEYS);
  const native = nativeCrossEntropyOptions(OP, given);
  const values = { logits, targetIds, ...native, ...CROSS_ENTROPY_OUTPUTS };
  const made = run(OP, values, logits.device, given.stream) as Tensor[];
  const [, , , entropies, lse] = made;
  const ids = keptArray(targetIds);
  const kept = [
    logits,
    ids instanceof Tensor ? ids : undefined,
    native.lossMask,
    native.weights,
    lse,
    entropies,
  ];
  recordCall(OP, [logits], made.slice(0, 4), kept, (gradients, [z, y, lossMask, weights, sums, h]) => {
    const [dLoss, dPerToken, dLogprobs, dEntropies] = gradients;
    const backward = {
      ...native,
      dLoss,
      dPerToken,
      dLogprobs,
      dEntropies,
      logits: z,
      targetIds: y ?? ids,
      lossMask,
      weights,
      lse: sums,
      entropies: h,
      dLogits: undefined,
    };
    return run('crossEntropyBackward', backward, z!.device, undefined);
  });
  lse.dispose();
  return crossEntropyResult(made);
}
