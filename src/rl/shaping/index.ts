export type { PredicateSymmetry } from './cdl.js';
export {
  type CdlDescription,
  type CdlMatchingOptions,
  type CdlMatchingReward,
  canonicalPredicate,
  cdlMatchingReward,
  type PredicateMatch,
} from './cdl-matching.js';
export { type ChunkRule, type ChunkShares, chunkLabels, expandChunks, successShares } from './chunks.js';
export {
  type Drawing,
  type DrawingOptions,
  type DrawingResponse,
  type DrawingReward,
  type DrawingTurns,
  drawingReward,
  meanRelativeAccuracy,
  parseDrawingTurns,
  type RelativeAccuracyOptions,
} from './drawing.js';
export {
  type FactParts,
  factReward,
  type ReasoningStepOptions,
  reasoningSteps,
  type TaggedAnswer,
  taggedAnswer,
} from './fact.js';
export { type GeneratorOptions, generatorRewards, type SolverFeedback } from './generator.js';
export { type NoveltyOptions, noveltyRewards, perStep, type RolloutSums, sumRollouts } from './novelty.js';
export { maskTruncated, type OverlongOptions, overlongPenalty } from './overlong.js';
export { type TemporalAnswers, type TemporalOptions, temporalBonus } from './temporal.js';
export { ocrAccuracy, rougeL } from './text-similarity.js';
export { type ThinkingScores, type TrustedRewards, type TrustOptions, trustRewards } from './trust.js';
export { type UncertaintyCounts, uncertaintyMarkers } from './uncertainty.js';
