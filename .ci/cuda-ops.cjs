'use strict';

/**
 * Ops whose CUDA kernels do all that their tests ask for. varlen-attention has no float32 there:
 * test/ops/varlen-attention-cuda.test.ts is for what it has.
 */
const CUDA_OPS = [
  'cross-entropy',
  'cross-entropy-from-hidden',
  'fused-linear-jsd',
  'generalized-jsd',
  'group-advantage',
  'policy-loss',
  'policy-loss-from-hidden',
  'policy-loss-from-logits',
];

module.exports = { CUDA_OPS };
