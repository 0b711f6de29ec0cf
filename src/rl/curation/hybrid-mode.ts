/** The three ways in which EMPO2 makes an update: with or without the tips of its memory (its code). */
import { checkInteger, readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { SeededRandom } from '../../seeded-random.js';
import { checkNumber, checkWord } from '../check-arrays.js';

/**
 * `on-policy`: sampled and trained without tips. `on-policy-with-tips`: both with tips. `off-policy`:
 * sampled with tips, trained without, so that the policy learns to do without them.
 */
export type HybridMode = 'off-policy' | 'on-policy-with-tips' | 'on-policy';

/** Probability of each mode; they sum to 1. */
export type HybridShares = Readonly<Record<HybridMode, number>>;

const MODES: readonly HybridMode[] = ['off-policy', 'on-policy-with-tips', 'on-policy'];
const PUBLISHED: HybridShares = { 'off-policy': 0.17, 'on-policy-with-tips': 0.08, 'on-policy': 0.75 };

/** Options of {@link hybridMode}. */
export interface HybridModeOptions {
  /** Equal seeds draw equal modes. An integer. */
  seed: number;
  /** Training step; the mode depends on it and the seed only, never on draws before it. */
  step: number;
  /** Default: 0.17 off-policy, 0.08 on-policy with tips, 0.75 on-policy. */
  shares?: HybridShares;
}

/**
 * Mode of a training step, the same on every rank that asks with the same seed and step.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, and `ERR_VARLEN_INCOMPATIBLE` for
 * shares that do not sum to 1.
 *
 * @example
 * const mode = hybridMode({ seed: 1, step: 0 });
 * hybridPrompts(mode, { plain: 'Q', withTips: 'tips, Q' }).update; // the prompt to train on
 */
export function hybridMode(options: HybridModeOptions): HybridMode {
  const op = 'hybridMode';
  const { seed, step, shares = PUBLISHED } = readOptions(op, options, ['seed', 'step', 'shares']);
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'step', step, 0);
  const given = readOptions(op, shares, MODES);
  let sum = 0;
  for (const mode of MODES) {
    checkNumber(op, `shares.${mode}`, given[mode], { min: 0, max: 1 });
    sum += given[mode];
  }
  if (Math.abs(sum - 1) > 1e-9) {
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'shares', `must sum to 1; got ${sum}, expected 1`);
  }
  let rest = new SeededRandom(seed, step, HYBRID_STREAM).uniform();
  for (const mode of MODES) {
    rest -= given[mode];
    if (rest < 0) return mode;
  }
  // Only rounding leads here: the last mode that can be drawn at all.
  return MODES.findLast((mode) => given[mode] > 0)!;
}

/** Keeps these draws apart from other uses of the same seed and step. */
const HYBRID_STREAM = 0x454d504f;

/** A prompt in both forms: as text, as token ids, or however the caller holds it. */
export interface PromptVariants<T> {
  readonly plain: T;
  readonly withTips: T;
}

/** Which form answers are sampled from and which one the update is computed on. */
export interface HybridPrompts<T> {
  /** Context of the sampled answer, and of its `oldLogprobs`. */
  readonly sample: T;
  /** Context of `logprobs` in the update. */
  readonly update: T;
}

/**
 * The contexts of a mode. Off-policy they differ: `oldLogprobs` come from the prompt with tips, `logprobs`
 * from the one without, and the ratio of the loss is `policy(a | plain) / oldPolicy(a | with tips)`. The
 * loss itself is the same in every mode.
 *
 * Throws `ERR_VARLEN_OPTION`.
 *
 * @example
 * hybridPrompts('off-policy', { plain: 'Q', withTips: 'tips, Q' }); // { sample: 'tips, Q', update: 'Q' }
 */
export function hybridPrompts<T>(mode: HybridMode, prompt: PromptVariants<T>): HybridPrompts<T> {
  checkWord('hybridPrompts', 'mode', mode, MODES);
  return Object.freeze({
    sample: mode === 'on-policy' ? prompt.plain : prompt.withTips,
    update: mode === 'on-policy-with-tips' ? prompt.withTips : prompt.plain,
  });
}
