/** A policy loss with a clip rule of one's own, on host arrays in float64: to try an idea before it is a kernel. */
import { wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { type PolicyLossConfig, readPolicyLossConfig } from '../ops/policy-loss-config.js';
import type { ResponseArrays } from '../rl/response-arrays.js';
import { Equation, type EquationLoss, type EquationScales, klTerm } from './policy-loss-equation.js';

/** The surrogate of one token and its derivative: of the log ratio `x` and the advantage `A`. */
export type Surrogate = (x: number, advantage: number) => readonly [loss: number, dLoss: number];

/** A {@link PolicyLossConfig} without a clip rule, and only levels that have a ratio. */
export type CustomSurrogateConfig = Pick<PolicyLossConfig, 'kl' | 'rolloutCorrection'> & {
  readonly ratio: PolicyLossConfig['ratio'] & { readonly level: 'token' | 'sequence' };
};

/** Value and gradient. */
export interface CustomSurrogateLoss extends EquationLoss {
  /** `[totalTokens]`, 0 outside the mask. */
  readonly dLogprobs: Float64Array;
}

/**
 * The policy loss whose surrogate is `surrogate(x, A)`, with x the clamped log ratio of the token or the mean
 * of the sequence's. The derivative that it returns is used as it is: a rule that treats a part as constant
 * leaves it out there. At level `sequence` every active token receives 1/L of the sum of derivatives.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_INCOMPATIBLE` for other levels, `ERR_VARLEN_PLAN_MISMATCH` and what bad
 * configurations and arrays throw.
 *
 * @example
 * // A plain importance ratio.
 * const ratio: Surrogate = (x, A) => [-A * Math.exp(x), -A * Math.exp(x)];
 * const { loss, dLogprobs } = customSurrogate(batch, plan, ratio, { ratio: { level: 'token' } });
 */
export function customSurrogate(
  batch: ResponseArrays,
  scales: EquationScales,
  surrogate: Surrogate,
  config: CustomSurrogateConfig,
): CustomSurrogateLoss {
  const op = 'customSurrogate';
  if (typeof surrogate !== 'function') throw wrongType(op, 'surrogate', surrogate, 'a function');
  readPolicyLossConfig(op, { ...config, clip: { kind: 'none' } });
  const { level } = config.ratio;
  if (level !== 'token' && level !== 'sequence') {
    const problem = `has no x; got '${level as string}', expected 'token' or 'sequence'`;
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'ratio.level', problem);
  }
  const e = new Equation(op, batch, scales, config);
  const value = e.evaluate(
    (p, t, i) => {
      const x = level === 'token' ? e.x(p, t) : e.sumX(p, i) / e.active[i].length;
      return { pg: e.weight(t) * surrogate(x, e.advantageOf(t, i))[0], kl: klTerm(e, config.kl, p, t) };
    },
    e.q,
    0,
  );
  const dLogprobs = new Float64Array(e.q.length);
  const moves = (t: number): boolean => Math.abs(e.q[t] - e.old[t]) <= e.logClamp;
  e.active.forEach((tokens, i) => {
    const slopes = tokens.map((t) => {
      const x = level === 'token' ? e.x(e.q, t) : e.sumX(e.q, i) / tokens.length;
      return e.weight(t) * surrogate(x, e.advantageOf(t, i))[1];
    });
    const mean = slopes.reduce((a, b) => a + b, 0) / tokens.length;
    tokens.forEach((t, k) => {
      const policy = moves(t) ? (level === 'token' ? slopes[k] : mean) : 0;
      dLogprobs[t] = scales.seqScale[i] * (policy + klSlope(e, config, t));
    });
  });
  return { ...value, dLogprobs };
}

/** Derivative of the KL term by differences: only the surrogate's is the caller's. */
function klSlope(e: Equation, { kl }: CustomSurrogateConfig, t: number): number {
  if (kl === undefined || kl.coef === 0) return 0;
  const step = 1e-4;
  // The term reads its own token only.
  const at = (offset: number): number => klTerm(e, kl, { length: t + 1, [t]: e.q[t] + offset * step }, t);
  return (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * step);
}
