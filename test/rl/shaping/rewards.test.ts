import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  generatorRewards,
  maskTruncated,
  noveltyRewards,
  overlongPenalty,
  perStep,
  sumRollouts,
  temporalBonus,
  trustRewards,
  uncertaintyMarkers,
} from '../../../src/rl/index.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('overlongPenalty', () => {
  test('falls from 0 at the buffer to -factor at the longest answer', () => {
    const options = { maxLength: 20, buffer: 8, factor: 2 };
    expect(overlongPenalty(Int32Array.of(0, 12, 13, 16, 20, 24), options)).toEqual(
      Float64Array.of(0, 0, -0.25, -1, -2, -3),
    );
  });

  test('is never positive, never -0, and never rises with length', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(500)),
        fc.integer({ min: 1, max: 400 }),
        fc.nat(100),
        (lengths, max, cut) => {
          const sorted = Int32Array.from(lengths).sort();
          const penalty = overlongPenalty(sorted, { maxLength: max, buffer: 1 + (cut % max) });
          penalty.forEach((value, i) => {
            expect(Object.is(value, -0)).toBe(false);
            expect(value).toBeLessThanOrEqual(i === 0 ? 0 : penalty[i - 1]);
          });
        },
      ),
      numRuns(0.02),
    );
  });

  test.each([
    ['a buffer longer than the answer', { maxLength: 4, buffer: 5 }, 'ERR_VARLEN_RANGE'],
    ['no buffer', { maxLength: 4, buffer: 0 }, 'ERR_VARLEN_RANGE'],
    ['a negative factor', { maxLength: 4, buffer: 2, factor: -1 }, 'ERR_VARLEN_RANGE'],
    ['an unknown option', { maxLength: 4, buffer: 2, faktor: 1 }, 'ERR_VARLEN_OPTION'],
  ])('refuses %s', (_, options, expected) => {
    expect(code(() => overlongPenalty(Int32Array.of(1), options))).toBe(expected);
  });

  test('refuses a negative length and another element type', () => {
    const options = { maxLength: 4, buffer: 2 };
    expect(code(() => overlongPenalty(Int32Array.of(-1), options))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => overlongPenalty(Float32Array.of(1) as never, options))).toBe('ERR_VARLEN_DTYPE');
  });
});

describe('maskTruncated', () => {
  const layout = { cuSeqlens: Int32Array.of(0, 2, 2, 5), lossMask: Uint8Array.of(1, 0, 1, 1, 0) };

  test('clears the tokens of answers that were cut, and no others', () => {
    expect(maskTruncated(layout, Uint8Array.of(1, 1, 0))).toEqual(Uint8Array.of(0, 0, 1, 1, 0));
    expect(maskTruncated(layout, Uint8Array.of(0, 0, 1))).toEqual(Uint8Array.of(1, 0, 0, 0, 0));
    expect(layout.lossMask).toEqual(Uint8Array.of(1, 0, 1, 1, 0));
  });

  test('refuses one flag too few', () => {
    expect(code(() => maskTruncated(layout, Uint8Array.of(1, 0)))).toBe('ERR_VARLEN_SHAPE');
  });
});

describe('temporalBonus', () => {
  const answers = {
    accuracy: Float64Array.of(1, 0.1, 0.5, 1, 0),
    groupIds: Int32Array.of(1, 1, 1, 2, 2),
    shuffledAccuracy: Float64Array.of(1, 1, 0.25, 0.25),
    shuffledGroupIds: Int32Array.of(2, 2, 1, 1),
  };

  test('goes to correct answers of questions that order helps', () => {
    // Question 1: mean 0.533 against 0.25. Question 2: mean 0.5 is below 0.8 * 1.
    expect(temporalBonus(answers)).toEqual(Float64Array.of(0.3, 0, 0.3, 0, 0));
  });

  test('goes to a question whose ordered mean is exactly the share', () => {
    const level = { ...answers, shuffledAccuracy: Float64Array.of(0.625, 0.625, 1, 1) };
    expect(temporalBonus(level)).toEqual(Float64Array.of(0, 0, 0, 0.3, 0));
  });

  test('adds the length bonus to correct answers inside the range when more than one is correct', () => {
    const lengths = Int32Array.of(320, 400, 512, 400, 400);
    const bonus = temporalBonus({ ...answers, lengths }, { lengthBonus: {} });
    expect(bonus).toEqual(Float64Array.of(0.5, 0, 0.5, 0, 0));
    const outside = Int32Array.of(319, 400, 513, 400, 400);
    expect(temporalBonus({ ...answers, lengths: outside }, { lengthBonus: {} })).toEqual(
      Float64Array.of(0.3, 0, 0.3, 0, 0),
    );
  });

  test('refuses a question without shuffled answers, a length bonus without lengths, and NaN', () => {
    const missing = { ...answers, shuffledGroupIds: Int32Array.of(2, 2, 2, 2) };
    expect(code(() => temporalBonus(missing))).toBe('ERR_VARLEN_MISSING_INPUT');
    expect(code(() => temporalBonus(answers, { lengthBonus: {} }))).toBe('ERR_VARLEN_MISSING_INPUT');
    const unscored = { ...answers, accuracy: Float64Array.of(1, NaN, 0, 0, 0) };
    expect(code(() => temporalBonus(unscored))).toBe('ERR_VARLEN_RANGE');
    const lengths = new Int32Array(5);
    expect(code(() => temporalBonus({ ...answers, lengths }, { lengthBonus: { min: 9, max: 8 } }))).toBe(
      'ERR_VARLEN_RANGE',
    );
  });
});

describe('trustRewards', () => {
  const groupIds = Int32Array.of(5, 5, 5);

  test('trusts thinking that is better where the answer is right', () => {
    const scores = {
      outcomes: Float64Array.of(1, 0.5, 0.3),
      thinking: Float64Array.of(0.9, 0.7, 0.6),
      groupIds,
    };
    const { rewards, trust } = trustRewards(scores, { step: 0 });
    expect(trust).toEqual(Float64Array.of(1, 1, 1));
    expect([...rewards]).toEqual([1 + 0.3 * 0.9, 0.5 + 0.3 * 0.7, 0.3 + 0.3 * 0.6]);
  });

  test('trusts less the more wrong answers out-think right ones, and fades with the steps', () => {
    const scores = {
      outcomes: Float64Array.of(1, 0.3, 0.3),
      thinking: Float64Array.of(0.2, 0.6, 0.8),
      groupIds,
    };
    const { rewards, trust } = trustRewards(scores, { step: 250 });
    expect(trust[0]).toBeCloseTo(Math.exp(0.2 - 0.7), 14);
    expect(rewards[2]).toBeCloseTo(0.3 + 0.3 * Math.exp(-0.5) * Math.exp(-0.5) * 0.8, 14);
  });

  test('sets the thinking reward of a hopeless answer to 0 before the means are taken', () => {
    const scores = {
      outcomes: Float64Array.of(1, 0.1, 0.4),
      thinking: Float64Array.of(0.3, 1, 0.2),
      groupIds,
    };
    const { rewards, trust } = trustRewards(scores, { step: 0 });
    // Means: right 0.3, wrong (0 + 0.2) / 2.
    expect(trust[0]).toBe(1);
    expect(rewards[1]).toBe(0.1);
  });

  test('leaves unanimous groups at their outcomes, also in float32', () => {
    const thinking = Float32Array.of(0.5, 0.5, 0.5);
    for (const outcomes of [Float32Array.of(0.9, 1, 0.95), Float32Array.of(0.1, 0, 0.05)]) {
      const { rewards, trust } = trustRewards({ outcomes, thinking, groupIds }, { step: 0 });
      expect(rewards).toEqual(Float64Array.from(outcomes));
      expect(trust).toEqual(new Float64Array(3));
    }
  });

  test('trusts a group in which one of the two kinds is missing', () => {
    for (const outcomes of [Float64Array.of(0.6, 0.7, 0.8), Float64Array.of(0.2, 0.3, 0.4)]) {
      const { trust } = trustRewards({ outcomes, thinking: Float64Array.of(1, 0, 1), groupIds }, { step: 0 });
      expect(trust).toEqual(Float64Array.of(1, 1, 1));
    }
  });

  test('ignores what group another prompt is called', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })),
          {
            minLength: 2,
            maxLength: 8,
          },
        ),
        fc.integer(),
        (pairs, name) => {
          const outcomes = Float64Array.from(pairs, ([a]) => a);
          const thinking = Float64Array.from(pairs, ([, q]) => q);
          const alone = trustRewards(
            { outcomes, thinking, groupIds: new Int32Array(pairs.length) },
            { step: 3 },
          );
          const twice = {
            outcomes: Float64Array.of(...outcomes, ...outcomes),
            thinking: Float64Array.of(...thinking, ...thinking),
            groupIds: Int32Array.from({ length: 2 * pairs.length }, (_, i) =>
              i < pairs.length ? 0 : name | 1,
            ),
          };
          const both = trustRewards(twice, { step: 3 });
          expect(both.rewards).toEqual(Float64Array.of(...alone.rewards, ...alone.rewards));
          for (const trust of alone.trust) expect(trust).toBeLessThanOrEqual(1);
        },
      ),
      numRuns(0.02),
    );
  });

  test('refuses outcomes outside of [0, 1], NaN thinking and a missing step', () => {
    const thinking = new Float64Array(3);
    const outcomes = Float64Array.of(1, 2, 0);
    expect(code(() => trustRewards({ outcomes, thinking, groupIds }, { step: 0 }))).toBe('ERR_VARLEN_RANGE');
    const good = Float64Array.of(1, 0.5, 0);
    const nan = Float64Array.of(NaN, 0, NaN);
    expect(code(() => trustRewards({ outcomes: good, thinking: nan, groupIds }, { step: 0 }))).toBe(
      'ERR_VARLEN_RANGE',
    );
    // The third outcome is below 0.2: its thinking is not read.
    const unread = Float64Array.of(0, 0, NaN);
    expect(trustRewards({ outcomes: good, thinking: unread, groupIds }, { step: 0 }).rewards[2]).toBe(0);
    expect(code(() => trustRewards({ outcomes: good, thinking, groupIds }, {} as never))).toBe(
      'ERR_VARLEN_TYPE',
    );
  });
});

describe('generatorRewards', () => {
  const tries = Int32Array.of(4, 4, 4, 4, 4);

  test('peak where the solver succeeds half of the time', () => {
    const successes = Int32Array.of(0, 1, 2, 3, 4);
    expect(generatorRewards({ successes, tries })).toEqual(Float64Array.of(0, 0.5, 1, 0.5, 0));
    expect(generatorRewards({ successes, tries }, { exponent: 2 })).toEqual(
      Float64Array.of(0, 0.25, 1, 0.25, 0),
    );
  });

  test('are 0 for malformed problems, whatever their tries', () => {
    const feedback = {
      successes: Int32Array.of(1, 9),
      tries: Int32Array.of(2, 0),
      malformed: Uint8Array.of(0, 1),
    };
    expect(generatorRewards(feedback)).toEqual(Float64Array.of(1, 0));
  });

  test('are symmetric in right and wrong', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1000 }), fc.nat(1000), (total, part) => {
        const right = part % (total + 1);
        const [a, b] = generatorRewards({
          successes: Int32Array.of(right, total - right),
          tries: Int32Array.of(total, total),
        });
        expect(a).toBeCloseTo(b, 14);
      }),
      numRuns(0.05),
    );
  });

  test('refuse more successes than tries, no tries, and a flat exponent', () => {
    const one = (successes: number, count: number) => ({
      successes: Int32Array.of(successes),
      tries: Int32Array.of(count),
    });
    expect(code(() => generatorRewards(one(3, 2)))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => generatorRewards(one(0, 0)))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => generatorRewards(one(1, 2), { exponent: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(String(thrown(() => generatorRewards(one(3, 2))))).toContain('generatorRewards: successes[0]');
  });
});

describe('noveltyRewards', () => {
  test('are 1 over one more than the similar states in memory', () => {
    const memory = Float32Array.of(1, 0, 2, 0.1, 0, 5, -1, 0);
    const states = Float32Array.of(3, 0, 0, 1, 0, 0);
    expect([...noveltyRewards(states, memory, { dim: 2, similarity: 0.9 })]).toEqual([1 / 3, 1 / 2, 1]);
    expect([...noveltyRewards(states, new Float32Array(0), { dim: 2, similarity: 0.9 })]).toEqual([1, 1, 1]);
  });

  test('do not depend on the lengths of the vectors', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -9, max: 9 }), { minLength: 6, maxLength: 6 }), (numbers) => {
        const states = Float64Array.from(numbers.slice(0, 2));
        const memory = Float64Array.from(numbers.slice(2));
        const options = { dim: 2, similarity: 0.55 };
        const scaled = noveltyRewards(
          states.map((x) => 4 * x),
          memory.map((x) => x / 2),
          options,
        );
        expect(scaled).toEqual(noveltyRewards(states, memory, options));
      }),
      numRuns(0.05),
    );
  });

  test('refuse half a vector, NaN and a cosine above 1', () => {
    const one = Float32Array.of(1, 0);
    expect(code(() => noveltyRewards(Float32Array.of(1), one, { dim: 2, similarity: 0 }))).toBe(
      'ERR_VARLEN_SHAPE',
    );
    expect(code(() => noveltyRewards(one, Float32Array.of(1, NaN), { dim: 2, similarity: 0 }))).toBe(
      'ERR_VARLEN_RANGE',
    );
    expect(code(() => noveltyRewards(one, one, { dim: 2, similarity: 1.1 }))).toBe('ERR_VARLEN_RANGE');
  });
});

describe('rollouts of many steps', () => {
  test('sum their steps and hand one value back to each', () => {
    const { rolloutIds, sums, rolloutOf } = sumRollouts(
      Float32Array.of(1, 0.5, -2, 4),
      Int32Array.of(9, 3, 9, 3),
    );
    expect([rolloutIds, sums, rolloutOf]).toEqual([
      Int32Array.of(9, 3),
      Float64Array.of(-1, 4.5),
      Int32Array.of(0, 1, 0, 1),
    ]);
    expect(perStep(Float32Array.of(-1, 1), rolloutOf)).toEqual(Float32Array.of(-1, 1, -1, 1));
  });

  test('refuse NaN and a rollout that is not there', () => {
    expect(code(() => sumRollouts(Float32Array.of(NaN), Int32Array.of(1)))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => perStep(Float32Array.of(1), Int32Array.of(1)))).toBe('ERR_VARLEN_RANGE');
  });
});

describe('uncertaintyMarkers', () => {
  test('count markers among active tokens, per answer and per thousand', () => {
    const inputIds = Int32Array.of(7, 8, 1, 7, 7, 7);
    const layout = { cuSeqlens: Int32Array.of(0, 4, 4, 5, 6), lossMask: Uint8Array.of(1, 1, 1, 0, 1, 0) };
    expect(uncertaintyMarkers(inputIds, layout, Int32Array.of(7, 8, 8))).toEqual({
      counts: Int32Array.of(2, 0, 1, 0),
      perThousand: Float64Array.of(2000 / 3, 0, 1000, 0),
      meanCount: 1.5,
      totalPerThousand: 750,
    });
  });

  test('are 0 without tokens', () => {
    const counts = uncertaintyMarkers(new Int32Array(0), { cuSeqlens: Int32Array.of(0) }, Int32Array.of(1));
    expect(counts).toMatchObject({ meanCount: 0, totalPerThousand: 0 });
  });

  test('refuse ids that do not fit the offsets', () => {
    const layout = { cuSeqlens: Int32Array.of(0, 2) };
    expect(code(() => uncertaintyMarkers(Int32Array.of(1), layout, Int32Array.of(1)))).toBe(
      'ERR_VARLEN_SHAPE',
    );
    expect(code(() => uncertaintyMarkers(new Int32Array(2), layout, [1] as never))).toBe('ERR_VARLEN_TYPE');
  });
});
