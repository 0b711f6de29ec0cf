export {
  type AttentionState,
  lseToLog2,
  type MergeOptions,
  mergeAttentionStates,
  type RunnablePlan,
  type SparsePrefillOptions,
  type SparsePrefillResult,
  sparsePrefill,
} from './sparse-prefill.js';
export {
  type SavedForBackward,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionGradients,
  type VarlenAttentionOptions,
  type VarlenAttentionResult,
  varlenAttention,
  varlenAttentionBackward,
} from './varlen-attention.js';
