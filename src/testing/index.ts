export { customSurrogate, type CustomSurrogateConfig, type CustomSurrogateLoss, type Surrogate } from './custom-surrogate.js';
export { gradCheck, type GradCheckOptions } from './grad-check.js';
export { policyLossEquation, policyLossEquationGradient, type EquationLoss, type EquationScales } from './policy-loss-equation.js';
export { policyLossFromLogitsReference, policyLossReference, type CustomSurrogate, type PolicyLossFromLogitsReference, type PolicyLossInputs, type PolicyLossReference } from './policy-loss.js';
export { type AttentionInputs, type AttentionReference, type AttentionReferenceOptions, varlenAttentionReference } from './varlen-attention.js';
