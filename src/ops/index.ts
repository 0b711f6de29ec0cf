export { Pcg32, type Pcg32State } from '../pcg32.js';
export { type AdamwOptions, type AdamwTensors, adamw } from './adamw.js';
export { type AddOptions, add } from './add.js';
export {
  type CompressedTokens,
  type CompressVisualTokensOptions,
  compressVisualTokens,
} from './compress-visual-tokens.js';
export { crossEntropy } from './cross-entropy.js';
export { type CrossEntropyFromHiddenOptions, crossEntropyFromHidden } from './cross-entropy-from-hidden.js';
export {
  type CrossEntropyAcrossResult,
  crossEntropyFromHiddenAcross,
} from './cross-entropy-from-hidden-across.js';
export type { VocabularyAllReduce, VocabularyShard } from './cross-entropy-from-hidden-shards.js';
export type { CrossEntropyOptions, CrossEntropyResult } from './cross-entropy-options.js';
export { type EmbeddingOptions, embedding } from './embedding.js';
export {
  type FusedLinearJsdOptions,
  fusedLinearJsd,
  type HiddenStoredTeacher,
  type HiddenTeacher,
} from './fused-linear-jsd.js';
export { type GeneralizedJsdOptions, generalizedJsd, type LogitsTeacher } from './generalized-jsd.js';
export type {
  GeneralizedJsdResult,
  JsdOptions,
  JsdTopk,
  StoredTeacher,
  StoredWords,
} from './generalized-jsd-options.js';
export { type GradClipOptions, gradClip } from './grad-clip.js';
export { type GroupAdvantageOptions, groupAdvantage } from './group-advantage.js';
export { lengthHash } from './length-hash.js';
export { type LinearOptions, linear } from './linear.js';
export {
  type PolicyLossOptions,
  type PolicyLossOutputs,
  type PolicyLossResult,
  type PolicyLossStatsReader,
  policyLoss,
  policyLossBackward,
} from './policy-loss.js';
export type {
  ClipRule,
  KlConfig,
  KlKind,
  PolicyLossConfig,
  PolicyLossTerms,
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
export { type PolicyLossAcrossResult, policyLossFromHiddenAcross } from './policy-loss-from-hidden-across.js';
export {
  type LogitsBatch,
  type PolicyLossFromLogitsBackwardOptions,
  type PolicyLossFromLogitsOptions,
  type PolicyLossFromLogitsResult,
  policyLossFromLogits,
  policyLossFromLogitsBackward,
  type SavedLogits,
} from './policy-loss-from-logits.js';
export {
  type GroupStats,
  mergeStats,
  type PolicyLossStats,
  type PolicyLossSums,
} from './policy-loss-stats.js';
export type { ResponseBatch } from './response-batch.js';
export { type AddRmsNormResult, addRmsNorm, type RmsNormOptions, rmsNorm } from './rms-norm.js';
export { type RopeOptions, rope, ropeTable } from './rope.js';
export { type SamplingOptions, type SamplingResult, sampling } from './sampling.js';
export type { SequenceScales } from './sequence-scales.js';
export {
  type AttentionState,
  lseToLog2,
  type MergeOptions,
  mergeAttentionStates,
  type RunnablePlan,
  type SparsePrefillBackwardOptions,
  type SparsePrefillGradients,
  type SparsePrefillOptions,
  type SparsePrefillResult,
  type SparsePrefillSaved,
  sparsePrefill,
  sparsePrefillBackward,
} from './sparse-prefill.js';
export {
  type RebalancedState,
  type RebalanceOptions,
  rebalanceAttention,
} from './sparse-prefill-rebalance.js';
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
export { type WriteRowsOptions, writeRows } from './write-rows.js';
