'use strict';

/**
 * Ops whose CUDA kernels do all that their tests ask for. Those of varlen-attention and sparse-prefill
 * are not among them: test/ops/<op>-cuda.test.ts is for what they have.
 */
const CUDA_OPS = [
  'adamw',
  'add',
  'compress-visual-tokens',
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
