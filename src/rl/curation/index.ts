export { type DynamicSample, type DynamicSamplingOptions, dynamicSampling } from './dynamic-sampling.js';
export {
  type HybridMode,
  type HybridModeOptions,
  type HybridPrompts,
  type HybridShares,
  hybridMode,
  hybridPrompts,
  type PromptVariants,
} from './hybrid-mode.js';
export { type ProcessScores, type ProfOptions, profFilter } from './prof.js';
export {
  type ReflectiveCandidates,
  type ReflectiveOptions,
  reflectiveRejection,
} from './reflective-rejection.js';
