/** Rewards of reasoning about false news in videos (Fact-R1, its code). */
import { checkInteger, readOptions, wrongType } from '../../check.js';
import { checkNumber, checkWord } from '../check-arrays.js';
import { checkText } from './text-similarity.js';

/**
 * Parts of one answer's reward, each in [0, 1].
 *
 * `positive`: the news is false, and `entity` says whether the answer names what is false about it.
 * `negative`: the news is true. `auxiliary`: another task (captions, reading text), see `rougeL` and
 * `ocrAccuracy`.
 */
export type FactParts =
  | {
      readonly kind: 'positive';
      readonly accuracy: number;
      readonly format: number;
      readonly steps: number;
      readonly entity: number;
    }
  | { readonly kind: 'negative'; readonly accuracy: number; readonly format: number; readonly steps: number }
  | { readonly kind: 'auxiliary'; readonly accuracy: number; readonly format: number };

const WEIGHTS = {
  positive: { accuracy: 0.7, format: 0.1, steps: 0.1, entity: 0.1 },
  negative: { accuracy: 0.8, format: 0.1, steps: 0.1 },
  auxiliary: { accuracy: 0.9, format: 0.1 },
} as const;

/**
 * Reward of one answer, in [0, 1]: `0.7 accuracy + 0.1 (format + steps + entity)` for false news,
 * `0.8 accuracy + 0.1 (format + steps)` for true news, `0.9 accuracy + 0.1 format` for other tasks.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * factReward({ kind: 'negative', accuracy: 1, format: 1, steps: 0.5 }); // 0.95
 */
export function factReward(parts: FactParts): number {
  const op = 'factReward';
  if (typeof parts !== 'object' || parts === null) throw wrongType(op, 'parts', parts, 'an object');
  checkWord(op, 'kind', parts.kind, Object.keys(WEIGHTS));
  const weights: Readonly<Record<string, number>> = WEIGHTS[parts.kind];
  const names = Object.keys(weights);
  const values = readOptions<Record<string, unknown>>(op, parts, ['kind', ...names]);
  return names.reduce((reward, name) => {
    const value = values[name];
    checkNumber(op, name, value, { min: 0, max: 1 });
    return reward + weights[name] * value;
  }, 0);
}

/** Words and phrases that connect steps of an argument, as published. */
const CONNECTIVES: readonly string[] = [
  'however',
  'in conclusion',
  'therefore',
  'thus',
  'as a result',
  'consequently',
  'first',
  'second',
  'finally',
  'in summary',
  'on the other hand',
  'moreover',
  'furthermore',
  'additionally',
];

/** Options of {@link reasoningSteps}. */
export interface ReasoningStepOptions {
  /** In lower case. Default: the fourteen of the published code. */
  keywords?: readonly string[];
  /** Occurrences that earn the whole reward. Default 2. */
  enough?: number;
}

/**
 * How visibly a text argues step by step, in [0, 1]: occurrences of connecting words over `enough`, at
 * most 1. Occurrences inside longer words count ("firstly"), as in the published code.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * reasoningSteps('The map is old. Therefore the claim is false.'); // 0.5
 */
export function reasoningSteps(text: string, options: ReasoningStepOptions = {}): number {
  const op = 'reasoningSteps';
  checkText(op, 'text', text);
  const { keywords = CONNECTIVES, enough = 2 } = readOptions(op, options, ['keywords', 'enough']);
  checkInteger(op, 'enough', enough, 1);
  if (!Array.isArray(keywords)) throw wrongType(op, 'keywords', keywords, 'an array of strings');
  const lower = text.toLowerCase();
  let count = 0;
  for (const [i, keyword] of keywords.entries()) {
    checkText(op, `keywords[${i}]`, keyword);
    if (keyword !== '') count += lower.split(keyword).length - 1;
  }
  return Math.min(count / enough, 1);
}

/** An answer between `<answer>` tags, after a thought between `<think>` tags or without one. */
export interface TaggedAnswer {
  /** 1 when there is an answer between tags, else 0. */
  readonly format: 0 | 1;
  /** What stands between the tags, trimmed; without tags the whole text. */
  readonly answer: string;
}

/**
 * The answer inside a response, and its format reward.
 *
 * Throws `ERR_VARLEN_TYPE`.
 *
 * @example
 * taggedAnswer('<think>old map</think><answer> yes </answer>'); // { format: 1, answer: 'yes' }
 */
export function taggedAnswer(response: string): TaggedAnswer {
  checkText('taggedAnswer', 'response', response);
  const match = /<answer>(.*?)<\/answer>/s.exec(response);
  return Object.freeze(
    match === null ? { format: 0, answer: response.trim() } : { format: 1, answer: match[1].trim() },
  );
}
