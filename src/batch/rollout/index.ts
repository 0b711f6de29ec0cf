/** Scheduling of rollouts by length. */
export {
  type ControllerOptions,
  RolloutController,
  type RolloutMetrics,
  type RolloutPrompt,
  type UpdateBatch,
} from './controller.js';
export type { Engine, EngineEvent, PartialOutput } from './engine.js';
export type { RolloutEntry } from './entry.js';
export { SimulatedEngine, type SimulatedEngineOptions } from './simulated-engine.js';
export type { RolloutState, SavedEntry } from './state.js';
