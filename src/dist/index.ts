export type { AlignOptions, RoundDecision, RoundHeader } from './align.js';
export { alignRound } from './align.js';
export { broadcastTensors, GradientSync, type GradientSyncOptions } from './gradient-sync.js';
export { type InitOptions, init, type StoreOptions } from './init.js';
export { type LaunchEnd, type LaunchFailure, type LaunchOptions, launch } from './launch.js';
export { type LocalFault, type LocalOptions, localGroups } from './local-group.js';
export type {
  Backend,
  CollectiveArray,
  CollectiveOptions,
  FlightEntry,
  ProcessGroup,
  ReduceOp,
  ReducibleTensor,
} from './process-group.js';
export {
  joinSharedGroup,
  type SharedGroupHandle,
  type SharedGroupOptions,
  sharedGroupHandles,
} from './shared-group.js';
export { type SimFault, type SimOptions, simGroups } from './sim-group.js';
export type { LossScaleOptions, StepInfo } from './step-info.js';
export { lossScale } from './step-info.js';
export { VirtualClock } from './virtual-clock.js';
export { type CustomCollective, wrapGroup } from './wrap-group.js';
