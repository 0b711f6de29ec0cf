import type { ClipRule, KlConfig, PolicyLossConfig, RolloutCorrection } from '../ops/policy-loss-config.js';

/**
 * The policy loss as plain loops in float64 on host arrays: what the fast versions are measured against
 * from JavaScript. Written from the table of rules (native/core/loss/config.h names them) and independent
 * of the native code.
 */

/** A batch as arrays of numbers, named as in `ResponseBatch`. */
export interface PolicyLossInputs {
  readonly cuSeqlens: ArrayLike<number>;
  readonly logprobs: ArrayLike<number>;
  readonly oldLogprobs?: ArrayLike<number>;
  readonly refLogprobs?: ArrayLike<number>;
  readonly rolloutLogprobs?: ArrayLike<number>;
  readonly lossMask?: ArrayLike<number>;
  readonly klMask?: ArrayLike<number>;
  /** Per sequence or per token, told apart by the length. */
  readonly advantages: ArrayLike<number>;
  readonly tokenWeights?: ArrayLike<number>;
  /** The plan's weights, `[numSeqs]`. */
  readonly seqScale: ArrayLike<number>;
}

/** A surrogate of the caller's: loss and its derivative by the log ratio x of a token. */
export type CustomSurrogate = (x: number, advantage: number) => readonly [loss: number, dLoss: number];

/** Results in float64. */
export interface PolicyLossReference {
  readonly loss: number;
  /** `[totalTokens]`, 0 at masked positions. */
  readonly dLogprobs: Float64Array;
  /** `[totalTokens]`, loss and penalty without `s_i`. */
  readonly perTokenLoss: Float64Array;
}

interface Term {
  value: number;
  byLogRatio: number;
  byLogprob: number;
}

interface Facts {
  readonly x: number;
  readonly ratio: number;
  readonly logprob: number;
  readonly old: number;
  readonly advantage: number;
  /** VESPO's log weight of the sequence. */
  readonly logWeight: number;
}

const clamp = (value: number, low: number, high: number): number => Math.min(Math.max(value, low), high);

/** `-weight A logprob`, the weight a constant. */
function weighted(weight: number, { advantage, logprob }: Facts): Term {
  return { value: -weight * advantage * logprob, byLogRatio: 0, byLogprob: -weight * advantage };
}

function ppo(low: number, high: number, { ratio, advantage }: Facts): Term {
  const plain = -advantage * ratio;
  const clipped = -advantage * clamp(ratio, 1 - low, 1 + high);
  return { value: Math.max(plain, clipped), byLogRatio: plain >= clipped ? plain : 0, byLogprob: 0 };
}

function dual(low: number, high: number, limit: number, facts: Facts): Term {
  const term = ppo(low, high, facts);
  const cap = -facts.advantage * limit;
  return facts.advantage < 0 && cap < term.value ? { value: cap, byLogRatio: 0, byLogprob: 0 } : term;
}

function dppo(clip: Extract<ClipRule, { kind: 'dppo-tv' | 'dppo-kl' }>, facts: Facts): Term {
  const pi = Math.exp(facts.logprob);
  const old = Math.exp(facts.old);
  const up = facts.advantage > 0;
  const bound = up ? clip.deltaHigh : clip.deltaLow;
  const further = up ? pi - old : old - pi;
  let keep = further <= bound;
  if (clip.kind === 'dppo-kl') {
    const rest = (1 - old) * Math.log((1 - old + 1e-8) / (1 - pi + 1e-8));
    keep = further <= 0 || old * (facts.old - facts.logprob) + rest <= bound;
  }
  return weighted(keep ? Math.min(facts.ratio, clip.cap ?? 20) : 0, facts);
}

function surrogate(clip: ClipRule, facts: Facts): Term {
  const { advantage, ratio, logprob, old } = facts;
  switch (clip.kind) {
    case 'none':
    case 'gmpo': // ratio is the geometric mean of the clipped ones
      return { value: -advantage * ratio, byLogRatio: -advantage * ratio, byLogprob: 0 };
    case 'ppo':
      return ppo(clip.clipLow, clip.clipHigh, facts);
    case 'dual':
      return dual(clip.clipLow, clip.clipHigh, clip.dualClip, facts);
    case 'two-sided': {
      // -min(min(r, delta) A, clip(r) A), as written.
      const limited = Math.min(ratio, clip.delta) * advantage;
      const clipped = clamp(ratio, 1 - clip.clipLow, 1 + clip.clipHigh) * advantage;
      const moves = limited <= clipped && ratio <= clip.delta;
      return { value: -Math.min(limited, clipped), byLogRatio: moves ? -advantage * ratio : 0, byLogprob: 0 };
    }
    case 'cispo':
      return weighted(clamp(ratio, clip.low, clip.high), facts);
    case 'sapo': {
      const tau = advantage > 0 ? (clip.tauPositive ?? 1) : (clip.tauNegative ?? 1.05);
      const gate = 1 / (1 + Math.exp(-tau * (ratio - 1)));
      const byLogRatio = -4 * advantage * gate * (1 - gate) * ratio;
      return { value: ((-advantage * 4) / tau) * gate, byLogRatio, byLogprob: 0 };
    }
    case 'dppo-tv':
    case 'dppo-kl':
      return dppo(clip, facts);
    case 'vespo': {
      const { k, lambda } =
        advantage >= 0 ? (clip.positive ?? { k: 2, lambda: 3 }) : (clip.negative ?? { k: 3, lambda: 2 });
      const phi = Math.exp(lambda + k * facts.logWeight - lambda * Math.exp(facts.logWeight));
      return weighted(Number.isFinite(phi) ? phi : 0, facts);
    }
    case 'dro': {
      const distance = logprob - old;
      const value = -(logprob * advantage - 0.5 * clip.beta * distance ** 2);
      return { value, byLogRatio: 0, byLogprob: -advantage + clip.beta * distance };
    }
  }
}

function penalty(
  kl: KlConfig,
  logprob: number,
  ref: number,
  ratio: number,
  moves: boolean,
): [number, number] {
  const { inputClamp = 20, outputClamp = Infinity, importance = 'none' } = kl;
  const d = clamp(logprob - ref, -inputClamp, inputClamp);
  const base = kl.kind.replace('+', '');
  const plain = { k1: d, abs: Math.abs(d), k2: d ** 2 / 2, k3: Math.expm1(-d) + d }[base]!;
  const value = clamp(plain, -outputClamp, outputClamp);
  const clamped = d !== logprob - ref || value !== plain;
  const slope = { k1: 1, abs: Math.sign(d), k2: d, k3: -Math.expm1(-d) }[base]!;
  const derivative = clamped ? 0 : kl.kind.endsWith('+') ? d : slope;
  if (importance === 'none') return [value, derivative];
  const more = importance === 'differentiable' && !clamped && moves ? value * ratio : 0;
  return [value * ratio, derivative * ratio + more];
}

const BOUNDS = {
  'token-truncate': [0, 2],
  'token-mask': [0.5, 5],
  'sequence-truncate': [0, 2],
  'sequence-mask': [0.5, 5],
  'sequence-geo-mask': [0.999, 1.002],
} as const;

/** The weights c of one sequence's active tokens, before normalisation; NaN ys are missing. */
function weights(correction: Exclude<RolloutCorrection, { mode: 'bypass' }>, ys: number[]): number[] {
  const { mode, low = BOUNDS[mode][0], high = BOUNDS[mode][1] } = correction;
  const sum = ys.reduce((total, y) => total + (Number.isNaN(y) ? 0 : y), 0);
  const bounded = (ratio: number, kept: number): number =>
    mode.endsWith('truncate') ? clamp(ratio, low, high) : ratio < low || ratio > high ? 0 : kept;
  return ys.map((y) => {
    if (Number.isNaN(y)) return 1;
    if (mode.startsWith('token')) return bounded(Math.exp(y), Math.exp(y));
    if (mode === 'sequence-geo-mask') return bounded(Math.exp(sum / ys.length), Math.exp(y));
    return bounded(Math.exp(sum), Math.exp(sum));
  });
}

/**
 * The policy loss and its gradient in float64, for finite values.
 *
 * @param customSurrogate replaces the rule of `config.clip` at level `token`
 *
 * @example
 * ```ts
 * const { loss } = policyLossReference(batch, config, (x, a) => [-a * Math.exp(x), -a * Math.exp(x)]);
 * ```
 */
export function policyLossReference(
  batch: PolicyLossInputs,
  config: PolicyLossConfig,
  customSurrogate?: CustomSurrogate,
): PolicyLossReference {
  const { cuSeqlens, logprobs, advantages, seqScale } = batch;
  const { ratio: ratioConfig, clip, kl, rolloutCorrection } = config;
  const bypass = rolloutCorrection?.mode === 'bypass';
  const correction = rolloutCorrection?.mode === 'bypass' ? undefined : rolloutCorrection;
  const logClamp = ratioConfig.logClamp ?? 20;
  const readsOld = !ratioConfig.onPolicy && (ratioConfig.level !== 'none' || correction !== undefined);
  const oldOf = (t: number): number =>
    !readsOld ? logprobs[t] : bypass ? batch.rolloutLogprobs![t] : batch.oldLogprobs![t];
  const xOf = (t: number): number => clamp(logprobs[t] - oldOf(t), -logClamp, logClamp);
  const moves = (t: number): boolean => Math.abs(logprobs[t] - oldOf(t)) <= logClamp;
  const perToken = advantages.length === logprobs.length && advantages.length !== seqScale.length;
  const dLogprobs = new Float64Array(logprobs.length);
  const perTokenLoss = new Float64Array(logprobs.length);

  const sequences = Array.from({ length: cuSeqlens.length - 1 }, (_, i) => {
    const tokens: number[] = [];
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++)
      if ((batch.lossMask?.[t] ?? 1) !== 0) tokens.push(t);
    const ys = tokens.map((t) =>
      correction === undefined ? 0 : clamp(oldOf(t) - batch.rolloutLogprobs![t], -20, 20),
    );
    return { tokens, c: correction === undefined ? tokens.map(() => 1) : weights(correction, ys) };
  });
  const all = sequences.flatMap(({ c }) => c);
  const normalize = correction?.batchNormalize ?? false;
  const sumOfWeights = all.reduce((a, b) => a + b, 0);
  const ownMean = sumOfWeights > 0 ? sumOfWeights / all.length : 1;
  const mean = typeof normalize === 'object' ? normalize.mean : normalize ? ownMean : 1;

  let loss = 0;
  for (const [i, { tokens, c: raw }] of sequences.entries()) {
    const n = tokens.length;
    if (n === 0) continue;
    const advantageOf = (t: number): number => advantages[perToken ? t : i];
    const broadcasts = ratioConfig.level === 'sequence' || clip.kind === 'gmpo';
    const bounded = (t: number): number => {
      if (clip.kind !== 'gmpo') return xOf(t);
      const a = advantageOf(t);
      return a > 0 ? Math.min(xOf(t), clip.clipHigh) : a < 0 ? Math.max(xOf(t), -clip.clipLow) : 0;
    };
    const meanX = tokens.reduce((sum, t) => sum + bounded(t), 0) / n;
    const held = ratioConfig.level === 'sequence-token' && meanX > 10;
    const c = raw.map((weight) => weight / mean);
    const logSum = tokens.reduce((sum, t, k) => sum + xOf(t) + Math.log(c[k]), 0);
    const logWeight = clamp(logSum, Math.log(1e-8), 20);
    let shared = 0;
    for (const [k, t] of tokens.entries()) {
      const x = xOf(t);
      const own = ratioConfig.level === 'token' && clip.kind !== 'gmpo';
      const ratio = Math.exp(own ? x : held ? 10 : meanX);
      const facts = { x, ratio, logprob: logprobs[t], old: oldOf(t), advantage: advantageOf(t), logWeight };
      const custom = customSurrogate?.(x, facts.advantage);
      const term =
        custom !== undefined
          ? { value: custom[0], byLogRatio: custom[1], byLogprob: 0 }
          : ratioConfig.level === 'none'
            ? weighted(1, facts)
            : surrogate(clip, facts);
      const inPhi = clip.kind === 'vespo' && ratioConfig.level !== 'none';
      const factor = (batch.tokenWeights?.[t] ?? 1) * (inPhi ? 1 : c[k]);
      let gradient = factor * term.byLogprob;
      if (broadcasts) shared += factor * term.byLogRatio;
      else if (moves(t) && !held) gradient += factor * term.byLogRatio;
      let value = factor * term.value;
      if (kl !== undefined && kl.coef > 0 && (batch.klMask?.[t] ?? 1) !== 0) {
        const [estimate, slope] = penalty(kl, logprobs[t], batch.refLogprobs![t], Math.exp(x), moves(t));
        value += kl.coef * estimate;
        gradient += kl.coef * slope;
      }
      perTokenLoss[t] = value;
      dLogprobs[t] = seqScale[i] * gradient;
      loss += seqScale[i] * value;
    }
    if (!broadcasts) continue;
    for (const t of tokens) {
      if (moves(t) && bounded(t) === xOf(t)) dLogprobs[t] += (seqScale[i] * shared) / n;
    }
  }
  return { loss, dLogprobs, perTokenLoss };
}

/** Results of {@link policyLossFromLogitsReference}. */
export interface PolicyLossFromLogitsReference extends PolicyLossReference {
  readonly logprobs: Float64Array;
  readonly entropies: Float64Array;
  /** `[totalTokens, vocabSize]` */
  readonly dLogits: Float64Array;
}

/**
 * The policy loss from logits in float64: log-softmax by rows, {@link policyLossReference}, and back.
 *
 * @param entropyScale `h_t`, when the configuration has an entropy coefficient
 *
 * @example
 * ```ts
 * const { dLogits } = policyLossFromLogitsReference({ ...batch, logits, targetIds, vocabSize: 7 }, config);
 * ```
 */
export function policyLossFromLogitsReference(
  batch: Omit<PolicyLossInputs, 'logprobs'> & {
    readonly logits: ArrayLike<number>;
    readonly targetIds: ArrayLike<number>;
    readonly vocabSize: number;
  },
  config: PolicyLossConfig,
  { temperature = 1, entropyScale = 0 }: { temperature?: number; entropyScale?: number } = {},
): PolicyLossFromLogitsReference {
  const { logits, targetIds, vocabSize } = batch;
  const totalTokens = targetIds.length;
  const active = (t: number): boolean => (batch.lossMask?.[t] ?? 1) !== 0;
  const logP = (t: number): Float64Array => {
    const z = Float64Array.from({ length: vocabSize }, (_, v) => logits[t * vocabSize + v] / temperature);
    const max = z.reduce((a, b) => Math.max(a, b));
    const lse = max + Math.log(z.reduce((sum, value) => sum + Math.exp(value - max), 0));
    return z.map((value) => value - lse);
  };
  const entropyOf = (row: Float64Array): number => row.reduce((sum, lp) => sum - Math.exp(lp) * lp, 0);
  const logprobs = new Float64Array(totalTokens);
  const entropies = new Float64Array(totalTokens);
  for (let t = 0; t < totalTokens; t++) {
    if (!active(t)) continue;
    const row = logP(t);
    logprobs[t] = row[targetIds[t]];
    entropies[t] = entropyOf(row);
  }
  const own = policyLossReference({ ...batch, logprobs }, config);
  const coef = (config.entropy?.coef ?? 0) * entropyScale;
  const dLogits = new Float64Array(logits.length);
  let { loss } = own;
  for (let t = 0; t < totalTokens; t++) {
    if (!active(t)) continue;
    const row = logP(t);
    const earns = (batch.tokenWeights?.[t] ?? 1) > 0 && (batch.klMask?.[t] ?? 1) !== 0;
    const bonus = earns ? coef : 0;
    loss -= bonus * entropies[t];
    for (let v = 0; v < vocabSize; v++) {
      const p = Math.exp(row[v]);
      const hit = v === targetIds[t] ? 1 : 0;
      dLogits[t * vocabSize + v] =
        (own.dLogprobs[t] * (hit - p) + bonus * p * (row[v] + entropies[t])) / temperature;
    }
  }
  return { ...own, loss, logprobs, entropies, dLogits };
}

/** Results of {@link policyLossFromHiddenReference}. */
export interface PolicyLossFromHiddenReference extends PolicyLossFromLogitsReference {
  /** `[totalTokens, hiddenSize]`. */
  readonly dHidden: Float64Array;
  /** `[vocabSize, hiddenSize]`. */
  readonly dWeight: Float64Array;
  /** `[vocabSize]`. */
  readonly dBias: Float64Array;
}

/**
 * {@link policyLossFromLogitsReference} of `cap(hidden weight^T + bias)`, all of it made, with the gradients of
 * the three; `dLogits` is that of the capped logits.
 *
 * @example
 * ```ts
 * const { dWeight } = policyLossFromHiddenReference({ ...batch, hidden, weight, targetIds, vocabSize: 7 }, config);
 * ```
 */
export function policyLossFromHiddenReference(
  batch: Omit<PolicyLossInputs, 'logprobs'> & {
    readonly hidden: ArrayLike<number>;
    readonly weight: ArrayLike<number>;
    readonly bias?: ArrayLike<number>;
    readonly targetIds: ArrayLike<number>;
    readonly vocabSize: number;
  },
  config: PolicyLossConfig,
  options: { temperature?: number; entropyScale?: number; softcap?: number } = {},
): PolicyLossFromHiddenReference {
  const { hidden, weight, bias, targetIds, vocabSize } = batch;
  const { softcap = 0, ...rest } = options;
  const size = weight.length / vocabSize;
  const logits = new Float64Array(targetIds.length * vocabSize);
  const slopes = new Float64Array(logits.length).fill(1);
  for (let i = 0; i < logits.length; i++) {
    const [t, v] = [Math.floor(i / vocabSize), i % vocabSize];
    let u = bias?.[v] ?? 0;
    for (let k = 0; k < size; k++) u += hidden[t * size + k] * weight[v * size + k];
    logits[i] = softcap > 0 ? softcap * Math.tanh(u / softcap) : u;
    if (softcap > 0) slopes[i] = 1 - Math.tanh(u / softcap) ** 2;
  }
  const plain = policyLossFromLogitsReference({ ...batch, logits }, config, rest);
  const dHidden = new Float64Array(targetIds.length * size);
  const dWeight = new Float64Array(weight.length);
  const dBias = new Float64Array(vocabSize);
  for (let i = 0; i < logits.length; i++) {
    const [t, v] = [Math.floor(i / vocabSize), i % vocabSize];
    if ((batch.lossMask?.[t] ?? 1) === 0) continue;
    const du = plain.dLogits[i] * slopes[i];
    dBias[v] += du;
    for (let k = 0; k < size; k++) {
      dHidden[t * size + k] += du * weight[v * size + k];
      dWeight[v * size + k] += du * hidden[t * size + k];
    }
  }
  return { ...plain, dHidden, dWeight, dBias };
}
