export { type GradCheckOptions, gradCheck } from './grad-check.js';
export {
  type AttentionInputs,
  type AttentionReference,
  type AttentionReferenceOptions,
  varlenAttentionReference,
} from './varlen-attention.js';
