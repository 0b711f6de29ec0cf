export type { AlignOptions, RoundDecision, RoundHeader } from './align.js';
export { alignRound } from './align.js';
export type {
  Backend,
  CollectiveArray,
  CollectiveOptions,
  FlightEntry,
  ProcessGroup,
  ReduceOp,
  ReducibleTensor,
} from './process-group.js';
export type { LossScaleOptions, StepInfo } from './step-info.js';
export { lossScale } from './step-info.js';
