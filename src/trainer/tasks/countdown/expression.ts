/** Arithmetic expressions: drawn, written, read and evaluated exactly. */
import type { SeededRandom } from '../../../seeded-random.js';
import { combine, OPERATORS, type Operator, type Rational, whole } from './rational.js';

/** Numbers joined by operators. */
export type Expression =
  | number
  | { readonly operator: Operator; readonly left: Expression; readonly right: Expression };

/** A random expression that uses all of `numbers`, in random order and shape. */
export function drawExpression(random: SeededRandom, numbers: readonly number[]): Expression {
  const parts: Expression[] = [...numbers];
  while (parts.length > 1) {
    const left = parts.splice(random.below(parts.length), 1)[0];
    const right = parts.splice(random.below(parts.length), 1)[0];
    parts.push({ operator: OPERATORS[random.below(4)], left, right });
  }
  return parts[0];
}

/** Its exact value; undefined where it divides by zero. */
export function worth(expression: Expression): Rational | undefined {
  if (typeof expression === 'number') return whole(expression);
  const left = worth(expression.left);
  const right = left && worth(expression.right);
  return right && combine(left, expression.operator, right);
}

const BINDING: Record<Operator, number> = { '+': 1, '-': 1, '*': 2, '/': 2 };

/** With the parentheses that it needs and no others, and spaces between all signs. */
export function expressionText(expression: Expression): string {
  if (typeof expression === 'number') return String(expression);
  const { operator, left, right } = expression;
  const binding = BINDING[operator];
  const part = (side: Expression, least: number) =>
    typeof side !== 'number' && BINDING[side.operator] < least
      ? `( ${expressionText(side)} )`
      : expressionText(side);
  return `${part(left, binding)} ${operator} ${part(right, binding + 1)}`;
}

/** What an expression is worth and which numbers it uses, or why it is none. */
export type Evaluation =
  | { readonly value: Rational; readonly used: readonly number[] }
  | { readonly value: undefined; readonly reason: string };

/** Longer texts are refused unread. Bounds the recursion too: each level needs a parenthesis. */
const MAX_CHARS = 512;
/** Whole numbers up to there; longer ones are none of the given numbers anyway. */
const MAX_DIGITS = 9;

const OTHER_SIGNS: Readonly<Record<string, Operator>> = { '×': '*', '·': '*', '÷': '/', '−': '-', '–': '-' };

/**
 * Reads `expression = term {(+|-) term}`, `term = factor {(*|/) factor}`, `factor = number | ( expression )`
 * by recursive descent, evaluating with exact fractions as it goes.
 */
export function evaluate(text: string): Evaluation {
  if (text.length > MAX_CHARS) return { value: undefined, reason: `longer than ${MAX_CHARS} characters` };
  const tokens: string[] = [...text.matchAll(/\d+|\S/gu)].map(([token]) => OTHER_SIGNS[token] ?? token);
  const used: number[] = [];
  let at = 0;
  let reason: string | undefined;
  const fail = (why: string): undefined => {
    reason ??= why;
    return undefined;
  };

  const factor = (): Rational | undefined => {
    const token = tokens[at++];
    if (token === '(') {
      const inner = sum();
      if (inner === undefined) return undefined;
      return tokens[at++] === ')' ? inner : fail('a parenthesis is not closed');
    }
    if (token === undefined) return fail('the expression ends early');
    if (!/^\d+$/.test(token)) return fail(`not part of an expression: ${JSON.stringify(token)}`);
    if (token.length > MAX_DIGITS) return fail('a number is too large');
    used.push(Number(token));
    return whole(Number(token));
  };
  const chain = (next: () => Rational | undefined, first: Operator, second: Operator) => {
    let value = next();
    while (value !== undefined && (tokens[at] === first || tokens[at] === second)) {
      const operator = tokens[at++] as Operator;
      const right = next();
      if (right === undefined) return undefined;
      value = combine(value, operator, right) ?? fail('division by zero');
    }
    return value;
  };
  const product = () => chain(factor, '*', '/');
  const sum = (): Rational | undefined => chain(product, '+', '-');

  const value = sum();
  if (value === undefined) return { value, reason: reason! };
  if (at < tokens.length) {
    return { value: undefined, reason: `not part of an expression: ${JSON.stringify(tokens[at])}` };
  }
  return { value, used };
}
