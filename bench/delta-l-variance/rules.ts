/** The rules that are compared: ways of weighting answers of different length. */
import type { Aggregation, VarianceLaw } from '../../src/rl/index.js';

/** In the order of the tables. */
export const rules = [
  'grpo',
  'tokenMean',
  'drGrpo',
  'deltaL50',
  'deltaL75',
  'deltaL100',
  'inverseVariance',
] as const;

/** One of {@link rules}. */
export type Rule = (typeof rules)[number];

/** What each {@link Rule} is, for tables and legends. */
export const ruleNames: Readonly<Record<Rule, string>> = {
  grpo: 'GRPO',
  tokenMean: 'token-mean',
  drGrpo: 'Dr. GRPO',
  deltaL50: 'ΔL .5',
  deltaL75: 'ΔL .75',
  deltaL100: 'ΔL 1',
  inverseVariance: 'inverse-variance',
};

/** Rules whose weights sum to `1 / M`, so that gradients of equal expectation are summed without bias. */
export const unbiasedRules: readonly Rule[] = [
  'drGrpo',
  'deltaL50',
  'deltaL75',
  'deltaL100',
  'inverseVariance',
];

/** Each rule as an aggregation; `inverse-variance` knows the law of the noise. */
export function aggregations(normConstant: number, law: VarianceLaw): Readonly<Record<Rule, Aggregation>> {
  const deltaL = (alpha: number): Aggregation => ({ mode: 'delta-l', alpha, normConstant });
  return {
    grpo: { mode: 'seq-mean-token-mean' },
    tokenMean: { mode: 'token-mean' },
    drGrpo: { mode: 'seq-mean-token-sum-norm', normConstant },
    deltaL50: deltaL(0.5),
    deltaL75: deltaL(0.75),
    deltaL100: deltaL(1),
    inverseVariance: { mode: 'inverse-variance', law, normConstant },
  };
}

/** Something per rule. */
export function perRule<T>(make: (rule: Rule) => T): Record<Rule, T> {
  return Object.fromEntries(rules.map((rule) => [rule, make(rule)])) as Record<Rule, T>;
}

/** What an experiment says of one rule. */
export interface RuleResult {
  /** Mean of the estimates over the target, `gradient / M`; 1 = unbiased. */
  readonly mean: number;
  /** Of `mean`. */
  readonly standardError: number;
  /** Standard deviation of the estimates over the size of their mean. */
  readonly cv: number;
  /** Standard deviation of the estimates over the target. */
  readonly spread: number;
  /** `spread` by theory; null where no formula is known. */
  readonly theory: number | null;
}

/** Means and variances of a stream of numbers (Welford, 1962). */
export class Moments {
  count = 0;
  mean = 0;
  #squares = 0;

  add(value: number): void {
    this.count += 1;
    const before = value - this.mean;
    this.mean += before / this.count;
    this.#squares += before * (value - this.mean);
  }

  /** Divisor `count - 1`; 0 for fewer than two numbers. */
  get variance(): number {
    return this.count < 2 ? 0 : this.#squares / (this.count - 1);
  }
}
