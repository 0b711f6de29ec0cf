export {
  type CustomSurrogateConfig,
  type CustomSurrogateLoss,
  customSurrogate,
  type Surrogate,
} from './custom-surrogate.js';
export { type GradCheckOptions, gradCheck } from './grad-check.js';
export { groupAdvantageReference } from './group-advantage.js';
export {
  type CustomSurrogate,
  type PolicyLossFromHiddenReference,
  type PolicyLossFromLogitsReference,
  type PolicyLossInputs,
  type PolicyLossReference,
  policyLossFromHiddenReference,
  policyLossFromLogitsReference,
  policyLossReference,
} from './policy-loss.js';
export {
  type EquationLoss,
  type EquationScales,
  policyLossEquation,
  policyLossEquationGradient,
} from './policy-loss-equation.js';
export {
  type AttentionInputs,
  type AttentionReference,
  type AttentionReferenceOptions,
  varlenAttentionReference,
} from './varlen-attention.js';
