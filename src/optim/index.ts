export {
  AdamW,
  type AdamWOptions,
  type AdamWState,
  type ParamGroup,
  type SavedAdamWState,
  type StepOptions,
} from './adamw.js';
export { clipGradNorm } from './clip-grad-norm.js';
export {
  constant,
  cosineDecay,
  type DecayOptions,
  linearDecay,
  linearWarmup,
  type Schedule,
  type WsdOptions,
  wsd,
} from './schedules.js';
export {
  fitSmoothness,
  type SmoothnessRecord,
  SuboptimalityWarmup,
  type SuboptimalityWarmupOptions,
  type SuboptimalityWarmupState,
} from './suboptimality-warmup.js';
