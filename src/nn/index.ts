export { type Attend, Attention, type LayerContext } from './attention.js';
export { Block, type Residual } from './block.js';
export { CausalLM, type CausalLMInput, type CreateOptions, type PlacementOptions } from './causal-lm.js';
export type { Architecture, CausalLMConfig, FullConfig } from './config.js';
export type { FloatDType } from './initialize.js';
export { Embedding, Linear, type Module, type NamedParameter, RMSNorm, SwiGLU } from './layers.js';
export type { PretrainedOptions } from './pretrained.js';
export { type RopeScaling, type RotaryFrequencies, rotaryFrequencies } from './rope-scaling.js';
export { RotaryEmbedding } from './rotary-embedding.js';
