export { type AddOptions, add } from './add.js';
export { crossEntropy } from './cross-entropy.js';
export { type CrossEntropyFromHiddenOptions, crossEntropyFromHidden } from './cross-entropy-from-hidden.js';
export type { CrossEntropyOptions, CrossEntropyResult } from './cross-entropy-options.js';
export { type EmbeddingOptions, embedding } from './embedding.js';
export { type GeneralizedJsdOptions, type GeneralizedJsdResult, generalizedJsd } from './generalized-jsd.js';
export { lengthHash } from './length-hash.js';
export { type LinearOptions, linear } from './linear.js';
export type {
  ClipRule,
  KlConfig,
  KlKind,
  PolicyLossConfig,
  RatioConfig,
  RatioLevel,
  RolloutCorrection,
} from './policy-loss-config.js';
export {
  type HiddenBatch,
  type PolicyLossFromHiddenOptions,
  type PolicyLossFromHiddenResult,
  policyLossFromHidden,
} from './policy-loss-from-hidden.js';
export {
  type GroupStats,
  mergeStats,
  type PolicyLossStats,
  type PolicyLossSums,
} from './policy-loss-stats.js';
export type { ResponseBatch } from './response-batch.js';
export { type AddRmsNormResult, addRmsNorm, type RmsNormOptions, rmsNorm } from './rms-norm.js';
export { type RopeOptions, rope, ropeTable } from './rope.js';
export type { SequenceScales } from './sequence-scales.js';
export { type SwigluOptions, swiglu } from './swiglu.js';
export {
  type SavedForBackward,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionGradients,
  type VarlenAttentionOptions,
  type VarlenAttentionResult,
  varlenAttention,
  varlenAttentionBackward,
} from './varlen-attention.js';
