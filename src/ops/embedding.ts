import { readOptions } from '../check.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link embedding}. */
export interface EmbeddingOptions {
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'embedding';

/**
 * Rows of a table by number: `out[t] = weight[ids[t]]`. Its gradient adds the rows of a repeated id in
 * their order, in float32. It also picks rows of any matrix, e.g. the last token of every sequence.
 *
 * @param weight `[vocabSize, hidden]`, float32, float16 or bfloat16
 * @param ids `[totalTokens]`, each in `[0, vocabSize)`; in a tensor they are checked when the op runs
 * @returns `[totalTokens, hidden]`, dtype of weight
 * @throws `ERR_VARLEN_INDEX`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using table = Tensor.from(Float32Array.of(1, 2, 3, 4), { shape: [2, 2] });
 * using rows = embedding(table, Int32Array.of(1, 0, 1)); // [[3, 4], [1, 2], [3, 4]]
 * ```
 */
export function embedding(weight: Tensor, ids: Int32Array | Tensor, options?: EmbeddingOptions): Tensor {
  checkTensor(OP, 'weight', weight);
  const { stream } = readOptions<EmbeddingOptions>(OP, options, ['stream']);
  const [made] = run(OP, { weight, ids, out: undefined }, weight.device, stream);
  const out = made!;
  if (isTracked([weight])) {
    const array = keptArray(ids);
    const idTensor = array instanceof Tensor ? array : undefined;
    recordCall(OP, [weight], [out], [weight, idTensor], ([dOut], [table, idsThen]) => {
      const values = { dOut, weight: table, ids: idsThen ?? array, dWeight: undefined };
      return run('embeddingBackward', values, table.device, undefined);
    });
  }
  return out;
}
