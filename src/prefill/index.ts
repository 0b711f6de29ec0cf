export {
  type CompressedTokens,
  type CompressVisualTokensOptions,
  compressVisualTokens,
} from '../ops/compress-visual-tokens.js';
export {
  type AttentionState,
  lseToLog2,
  type MergeOptions,
  mergeAttentionStates,
  type SparsePrefillBackwardOptions,
  type SparsePrefillGradients,
  type SparsePrefillOptions,
  type SparsePrefillResult,
  type SparsePrefillSaved,
  sparsePrefill,
  sparsePrefillBackward,
} from '../ops/sparse-prefill.js';
export {
  type RebalancedState,
  type RebalanceOptions,
  rebalanceAttention,
} from '../ops/sparse-prefill-rebalance.js';
export {
  type HandoverTimes,
  minCloudTokens,
  type SegmentBiasOptions,
  segmentBias,
  segmentKeyBias,
} from './companions.js';
export {
  type LayerConfig,
  loadPatternConfig,
  type PatternConfig,
  type PatternConfigOptions,
  writeMinferenceConfig,
  writePatternConfig,
} from './config.js';
export { findCloudTokens, type Handover, type HandoverSetup, simulateHandover } from './handover.js';
export type { ModalityLayout, ModalityRun } from './modality.js';
export type {
  AShapePattern,
  BlockMaskPattern,
  BlockSparsePattern,
  CellGridPattern,
  DensePattern,
  FixedVerticalSlashPattern,
  GridPattern,
  HeadPattern,
  PairBoundaryPattern,
  QBoundaryPattern,
  Select,
  SlashCoord,
  SparseTransformerPattern,
  TriShapePattern,
  UnionPattern,
  VerticalSlashPattern,
} from './pattern.js';
export {
  type HeadStats,
  type PlanIndices,
  type PrefillConfig,
  PrefillPlan,
  type PrefillPlanData,
  type PrefillPlanOptions,
  type PrefillStats,
  planPrefill,
  prefillWorkspaceBytes,
  type RecallGuarantee,
  type WorkspaceShape,
} from './plan.js';
export { attentionMass, type RefineOptions, refinePrompt } from './refine.js';
export {
  type Capture,
  type SearchedHead,
  type SearchOptions,
  type SearchResult,
  searchPatterns,
} from './search.js';
export type { Objective, Tried } from './search-head.js';
export { deserializePlan, serializePlan } from './serialize.js';
export type { PatternSummary } from './summary.js';
export { type SynthHead, type SynthKind, type SynthOptions, synthHead } from './synthetic.js';
