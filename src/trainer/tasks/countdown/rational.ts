/** Exact fractions. */

/** `numerator / denominator`, denominator positive, in lowest terms. */
export interface Rational {
  readonly numerator: bigint;
  readonly denominator: bigint;
}

function gcd(a: bigint, b: bigint): bigint {
  let [x, y] = [a < 0n ? -a : a, b];
  while (y !== 0n) [x, y] = [y, x % y];
  return x;
}

/** Undefined where the denominator is 0. */
function rational(numerator: bigint, denominator: bigint): Rational | undefined {
  if (denominator === 0n) return undefined;
  const sign = denominator < 0n ? -1n : 1n;
  const divisor = gcd(numerator, denominator * sign) * sign;
  return { numerator: numerator / divisor, denominator: denominator / divisor };
}

/** A whole number. */
export function whole(value: number): Rational {
  return { numerator: BigInt(value), denominator: 1n };
}

/** `a operator b`; undefined for a division by zero. */
export function combine(a: Rational, operator: Operator, b: Rational): Rational | undefined {
  const { numerator: p, denominator: q } = a;
  const { numerator: r, denominator: s } = b;
  switch (operator) {
    case '+':
      return rational(p * s + r * q, q * s);
    case '-':
      return rational(p * s - r * q, q * s);
    case '*':
      return rational(p * r, q * s);
    case '/':
      return rational(p * s, q * r);
  }
}

export const OPERATORS = ['+', '-', '*', '/'] as const;
/** The four kinds of arithmetic. */
export type Operator = (typeof OPERATORS)[number];

/** Whether it is this whole number. */
export function equals({ numerator, denominator }: Rational, value: number): boolean {
  return denominator === 1n && numerator === BigInt(value);
}

/** `7` or `7/2`. */
export function rationalText({ numerator, denominator }: Rational): string {
  return denominator === 1n ? `${numerator}` : `${numerator}/${denominator}`;
}
