import { Tensor, varlenAttention } from '../../src/index.js';

/**
 * The result of an op that fails when its stream comes to it: its offsets are a tensor, so nobody can
 * look at them before, and they end past the rows. `ERR_VARLEN_CU_SEQLENS`.
 */
export function failing(options: { requiresGrad?: boolean } = {}): Tensor {
  const q = Tensor.from(new Float32Array(4), { shape: [4, 1, 1], ...options });
  const cuSeqlens = Tensor.from(Int32Array.of(0, 9));
  try {
    const { out, softmaxLse } = varlenAttention(q, q, q, { cuSeqlens, maxSeqlen: 9 });
    softmaxLse.dispose();
    return out;
  } finally {
    cuSeqlens.dispose();
    if (!options.requiresGrad) q.dispose();
  }
}
