import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  checkShard,
  SharedHidden,
  statisticsAcross,
  type VocabularyAllReduce,
  type VocabularyShard,
} from './cross-entropy-from-hidden-shards.js';
import { checkBatch } from './policy-loss-call.js';
import type { PolicyLossConfig } from './policy-loss-config.js';
import {
  checkHead,
  HIDDEN_BATCH_KEYS,
  HIDDEN_OPTION_NAMES,
  type HiddenBatch,
  type PolicyLossFromHiddenOptions,
  type PolicyLossFromHiddenResult,
  policyLossOfShard,
} from './policy-loss-from-hidden.js';
import type { SequenceScales } from './sequence-scales.js';

/** Result of {@link policyLossFromHiddenAcross}: its tensors are on no tape, `backward` is its own. */
export interface PolicyLossAcrossResult extends PolicyLossFromHiddenResult {
  /**
   * Adds to `grad` of weight and bias, and of everything that hidden was computed from, once the ranks have
   * summed their shares of hidden's gradient. Every rank must call it, in the same order.
   *
   * @param gradient of the loss, a scalar; default 1
   */
  backward(gradient?: Tensor): Promise<void>;
}

const OP = 'policyLossFromHiddenAcross';

/**
 * {@link policyLossFromHidden} with a vocabulary whose words lie on several ranks (rl-objectives, K3): each has
 * all hidden states, targets and the rest of the batch, and its own words of the head. Every rank gets the loss
 * and the statistics over the whole vocabulary.
 *
 * Two all-reduces of float64, one value and five per token, and one of the hidden states' gradient in float32.
 * Rows of the head keep their gradients; nothing of it moves. When a rank's part fails that rank rejects with
 * the reason and all others with `ERR_VARLEN_PEER_ABORTED`. CPU only: `ERR_VARLEN_UNSUPPORTED` elsewhere.
 * `out` is refused: the ranks' results are their own.
 *
 * @param batch `weight` and `bias` are this rank's words; `targetIds` are words of the whole vocabulary
 * @param shard which words those of `weight` are
 * @param allReduce over the ranks of the vocabulary: `(values, op) => group.allReduce(values, op)`
 *
 * @example
 * ```ts
 * const shard = { firstWord: group.rank * 32000, totalWords: group.size * 32000 };
 * const reduce: VocabularyAllReduce = (values, op) => group.allReduce(values, op);
 * using out = await policyLossFromHiddenAcross(batch, plan, config, shard, reduce);
 * await out.backward();
 * ```
 */
export async function policyLossFromHiddenAcross(
  batch: HiddenBatch,
  plan: SequenceScales,
  config: PolicyLossConfig,
  shard: VocabularyShard,
  allReduce: VocabularyAllReduce,
  options?: PolicyLossFromHiddenOptions,
): Promise<PolicyLossAcrossResult> {
  checkBatch(OP, batch);
  const read = readOptions<HiddenBatch>(OP, batch, HIDDEN_BATCH_KEYS);
  const given = readOptions<PolicyLossFromHiddenOptions>(OP, options, HIDDEN_OPTION_NAMES);
  checkHead(OP, read, given);
  checkShard(OP, shard, allReduce);
  if (given.out !== undefined) {
    const problem = 'cannot be given for a loss over ranks; got out, expected none';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', OP, 'out', problem);
  }
  const { hidden, weight, bias, targetIds, lossMask } = read;
  const { weightGrad = true, temperature = 1, softcap = 0, stream } = given;
  const shared = new SharedHidden(OP, hidden, [weightGrad ? weight : undefined, bias], allReduce);
  const head = { hidden, weight, bias, targetIds, lossMask, weights: undefined };
  const inputs = { ...head, temperature, softcap, logitScale: 1 };
  try {
    using statistics = await statisticsAcross(OP, inputs, shard, stream, allReduce);
    const part = { firstWord: shard.firstWord, totalWords: shard.totalWords, statistics };
    const own = { ...read, hidden: shared.own };
    const made = shared.recorded(() => policyLossOfShard(own, plan, config, given, part));
    const [loss, logprobs, entropies] = [made.loss.alias(), made.logprobs.alias(), made.entropies.alias()];
    return {
      ...made,
      loss,
      logprobs,
      entropies,
      backward: (gradient) => shared.backward(made.loss, gradient),
      [Symbol.dispose]() {
        for (const one of [made, shared.own, loss, logprobs, entropies]) one[Symbol.dispose]();
      },
    };
  } catch (error) {
    shared.own.dispose();
    throw error;
  }
}
