export { lengthHash } from './length-hash.js';
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
  type GroupStats,
  mergeStats,
  type PolicyLossStats,
  type PolicyLossSums,
} from './policy-loss-stats.js';
export type { ResponseBatch } from './response-batch.js';
export type { SequenceScales } from './sequence-scales.js';
export {
  type SavedForBackward,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionGradients,
  type VarlenAttentionOptions,
  type VarlenAttentionResult,
  varlenAttention,
  varlenAttentionBackward,
} from './varlen-attention.js';
