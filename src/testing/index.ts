export {
  type AttentionInputs,
  type AttentionReference,
  type AttentionReferenceOptions,
  varlenAttentionReference,
} from './varlen-attention.js';
