export { type AlignOptions, alignRound, type RoundDecision, type RoundHeader } from '../dist/align.js';
export type { LossScaleOptions, StepInfo } from '../dist/step-info.js';
export { lossScale } from '../dist/step-info.js';
export { DynamicBatcher, type Step } from './batcher.js';
export { type FittedSteps, fitToSteps } from './fit.js';
export { groupWindow } from './grouping.js';
export type { Budget, LimitOptions, Limits } from './limits.js';
export type { BatcherMetrics, RoundMetrics } from './metrics.js';
export type {
  BatcherOptions,
  DroppedSample,
  GroupingPolicy,
  OutlierPolicy,
  WindowSample,
} from './options.js';
export {
  type CollateOptions,
  collatePacked,
  type PackedBatch,
  type PackedValues,
  packRows,
  type ResponseRows,
  transferList,
  unpack,
} from './pack.js';
export * from './packing/index.js';
export { collatePadded, type PaddedBatch } from './pad.js';
export { type MapModule, type ParallelMapOptions, parallelMap } from './parallel-map.js';
export * from './rollout/index.js';
export {
  IGNORE,
  type LabelConvention,
  type Sample,
  type SampleId,
  type SharedPromptSample,
  type SharedResponse,
} from './sample.js';
export type { OpenableSource, Source } from './source.js';
export { type BatcherState, redistributeStates } from './state.js';
export type { GroupOptions } from './window-view.js';
