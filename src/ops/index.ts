export { type AddOptions, add } from './add.js';
export { type EmbeddingOptions, embedding } from './embedding.js';
export { type LinearOptions, linear } from './linear.js';
export { type AddRmsNormResult, addRmsNorm, type RmsNormOptions, rmsNorm } from './rms-norm.js';
export { type RopeOptions, rope, ropeTable } from './rope.js';
export { type SwigluOptions, swiglu } from './swiglu.js';
export {
  type SavedForBackward,
  type VarlenAttentionBackwardOptions,
  type VarlenAttentionGradients,
  type VarlenAttentionOptions,
  type VarlenAttentionResult,
  varlenAttention,
  varlenAttentionBackward,
} from './varlen-attention.js';
