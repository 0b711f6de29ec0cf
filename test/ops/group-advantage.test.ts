import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { groupAdvantage, groupAdvantages, scope, Tensor } from '../../src/index.js';
import { groupAdvantageReference } from '../../src/testing/index.js';
import { device } from '../support/attention.js';
import { countTensors, expectLate, expectRefused, read, values, wrong } from '../support/ops.js';

countTensors();

const OP = 'groupAdvantage';
const ids = Int32Array.of(0, 0, 1, 1, 1);
const rewards = (): Tensor => values([5], 1, 0, 0.5, 1, 0);

describe('the worked batch', () => {
  const near = Math.SQRT1_2 - 1e-6; // eps is added to the deviation
  test.each([
    ['grpo', [near, -near, -near, near, 0]],
    ['grpo-nostd', [0.5, -0.5, -0.25, 0.25, 0]],
    ['grpo-batchstd', [1.044464, -1.044464, -0.522232, 0.522232, 0]],
    ['rloo', [1, -1, -0.5, 0.5, 0]],
    ['opo', [0.6, -0.4, -0.375, 0.125, 0]],
  ] as const)('gives %s', (estimator, want) => {
    scope(() => {
      const lengths = Int32Array.of(2, 3, 1, 3, 0);
      const got = read(groupAdvantage(rewards(), ids, { estimator, lengths }));
      want.forEach((value, i) => {
        expect(got[i]).toBeCloseTo(value, 5);
      });
    });
  });
});

describe.each(['grpo', 'grpo-nostd', 'grpo-batchstd', 'rloo', 'passk'] as const)('%s', (estimator) => {
  test('agrees with groupAdvantages on the host, whatever the groups and wherever scores are missing', () => {
    const answer = fc.record({
      reward: fc.oneof(
        { weight: 5, arbitrary: fc.double({ min: -3, max: 3, noNaN: true }) },
        { weight: 2, arbitrary: fc.constantFrom(0, 1) },
        { weight: 1, arbitrary: fc.constant(Number.NaN) },
      ),
      group: fc.constantFrom(-7, 0, 1, 65536, 2 ** 31 - 1),
    });
    fc.assert(
      fc.property(
        fc.array(answer, { minLength: 1, maxLength: 40 }),
        fc.constantFrom('zero' as const, 'raw' as const),
        (answers, singleton) => {
          scope(() => {
            const scores = Float32Array.from(answers, ({ reward }) => reward);
            const groups = Int32Array.from(answers, ({ group }) => group);
            const want = groupAdvantages(scores, groups, { estimator, singleton });
            const plain = groupAdvantageReference(scores, groups, { estimator, singleton });
            plain.forEach((value, i) => {
              expect(want[i]).toBeCloseTo(value, 5);
            });
            const onDevice = Tensor.from(groups, { device });
            const tensor = Tensor.from(scores, { device });
            const got = read(groupAdvantage(tensor, onDevice, { estimator, singleton }));
            const largest = want.reduce((a, b) => Math.max(a, Math.abs(b)), 1);
            got.forEach((value, i) => {
              expect(Math.abs(value - want[i])).toBeLessThanOrEqual(2e-7 * largest);
            });
          });
        },
      ),
    );
  });
});

test('maxrl divides by the mean of the group', () => {
  scope(() => {
    const got = read(
      groupAdvantage(values([5], 6, 3, 9, 12, 1), Int32Array.of(0, 0, 1, 1, 2), { estimator: 'maxrl' }),
    );
    [1.5 / 4.5, -1.5 / 4.5, -1.5 / 10.5, 1.5 / 10.5, 0].forEach((value, i) => {
      expect(got[i]).toBeCloseTo(value, 6);
    });
  });
});

test('a result goes into the tensor that the caller brings', () => {
  scope(() => {
    const out = Tensor.empty([5], { dtype: 'float32', device });
    expect(groupAdvantage(rewards(), ids, { out })).toBe(out);
    expect(read(out)[0]).toBeCloseTo(Math.SQRT1_2, 4);
  });
});

test('refuses what it cannot use, at the call and at the read', async () => {
  const refused = (
    code: Parameters<typeof expectRefused>[1],
    argument: string,
    options: object,
    groups: unknown = ids,
  ): void =>
    expectRefused(() => scope(() => groupAdvantage(rewards(), wrong(groups), options)), code, argument, OP);
  refused('ERR_VARLEN_OPTION', 'estimator', { estimator: 'gae' });
  refused('ERR_VARLEN_OPTION', 'singleton', { singleton: 'keep' });
  refused('ERR_VARLEN_OPTION', 'epsilon', { epsilon: 1 });
  refused('ERR_VARLEN_RANGE', 'eps', { eps: -1 });
  refused('ERR_VARLEN_MISSING_INPUT', 'lengths', { estimator: 'opo' });
  refused('ERR_VARLEN_SHAPE', 'groupIds', {}, new Int32Array(4));
  refused('ERR_VARLEN_SHAPE', 'lengths', { lengths: new Int32Array(4) });
  refused('ERR_VARLEN_DTYPE', 'groupIds', {}, new Float32Array(5));
  scope(() => {
    const tracked = Tensor.from(Float32Array.of(1, 2), { device, requiresGrad: true });
    expect(() => groupAdvantage(tracked, Int32Array.of(0, 0))).toThrow(/no backward/);
  });
  const single = scope(() => groupAdvantage(values([2], 1, 2), Int32Array.of(0, 1), { singleton: 'error' }));
  await expectLate(single, 'ERR_VARLEN_SINGLETON_GROUP', OP);
  const negative = scope(() =>
    groupAdvantage(values([2], -1, 0), Int32Array.of(0, 0), { estimator: 'maxrl' }),
  );
  await expectLate(negative, 'ERR_VARLEN_RANGE', OP);
});
