import { readOptions } from '../check.js';
import { checkTensor } from '../tensor/arguments.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  CROSS_ENTROPY_FROM_HIDDEN_KEYS,
  type CrossEntropyFromHiddenOptions,
  crossEntropyOfShard,
} from './cross-entropy-from-hidden.js';
import {
  checkShard,
  SharedHidden,
  statisticsAcross,
  type VocabularyAllReduce,
  type VocabularyShard,
} from './cross-entropy-from-hidden-shards.js';
import { type CrossEntropyResult, nativeCrossEntropyOptions } from './cross-entropy-options.js';

/** Result of {@link crossEntropyFromHiddenAcross}: its tensors are on no tape, `backward` is its own. */
export interface CrossEntropyAcrossResult extends CrossEntropyResult {
  /**
   * Adds to `grad` of weight and bias, and of everything that hidden was computed from, once the ranks have
   * summed their shares of hidden's gradient. Every rank must call it, in the same order.
   *
   * @param gradient of the loss, a scalar; default 1
   */
  backward(gradient?: Tensor): Promise<void>;
}

const OP = 'crossEntropyFromHiddenAcross';

/**
 * {@link crossEntropyFromHidden} with a vocabulary whose words lie on several ranks: each has all hidden states
 * and targets, and its own words of the head. Every rank gets the loss over the whole vocabulary.
 *
 * Two all-reduces of float64, one value and five per token, and one of the hidden states' gradient in float32.
 * Rows of the head keep their gradients; nothing of it moves. When a rank's part fails that rank rejects with
 * the reason and all others with `ERR_VARLEN_PEER_ABORTED`. CPU only: `ERR_VARLEN_UNSUPPORTED` elsewhere.
 *
 * @param weight this rank's words, `[words, hiddenSize]`
 * @param targetIds words of the whole vocabulary, `[totalTokens]` int32
 * @param shard which words those of `weight` are
 * @param allReduce over the ranks of the vocabulary: `(values, op) => group.allReduce(values, op)`
 *
 * @example
 * ```ts
 * const shard = { firstWord: group.rank * 32000, totalWords: group.size * 32000 };
 * const reduce: VocabularyAllReduce = (values, op) => group.allReduce(values, op);
 * using out = await crossEntropyFromHiddenAcross(hidden, weight, targetIds, shard, reduce);
 * await out.backward();
 * ```
 */
export async function crossEntropyFromHiddenAcross(
  hidden: Tensor,
  weight: Tensor,
  targetIds: Int32Array | Tensor,
  shard: VocabularyShard,
  allReduce: VocabularyAllReduce,
  options?: CrossEntropyFromHiddenOptions,
): Promise<CrossEntropyAcrossResult> {
  checkTensor(OP, 'hidden', hidden);
  checkTensor(OP, 'weight', weight);
  checkShard(OP, shard, allReduce);
  const given = readOptions<CrossEntropyFromHiddenOptions>(OP, options, CROSS_ENTROPY_FROM_HIDDEN_KEYS);
  const { bias, stream } = given;
  if (bias !== undefined) checkTensor(OP, 'bias', bias);
  const native = nativeCrossEntropyOptions(OP, given);
  const shared = new SharedHidden(OP, hidden, [weight, bias], allReduce);
  const inputs = { hidden, weight, bias, targetIds, ...native };
  try {
    using statistics = await statisticsAcross(OP, inputs, shard, stream, allReduce);
    const part = { firstWord: shard.firstWord, totalWords: shard.totalWords, statistics };
    const made = shared.recorded(() =>
      crossEntropyOfShard(shared.own, weight, targetIds, given, native, part),
    );
    const [loss, perToken, logprobs, entropies] = [
      made.loss.alias(),
      made.perToken.alias(),
      made.logprobs.alias(),
      made.entropies.alias(),
    ];
    return {
      loss,
      perToken,
      logprobs,
      entropies,
      backward: (gradient) => shared.backward(made.loss, gradient),
      [Symbol.dispose]() {
        for (const one of [made, shared.own, loss, perToken, logprobs, entropies]) one[Symbol.dispose]();
      },
    };
  } catch (error) {
    shared.own.dispose();
    throw error;
  }
}
