import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  dynamicSampling,
  type HybridMode,
  hybridMode,
  hybridPrompts,
  profFilter,
  reflectiveRejection,
} from '../../../src/rl/index.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('dynamicSampling', () => {
  const rewards = Float64Array.of(1, 0, 1, 0, 1, 1, 0.5, 0.5);
  const groupIds = Int32Array.of(9, 2, 9, 7, 2, 7, 4, 4);

  test('keeps groups whose rewards differ, in the order of their first member', () => {
    // 9: 1 1. 2: 0 1. 7: 0 1. 4: .5 .5.
    expect(dynamicSampling(rewards, groupIds, { groups: 2 })).toEqual({
      indices: Int32Array.of(1, 3, 4, 5),
      keptGroups: Int32Array.of(2, 7),
      spareGroups: new Int32Array(0),
      droppedGroups: Int32Array.of(9, 4),
      missing: 0,
      promptsToSample: 0,
    });
  });

  test('says how many groups are missing, and how many prompts those will take', () => {
    // Half of the groups could be kept: three more need six prompts.
    const { missing, promptsToSample } = dynamicSampling(rewards, groupIds, { groups: 5 });
    expect({ missing, promptsToSample }).toEqual({ missing: 3, promptsToSample: 6 });
    const none = dynamicSampling(Float64Array.of(1, 1), Int32Array.of(1, 1), { groups: 5 });
    expect(none).toMatchObject({ missing: 5, promptsToSample: 5, indices: new Int32Array(0) });
    const empty = dynamicSampling(new Float64Array(0), new Int32Array(0), { groups: 2 });
    expect(empty).toMatchObject({ missing: 2, promptsToSample: 2 });
  });

  test('keeps what is over for the next update', () => {
    const { keptGroups, spareGroups, indices } = dynamicSampling(rewards, groupIds, { groups: 1 });
    expect([keptGroups, spareGroups, indices]).toEqual([
      Int32Array.of(2),
      Int32Array.of(7),
      Int32Array.of(1, 4),
    ]);
  });

  test('takes float noise for no spread, at any size of reward', () => {
    const noisy = (base: number) => Float64Array.of(base, base * (1 + 1e-9), base * (1 - 1e-9));
    const group = Int32Array.of(1, 1, 1);
    for (const base of [0.1, 1, 1e6, -3]) {
      expect(dynamicSampling(noisy(base), group, { groups: 1 }).missing).toBe(1);
    }
    expect(dynamicSampling(Float64Array.of(0, 0, 2e-6), group, { groups: 1 }).missing).toBe(0);
  });

  test('counts no unscored answer: one score in a group has no spread', () => {
    const group = Int32Array.of(1, 1, 2, 2, 2);
    const sample = dynamicSampling(Float64Array.of(NaN, 1, NaN, 0, 1), group, { groups: 2 });
    expect(sample.keptGroups).toEqual(Int32Array.of(2));
    // The unscored answer of a kept group stays with it.
    expect(sample.indices).toEqual(Int32Array.of(2, 3, 4));
  });

  test('splits the groups in three parts, however they are ordered', () => {
    const row = fc.tuple(fc.constantFrom(0, 1, NaN), fc.integer({ min: -3, max: 3 }));
    fc.assert(
      fc.property(fc.array(row, { maxLength: 30 }), fc.integer({ min: 1, max: 5 }), (rows, groups) => {
        const ids = Int32Array.from(rows, ([, id]) => id);
        const sample = dynamicSampling(
          Float64Array.from(rows, ([reward]) => reward),
          ids,
          { groups },
        );
        const parts = [...sample.keptGroups, ...sample.spareGroups, ...sample.droppedGroups];
        expect(parts.sort()).toEqual([...new Set(ids)].sort());
        expect(sample.keptGroups.length + sample.missing).toBe(groups);
        const kept = new Set(sample.keptGroups);
        expect([...sample.indices]).toEqual([...ids.keys()].filter((i) => kept.has(ids[i])));
      }),
      numRuns(0.05),
    );
  });

  test('refuses no groups and ids of another length', () => {
    expect(code(() => dynamicSampling(rewards, groupIds, { groups: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => dynamicSampling(rewards, Int32Array.of(1), { groups: 1 }))).toBe('ERR_VARLEN_SHAPE');
  });
});

describe('hybridMode', () => {
  const draw = (seed: number, count: number, shares?: Record<HybridMode, number>) =>
    Array.from({ length: count }, (_, step) => hybridMode({ seed, step, ...(shares && { shares }) }));

  test('draws the modes at the published shares', () => {
    const modes = draw(3, 20_000);
    const share = (mode: HybridMode) => modes.filter((m) => m === mode).length / modes.length;
    // Four standard errors of a share of 0.75 in 20,000 draws: 0.012.
    expect(Math.abs(share('off-policy') - 0.17)).toBeLessThan(0.012);
    expect(Math.abs(share('on-policy-with-tips') - 0.08)).toBeLessThan(0.012);
    expect(Math.abs(share('on-policy') - 0.75)).toBeLessThan(0.012);
  });

  test('depends on the seed and the step only', () => {
    expect(draw(5, 50)).toEqual(draw(5, 50));
    expect(draw(5, 50)).not.toEqual(draw(6, 50));
    expect(hybridMode({ seed: 5, step: 49 })).toBe(draw(5, 50)[49]);
  });

  test('never draws a mode without a share', () => {
    const shares = { 'off-policy': 0.5, 'on-policy-with-tips': 0.5, 'on-policy': 0 };
    expect(new Set(draw(1, 200, shares))).toEqual(new Set(['off-policy', 'on-policy-with-tips']));
    const only = { 'off-policy': 0, 'on-policy-with-tips': 1, 'on-policy': 0 };
    expect(new Set(draw(1, 200, only))).toEqual(new Set(['on-policy-with-tips']));
  });

  test('samples and trains in different contexts off-policy only', () => {
    const prompt = { plain: 'Q', withTips: 'TQ' };
    expect(hybridPrompts('off-policy', prompt)).toEqual({ sample: 'TQ', update: 'Q' });
    expect(hybridPrompts('on-policy-with-tips', prompt)).toEqual({ sample: 'TQ', update: 'TQ' });
    expect(hybridPrompts('on-policy', prompt)).toEqual({ sample: 'Q', update: 'Q' });
  });

  test('off-policy, the ratio of the loss crosses contexts and corrects for them', () => {
    // A policy with one logit row per context. Answers come from the context with tips; weighted by the
    // ratio of the two, their mean reward is that of the plain context.
    const logits: Record<string, number[]> = { Q: [0.3, -0.2, 0.1], TQ: [1.1, 0.4, -0.7] };
    const logp = (context: string) => {
      const sum = logits[context].reduce((total, z) => total + Math.exp(z), 0);
      return logits[context].map((z) => z - Math.log(sum));
    };
    const { sample, update } = hybridPrompts('off-policy', { plain: 'Q', withTips: 'TQ' });
    const [oldLogprobs, logprobs] = [logp(sample), logp(update)];
    const rewards = [1, 0, 5];
    const expected = rewards.reduce((sum, reward, a) => sum + reward * Math.exp(logp('Q')[a]), 0);
    const corrected = rewards.reduce(
      (sum, reward, a) => sum + Math.exp(oldLogprobs[a]) * Math.exp(logprobs[a] - oldLogprobs[a]) * reward,
      0,
    );
    expect(corrected).toBeCloseTo(expected, 14);
    expect(Math.exp(logprobs[2] - oldLogprobs[2])).not.toBeCloseTo(1, 1);
  });

  test('refuses shares that do not sum to 1, and unknown modes', () => {
    const shares = { 'off-policy': 0.5, 'on-policy-with-tips': 0.5, 'on-policy': 0.5 };
    expect(code(() => hybridMode({ seed: 1, step: 0, shares }))).toBe('ERR_VARLEN_INCOMPATIBLE');
    expect(code(() => hybridMode({ seed: 1.5, step: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => hybridMode({ seed: 1, step: 0, shares: { 'on-policy': 1 } as never }))).toBe(
      'ERR_VARLEN_TYPE',
    );
    expect(code(() => hybridPrompts('off' as never, { plain: 1, withTips: 2 }))).toBe('ERR_VARLEN_OPTION');
  });
});

describe('profFilter', () => {
  const one = (flags: number[], scores: number[]) => ({
    correct: Uint8Array.from(flags),
    scores: Float64Array.from(scores),
    groupIds: new Int32Array(flags.length),
  });

  test('drops right answers with bad processes and wrong ones with good processes', () => {
    const answers = one([1, 1, 1, 0, 0, 0], [0.9, 0.1, 0.5, 0.9, 0.1, 0.5]);
    expect(profFilter(answers, { keep: 4 })).toEqual(Int32Array.of(0, 2, 4, 5));
    // An odd number: the right ones have the majority.
    expect(profFilter(answers, { keep: 3 })).toEqual(Int32Array.of(0, 2, 4));
  });

  test.each([
    ['few right ones', [1, 0, 0, 0, 0], [1, 1, 2, 3, 4], 4, [0, 1, 2, 3]],
    ['few wrong ones', [1, 1, 1, 1, 0], [4, 3, 2, 1, 1], 4, [0, 1, 2, 4]],
    ['only right ones', [1, 1, 1], [1, 2, 3], 2, [1, 2]],
    ['only wrong ones', [0, 0, 0], [1, 2, 3], 2, [0, 1]],
    ['fewer than asked for', [1, 0], [1, 1], 9, [0, 1]],
    ['ties: the earlier stays', [1, 1, 0, 0], [1, 1, 1, 1], 2, [0, 2]],
  ])('with %s', (_, flags, scores, keep, kept) => {
    expect(profFilter(one(flags, scores), { keep })).toEqual(Int32Array.from(kept));
  });

  test('keeps k of each prompt, as balanced as can be, and nothing better left out', () => {
    const row = fc.tuple(fc.boolean(), fc.integer({ min: 0, max: 4 }), fc.constantFrom(-1, 5));
    fc.assert(
      fc.property(fc.array(row, { maxLength: 20 }), fc.integer({ min: 1, max: 9 }), (rows, keep) => {
        const answers = {
          correct: Uint8Array.from(rows, ([flag]) => Number(flag)),
          scores: Float32Array.from(rows, ([, score]) => score),
          groupIds: Int32Array.from(rows, ([, , id]) => id),
        };
        const kept = profFilter(answers, { keep });
        expect([...kept].every((index, i) => i === 0 || kept[i - 1] < index)).toBe(true);
        for (const id of new Set(answers.groupIds)) {
          const members = [...rows.keys()].filter((i) => rows[i][2] === id);
          const mine = new Set([...kept].filter((i) => rows[i][2] === id));
          const [right, wrong] = [true, false].map((flag) => members.filter((i) => rows[i][0] === flag));
          const count = (list: number[]) => list.filter((i) => mine.has(i)).length;
          const total = Math.min(keep, members.length);
          expect(mine.size).toBe(total);
          // No other split of `total` is more balanced.
          const gaps = Array.from({ length: total + 1 }, (_, r) => r)
            .filter((r) => r <= right.length && total - r <= wrong.length)
            .map((r) => Math.abs(2 * r - total));
          expect(Math.abs(count(right) - count(wrong))).toBe(Math.min(...gaps));
          for (const [list, sign] of [
            [right, 1],
            [wrong, -1],
          ] as const) {
            const inside = list.filter((i) => mine.has(i)).map((i) => sign * rows[i][1]);
            const outside = list.filter((i) => !mine.has(i)).map((i) => sign * rows[i][1]);
            expect(Math.min(...inside)).toBeGreaterThanOrEqual(Math.max(...outside));
          }
        }
      }),
      numRuns(0.05),
    );
  });

  test('refuses NaN scores and nothing to keep', () => {
    expect(code(() => profFilter(one([1], [NaN]), { keep: 1 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => profFilter(one([1], [1]), { keep: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => profFilter({ ...one([1], [1]), correct: [1] as never }, { keep: 1 }))).toBe(
      'ERR_VARLEN_TYPE',
    );
  });
});

describe('reflectiveRejection', () => {
  const candidates = {
    accuracy: Float32Array.of(1, 1, 0.9, 1, 1, 1, 1),
    format: Uint8Array.of(1, 1, 1, 0, 1, 1, 1),
    reflection: Uint8Array.of(1, 0, 1, 1, 1, 1, 1),
    groupIds: Int32Array.of(1, 1, 1, 1, 8, 8, 8),
  };

  test('keeps right, well-formed, reflective responses', () => {
    expect(reflectiveRejection(candidates, { seed: 1, perGroup: 9 })).toEqual(Int32Array.of(0, 4, 5, 6));
    expect(reflectiveRejection(candidates, { seed: 1, perGroup: 9, minAccuracy: 0.5 })).toEqual(
      Int32Array.of(0, 2, 4, 5, 6),
    );
  });

  test('draws evenly where a question has too many, the same for the same seed', () => {
    const hits = new Map<number, number>();
    for (let seed = 0; seed < 3000; seed++) {
      const [first, second] = reflectiveRejection(candidates, { seed });
      expect(first).toBe(0);
      hits.set(second, (hits.get(second) ?? 0) + 1);
      expect(reflectiveRejection(candidates, { seed })[1]).toBe(second);
    }
    // Five standard errors of a third in 3000 draws: 129.
    for (const index of [4, 5, 6]) expect(Math.abs(hits.get(index)! - 1000)).toBeLessThan(129);
  });

  test('draws for a question do not depend on the other questions', () => {
    const tail = (list: Float32Array | Uint8Array | Int32Array) => list.slice(4) as never;
    const alone = {
      accuracy: tail(candidates.accuracy),
      format: tail(candidates.format),
      reflection: tail(candidates.reflection),
      groupIds: tail(candidates.groupIds),
    };
    for (let seed = 0; seed < 20; seed++) {
      expect(reflectiveRejection(alone, { seed })[0] + 4).toBe(reflectiveRejection(candidates, { seed })[1]);
    }
  });

  test('refuses accuracies above 1 and nothing per question', () => {
    const bad = { ...candidates, accuracy: candidates.accuracy.map((a) => 2 * a) };
    expect(code(() => reflectiveRejection(bad, { seed: 1 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => reflectiveRejection(candidates, { seed: 1, perGroup: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => reflectiveRejection({ ...candidates, format: Uint8Array.of(1) }, { seed: 1 }))).toBe(
      'ERR_VARLEN_SHAPE',
    );
  });
});
