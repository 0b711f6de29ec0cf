import { wrongType } from '../check.js';
import { argumentError } from '../errors.js';

/** What a policy loss computes: the independent choices, their checks, and their native form. */

/** Which importance ratio enters the surrogate. */
export type RatioLevel = 'none' | 'token' | 'sequence' | 'sequence-token';

/**
 * The ratio `r = pi / pi_old`, from `x = clamp(logprob - old, -logClamp, logClamp)`.
 *
 * `none`: no ratio, `-A * logprob`. `token`: `exp(x)`. `sequence`: `exp` of the mean of x over the
 * sequence's active tokens (GSPO). `sequence-token`: that value, with the derivative of a token's own
 * ratio (GSPO-token); the mean is then held below 10.
 */
export interface RatioConfig<Level extends RatioLevel = RatioLevel> {
  readonly level: Level;
  /** Bound on the log ratio of a token; its derivative is 0 outside. Default 20. */
  readonly logClamp?: number;
  /** The old policy is the current one: ratio 1, derivative kept, no `oldLogprobs`. Default false. */
  readonly onPolicy?: boolean;
}

/**
 * The surrogate of a token as a function of the ratio r and its advantage A (rl-objectives, section 4).
 *
 * `two-sided` with `delta >= 1 + clipHigh` is `dual` with `dualClip = delta`. Bounds of `cispo` are
 * absolute. `gmpo` clips in log space and is of level `sequence` whatever is asked, `vespo` takes the
 * product of all ratios of the sequence.
 */
export type ClipRule =
  | { readonly kind: 'none' }
  | { readonly kind: 'ppo'; readonly clipLow: number; readonly clipHigh: number }
  | { readonly kind: 'gmpo'; readonly clipLow: number; readonly clipHigh: number }
  | {
      readonly kind: 'dual';
      readonly clipLow: number;
      readonly clipHigh: number;
      /** Above 1. */
      readonly dualClip: number;
    }
  | {
      readonly kind: 'two-sided';
      readonly clipLow: number;
      readonly clipHigh: number;
      /** At least `1 + clipHigh`. */
      readonly delta: number;
    }
  | { readonly kind: 'cispo'; readonly low: number; readonly high: number }
  | {
      readonly kind: 'sapo';
      /** Temperature where A > 0. Default 1. */
      readonly tauPositive?: number;
      /** Elsewhere. Default 1.05. */
      readonly tauNegative?: number;
    }
  | {
      readonly kind: 'dppo-tv' | 'dppo-kl';
      readonly deltaLow: number;
      readonly deltaHigh: number;
      /** Largest ratio. Default 20. */
      readonly cap?: number;
    }
  | {
      readonly kind: 'vespo';
      /** Where A >= 0. Default `{ k: 2, lambda: 3 }`. */
      readonly positive?: { readonly k: number; readonly lambda: number };
      /** Elsewhere. Default `{ k: 3, lambda: 2 }`. */
      readonly negative?: { readonly k: number; readonly lambda: number };
    }
  | { readonly kind: 'dro'; readonly beta: number };

/**
 * Estimators of KL(pi || ref) from `d = logprob - ref`: `k1` d, `abs` |d|, `k2` d^2 / 2, `k3`
 * `exp(-d) + d - 1`. A `+` keeps the value and takes the derivative of `k2`, whose expectation is the
 * gradient of the KL; that of `k1` is zero on-policy, and that of `k3` is another one.
 */
export type KlKind = 'k1' | 'abs' | 'k2' | 'k3' | 'k1+' | 'abs+' | 'k3+';

/** The KL penalty. */
export interface KlConfig {
  readonly kind: KlKind;
  readonly coef: number;
  /** Bound on |d|. Default 20. */
  readonly inputClamp?: number;
  /** Bound on the size of the estimate. Default: none. */
  readonly outputClamp?: number;
  /** Multiplies the estimate by the token's ratio, which is or is not differentiated. Default `'none'`. */
  readonly importance?: 'none' | 'detached' | 'differentiable';
}

/**
 * Weights `c` of tokens for the difference between the trainer's and the inference engine's
 * probabilities, from `y = clamp(old - rollout, -20, 20)`; constants to differentiation.
 *
 * `token-truncate`: `exp(y)` clipped to `[low, high]`, default `[0, 2]`. `token-mask`: `exp(y)`, or 0 where
 * it leaves `[low, high]`, default `[0.5, 5]`. `sequence-truncate`, `sequence-mask`: the same with `exp` of
 * the sequence's sum of y. `sequence-geo-mask`: the token's `exp(y)`, or 0 for the whole sequence when `exp`
 * of its mean y leaves `[low, high]`, default `[0.999, 1.002]`. `bypass`: the rollout's log-probabilities are
 * the old ones, and no weight is applied besides.
 */
export type RolloutCorrection =
  | {
      readonly mode:
        | 'token-truncate'
        | 'token-mask'
        | 'sequence-truncate'
        | 'sequence-mask'
        | 'sequence-geo-mask';
      readonly low?: number;
      readonly high?: number;
      /** Divide by the mean weight of the active tokens: of this call, or the given one of the whole step. Default false. */
      readonly batchNormalize?: boolean | { readonly mean: number };
      /** A NaN rollout log-probability weighs 1, or makes reading the result reject. Default `'neutral'`. */
      readonly missing?: 'neutral' | 'error';
    }
  | { readonly mode: 'bypass' };

/** What a policy loss adds to its surrogate. */
export interface PolicyLossTerms {
  readonly kl?: KlConfig;
  /** Bonus on the entropy; needs logits or hidden states. */
  readonly entropy?: { readonly coef: number };
  /**
   * Active tokens with a value or a loss that is not finite: reading a result rejects with their number and
   * the first index, they count for nothing (denominators stay), or they spread. Default `'throw'`.
   */
  readonly nonFinite?: 'throw' | 'drop' | 'propagate';
  /** Accept log-probabilities above 1e-4. Default false. */
  readonly allowPositive?: boolean;
}

interface LevelAndRule<Level extends RatioLevel, Kind extends ClipRule['kind']> extends PolicyLossTerms {
  readonly ratio: RatioConfig<Level>;
  readonly clip: Extract<ClipRule, { readonly kind: Kind }>;
  readonly rolloutCorrection?: Exclude<RolloutCorrection, { readonly mode: 'bypass' }>;
}

/** With an old policy, which a rollout may replace. */
interface OffPolicy<Level extends RatioLevel, Kind extends ClipRule['kind']> extends PolicyLossTerms {
  readonly ratio: RatioConfig<Level> & { readonly onPolicy?: false };
  readonly clip: Extract<ClipRule, { readonly kind: Kind }>;
  readonly rolloutCorrection?: RolloutCorrection;
}

type Legal<Level extends RatioLevel, Kind extends ClipRule['kind']> =
  | LevelAndRule<Level, Kind>
  | OffPolicy<Level, Kind>;

/**
 * Which policy loss. A plain object; every field is independent of the aggregation, which the plan holds.
 *
 * A level with a rule that does not go with it does not compile, and throws `ERR_VARLEN_INCOMPATIBLE`. Of a
 * level that is known at compile time, `PolicyLossConfig<'token'>`, any rule of that level may be put in.
 */
export type PolicyLossConfig<Level extends RatioLevel = RatioLevel> =
  | Legal<Level, 'none'>
  | Legal<Level & ('token' | 'sequence' | 'sequence-token'), 'ppo' | 'dual' | 'two-sided'>
  | Legal<Level & ('token' | 'sequence-token'), 'cispo' | 'sapo' | 'dppo-tv' | 'dppo-kl'>
  | Legal<Level & ('token' | 'sequence'), 'gmpo'>
  | Legal<Level & 'token', 'vespo' | 'dro'>;

/** A configuration before it is known to be a legal one. */
export interface UncheckedLossConfig extends PolicyLossTerms {
  readonly ratio: RatioConfig;
  readonly clip: ClipRule;
  readonly rolloutCorrection?: RolloutCorrection;
}

// Numbers of the native side: native/core/loss/config.h has the same lists.
const LEVELS: readonly RatioLevel[] = ['none', 'token', 'sequence', 'sequence-token'];
const CLIPS = [
  'none',
  'ppo',
  'dual',
  'cispo',
  'sapo',
  'gmpo',
  'dppo-tv',
  'dppo-kl',
  'vespo',
  'dro',
  'two-sided', // becomes dual
] as const satisfies ClipRule['kind'][];
const KLS: readonly KlKind[] = ['k1', 'abs', 'k2', 'k3', 'k1+', 'abs+', 'k3+'];
const IMPORTANCE = ['none', 'detached', 'differentiable'] as const;
const CORRECTIONS = [
  'token-truncate',
  'token-mask',
  'sequence-truncate',
  'sequence-mask',
  'sequence-geo-mask',
  'bypass',
] as const satisfies RolloutCorrection['mode'][];
const MISSING = ['neutral', 'error'] as const;
const NON_FINITE = ['throw', 'drop', 'propagate'] as const;

/**
 * The configuration as the native side reads it, defaults filled in (`Config` of native/core/loss/config.h).
 * A class, so that the ops' further arguments can join the same object (`LossArguments`).
 */
export class NativeLossConfig {
  ratioLevel = 0;
  logClamp = 20;
  onPolicy = false;
  clipKind = 0;
  /** The rule's numbers in the order of its type. */
  clip0 = 0;
  clip1 = 0;
  clip2 = 0;
  clip3 = 0;
  /** 0: no KL term, else 1 + index in the list. */
  klKind = 0;
  klCoef = 0;
  klInputClamp = 20;
  klOutputClamp: number = Infinity;
  klImportance = 0;
  entropyCoef = 0;
  /** 0: none, else 1 + index in the list. */
  correction = 0;
  correctionLow = 0;
  correctionHigh = 0;
  /** 0: do not divide, -1: by this call's mean, else by this number. */
  correctionMean = 0;
  correctionMissing = 0;
  nonFinite = 0;
  allowPositive = false;
}

function rangeError(op: string, path: string, value: number, expected: string): Error {
  return argumentError('ERR_VARLEN_RANGE', op, path, `is out of range; got ${value}, expected ${expected}`, {
    path,
    value,
    allowed: expected,
  });
}

function incompatible(op: string, path: string, problem: string, got: string, expected: string): Error {
  return argumentError('ERR_VARLEN_INCOMPATIBLE', op, path, `${problem}; got ${got}, expected ${expected}`);
}

function checkObject(op: string, path: string, value: unknown): asserts value is object {
  if (typeof value !== 'object' || value === null) throw wrongType(op, path, value, 'an object');
}

/** Refuses keys that are not listed. */
function checkKeys(op: string, path: string, value: object, known: readonly string[]): void {
  for (const key of Object.keys(value)) {
    if (known.includes(key)) continue;
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      path === '' ? key : `${path}.${key}`,
      `is not an option; got '${key}', expected one of ${known.join(', ')}`,
    );
  }
}

function indexOfWord(op: string, path: string, value: unknown, words: readonly string[]): number {
  const index = words.indexOf(value as string);
  if (index >= 0) return index;
  if (typeof value !== 'string') throw wrongType(op, path, value, `one of '${words.join("', '")}'`);
  throw argumentError(
    'ERR_VARLEN_OPTION',
    op,
    path,
    `is unknown; got '${value}', expected one of '${words.join("', '")}'`,
  );
}

/** A finite number of at least `min`, or above it when `open`. */
function checkNumber(op: string, path: string, value: unknown, min: number, open = false): number {
  if (typeof value !== 'number') throw wrongType(op, path, value, 'a number');
  if (value < Infinity && (open ? value > min : value >= min)) return value;
  const bound = min === -Infinity ? '' : open ? ` above ${min}` : ` >= ${min}`;
  throw rangeError(op, path, value, `a finite number${bound}`);
}

function checkFlag(op: string, path: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrongType(op, path, value, 'a boolean');
  return value;
}

const RATIO_KEYS = ['level', 'logClamp', 'onPolicy'];

function readRatio(op: string, ratio: RatioConfig, native: NativeLossConfig): void {
  checkObject(op, 'ratio', ratio);
  checkKeys(op, 'ratio', ratio, RATIO_KEYS);
  const { level, logClamp = 20, onPolicy = false } = ratio;
  native.ratioLevel = indexOfWord(op, 'ratio.level', level, LEVELS);
  native.logClamp = checkNumber(op, 'ratio.logClamp', logClamp, 0, true);
  native.onPolicy = checkFlag(op, 'ratio.onPolicy', onPolicy);
}

const CLIP_KEYS: Readonly<Record<ClipRule['kind'], readonly string[]>> = {
  none: ['kind'],
  ppo: ['kind', 'clipLow', 'clipHigh'],
  gmpo: ['kind', 'clipLow', 'clipHigh'],
  dual: ['kind', 'clipLow', 'clipHigh', 'dualClip'],
  'two-sided': ['kind', 'clipLow', 'clipHigh', 'delta'],
  cispo: ['kind', 'low', 'high'],
  sapo: ['kind', 'tauPositive', 'tauNegative'],
  'dppo-tv': ['kind', 'deltaLow', 'deltaHigh', 'cap'],
  'dppo-kl': ['kind', 'deltaLow', 'deltaHigh', 'cap'],
  vespo: ['kind', 'positive', 'negative'],
  dro: ['kind', 'beta'],
};

/** Bounds `1 - clipLow` and `1 + clipHigh` of a ratio: the lower one must stay above 0. */
function readRatioClip(op: string, clip: { clipLow: number; clipHigh: number }, native: NativeLossConfig) {
  native.clip0 = checkNumber(op, 'clip.clipLow', clip.clipLow, 0);
  native.clip1 = checkNumber(op, 'clip.clipHigh', clip.clipHigh, 0);
  if (clip.clipLow >= 1) throw rangeError(op, 'clip.clipLow', clip.clipLow, 'a number >= 0 and below 1');
}

function readShape(op: string, path: string, shape: { k: number; lambda: number }): [k: number, l: number] {
  checkObject(op, path, shape);
  checkKeys(op, path, shape, ['k', 'lambda']);
  return [
    checkNumber(op, `${path}.k`, shape.k, 0, true),
    checkNumber(op, `${path}.lambda`, shape.lambda, 0, true),
  ];
}

const VESPO_POSITIVE = { k: 2, lambda: 3 };
const VESPO_NEGATIVE = { k: 3, lambda: 2 };

function readClip(op: string, clip: ClipRule, native: NativeLossConfig): void {
  checkObject(op, 'clip', clip);
  native.clipKind = indexOfWord(op, 'clip.kind', clip.kind, CLIPS);
  checkKeys(op, 'clip', clip, CLIP_KEYS[clip.kind]);
  switch (clip.kind) {
    case 'none':
      return;
    case 'ppo':
      readRatioClip(op, clip, native);
      return;
    case 'dual':
      readRatioClip(op, clip, native);
      native.clip2 = checkNumber(op, 'clip.dualClip', clip.dualClip, 1, true);
      return;
    case 'two-sided':
      readRatioClip(op, clip, native);
      native.clip2 = checkNumber(op, 'clip.delta', clip.delta, -Infinity);
      if (clip.delta < 1 + clip.clipHigh) {
        throw rangeError(op, 'clip.delta', clip.delta, `at least 1 + clipHigh = ${1 + clip.clipHigh}`);
      }
      native.clipKind = CLIPS.indexOf('dual');
      return;
    case 'gmpo':
      native.clip0 = checkNumber(op, 'clip.clipLow', clip.clipLow, 0);
      native.clip1 = checkNumber(op, 'clip.clipHigh', clip.clipHigh, 0);
      return;
    case 'cispo':
      native.clip0 = checkNumber(op, 'clip.low', clip.low, 0);
      native.clip1 = checkNumber(op, 'clip.high', clip.high, clip.low);
      return;
    case 'sapo': {
      const { tauPositive = 1, tauNegative = 1.05 } = clip;
      native.clip0 = checkNumber(op, 'clip.tauPositive', tauPositive, 0, true);
      native.clip1 = checkNumber(op, 'clip.tauNegative', tauNegative, 0, true);
      return;
    }
    case 'dppo-tv':
    case 'dppo-kl':
      native.clip0 = checkNumber(op, 'clip.deltaLow', clip.deltaLow, 0);
      native.clip1 = checkNumber(op, 'clip.deltaHigh', clip.deltaHigh, 0);
      native.clip2 = checkNumber(op, 'clip.cap', clip.cap ?? 20, 0, true);
      return;
    case 'vespo':
      [native.clip0, native.clip1] = readShape(op, 'clip.positive', clip.positive ?? VESPO_POSITIVE);
      [native.clip2, native.clip3] = readShape(op, 'clip.negative', clip.negative ?? VESPO_NEGATIVE);
      return;
    case 'dro':
      native.clip0 = checkNumber(op, 'clip.beta', clip.beta, 0);
      return;
  }
}

/** Levels that go with a rule, as `PolicyLossConfig` has them; those that are absent go with all but `none`. */
const LEVELS_OF_CLIP: Readonly<Partial<Record<ClipRule['kind'], readonly RatioLevel[]>>> = {
  none: LEVELS,
  cispo: ['token', 'sequence-token'],
  sapo: ['token', 'sequence-token'],
  'dppo-tv': ['token', 'sequence-token'],
  'dppo-kl': ['token', 'sequence-token'],
  gmpo: ['token', 'sequence'],
  vespo: ['token'],
  dro: ['token'],
};
const LEVELS_WITH_RATIO: readonly RatioLevel[] = ['token', 'sequence', 'sequence-token'];

/** Refuses levels that a rule does not define. */
function checkLevel(op: string, level: RatioLevel, kind: ClipRule['kind']): void {
  const allowed = LEVELS_OF_CLIP[kind] ?? LEVELS_WITH_RATIO;
  if (allowed.includes(level)) return;
  throw incompatible(
    op,
    'ratio.level',
    `does not go with clip.kind '${kind}'`,
    `'${level}'`,
    `'${allowed.join("' or '")}'`,
  );
}

const KL_KEYS = ['kind', 'coef', 'inputClamp', 'outputClamp', 'importance'];

function readKl(op: string, kl: KlConfig, native: NativeLossConfig): void {
  checkObject(op, 'kl', kl);
  checkKeys(op, 'kl', kl, KL_KEYS);
  const { inputClamp = 20, outputClamp, importance = 'none' } = kl;
  const kind = 1 + indexOfWord(op, 'kl.kind', kl.kind, KLS);
  native.klCoef = checkNumber(op, 'kl.coef', kl.coef, 0);
  native.klInputClamp = checkNumber(op, 'kl.inputClamp', inputClamp, 0, true);
  if (outputClamp !== undefined) {
    native.klOutputClamp = checkNumber(op, 'kl.outputClamp', outputClamp, 0, true);
  }
  native.klImportance = indexOfWord(op, 'kl.importance', importance, IMPORTANCE);
  if (kl.coef > 0) native.klKind = kind;
}

const CORRECTION_KEYS = ['mode', 'low', 'high', 'batchNormalize', 'missing'];
const CORRECTION_BOUNDS = [
  [0, 2],
  [0.5, 5],
  [0, 2],
  [0.5, 5],
  [0.999, 1.002],
] as const;

function readCorrection(op: string, correction: RolloutCorrection, native: NativeLossConfig): void {
  const at = 'rolloutCorrection';
  checkObject(op, at, correction);
  checkKeys(op, at, correction, CORRECTION_KEYS);
  const index = indexOfWord(op, `${at}.mode`, correction.mode, CORRECTIONS);
  native.correction = 1 + index;
  if (correction.mode === 'bypass') {
    const other = Object.keys(correction).find((key) => key !== 'mode');
    if (other === undefined) return;
    const problem = 'would weigh the same difference twice';
    throw incompatible(op, `${at}.${other}`, problem, `'${other}' beside mode 'bypass'`, 'the mode alone');
  }
  const [low, high] = CORRECTION_BOUNDS[index];
  native.correctionLow = checkNumber(op, `${at}.low`, correction.low ?? low, 0);
  native.correctionHigh = checkNumber(op, `${at}.high`, correction.high ?? high, native.correctionLow);
  native.correctionMissing = indexOfWord(op, `${at}.missing`, correction.missing ?? 'neutral', MISSING);
  const { batchNormalize = false } = correction;
  if (typeof batchNormalize === 'boolean') {
    native.correctionMean = batchNormalize ? -1 : 0;
  } else {
    checkObject(op, `${at}.batchNormalize`, batchNormalize);
    native.correctionMean = checkNumber(op, `${at}.batchNormalize.mean`, batchNormalize.mean, 0, true);
  }
}

const CONFIG_KEYS = ['ratio', 'clip', 'kl', 'entropy', 'rolloutCorrection', 'nonFinite', 'allowPositive'];

/**
 * Checks a configuration and turns it into numbers, those of `native`. Messages name the path: `clip.clipLow`.
 *
 * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE`
 */
export function readPolicyLossConfig<Native extends NativeLossConfig = NativeLossConfig>(
  op: string,
  config: UncheckedLossConfig,
  native: Native = new NativeLossConfig() as Native,
): Native {
  checkObject(op, 'config', config);
  checkKeys(op, '', config, CONFIG_KEYS);
  readRatio(op, config.ratio, native);
  readClip(op, config.clip, native);
  checkLevel(op, config.ratio.level, config.clip.kind);
  if (config.kl !== undefined) readKl(op, config.kl, native);
  if (config.entropy !== undefined) {
    checkObject(op, 'entropy', config.entropy);
    checkKeys(op, 'entropy', config.entropy, ['coef']);
    native.entropyCoef = checkNumber(op, 'entropy.coef', config.entropy.coef, -Infinity);
  }
  if (config.rolloutCorrection !== undefined) readCorrection(op, config.rolloutCorrection, native);
  if (config.nonFinite !== undefined) {
    native.nonFinite = indexOfWord(op, 'nonFinite', config.nonFinite, NON_FINITE);
  }
  if (config.allowPositive !== undefined) {
    native.allowPositive = checkFlag(op, 'allowPositive', config.allowPositive);
  }
  if (config.rolloutCorrection?.mode === 'bypass' && native.onPolicy) {
    const got = "rolloutCorrection.mode 'bypass'";
    throw incompatible(op, 'ratio.onPolicy', 'leaves no old policy to replace', got, 'one of the two');
  }
  return native;
}
