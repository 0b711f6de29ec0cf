import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type AdvantageInput,
  type AdvantageOptions,
  type Advantages,
  activeLengths,
  estimateAdvantages,
  groupAdvantages,
  keepSequences,
  tokenReturns,
} from '../../../src/rl/index.js';
import { thrown } from '../../support/thrown.js';
import * as e1 from '../worked-example.js';

const f64 = (...values: number[]): Float64Array => Float64Array.from(values);
const i32 = (...values: number[]): Int32Array => Int32Array.from(values);

function expectClose(got: ArrayLike<number>, expected: readonly number[], tolerance: number): void {
  expect(got.length).toBe(expected.length);
  expected.forEach((value, i) => {
    expect(Math.abs(got[i] - value), `at ${i}: ${got[i]} is not ${value}`).toBeLessThanOrEqual(tolerance);
  });
}

function advantages(input: AdvantageInput, options: AdvantageOptions): Float32Array {
  return estimateAdvantages(input, options).advantages;
}

describe('worked example: rewards 1, 0 | 0.5, 1 and an answer without tokens', () => {
  const input = {
    rewards: e1.rewards,
    groupIds: e1.groupIds,
    cuSeqlens: e1.cuSeqlens,
    lossMask: e1.lossMask,
  };
  test.each([
    ['grpo', [0.7071058, -0.7071058, -0.7071048, 0.7071048]],
    ['grpo-nostd', [0.5, -0.5, -0.25, 0.25]],
    ['grpo-batchstd', [1.044464, -1.044464, -0.522232, 0.522232]],
    ['rloo', [1, -1, -0.5, 0.5]],
    ['opo', [0.6, -0.4, -0.375, 0.125]],
  ] as const)('%s', (estimator, expected) => {
    const result = estimateAdvantages(input, { estimator });
    expectClose(result.advantages, [...expected, 0], 1.1e-6);
    expect(result).toMatchObject({ per: 'sequence', zeroStdGroups: 0, singletonGroups: 0, unscored: 0 });
    expect([...result.keep]).toEqual([1, 1, 1, 1, 1]);
  });
});

describe('values that public tests of other programs state', () => {
  const rewards = f64(6, 3, 9, 12, 1);
  const groupIds = i32(0, 0, 1, 1, 2);

  test('leave-one-out', () => {
    expect([...groupAdvantages(rewards, groupIds, { estimator: 'rloo' })]).toEqual([3, -3, -3, 3, 0]);
  });

  test('difference to the mean', () => {
    const got = groupAdvantages(rewards, groupIds, { estimator: 'grpo-nostd' });
    expect([...got]).toEqual([1.5, -1.5, -1.5, 1.5, 0]);
  });

  test('relative to the mean', () => {
    const got = groupAdvantages(rewards, groupIds, { estimator: 'maxrl' });
    expectClose(got, [1.5 / 4.5, -1.5 / 4.5, -1.5 / 10.5, 1.5 / 10.5, 0], 1e-6);
  });

  test('returns step over tokens outside the mask', () => {
    const layout = { cuSeqlens: i32(0, 5), lossMask: Uint8Array.of(1, 1, 0, 0, 1) };
    expect([...tokenReturns(layout, f64(0, 0, 0, 0, 2), { gamma: 0.5 })]).toEqual([0.5, 1, 0, 0, 2]);
  });
});

describe('the other estimators, by hand', () => {
  const two = { cuSeqlens: i32(0, 3, 5), lossMask: Uint8Array.of(1, 0, 1, 1, 1) };

  test('passk rewards the best answer by its lead over the second', () => {
    const rewards = f64(1, 4, 3, 4, 2, 2);
    const sigma = Math.sqrt((4 + 1 + 0 + 1) / 3);
    const got = groupAdvantages(rewards.slice(0, 4), i32(5, 5, 5, 5), { estimator: 'passk' });
    expectClose(got, [0, (4 - 4) / sigma, 0, 0], 1e-6);
    const lead = groupAdvantages(f64(1, 3, 4), i32(0, 0, 0), { estimator: 'passk' });
    expectClose(lead, [0, 0, 1 / Math.sqrt((25 / 9 + 1 / 9 + 16 / 9) / 2)], 1e-5);
  });

  test('passk takes the first of two best answers when a third gives spread', () => {
    const eps = 0.5;
    const tie = groupAdvantages(f64(0, 4, 4), i32(0, 0, 0), { estimator: 'passk', eps });
    expect([...tie]).toEqual([0, 0, 0]);
  });

  test('reinforce is the reward', () => {
    expect([...groupAdvantages(f64(2, -1), i32(0, 0), { estimator: 'reinforce' })]).toEqual([2, -1]);
  });

  test('reinforce-pp whitens returns over active tokens', () => {
    const got = advantages({ ...two, rewards: f64(2, 1) }, { estimator: 'reinforce-pp', gamma: 0.5 });
    // Returns 1, -, 2, 0.5, 1: mean 1.125, variance 1.1875 / 3.
    const scale = 1 / Math.sqrt((0.015625 + 0.765625 + 0.390625 + 0.015625) / 3 + 1e-8);
    expectClose(got, [-0.125 * scale, 0, 0.875 * scale, -0.625 * scale, -0.125 * scale], 1e-6);
  });

  test('reinforce-pp reads rewards of tokens too', () => {
    const tokenRewards = f64(0, 9, 2, 0, 1); // 9 is masked
    const same = advantages({ ...two, tokenRewards }, { estimator: 'reinforce-pp', gamma: 0.5 });
    expect([...same]).toEqual([
      ...advantages({ ...two, rewards: f64(2, 1) }, { estimator: 'reinforce-pp', gamma: 0.5 }),
    ]);
  });

  test('reinforce-pp-baseline whitens differences over active tokens, not over answers', () => {
    const input = { rewards: f64(1, 0, 0), groupIds: i32(0, 0, 0), lengths: i32(3, 1, 1) };
    const got = advantages(input, { estimator: 'reinforce-pp-baseline' });
    const mean = (3 * (2 / 3) - 1 / 3 - 1 / 3) / 5;
    const deviations = [2 / 3 - mean, -1 / 3 - mean];
    const variance = (3 * deviations[0] ** 2 + 2 * deviations[1] ** 2) / 4;
    const expected = [deviations[0], deviations[1], deviations[1]].map((d) => d / Math.sqrt(variance + 1e-8));
    expectClose(got, expected, 1e-6);
  });

  test('gdpo normalises each reward by itself before it weighs them', () => {
    const input = {
      rewardComponents: [f64(1, 0), f64(100, 300)],
      groupIds: i32(0, 0),
      lengths: i32(2, 2),
    };
    // 0.7071 (1, -1) and 0.7071 (-1, 1): weights 3 and 1 leave 2 * 0.7071 (1, -1), then whitened.
    const got = advantages(input, { estimator: 'gdpo', weights: [3, 1] });
    expectClose(got, [Math.sqrt(3 / 4), -Math.sqrt(3 / 4)], 1e-5);
    const even = estimateAdvantages(input, { estimator: 'gdpo' });
    expectClose(even.advantages, [0, 0], 1e-1);
    expect(even.zeroStdGroups).toBe(0);
  });

  test('remax subtracts the greedy reward from every return', () => {
    const got = advantages(
      { ...two, rewards: f64(2, 1), greedyRewards: f64(0.5, 1.5) },
      { estimator: 'remax' },
    );
    expect([...got]).toEqual([1.5, 0, 1.5, -0.5, -0.5]);
  });

  test('gae is lambda-weighted temporal differences, stepping over the mask', () => {
    const input = { ...two, rewards: f64(2, 1), values: f64(0.5, 99, 1, 0.25, 0.5) };
    const options = { estimator: 'gae', gamma: 0.9, lambda: 0.5, whiten: false } as const;
    const last = 2 - 1;
    const first = 0.9 * 1 - 0.5 + 0.45 * last;
    const other = 1 - 0.5;
    const expected = [first, 0, last, 0.9 * 0.5 - 0.25 + 0.45 * other, other];
    const result = estimateAdvantages(input, options);
    expectClose(result.advantages, expected, 1e-6);
    expectClose(
      result.returns!,
      expected.map((a, t) => (t === 1 ? 0 : a + input.values[t])),
      1e-6,
    );
    const whitened = advantages(input, { ...options, whiten: true });
    const active = [0, 2, 3, 4].map((t) => whitened[t]);
    expect(active.reduce((a, b) => a + b, 0)).toBeCloseTo(0, 6);
    expect(active.reduce((a, b) => a + b * b, 0) / 3).toBeCloseTo(1, 6);
  });

  test('gae with lambda 1 and no critic is the return', () => {
    const values = new Float64Array(5);
    const input = { ...two, rewards: f64(2, 1), values };
    const got = advantages(input, { estimator: 'gae', gamma: 0.5, lambda: 1, whiten: false });
    expect([...got]).toEqual([...tokenReturns(two, f64(0, 0, 2, 0, 1), { gamma: 0.5 })]);
  });

  test('otb weighs the group at each position by the size of the gradient so far', () => {
    const cuSeqlens = i32(0, 2, 3);
    const logprobs = f64(Math.log(0.5), Math.log(0.25), Math.log(0.8));
    const sumSquaredProbs = f64(0.4, 0.3, 0.7);
    const input = { cuSeqlens, rewards: f64(1, 0), groupIds: i32(4, 4), logprobs, sumSquaredProbs };
    const got = advantages(input, { estimator: 'otb' });
    const w = [1 - 1 + 0.4, 0.4 + 1 - 0.5 + 0.3, 1 - 1.6 + 0.7];
    const baseline = (1 * w[0]) / (w[0] + w[2]);
    expectClose(got, [1 - baseline, 0, -baseline], 1e-6);
  });
});

describe('degenerate groups', () => {
  const single = { rewards: f64(3, 1, 2), groupIds: i32(0, 1, 1) };

  test.each([
    ['grpo', {}],
    ['grpo-nostd', {}],
    ['grpo-batchstd', {}],
    ['rloo', {}],
    ['maxrl', {}],
    ['opo', { lengths: i32(1, 1, 1) }],
    ['passk', {}],
  ] as const)('a single answer under %s gets 0, its reward, or an error', (estimator, more) => {
    const input = { ...single, ...more };
    const zero = estimateAdvantages(input, { estimator });
    expect(zero.advantages[0]).toBe(0);
    expect(zero).toMatchObject({ singletonGroups: 1, zeroStdGroups: 0 });
    expect(zero.advantages[2]).toBeGreaterThan(0);
    expect(advantages(input, { estimator, singleton: 'raw' })[0]).toBe(3);
    expect(thrown(() => advantages(input, { estimator, singleton: 'error' }))).toMatchObject({
      code: 'ERR_VARLEN_SINGLETON_GROUP',
    });
  });

  test('a single answer under otb gets 0, its return, or an error', () => {
    const input = {
      cuSeqlens: i32(0, 2),
      rewards: f64(3),
      groupIds: i32(0),
      logprobs: f64(-1, -1),
      sumSquaredProbs: f64(0.5, 0.5),
    };
    expect([...advantages(input, { estimator: 'otb' })]).toEqual([0, 0]);
    expect([...advantages(input, { estimator: 'otb', singleton: 'raw' })]).toEqual([3, 3]);
    expect(thrown(() => advantages(input, { estimator: 'otb', singleton: 'error' }))).toMatchObject({
      code: 'ERR_VARLEN_SINGLETON_GROUP',
    });
  });

  test('float noise in equal rewards is not spread', () => {
    const noisy = f64(0.1 + 0.2, 0.3, 0.3);
    expect(noisy[0]).not.toBe(noisy[1]);
    const result = estimateAdvantages({ rewards: noisy, groupIds: i32(0, 0, 0) }, { estimator: 'grpo' });
    expect([...result.advantages]).toEqual([0, 0, 0]);
    expect(result.zeroStdGroups).toBe(1);
    const large = f64(1e6, 1e6 + 0.5);
    expect([...groupAdvantages(large, i32(0, 0), { estimator: 'grpo', eps: 0 })]).toEqual([0, 0]);
    const apart = groupAdvantages(f64(0.3, 0.3 + 2e-6), i32(0, 0), { estimator: 'grpo-nostd' });
    expect(apart[1]).toBeGreaterThan(0);
  });

  test('one flat group does not flatten the others', () => {
    const rewards = f64(1, 1, 0, 1);
    const result = estimateAdvantages({ rewards, groupIds: i32(0, 0, 1, 1) }, { estimator: 'grpo' });
    expectClose(result.advantages, [0, 0, -Math.SQRT1_2, Math.SQRT1_2], 2e-6);
    expect(result.zeroStdGroups).toBe(1);
    expect([...result.keep]).toEqual([1, 1, 1, 1]);
  });

  test('groups without spread can leave the loss and its denominators', () => {
    const input = { rewards: f64(1, 1, 0, 1), groupIds: i32(0, 0, 1, 1) };
    const { keep } = estimateAdvantages(input, { estimator: 'grpo', maskZeroStdGroups: true });
    expect([...keep]).toEqual([0, 0, 1, 1]);
    const layout = { cuSeqlens: i32(0, 2, 4, 6, 8) };
    const lossMask = keepSequences(layout, keep);
    expect([...activeLengths({ ...layout, lossMask })]).toEqual([0, 0, 2, 2]);
  });

  test('an answer that was not scored poisons nobody', () => {
    const input = { rewards: f64(1, Number.NaN, 0), groupIds: i32(0, 0, 0) };
    const masked = estimateAdvantages(input, { estimator: 'grpo' });
    expectClose(masked.advantages, [Math.SQRT1_2, 0, -Math.SQRT1_2], 2e-6);
    expect(masked.unscored).toBe(1);
    expect([...masked.keep]).toEqual([1, 0, 1]);
    expect([...estimateAdvantages(input, { estimator: 'grpo', unscored: 'keep' }).keep]).toEqual([1, 1, 1]);
    const tokens = { cuSeqlens: i32(0, 2, 4), rewards: f64(Number.NaN, 1) };
    const returns = advantages({ ...tokens }, { estimator: 'reinforce-pp', gamma: 0.5 });
    expectClose(returns, [0, 0, -Math.SQRT1_2, Math.SQRT1_2], 1e-6);
  });

  test('a group of unscored or inactive answers is nothing', () => {
    const input = { rewards: f64(Number.NaN, 5), groupIds: i32(0, 1), lengths: i32(2, 0) };
    const result = estimateAdvantages(input, { estimator: 'grpo', singleton: 'error' });
    expect([...result.advantages]).toEqual([0, 0]);
    expect(result).toMatchObject({ zeroStdGroups: 0, singletonGroups: 0, unscored: 1 });
  });

  test('an empty batch gives empty results', () => {
    const none = { rewards: f64(), groupIds: i32() };
    expect(advantages(none, { estimator: 'grpo' }).length).toBe(0);
    expect(advantages(none, { estimator: 'grpo-batchstd' }).length).toBe(0);
    const tokens = { cuSeqlens: i32(0), rewards: f64() };
    expect(advantages(tokens, { estimator: 'reinforce-pp' }).length).toBe(0);
  });

  test('everything masked gives zeros', () => {
    const input = { cuSeqlens: i32(0, 2), lossMask: Uint8Array.of(0, 0), rewards: f64(1), groupIds: i32(0) };
    expect([...advantages(input, { estimator: 'grpo' })]).toEqual([0]);
    const token = { cuSeqlens: i32(0, 2), lossMask: Uint8Array.of(0, 0), rewards: f64(1) };
    expect([...advantages(token, { estimator: 'reinforce-pp' })]).toEqual([0, 0]);
  });
});

describe('properties', () => {
  const cases = fc
    .array(
      fc.record({
        reward: fc.integer({ min: -40, max: 40 }).map((n) => n / 8),
        group: fc.constantFrom(-3, 0, 8),
        length: fc.nat(5),
      }),
      { minLength: 1, maxLength: 14 },
    )
    .map((rows) => ({
      rewards: Float64Array.from(rows, ({ reward }) => reward),
      groupIds: Int32Array.from(rows, ({ group }) => group),
      lengths: Int32Array.from(rows, ({ length }) => length),
    }));
  const relative = fc.constantFrom('grpo' as const, 'grpo-nostd' as const, 'rloo' as const, 'opo' as const);

  test('advantages of a group sum to 0; under opo they do so weighed by length', () => {
    fc.assert(
      fc.property(cases, relative, (input, estimator) => {
        const got = advantages(input, { estimator });
        const sums = new Map<number, number>();
        got.forEach((value, i) => {
          const weight = estimator === 'opo' ? input.lengths[i] : 1;
          sums.set(input.groupIds[i], (sums.get(input.groupIds[i]) ?? 0) + weight * value);
        });
        for (const sum of sums.values()) expect(Math.abs(sum)).toBeLessThan(1e-4);
      }),
    );
  });

  test('a constant added to all rewards of a group changes nothing', () => {
    fc.assert(
      fc.property(cases, relative, fc.integer({ min: -8, max: 8 }), (input, estimator, shift) => {
        const shifted = { ...input, rewards: input.rewards.map((reward) => reward + shift) };
        expectClose(advantages(shifted, { estimator }), [...advantages(input, { estimator })], 1e-5);
      }),
    );
  });

  test('permuting answers permutes advantages', () => {
    fc.assert(
      fc.property(cases, relative, fc.infiniteStream(fc.nat()), (input, estimator, picks) => {
        const order = [...input.rewards.keys()]
          .map((i) => [picks.next().value as number, i])
          .sort((a, b) => a[0] - b[0])
          .map(([, i]) => i);
        const permuted = {
          rewards: Float64Array.from(order, (i) => input.rewards[i]),
          groupIds: Int32Array.from(order, (i) => input.groupIds[i]),
          lengths: Int32Array.from(order, (i) => input.lengths[i]),
        };
        const got = advantages(input, { estimator });
        expectClose(
          advantages(permuted, { estimator }),
          order.map((i) => got[i]),
          1e-6,
        );
      }),
    );
  });

  test('what stands at masked positions changes nothing', () => {
    const junk = fc.constantFrom(Number.NaN, Infinity, -1e4, 1e4);
    fc.assert(
      fc.property(junk, (value) => {
        const base = { cuSeqlens: i32(0, 3, 5), lossMask: Uint8Array.of(1, 0, 1, 1, 1), groupIds: i32(0, 0) };
        const at = (...values: number[]): Float64Array =>
          Float64Array.from(values, (x, t) => (t === 1 ? value : x));
        const clean = at(0.1, 0.2, 0.3, 0.1, 0.4).map((x) => (Number.isFinite(x) ? x : 0));
        const dirty = at(0.1, 0.2, 0.3, 0.1, 0.4);
        for (const options of [
          { estimator: 'reinforce-pp' },
          { estimator: 'gae', lambda: 0.9 },
          { estimator: 'otb' },
        ] as const) {
          const run = (x: Float64Array): number[] => [
            ...advantages(
              {
                ...base,
                tokenRewards: x,
                ...(options.estimator === 'gae' && { values: x }),
                ...(options.estimator === 'otb' && { logprobs: x, sumSquaredProbs: x }),
              },
              options,
            ),
          ];
          expect(run(dirty)).toEqual(run(clean));
        }
      }),
    );
  });
});

describe('what is refused', () => {
  const ok = { rewards: f64(1, 0), groupIds: i32(0, 0) };
  const layout = { cuSeqlens: i32(0, 1, 2) };
  test.each<[string, object, object, string, string]>([
    ['an unknown estimator', {}, { estimator: 'ppo' }, 'ERR_VARLEN_OPTION', 'estimator'],
    ['an option of another estimator', {}, { estimator: 'rloo', eps: 1 }, 'ERR_VARLEN_INCOMPATIBLE', 'eps'],
    ['an unknown option', {}, { estimator: 'rloo', epsilon: 1 }, 'ERR_VARLEN_OPTION', 'epsilon'],
    ['an unknown input', { reward: f64(1) }, {}, 'ERR_VARLEN_OPTION', 'reward'],
    ['no groups', { groupIds: undefined }, {}, 'ERR_VARLEN_MISSING_INPUT', 'groupIds'],
    ['no rewards', { rewards: undefined }, {}, 'ERR_VARLEN_MISSING_INPUT', 'rewards'],
    ['a plain array of rewards', { rewards: [1, 0] }, {}, 'ERR_VARLEN_TYPE', 'rewards'],
    ['integers for rewards', { rewards: i32(1, 0) }, {}, 'ERR_VARLEN_DTYPE', 'rewards'],
    ['groups of another number', { groupIds: i32(0) }, {}, 'ERR_VARLEN_SHAPE', 'groupIds'],
    ['an infinite reward', { rewards: f64(1, Infinity) }, {}, 'ERR_VARLEN_NON_FINITE', 'rewards[1]'],
    ['lengths twice', { ...layout, lengths: i32(1, 1) }, {}, 'ERR_VARLEN_INCOMPATIBLE', 'lengths'],
    ['a mask without offsets', { lossMask: Uint8Array.of(1) }, {}, 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens'],
    ['a negative length', { lengths: i32(1, -1) }, {}, 'ERR_VARLEN_RANGE', 'lengths[1]'],
    ['no lengths for opo', {}, { estimator: 'opo' }, 'ERR_VARLEN_MISSING_INPUT', 'lengths'],
    ['token rewards for grpo', { tokenRewards: f64(1, 1) }, {}, 'ERR_VARLEN_INCOMPATIBLE', 'tokenRewards'],
    [
      'rewards twice',
      { ...layout, tokenRewards: f64(1, 1) },
      { estimator: 'reinforce-pp' },
      'ERR_VARLEN_INCOMPATIBLE',
      'tokenRewards',
    ],
    [
      'two infinite token rewards',
      {
        ...layout,
        cuSeqlens: i32(0, 2),
        rewards: undefined,
        groupIds: undefined,
        tokenRewards: f64(Infinity, -Infinity),
      },
      { estimator: 'reinforce-pp' },
      'ERR_VARLEN_NON_FINITE',
      'tokenRewards[0]',
    ],
    [
      'plain rewards for gdpo',
      { lengths: i32(1, 1) },
      { estimator: 'gdpo' },
      'ERR_VARLEN_INCOMPATIBLE',
      'rewards',
    ],
    [
      'no components',
      { rewards: undefined, rewardComponents: [], lengths: i32(1, 1) },
      { estimator: 'gdpo' },
      'ERR_VARLEN_TYPE',
      'rewardComponents',
    ],
    [
      'weights of another number',
      { rewards: undefined, rewardComponents: [f64(1, 0)], lengths: i32(1, 1) },
      { estimator: 'gdpo', weights: [1, 2] },
      'ERR_VARLEN_SHAPE',
      'weights',
    ],
    ['a critic that is missing', layout, { estimator: 'gae' }, 'ERR_VARLEN_MISSING_INPUT', 'values'],
    [
      'a critic of another length',
      { ...layout, values: f64(1) },
      { estimator: 'gae' },
      'ERR_VARLEN_SHAPE',
      'values',
    ],
    [
      'a critic that is NaN',
      { ...layout, values: f64(1, Number.NaN) },
      { estimator: 'gae' },
      'ERR_VARLEN_NON_FINITE',
      'values[1]',
    ],
    [
      'greedy rewards that are missing',
      layout,
      { estimator: 'remax' },
      'ERR_VARLEN_MISSING_INPUT',
      'greedyRewards',
    ],
    [
      'a discount above 1',
      { ...layout },
      { estimator: 'reinforce-pp', gamma: 1.5 },
      'ERR_VARLEN_RANGE',
      'gamma',
    ],
    ['a negative eps', {}, { eps: -1 }, 'ERR_VARLEN_RANGE', 'eps'],
    [
      'maxrl with a mean of 0',
      { rewards: f64(1, -1) },
      { estimator: 'maxrl' },
      'ERR_VARLEN_RANGE',
      'rewards (group of sequence 0)',
    ],
    [
      'whitening one token',
      { cuSeqlens: i32(0, 1), rewards: f64(1), groupIds: undefined },
      { estimator: 'reinforce-pp' },
      'ERR_VARLEN_WHITEN_SINGLE',
      'advantages',
    ],
  ])('%s', (_name, more, options, code, argument) => {
    const input = Object.fromEntries(
      Object.entries({ ...ok, ...more }).filter(([, value]) => value !== undefined),
    );
    const error = thrown(() => estimateAdvantages(input, { estimator: 'grpo', ...options } as never));
    expect(error).toMatchObject({ code, details: { op: 'estimateAdvantages', argument } });
  });
});

test('results are float32, rounded once', () => {
  const result: Advantages = estimateAdvantages(
    { rewards: f64(1, 0, 0), groupIds: i32(0, 0, 0) },
    { estimator: 'grpo-nostd' },
  );
  expect([...result.advantages]).toEqual([2 / 3, -1 / 3, -1 / 3].map(Math.fround));
});
