/** Countdown: reach a target with given numbers, each used at most once. */

import { argumentError } from '../../errors.js';
import { SeededRandom } from '../../seeded-random.js';
import { WordTokenizer } from '../tokenizer/word-tokenizer.js';
import { ANSWER, findAnswer, judged, refused } from './answer.js';
import { drawExpression, evaluate, expressionText, worth } from './countdown/expression.js';
import { equals, rationalText } from './countdown/rational.js';
import { problemId, splitOf } from './held-out.js';
import type { Problem, Split, Task, Verdict } from './task.js';

/** Numbers and a target that an expression of some of them reaches. */
export interface CountdownProblem extends Problem {
  readonly numbers: readonly number[];
  readonly target: number;
  readonly response: string;
}

/** Options of {@link countdown}. */
export interface CountdownOptions {
  /** Default 0. */
  seed?: number;
  /** Fewest and most numbers given, 2 to 6. Default `[3, 4]`. */
  count?: readonly [least: number, most: number];
  /** Numbers are `1..largest`, at most 999. Default 20. */
  largest?: number;
  /** Targets are `1..largestTarget`, at most 9999. Default 100. */
  largestTarget?: number;
}

const WORDS = [...'0123456789', '+', '-', '*', '/', '(', ')', '=', ':', 'numbers', 'target', '<think>'];

/** The language of the task; numbers are spelled digit by digit. */
const COUNTDOWN_WORDS: readonly string[] = [...WORDS, 'try', 'no', 'yes', 'none', ANSWER];

/** A worked solution shows another failed try with this probability: its length is geometric. */
const MORE_TRIES = 0.75;
const MAX_TRIES = 24;

const OP = 'countdown';

/** Among so many draws there is a problem of each split, or there is none at all. */
const MAX_DRAWS = 100_000;

function checkRange(argument: string, value: unknown, least: number, most: number): void {
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return;
  const problem = `is out of range; got ${String(value)}, expected an integer in ${least}..${most}`;
  throw argumentError('ERR_VARLEN_RANGE', OP, argument, problem);
}

/** Judges the last `<answer>`: an expression of the given numbers, each at most once, worth the target. */
function verifyExpression(output: unknown, numbers: readonly number[], target: number): Verdict {
  const answer = findAnswer(output);
  if (answer.text === undefined) return refused(answer.reason);
  const evaluation = evaluate(answer.text.trim());
  if (evaluation.value === undefined) {
    // A division by zero is an expression all the same: well formed, and wrong.
    return evaluation.reason === 'division by zero'
      ? { ...judged(false, answer.tidy), reason: evaluation.reason }
      : refused(evaluation.reason);
  }
  const left = [...numbers];
  for (const number of evaluation.used) {
    const at = left.indexOf(number);
    const known = numbers.includes(number);
    if (at < 0) {
      return {
        ...judged(false, answer.tidy),
        reason: `${number} ${known ? 'is used too often' : 'is not given'}`,
      };
    }
    left.splice(at, 1);
  }
  return judged(equals(evaluation.value, target), answer.tidy);
}

/**
 * The task. Every problem is solvable: the target is the value of a random expression of two or more of
 * the numbers, and none of the numbers itself.
 *
 * @throws `ERR_VARLEN_RANGE`; also by `problem()`, when so few problems exist that none belongs to the split
 */
export function countdown(options: CountdownOptions = {}): Task<CountdownProblem> {
  const { seed = 0, count = [3, 4], largest = 20, largestTarget = 100 } = options;
  checkRange('seed', seed, 0, Number.MAX_SAFE_INTEGER);
  checkRange('count', count[0], 2, 6);
  checkRange('count', count[1], count[0], 6);
  checkRange('largest', largest, 2, 999);
  checkRange('largestTarget', largestTarget, 2, 9999);
  let drawn = 0;
  let reachable = 0;

  const problem = (split: Split, index: number): CountdownProblem => {
    const random = new SeededRandom(seed, split === 'train' ? 2 : 3, index);
    for (let draws = 0; draws < MAX_DRAWS; draws++) {
      const size = count[0] + random.below(count[1] - count[0] + 1);
      const numbers = Array.from({ length: size }, () => 1 + random.below(largest));
      const used = 2 + random.below(size - 1);
      const solution = drawExpression(random, numbers.slice(0, used));
      const value = worth(solution);
      drawn++;
      if (value === undefined || value.denominator !== 1n) continue;
      const target = Number(value.numerator);
      if (target < 1 || target > largestTarget || numbers.includes(target)) continue;
      reachable++;
      const id = problemId(`countdown ${[...numbers].sort((a, b) => a - b).join(' ')} : ${target}`);
      if (splitOf(id) !== split) continue;

      const shown = [...numbers];
      for (let i = shown.length - 1; i > 0; i--) {
        const j = random.below(i + 1);
        [shown[i], shown[j]] = [shown[j], shown[i]];
      }
      const steps: string[] = [];
      for (let tries = 0; tries < MAX_TRIES && random.uniform() < MORE_TRIES; tries++) {
        const attempt = drawExpression(random, shown.slice(0, 2 + random.below(size - 1)));
        const result = worth(attempt);
        if (result !== undefined && equals(result, target)) continue;
        const shownWorth = result === undefined ? 'none' : rationalText(result);
        steps.push(`try ${expressionText(attempt)} = ${shownWorth} no`);
      }
      const text = expressionText(solution);
      steps.push(`try ${text} = ${target} yes ${ANSWER} ${text}`);
      // Commas are not in the language: numbers are told apart by a colon.
      const prompt = `numbers ${shown.join(' : ')} target ${target} <think>`;
      return { id, prompt, response: steps.join(' '), numbers: shown, target };
    }
    const what = `leaves no ${split} problem; got ${largestTarget}, expected a larger one`;
    throw argumentError('ERR_VARLEN_RANGE', OP, 'largestTarget', what);
  };

  return {
    name: 'countdown',
    tokenizer: new WordTokenizer(COUNTDOWN_WORDS),
    hasResponses: true,
    hasAnswers: true,
    problem,
    verify: ({ numbers, target }, output) => verifyExpression(output, numbers, target),
    /** Share of drawn expressions whose value can be a target, of both splits. */
    facts: () => ({ acceptanceRate: drawn === 0 ? 0 : reachable / drawn }),
  };
}
