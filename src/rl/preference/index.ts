export {
  type DpoOptions,
  dpoFromSums,
  dpoLoss,
  type PairLoss,
  type PairStats,
  type PreferencePairs,
  type SequenceSums,
} from './dpo.js';
export { type GumbelOptions, gumbelTopK } from './gumbel-top-k.js';
export {
  progressiveMask,
  type StepDifficultyOptions,
  type StepLayout,
  stepDifficulty,
  type WeightedNllOptions,
  type WeightedTokens,
  weightedNll,
} from './keypoint.js';
export {
  type ListwiseOptions,
  listwiseFromScores,
  listwiseLoss,
  type PackedListwiseOptions,
  type PreferenceLists,
} from './listwise.js';
export {
  type CurriculumInput,
  type CurriculumOptions,
  type CurriculumStage,
  progressiveSchedule,
} from './progressive-schedule.js';
export {
  type RecommendationBatch,
  type RecommendationLoss,
  type RecommendationOptions,
  recommendationLoss,
} from './recommendation.js';
export type { PackedLogprobs } from './segments.js';
