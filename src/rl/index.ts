export {
  type ClipRule,
  type GroupStats,
  type KlConfig,
  type KlKind,
  mergeStats,
  type PolicyLossConfig,
  type PolicyLossStats,
  type PolicyLossSums,
  type PolicyLossTerms,
  type RatioConfig,
  type RatioLevel,
  type ResponseBatch,
  type RolloutCorrection,
  type SequenceScales,
} from '../ops/index.js';
export {
  type Advantages,
  estimateAdvantages,
  estimateAdvantagesAcross,
  type GroupEstimator,
  groupAdvantages,
} from './advantages/estimate.js';
export type {
  AdvantageEstimator,
  AdvantageInput,
  AdvantageOptions,
  BaselineOptions,
  ScoringOptions,
} from './advantages/options.js';
export { tokenReturns } from './advantages/token-returns.js';
export * from './curation/index.js';
export { type PromptedBatch, type ResponsesOfPrompted, responseBatchFromPrompted } from './from-prompted.js';
export { type AcrossOptions, type AllReduceSum, planAggregationAcross } from './plan/across.js';
export type { Aggregation } from './plan/aggregation.js';
export { activeLengths, keepSequences, type TokenLayout } from './plan/lengths.js';
export type { AggregationPlanOptions, PlanInput, ScopeOptions } from './plan/options.js';
export { type AggregationPlan, planAggregation } from './plan/plan.js';
export type { PlanTotals } from './plan/totals.js';
export type { VarianceLaw } from './plan/variance-law.js';
export * from './preference/index.js';
export {
  type ClipOptions,
  type NormOptions,
  type PenaltyOptions,
  presets,
  type Recipe,
} from './presets.js';
export type { Floats, ResponseArrays } from './response-arrays.js';
export { correctionMean, type RolloutWeights, rolloutWeights } from './rollout-correction.js';
export * from './shaping/index.js';
export { type AdvantageReweightingOptions, advantageReweighting } from './weights/advantage-reweighting.js';
export { composeTokenWeights } from './weights/compose.js';
export { type ClipCovOptions, clipCovMask, type KlCovOptions, klCovMask } from './weights/covariance.js';
export { type LoptiOptions, type LoptiPass, loptiPasses } from './weights/lopti.js';
export { type LowProbabilityOptions, lowProbabilityMask } from './weights/low-probability.js';
export { type OffPolicyOptions, offPolicySequenceMask } from './weights/off-policy.js';
export { type TopEntropyOptions, topEntropyMask, topEntropyMaskAcross } from './weights/top-entropy.js';
