import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { evaluate } from '../../../src/trainer/tasks/countdown/expression.js';
import { type CountdownProblem, countdown } from '../../../src/trainer/tasks/countdown.js';
import { splitOf } from '../../../src/trainer/tasks/held-out.js';
import { responseIds, responseText } from '../../../src/trainer/tokenizer/tokenizer.js';
import { thrown } from '../../support/thrown.js';

const { verify } = countdown();
const problem = { numbers: [8, 3, 3, 12], target: 24 } as unknown as CountdownProblem;
const reward = (answer: unknown) => verify(problem, answer as string);

describe('the evaluator', () => {
  test('is exact: 8 / (3 - 8 / 3) is 24', () => {
    expect(evaluate('8 / ( 3 - 8 / 3 )')).toMatchObject({ value: { numerator: 24n, denominator: 1n } });
  });

  test.each([
    ['2 - 3 - 4', -5n, 1n],
    ['2 - (3 - 4)', 3n, 1n],
    ['2 + 3 * 4', 14n, 1n],
    ['2 / 3 / 4', 1n, 6n],
    ['2 × 3 − 7 ÷ 2', 5n, 2n],
    ['((((7))))', 7n, 1n],
    ['0 / 5', 0n, 1n],
  ])('reads %s', (text, numerator, denominator) => {
    expect(evaluate(text)).toMatchObject({ value: { numerator, denominator } });
  });

  test('agrees with JavaScript on random expressions', () => {
    const expressions = fc.letrec<{ text: string }>((tie) => ({
      text: fc.oneof(
        { maxDepth: 4 },
        fc.nat(99).map(String),
        fc
          .tuple(tie('text'), fc.constantFrom('+', '-', '*', '/'), tie('text'), fc.boolean())
          .map(([left, operator, right, bare]) =>
            bare ? `${left} ${operator} ${right}` : `(${left}${operator}${right})`,
          ),
      ),
    })).text;
    fc.assert(
      fc.property(expressions, (text) => {
        const { value } = evaluate(text);
        const expected = new Function(`return ${text}`)();
        if (value === undefined) expect(Number.isFinite(expected) && !text.includes('/')).toBe(false);
        else expect(Number(value.numerator) / Number(value.denominator)).toBeCloseTo(expected, 6);
      }),
      { numRuns: 2000 },
    );
  });

  test.each([
    ['', 'the expression ends early'],
    ['1 +', 'the expression ends early'],
    ['( 1 + 2', 'a parenthesis is not closed'],
    ['1 2', 'not part of an expression: "2"'],
    ['1 + 2 )', 'not part of an expression: ")"'],
    ['-1', 'not part of an expression: "-"'],
    ['1 ** 2', 'not part of an expression: "*"'],
    ['process.exit()', 'not part of an expression: "p"'],
    ['1.5', 'not part of an expression: "."'],
    ['1e3', 'not part of an expression: "e"'],
    ['1 / 0', 'division by zero'],
    ['1 / (2 - 2)', 'division by zero'],
    ['9999999999', 'a number is too large'],
    ['('.repeat(513), 'longer than 512 characters'],
  ])('refuses %j', (text, reason) => {
    expect(evaluate(text)).toEqual({ value: undefined, reason });
  });
});

describe('the verifier', () => {
  test('accepts any expression of the numbers, each at most once', () => {
    expect(reward('<answer> 8 * 3 </answer>')).toEqual({ reward: 1, formatReward: 1, reason: 'right' });
    expect(reward('so <answer>(12-3)*3-3')).toMatchObject({ reward: 0, reason: '3 is used too often' });
    expect(reward('<answer>12+3+3+8')).toMatchObject({ reward: 0, formatReward: 1, reason: 'wrong' });
    expect(reward('<answer>24')).toMatchObject({ reward: 0, formatReward: 1, reason: '24 is not given' });
    expect(reward('<answer>8/(3-3)')).toMatchObject({
      reward: 0,
      formatReward: 1,
      reason: 'division by zero',
    });
  });

  test('never throws', () => {
    const signs = fc.constantFrom(...'0123456789+-*/() ', '<answer>', '</answer>', '\ud800', 'x');
    const outputs = fc.oneof(
      fc.array(signs, { maxLength: 30 }).map((parts) => `<answer>${parts.join('')}`),
      fc.anything(),
    );
    fc.assert(
      fc.property(outputs, (output) => {
        const { reward: got, reason } = reward(output);
        expect(reason).not.toBe('');
        expect(got === 0 || got === 1).toBe(true);
      }),
      { numRuns: 3000 },
    );
    expect(reward(`<answer>${'1+'.repeat(1 << 19)}1`)).toMatchObject({ reward: 0, formatReward: 0 });
  });
});

describe('the generator', () => {
  test('gives problems of the asked split that its own worked solution solves', () => {
    const task = countdown({ seed: 4 });
    for (let i = 0; i < 300; i++) {
      const split = i % 3 === 0 ? 'held-out' : 'train';
      const drawn = task.problem(split, i);
      expect(splitOf(drawn.id)).toBe(split);
      const output = responseText(task.tokenizer, responseIds(task.tokenizer, drawn.response));
      expect(task.verify(drawn, output)).toMatchObject({ reward: 1, formatReward: 1 });
      // The failed tries are failures indeed.
      for (const [, tried] of drawn.response.matchAll(/try (.*?) = .*? no/g)) {
        expect(task.verify(drawn, `<answer> ${tried}`).reward).toBe(0);
      }
      expect(task.problem(split, i)).toEqual(drawn);
      expect(() => task.tokenizer.encode(drawn.prompt)).not.toThrow();
    }
    expect(task.facts!().acceptanceRate).toBeGreaterThan(0.1);
  });

  test('one problem has one id, however its numbers are shown', () => {
    const task = countdown({ largest: 3, count: [2, 2], largestTarget: 9 });
    const seen = new Map<string, string>();
    for (let i = 0; i < 300; i++) {
      const { id, numbers, target } = task.problem('train', i);
      const canonical = `${[...numbers].sort().join()}:${target}`;
      expect(seen.get(canonical) ?? id).toBe(id);
      seen.set(canonical, id);
    }
  });

  test('says so when there is nothing to hold out', () => {
    const task = countdown({ largest: 2, count: [2, 2], largestTarget: 2 });
    expect(thrown(() => [task.problem('train', 0), task.problem('held-out', 0)])).toMatchObject({
      code: 'ERR_VARLEN_RANGE',
    });
  });

  test.each([
    { seed: 0.5 },
    { count: [1, 3] as const },
    { count: [3, 2] as const },
    { count: [3, 7] as const },
    { largest: 1 },
    { largestTarget: 10_000 },
  ])('refuses %j', (options) => {
    expect(thrown(() => countdown(options))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
  });
});
