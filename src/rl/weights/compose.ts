/** Several token weights in one. */
import { wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';

/**
 * The product of token weights, `[totalTokens]` float32: what `tokenWeights` of a batch takes. Masks (0 or
 * 1) are weights too.
 *
 * Throws `ERR_VARLEN_MISSING_INPUT` without any, `ERR_VARLEN_TYPE`, `ERR_VARLEN_SHAPE` when lengths differ,
 * and `ERR_VARLEN_WEIGHT` for a weight that is negative, infinite or NaN.
 *
 * @example
 * composeTokenWeights(Float32Array.of(0.5, 1), Uint8Array.of(1, 0)); // [0.5, 0]
 */
export function composeTokenWeights(
  ...weights: readonly (Float32Array | Float64Array | Uint8Array)[]
): Float32Array {
  const op = 'composeTokenWeights';
  if (weights.length === 0) {
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'weights', 'is needed; got none, expected weights');
  }
  const product = new Float64Array(weights[0]?.length ?? 0).fill(1);
  weights.forEach((factor, k) => {
    if (!ArrayBuffer.isView(factor)) throw wrongType(op, `weights[${k}]`, factor, 'a typed array');
    if (factor.length !== product.length) {
      const problem = `has the wrong length; got ${factor.length}, expected ${product.length}`;
      throw argumentError('ERR_VARLEN_SHAPE', op, `weights[${k}]`, problem);
    }
    for (let t = 0; t < product.length; t++) {
      if (!(factor[t] >= 0 && factor[t] < Infinity)) {
        const problem = `is no weight; got ${factor[t]}, expected a finite number >= 0`;
        throw argumentError('ERR_VARLEN_WEIGHT', op, `weights[${k}][${t}]`, problem);
      }
      product[t] *= factor[t];
    }
  });
  return Float32Array.from(product);
}
