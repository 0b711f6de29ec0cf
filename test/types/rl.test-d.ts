import { describe, expectTypeOf, test } from 'vitest';
import {
  type Advantages,
  type AggregationPlan,
  type ClipRule,
  estimateAdvantages,
  groupAdvantages,
  loptiPasses,
  type PolicyLossConfig,
  planAggregation,
  planAggregationAcross,
  presets,
  type RatioLevel,
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
    expectTypeOf(config).toEqualTypeOf<PolicyLossConfig<'token'>>();
    expectTypeOf(config).toExtend<PolicyLossConfig>();
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

  type Compiles<Config> = Config extends PolicyLossConfig ? 'yes' : 'no';
  /** Some rule of a kind; the type has one member for both forms of DPPO. */
  type RuleOf<Kind> = Kind extends 'dppo-tv' | 'dppo-kl'
    ? { kind: Kind; deltaLow: number; deltaHigh: number }
    : Extract<ClipRule, { kind: Kind }>;
  /** Whether a level goes with a rule, for every pair of them. */
  type Legal = {
    [L in RatioLevel]: { [K in ClipRule['kind']]: Compiles<{ ratio: { level: L }; clip: RuleOf<K> }> };
  };

  test('the grid of levels and rules compiles where it is defined and nowhere else', () => {
    type Row<Yes extends ClipRule['kind']> = { [K in ClipRule['kind']]: K extends Yes ? 'yes' : 'no' };
    type Clipped = 'none' | 'ppo' | 'dual' | 'two-sided';
    expectTypeOf<Legal>().toEqualTypeOf<{
      none: Row<'none'>;
      token: Row<ClipRule['kind']>;
      sequence: Row<Clipped | 'gmpo'>;
      'sequence-token': Row<Clipped | 'cispo' | 'sapo' | 'dppo-tv' | 'dppo-kl'>;
    }>();
  });

  test('a rule may replace that of a recipe where it is one of its level', () => {
    const dual = { kind: 'dual', clipLow: 0.2, clipHigh: 0.2, dualClip: 3 } as const;
    const cispo = { kind: 'cispo', low: 0, high: 2 } as const;
    const kl = { kind: 'k2', coef: 0.1 } as const;
    const token: PolicyLossConfig = { ...presets.grpo().config, clip: cispo, kl };
    const sequence: PolicyLossConfig = { ...presets.gspo().config, clip: dual };
    const each: PolicyLossConfig = { ...presets.gspo({ level: 'sequence-token' }).config, clip: cispo };
    expectTypeOf([token, sequence, each]).toExtend<readonly PolicyLossConfig[]>();
    // @ts-expect-error CISPO has no form per answer
    const wrong: PolicyLossConfig = { ...presets.gspo().config, clip: cispo };
    // @ts-expect-error without a ratio there is nothing to clip
    const none: PolicyLossConfig = { ...presets.rloo().config, clip: dual };
    expectTypeOf([wrong, none]).toExtend<readonly PolicyLossConfig[]>();
  });

  test('a rollout replaces old log-probabilities only where there are some, and weighs nothing besides', () => {
    const clip = { kind: 'none' } as const;
    const bypass = { mode: 'bypass' } as const;
    const replaced: PolicyLossConfig = { ratio: { level: 'token' }, clip, rolloutCorrection: bypass };
    expectTypeOf(replaced).toExtend<PolicyLossConfig>();
    const onPolicy = { level: 'token', onPolicy: true } as const;
    // @ts-expect-error no old policy is left to replace
    const nothing: PolicyLossConfig = { ratio: onPolicy, clip, rolloutCorrection: bypass };
    const ratio = { level: 'token' } as const;
    // @ts-expect-error the same difference would be weighed twice
    const twice: PolicyLossConfig = { ratio, clip, rolloutCorrection: { mode: 'bypass', low: 0 } };
    expectTypeOf([nothing, twice]).toExtend<readonly PolicyLossConfig[]>();
  });
});
