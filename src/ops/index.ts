export {
  type SavedForBackward,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionGradients,
  type VarlenAttentionOptions,
  type VarlenAttentionResult,
  varlenAttention,
  varlenAttentionBackward,
} from './varlen-attention.js';
