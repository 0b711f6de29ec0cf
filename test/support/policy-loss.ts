import {
  type ClipRule,
  type PolicyLossConfig,
  type RatioLevel,
  type ResponseBatch,
  type SequenceScales,
  Tensor,
} from '../../src/index.js';
import { lengthHash } from '../../src/ops/length-hash.js';
import type { PolicyLossInputs } from '../../src/testing/index.js';
import { device } from './attention.js';

/** Batches of responses as numbers, and as the tensors of a call. */

/** A batch as numbers; every array is there. */
export type Responses = { -readonly [K in keyof Required<PolicyLossInputs>]: number[] };

/** Batch E1 of the worked example: five sequences of 2, 3, 1, 4, 0 tokens, one token masked. */
export function workedBatch(): Responses {
  const pair = 0.5 / (Math.sqrt(0.5) + 1e-6);
  const other = 0.25 / (Math.sqrt(0.125) + 1e-6);
  return {
    cuSeqlens: [0, 2, 5, 6, 10, 10],
    logprobs: [-0.5, -1.2, -0.1, -2, -0.7, -1.5, -0.3, -0.9, -0.05, -2.5],
    oldLogprobs: [-0.6, -1, -0.1, -2.5, -0.7, -0.4, -0.35, -0.8, -0.05, -2],
    refLogprobs: [-0.55, -1.1, -0.2, -2.2, -0.6, -0.9, -0.3, -1, -0.1, -2.1],
    rolloutLogprobs: [-0.62, -1, -0.1, -2.4, -0.75, -0.45, -0.3, -0.8, -0.05, -2.05],
    lossMask: [1, 1, 1, 1, 1, 1, 1, 0, 1, 1],
    klMask: new Array(10).fill(1),
    advantages: [pair, -pair, -other, other, 0],
    tokenWeights: new Array(10).fill(1),
    seqScale: [1 / 9, 1 / 9, 1 / 9, 1 / 9, 0],
  };
}

/** Active tokens per sequence. */
export function lengthsOf({ cuSeqlens, lossMask }: Responses): Int32Array {
  return Int32Array.from({ length: cuSeqlens.length - 1 }, (_, i) =>
    lossMask.slice(cuSeqlens[i], cuSeqlens[i + 1]).reduce((a, b) => a + b, 0),
  );
}

/** The plan that `seqScale` stands for. */
export function planOf(responses: Responses): SequenceScales {
  const lengths = lengthsOf(responses);
  const tokens = lengths.reduce((a, b) => a + b, 0);
  return {
    seqScale: Float32Array.from(responses.seqScale),
    lengthHash: lengthHash(lengths),
    entropyScale: tokens === 0 ? 0 : 1 / tokens,
  };
}

const floats = (values: readonly number[]): Tensor => Tensor.from(Float32Array.from(values), { device });
const bytes = (values: readonly number[]): Tensor => Tensor.from(Uint8Array.from(values), { device });

/** What a configuration reads of a batch, beside its log-probabilities. */
export function batchWithout(
  responses: Responses,
  config: PolicyLossConfig,
): Omit<ResponseBatch, 'logprobs'> {
  const correction = config.rolloutCorrection;
  const corrects = correction !== undefined && correction.mode !== 'bypass';
  const old = !config.ratio.onPolicy && (config.ratio.level !== 'none' || corrects);
  return {
    cuSeqlens: Int32Array.from(responses.cuSeqlens),
    lossMask: bytes(responses.lossMask),
    klMask: bytes(responses.klMask),
    advantages: Float32Array.from(responses.advantages),
    advantagesPer: responses.advantages.length === responses.seqScale.length ? 'sequence' : 'token',
    tokenWeights: Float32Array.from(responses.tokenWeights),
    ...(old && correction?.mode !== 'bypass' ? { oldLogprobs: floats(responses.oldLogprobs) } : {}),
    ...((config.kl?.coef ?? 0) > 0 ? { refLogprobs: floats(responses.refLogprobs) } : {}),
    ...(correction === undefined ? {} : { rolloutLogprobs: floats(responses.rolloutLogprobs) }),
  };
}

/** The same with its log-probabilities. */
export function batchOf(responses: Responses, config: PolicyLossConfig): ResponseBatch {
  return { ...batchWithout(responses, config), logprobs: floats(responses.logprobs) };
}

/** Random responses of these lengths, every value a float32. */
export function randomResponses(lengths: readonly number[], random: () => number): Responses {
  const round = Math.fround;
  const normal = (): number => random() + random() + random() + random() - 2;
  const responses: Responses = {
    cuSeqlens: [0],
    logprobs: [],
    oldLogprobs: [],
    refLogprobs: [],
    rolloutLogprobs: [],
    lossMask: [],
    klMask: [],
    advantages: [],
    tokenWeights: [],
    seqScale: [],
  };
  for (const length of lengths) {
    responses.cuSeqlens.push(responses.cuSeqlens[responses.cuSeqlens.length - 1] + length);
    responses.advantages.push(round(2 * normal()));
    responses.seqScale.push(round(0.1 + random()));
    for (let t = 0; t < length; t++) {
      const logprob = -1 - 3 * random();
      responses.logprobs.push(round(logprob));
      responses.oldLogprobs.push(round(Math.min(-0.01, logprob + 0.8 * normal())));
      responses.refLogprobs.push(round(Math.min(-0.01, logprob + normal())));
      responses.rolloutLogprobs.push(round(Math.min(-0.01, logprob + normal())));
      responses.lossMask.push(random() < 0.85 ? 1 : 0);
      responses.klMask.push(random() < 0.85 ? 1 : 0);
      responses.tokenWeights.push(random() < 0.1 ? 0 : round(0.5 + random()));
    }
  }
  return responses;
}

/** Levels that a rule is defined at, as the specification says (rl-objectives, section 4). */
const LEVELS_OF: Readonly<Record<ClipRule['kind'], readonly RatioLevel[]>> = {
  none: ['none', 'token', 'sequence', 'sequence-token'],
  ppo: ['token', 'sequence', 'sequence-token'],
  dual: ['token', 'sequence', 'sequence-token'],
  'two-sided': ['token', 'sequence', 'sequence-token'],
  cispo: ['token', 'sequence-token'],
  sapo: ['token', 'sequence-token'],
  'dppo-tv': ['token', 'sequence-token'],
  'dppo-kl': ['token', 'sequence-token'],
  gmpo: ['token', 'sequence'],
  vespo: ['token'],
  dro: ['token'],
};

/** A rule at a level, with old log-probabilities. */
export type Rule = PolicyLossConfig & { readonly ratio: { readonly onPolicy?: false } };

/** These rules at every level they are defined at, or at every other. */
export function rulesAtLevels(clips: readonly ClipRule[], defined = true): Rule[] {
  return clips.flatMap((clip) =>
    LEVELS_OF.none
      .filter((level) => LEVELS_OF[clip.kind].includes(level) === defined)
      .map((level) => ({ ratio: { level }, clip }) as Rule),
  );
}

/** One rule of every kind, whose bounds random ratios meet from both sides. */
export const CLIPS: readonly ClipRule[] = [
  { kind: 'none' },
  { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
  { kind: 'dual', clipLow: 0.2, clipHigh: 0.28, dualClip: 1.4 },
  { kind: 'two-sided', clipLow: 0.2, clipHigh: 0.28, delta: 1.3 },
  { kind: 'cispo', low: 0.7, high: 1.28 },
  { kind: 'sapo' },
  { kind: 'gmpo', clipLow: 0.3, clipHigh: 0.4 },
  { kind: 'dppo-tv', deltaLow: 0.04, deltaHigh: 0.05, cap: 1.3 },
  { kind: 'dppo-kl', deltaLow: 0.04, deltaHigh: 0.05 },
  { kind: 'vespo' },
  { kind: 'dro', beta: 0.3 },
];

/** Every legal pair of a level and a rule. */
export const RULES: readonly Rule[] = rulesAtLevels(CLIPS);

/** How a rule is called in a test's name. */
export const nameOf = ({ ratio, clip }: Pick<PolicyLossConfig, 'ratio' | 'clip'>): string =>
  `${clip.kind} at level ${ratio.level}`;
