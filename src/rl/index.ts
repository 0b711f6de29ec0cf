export {
  type Advantages,
  estimateAdvantages,
  estimateAdvantagesAcross,
  type GroupEstimator,
  groupAdvantages,
} from './advantages/estimate.js';
export type { AdvantageEstimator, AdvantageInput, AdvantageOptions } from './advantages/options.js';
export { tokenReturns } from './advantages/token-returns.js';
export { type AcrossOptions, type AllReduceSum, planAggregationAcross } from './plan/across.js';
export type { Aggregation } from './plan/aggregation.js';
export { activeLengths, keepSequences, type TokenLayout } from './plan/lengths.js';
export type { PlanInput, PlanOptions, ScopeOptions } from './plan/options.js';
export { type AggregationPlan, planAggregation } from './plan/plan.js';
export type { PlanTotals } from './plan/totals.js';
export type { VarianceLaw } from './plan/variance-law.js';
