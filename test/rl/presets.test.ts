import { describe, expect, test } from 'vitest';
import { readPolicyLossConfig } from '../../src/ops/policy-loss-config.js';
import { planAggregation, presets } from '../../src/rl/index.js';
import { thrown } from '../support/thrown.js';

const lengths = Int32Array.of(1, 2);
const groupIds = Int32Array.of(0, 0);

describe('known recipes', () => {
  test('what each chooses', () => {
    const ppo = (clipLow: number, clipHigh: number): object => ({ kind: 'ppo', clipLow, clipHigh });
    const token = { level: 'token' };
    const all = [
      [presets.grpo(), 'seq-mean-token-mean', { ratio: token, clip: ppo(0.2, 0.2) }, 'grpo'],
      [
        presets.drGrpo({ normConstant: 9 }),
        'seq-mean-token-sum-norm',
        { ratio: token, clip: ppo(0.2, 0.2) },
        'grpo-nostd',
      ],
      [presets.dapo(), 'token-mean', { ratio: token, clip: ppo(0.2, 0.28) }, 'grpo'],
      [
        presets.gspo(),
        'seq-mean-token-mean',
        { ratio: { level: 'sequence' }, clip: ppo(3e-4, 4e-4) },
        'grpo',
      ],
      [
        presets.gmpo(),
        'seq-mean-token-mean',
        { ratio: { level: 'sequence' }, clip: { kind: 'gmpo', clipLow: 0.4, clipHigh: 0.4 } },
        'grpo',
      ],
      [
        presets.sapo(),
        'seq-mean-token-mean',
        { ratio: token, clip: { kind: 'sapo', tauPositive: 1, tauNegative: 1.05 } },
        'grpo',
      ],
      [presets.cispo(), 'token-mean', { ratio: token, clip: { kind: 'cispo', low: 0, high: 1.28 } }, 'grpo'],
      [presets.rloo(), 'seq-mean-token-sum', { ratio: { level: 'none' }, clip: { kind: 'none' } }, 'rloo'],
      [presets.reinforcePlusPlus(), 'token-mean', { ratio: token, clip: ppo(0.2, 0.2) }, 'reinforce-pp'],
      [presets.deltaL({ normConstant: 9 }), 'delta-l', { ratio: token, clip: ppo(0.2, 0.3) }, 'grpo'],
      [
        presets.luspo(),
        'seq-mean-token-sum',
        { ratio: { level: 'sequence' }, clip: ppo(3e-4, 4e-4) },
        'grpo',
      ],
      [presets.vespo(), 'token-mean', { ratio: token, clip: { kind: 'vespo' } }, 'grpo'],
      [
        presets.dppo(),
        'token-mean',
        { ratio: token, clip: { kind: 'dppo-tv', deltaLow: 0.15, deltaHigh: 0.15, cap: 20 } },
        'grpo',
      ],
    ] as const;
    expect(all.length).toBe(Object.keys(presets).length);
    for (const [recipe, mode, config, estimator] of all) {
      expect(recipe.aggregation.mode).toBe(mode);
      expect(recipe.config).toEqual(config);
      expect(recipe.advantages.estimator).toBe(estimator);
      // Both consumers take it as it is.
      readPolicyLossConfig('policyLoss', recipe.config);
      planAggregation({ lengths, groupIds }, { aggregation: recipe.aggregation });
    }
  });

  test('options replace defaults', () => {
    expect(presets.dapo({ clipHigh: 0.3, klCoef: 0.01 }).config).toEqual({
      ratio: { level: 'token' },
      clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.3 },
      kl: { kind: 'k3', coef: 0.01 },
    });
    expect(presets.deltaL({ normConstant: 4, alpha: 1 }).aggregation).toEqual({
      mode: 'delta-l',
      alpha: 1,
      normConstant: 4,
    });
    expect(presets.gspo({ level: 'sequence-token' }).config.ratio).toEqual({ level: 'sequence-token' });
    expect(presets.reinforcePlusPlus({ baseline: true }).advantages).toEqual({
      estimator: 'reinforce-pp-baseline',
    });
    expect(presets.reinforcePlusPlus({ gamma: 0.9 }).advantages).toEqual({
      estimator: 'reinforce-pp',
      gamma: 0.9,
    });
    expect(presets.dppo({ divergence: 'kl' }).config.clip).toEqual({
      kind: 'dppo-kl',
      deltaLow: 0.05,
      deltaHigh: 0.05,
      cap: 20,
    });
    expect(presets.vespo({ positive: { k: 1, lambda: 2 } }).config.clip).toEqual({
      kind: 'vespo',
      positive: { k: 1, lambda: 2 },
    });
    expect(presets.rloo({ klCoef: 0.1 }).config.kl).toEqual({ kind: 'k3', coef: 0.1 });
  });

  test.each<[string, () => unknown, string]>([
    ['an unknown option', () => presets.grpo({ epsilon: 1 } as never), 'ERR_VARLEN_OPTION'],
    ['an option of another recipe', () => presets.grpo({ normConstant: 1 } as never), 'ERR_VARLEN_OPTION'],
    ['no constant', () => presets.drGrpo({} as never), 'ERR_VARLEN_MISSING_INPUT'],
    ['a constant of 0', () => presets.deltaL({ normConstant: 0 }), 'ERR_VARLEN_RANGE'],
    ['a negative clip', () => presets.dapo({ clipLow: -1 }), 'ERR_VARLEN_RANGE'],
    ['a negative KL', () => presets.gmpo({ klCoef: -1 }), 'ERR_VARLEN_RANGE'],
    ['an unknown level', () => presets.gspo({ level: 'token' as never }), 'ERR_VARLEN_OPTION'],
    ['crossed bounds', () => presets.cispo({ low: 2 }), 'ERR_VARLEN_RANGE'],
    ['a temperature of 0', () => presets.sapo({ tauPositive: 0 }), 'ERR_VARLEN_RANGE'],
    ['an unknown divergence', () => presets.dppo({ divergence: 'js' as never }), 'ERR_VARLEN_OPTION'],
    [
      'a discount with a baseline',
      () => presets.reinforcePlusPlus({ baseline: true, gamma: 1 }),
      'ERR_VARLEN_INCOMPATIBLE',
    ],
  ])('%s is refused', (_name, call, code) => {
    expect(thrown(call)).toMatchObject({ code });
  });
});
