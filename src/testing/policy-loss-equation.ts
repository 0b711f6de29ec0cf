/**
 * The policy loss as one equation, evaluated with plain float64 loops on host arrays, and its gradient by
 * finite differences: an oracle that shares no derivative with any implementation. Written from the table of
 * rules; independent of the native code.
 *
 *     Loss = sum_i s_i sum_{t in i, m_t = 1} [ w_t c_t l(x_t, A_t) + beta k_t ] - lambda sum_t h_t H_t
 */
import { argumentError, varlenError } from '../errors.js';
import { lengthHash } from '../ops/length-hash.js';
import { type KlConfig, type PolicyLossConfig, readPolicyLossConfig } from '../ops/policy-loss-config.js';
import type { SequenceScales } from '../ops/sequence-scales.js';
import { activeLengths } from '../rl/plan/lengths.js';
import { advantageReader, checkFields, type Floats, type ResponseArrays } from '../rl/response-arrays.js';
import { rolloutWeights } from '../rl/rollout-correction.js';

/** A plan, or scales of one's own; in float64 when no rounding is wanted. */
export type EquationScales = Omit<SequenceScales, 'seqScale'> & {
  readonly seqScale: Float32Array | Float64Array;
};

/** Value of the equation. */
export interface EquationLoss {
  /** `pgLoss + klLoss - entropyBonus` */
  readonly loss: number;
  readonly pgLoss: number;
  readonly klLoss: number;
  readonly entropyBonus: number;
  /** `[totalTokens]`, the bracket without `s_i`; 0 outside the mask. */
  readonly perTokenLoss: Float64Array;
}

/** Bracket of one token in its two parts. */
interface Parts {
  pg: number;
  kl: number;
}

/**
 * What every term is made of. Terms are functions of the log-probabilities `p`; what an objective treats as
 * a constant is a function of `q`, the batch's own.
 */
export class Equation {
  readonly op: string;
  readonly batch: ResponseArrays;
  readonly scales: EquationScales;
  /** `[numSeqs]`, active tokens of each sequence, as indices. */
  readonly active: readonly (readonly number[])[];
  readonly q: Floats;
  /** Log-probabilities of the old policy. */
  readonly old: Floats;
  /** `c_t`. */
  readonly correction: ArrayLike<number> | undefined;
  readonly advantageOf: (t: number, i: number) => number;
  readonly logClamp: number;

  constructor(
    op: string,
    batch: ResponseArrays,
    scales: EquationScales,
    config: Pick<PolicyLossConfig, 'ratio' | 'kl' | 'rolloutCorrection'>,
  ) {
    const { ratio, kl, rolloutCorrection } = config;
    const bypass = rolloutCorrection?.mode === 'bypass';
    // Without a ratio in the surrogate nobody needs an old policy, unless the rollout is weighed against it.
    const weighs = rolloutCorrection !== undefined && !bypass;
    const hasOld = ratio.onPolicy !== true && (ratio.level !== 'none' || weighs);
    const readsOld = hasOld && !bypass;
    checkFields(op, batch, [
      'logprobs',
      ...(readsOld ? (['oldLogprobs'] as const) : []),
      ...(rolloutCorrection === undefined ? [] : (['rolloutLogprobs'] as const)),
      ...(kl !== undefined && kl.coef > 0 ? (['refLogprobs'] as const) : []),
    ]);
    const lengths = activeLengths(batch);
    if (scales.lengthHash !== lengthHash(lengths)) {
      throw varlenError('ERR_VARLEN_PLAN_MISMATCH', `${op}: plan was made for other lengths`, {
        op,
        argument: 'scales',
      });
    }
    this.op = op;
    this.batch = batch;
    this.scales = scales;
    this.active = Array.from(lengths, (_, i) => {
      const tokens: number[] = [];
      for (let t = batch.cuSeqlens[i]; t < batch.cuSeqlens[i + 1]; t++) {
        if (batch.lossMask === undefined || batch.lossMask[t] !== 0) tokens.push(t);
      }
      return tokens;
    });
    this.q = batch.logprobs!;
    this.old = readsOld ? batch.oldLogprobs! : hasOld ? reported(batch) : this.q;
    this.correction = weighs
      ? rolloutWeights({ ...batch, oldLogprobs: this.old }, rolloutCorrection).weights
      : undefined;
    this.advantageOf = advantageReader(op, batch);
    this.logClamp = ratio.logClamp ?? 20;
  }

  /** `x_t` */
  x(p: ArrayLike<number>, t: number): number {
    return clamp(p[t] - this.old[t], -this.logClamp, this.logClamp);
  }

  /** Sum of `x_t` over a sequence. */
  sumX(p: ArrayLike<number>, i: number): number {
    return this.active[i].reduce((sum, t) => sum + this.x(p, t), 0);
  }

  /** `w_t c_t` */
  weight(t: number): number {
    return (this.batch.tokenWeights?.[t] ?? 1) * (this.correction?.[t] ?? 1);
  }

  /** Value of the whole at `p`. */
  evaluate(part: (p: Floats, t: number, i: number) => Parts, p: Floats, entropyCoef: number): EquationLoss {
    const { scales, batch } = this;
    const perTokenLoss = new Float64Array(p.length);
    let pgLoss = 0;
    let klLoss = 0;
    let entropySum = 0;
    this.active.forEach((tokens, i) => {
      for (const t of tokens) {
        const { pg, kl } = part(p, t, i);
        perTokenLoss[t] = pg + kl;
        pgLoss += scales.seqScale[i] * pg;
        klLoss += scales.seqScale[i] * kl;
        const eligible = (batch.tokenWeights?.[t] ?? 1) > 0 && (batch.klMask?.[t] ?? 1) !== 0;
        if (eligible && batch.entropies !== undefined) entropySum += batch.entropies[t];
      }
    });
    const entropyBonus = entropyCoef * scales.entropyScale * entropySum;
    return { loss: pgLoss + klLoss - entropyBonus, pgLoss, klLoss, entropyBonus, perTokenLoss };
  }
}

function reported({ rolloutLogprobs, rolloutSupport, keptLogMass }: ResponseArrays): Floats {
  if (rolloutSupport !== 'truncated') return rolloutLogprobs!;
  return Float64Array.from(rolloutLogprobs!, (value, t) => value + keptLogMass![t]);
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

/** `beta k_t` at `p`, with constants at `q`. */
export function klTerm(e: Equation, kl: KlConfig | undefined, p: ArrayLike<number>, t: number): number {
  if (kl === undefined || kl.coef === 0 || e.batch.klMask?.[t] === 0) return 0;
  const { inputClamp = 20, outputClamp = Infinity, importance = 'none' } = kl;
  const ref = e.batch.refLogprobs![t];
  const d = (at: ArrayLike<number>): number => clamp(at[t] - ref, -inputClamp, inputClamp);
  const base = kl.kind.replace('+', '');
  const estimate = (x: number): number =>
    base === 'k1' ? x : base === 'abs' ? Math.abs(x) : base === 'k2' ? (x * x) / 2 : Math.exp(-x) + x - 1;
  const here = estimate(d(e.q));
  const clamped = Math.abs(e.q[t] - ref) > inputClamp || Math.abs(here) > outputClamp;
  let value: number;
  if (clamped) value = clamp(here, -outputClamp, outputClamp);
  else if (kl.kind.endsWith('+')) value = here + d(p) ** 2 / 2 - d(e.q) ** 2 / 2;
  else value = estimate(d(p));
  const moves = importance === 'differentiable' && !clamped;
  const ratio = importance === 'none' ? 1 : Math.exp(e.x(moves ? p : e.q, t));
  return kl.coef * ratio * value;
}

/** `w_t c_t l(x, A)` at `p`, with constants at `q`. */
function surrogateTerm(
  e: Equation,
  { ratio, clip }: PolicyLossConfig,
  p: Floats,
  t: number,
  i: number,
): number {
  const a = e.advantageOf(t, i);
  const w = e.weight(t);
  if (ratio.level === 'none') return -w * a * p[t];
  const n = e.active[i].length;
  const logRatio = (at: Floats): number => {
    if (ratio.level === 'token') return e.x(at, t);
    if (ratio.level === 'sequence') return e.sumX(at, i) / n;
    const mean = e.sumX(e.q, i) / n;
    return mean > 10 ? 10 : mean + e.x(at, t) - e.x(e.q, t);
  };
  const r = (at: Floats): number => Math.exp(logRatio(at));
  const ppo = (low: number, high: number): number => Math.max(-a * r(p), -a * clamp(r(p), 1 - low, 1 + high));
  switch (clip.kind) {
    case 'none':
      return -w * a * r(p);
    case 'ppo':
      return w * ppo(clip.clipLow, clip.clipHigh);
    case 'dual':
    case 'two-sided': {
      const bound = clip.kind === 'dual' ? clip.dualClip : clip.delta;
      const value = ppo(clip.clipLow, clip.clipHigh);
      return w * (a < 0 ? Math.min(-a * bound, value) : value);
    }
    case 'cispo':
      return -w * clamp(r(e.q), clip.low, clip.high) * a * p[t];
    case 'sapo': {
      const tau = a > 0 ? (clip.tauPositive ?? 1) : (clip.tauNegative ?? 1.05);
      return (-w * a * 4) / tau / (1 + Math.exp(-tau * (r(p) - 1)));
    }
    case 'gmpo': {
      const y = (s: number): number => {
        const x = e.x(p, s);
        const sign = Math.sign(a);
        return sign * Math.min(sign * x, sign * clamp(x, -clip.clipLow, clip.clipHigh));
      };
      return -w * a * Math.exp(e.active[i].reduce((sum, s) => sum + y(s), 0) / n);
    }
    case 'dppo-tv':
    case 'dppo-kl': {
      const [pi, old] = [Math.exp(e.q[t]), Math.exp(e.old[t])];
      let keep: boolean;
      if (clip.kind === 'dppo-tv') {
        keep = a > 0 ? pi - old <= clip.deltaHigh : pi - old >= -clip.deltaLow;
      } else {
        const rest = (1 - old) * Math.log((1 - old + 1e-8) / (1 - pi + 1e-8));
        const divergence = old * (e.old[t] - e.q[t]) + rest;
        keep = a > 0 ? divergence <= clip.deltaHigh || pi <= old : divergence <= clip.deltaLow || pi >= old;
      }
      return keep ? -w * a * Math.min(r(e.q), clip.cap ?? 20) * p[t] : 0;
    }
    case 'vespo': {
      const { k, lambda } =
        a >= 0 ? (clip.positive ?? { k: 2, lambda: 3 }) : (clip.negative ?? { k: 3, lambda: 2 });
      // The correction is inside the weight of the sequence, so it does not multiply again.
      let logWeight = e.sumX(e.q, i);
      if (e.correction) for (const s of e.active[i]) logWeight += Math.log(e.correction[s]);
      const bounded = clamp(logWeight, Math.log(1e-8), 20);
      const phi = Math.exp(lambda + k * bounded - lambda * Math.exp(bounded));
      const own = e.batch.tokenWeights?.[t] ?? 1;
      return -own * (Number.isFinite(phi) ? phi : 0) * a * p[t];
    }
    case 'dro':
      return -w * (p[t] * a - 0.5 * clip.beta * (p[t] - e.old[t]) ** 2);
  }
}

function prepare(
  op: string,
  batch: ResponseArrays,
  scales: EquationScales,
  config: PolicyLossConfig,
): [Equation, (p: Floats, t: number, i: number) => Parts] {
  readPolicyLossConfig(op, config);
  const e = new Equation(op, batch, scales, config);
  if (config.clip.kind === 'gmpo' && batch.advantages!.length !== e.active.length) {
    const problem = "must be one per sequence under clip.kind 'gmpo'; got one per token, expected numSeqs";
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'advantages', problem);
  }
  return [e, (p, t, i) => ({ pg: surrogateTerm(e, config, p, t, i), kl: klTerm(e, config.kl, p, t) })];
}

/**
 * Value of the policy loss on host arrays. Values at active tokens must be finite; what stands elsewhere is
 * never read.
 *
 * Throws what `policyLoss` throws for the same configuration, and `ERR_VARLEN_PLAN_MISMATCH`.
 *
 * @example
 * policyLossEquation(batch, plan, presets.grpo().config).loss;
 */
export function policyLossEquation(
  batch: ResponseArrays,
  scales: EquationScales,
  config: PolicyLossConfig,
): EquationLoss {
  const [e, part] = prepare('policyLossEquation', batch, scales, config);
  return e.evaluate(part, e.q, config.entropy?.coef ?? 0);
}

/**
 * The five-point rule as differences of pairs, so that a constant has slope 0 exactly. Its error is of fourth
 * order in the step; rounding is worth 1e-16 / step.
 */
const PAIRS = [
  [1, 8 / 12],
  [2, -1 / 12],
] as const;

/**
 * Gradient of {@link policyLossEquation} with respect to `logprobs` by five-point differences,
 * `[totalTokens]`; 0 outside the mask. What an objective treats as constant stays at its value. Wrong within
 * `2 step` of a clip bound. Costs the square of a sequence's length.
 *
 * @example
 * policyLossEquationGradient(batch, plan, presets.grpo().config);
 */
export function policyLossEquationGradient(
  batch: ResponseArrays,
  scales: EquationScales,
  config: PolicyLossConfig,
  options: {
    /** Default 1e-4. */
    readonly step?: number;
  } = {},
): Float64Array {
  const { step = 1e-4 } = options;
  const [e, part] = prepare('policyLossEquationGradient', batch, scales, config);
  const gradient = new Float64Array(e.q.length);
  const p = Float64Array.from(e.q);
  e.active.forEach((tokens, i) => {
    for (const t of tokens) {
      const total = (): number => {
        let sum = 0;
        for (const s of tokens) {
          const { pg, kl } = part(p, s, i);
          sum += pg + kl;
        }
        return sum;
      };
      let slope = 0;
      for (const [steps, factor] of PAIRS) {
        p[t] = e.q[t] + steps * step;
        const above = total();
        p[t] = e.q[t] - steps * step;
        slope += factor * (above - total());
      }
      p[t] = e.q[t];
      gradient[t] = (scales.seqScale[i] * slope) / step;
    }
  });
  return gradient;
}
