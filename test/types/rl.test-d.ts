import { describe, expectTypeOf, test } from 'vitest';
import {
  type Advantages,
  type AggregationPlan,
  estimateAdvantages,
  groupAdvantages,
  loptiPasses,
  type PolicyLossConfig,
  planAggregation,
  planAggregationAcross,
  presets,
  type SequenceScales,
} from '../../src/rl/index.js';
import { customSurrogate } from '../../src/testing/index.js';

declare const lengths: Int32Array;
declare const floats: Float32Array;

describe('the types of varlen/rl', () => {
  test('a plan is what the loss takes; planning alone does not wait, planning together does', () => {
    const input = { lengths };
    const aggregation = { mode: 'token-mean' } as const;
    expectTypeOf(planAggregation(input, { aggregation })).toEqualTypeOf<AggregationPlan>();
    expectTypeOf<AggregationPlan>().toExtend<SequenceScales>();
    const across = planAggregationAcross(input, { aggregation }, async (local) => local);
    expectTypeOf(across).toEqualTypeOf<Promise<AggregationPlan>>();
  });

  test('a mode takes its own fields, all of them and no others', () => {
    // @ts-expect-error alpha belongs to delta-l
    planAggregation({ lengths }, { aggregation: { mode: 'token-mean', alpha: 1 } });
    // @ts-expect-error delta-l needs a constant
    planAggregation({ lengths }, { aggregation: { mode: 'delta-l', alpha: 1 } });
    // @ts-expect-error inverse-variance needs a law
    planAggregation({ lengths }, { aggregation: { mode: 'inverse-variance', normConstant: 1 } });
    const law = { kind: 'iid', rho: 1 } as const;
    const iid = { mode: 'inverse-variance', normConstant: 1, law: { kind: 'ar1' } } as const;
    // @ts-expect-error an ar1 law needs rho
    planAggregation({ lengths }, { aggregation: iid });
    expectTypeOf(law).toExtend<{ kind: 'iid' }>();
    // @ts-expect-error lengths are an Int32Array
    planAggregation({ lengths: [1, 2] }, { aggregation: { mode: 'token-mean' } });
  });

  test('a scope takes its own fields', () => {
    const aggregation = { mode: 'token-mean' } as const;
    planAggregation({ lengths }, { aggregation, scope: 'rollout-batch', optimizerSteps: 4 });
    // @ts-expect-error a rollout batch needs its number of steps
    planAggregation({ lengths }, { aggregation, scope: 'rollout-batch' });
    // @ts-expect-error steps belong to a rollout batch
    planAggregation({ lengths }, { aggregation, optimizerSteps: 4 });
    // @ts-expect-error micro-batches belong to the micro-batch scope
    planAggregation({ lengths }, { aggregation, scope: 'optimizer-step', microBatches: 2 });
  });

  test('an estimator takes its own options', () => {
    const input = { rewards: floats, groupIds: lengths };
    expectTypeOf(estimateAdvantages(input, { estimator: 'rloo' })).toEqualTypeOf<Advantages>();
    // @ts-expect-error leave-one-out divides by no deviation
    estimateAdvantages(input, { estimator: 'rloo', eps: 1e-6 });
    // @ts-expect-error returns have no group to be single in
    estimateAdvantages(input, { estimator: 'reinforce-pp', singleton: 'raw' });
    // @ts-expect-error lambda belongs to gae
    estimateAdvantages(input, { estimator: 'reinforce-pp', lambda: 1 });
    // @ts-expect-error gae needs more than rewards and groups
    groupAdvantages(floats, lengths, { estimator: 'gae' });
    expectTypeOf(groupAdvantages(floats, lengths, { estimator: 'grpo' })).toEqualTypeOf<Float32Array>();
  });

  test('recipes give what the three calls of a step take', () => {
    const { aggregation, config, advantages } = presets.deltaL({ normConstant: 8192 });
    planAggregation({ lengths }, { aggregation });
    estimateAdvantages({ rewards: floats, groupIds: lengths }, advantages);
    expectTypeOf(config).toEqualTypeOf<PolicyLossConfig>();
    // @ts-expect-error Delta-L needs a constant
    presets.deltaL({ alpha: 1 });
    // @ts-expect-error CISPO has absolute bounds
    presets.cispo({ clipHigh: 0.28 });
  });

  test('two ways to split a pass, or a surrogate without a ratio, do not compile', () => {
    const batch = { cuSeqlens: lengths, oldLogprobs: floats };
    loptiPasses(batch, { portion: 0.3 });
    // @ts-expect-error a probability or a share
    loptiPasses(batch, { eta: 0.5, portion: 0.3 });
    const plan = {} as AggregationPlan;
    const rule = (x: number, a: number) => [x * a, a] as const;
    // @ts-expect-error level none has no ratio
    expectTypeOf(customSurrogate).toBeCallableWith(batch, plan, rule, { ratio: { level: 'none' } });
  });
});
