export {
  type AttentionState,
  lseToLog2,
  type MergeOptions,
  mergeAttentionStates,
  type SparsePrefillOptions,
  type SparsePrefillResult,
  sparsePrefill,
} from '../ops/sparse-prefill.js';
export type { LayerConfig } from './config.js';
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
  type PlanOptions,
  type PrefillConfig,
  PrefillPlan,
  type PrefillPlanData,
  type PrefillStats,
  planPrefill,
  prefillWorkspaceBytes,
  type RecallGuarantee,
  type WorkspaceShape,
} from './plan.js';
export type { PatternSummary } from './summary.js';
