'use strict';

/**
 * Ops whose own tests run on a GPU too. Those of varlen-attention are not among them:
 * test/ops/varlen-attention-cuda.test.ts is for its kernels.
 */
const CUDA_OPS = [
  'adamw',
  'add',
  'cross-entropy',
  'cross-entropy-from-hidden',
  'embedding',
  'fused-linear-jsd',
  'generalized-jsd',
  'grad-clip',
  'group-advantage',
  'linear',
  'policy-loss',
  'policy-loss-from-hidden',
  'policy-loss-from-logits',
  'rms-norm',
  'rope',
  'sampling',
  'swiglu',
  'write-rows',
];

module.exports = { CUDA_OPS };
