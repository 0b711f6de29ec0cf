/** The final answer of an output, which every verifier looks for first. */
import type { Verdict } from './task.js';

/** Precedes the answer; the last one counts. */
export const ANSWER: string = '<answer>';
const END = '</answer>';

/** Longer outputs are refused unread: judging must stay cheap whatever a policy learns to emit. */
export const MAX_OUTPUT_CHARS: number = 1 << 16;

/** The text of the final answer, or why there is none. */
export type FoundAnswer =
  | { readonly text: string /** One answer, at the very end. */; readonly tidy: boolean }
  | { readonly text: undefined; readonly reason: string };

/** Finds the text after the last `<answer>`, up to `</answer>` or the end. */
export function findAnswer(output: unknown): FoundAnswer {
  if (typeof output !== 'string') return { text: undefined, reason: 'not a text' };
  if (output.length > MAX_OUTPUT_CHARS) {
    return { text: undefined, reason: `longer than ${MAX_OUTPUT_CHARS} characters` };
  }
  const start = output.lastIndexOf(ANSWER);
  if (start < 0) return { text: undefined, reason: output.trim() === '' ? 'empty' : `no ${ANSWER}` };
  const after = output.slice(start + ANSWER.length);
  const end = after.indexOf(END);
  const text = end < 0 ? after : after.slice(0, end);
  const rest = end < 0 ? '' : after.slice(end + END.length);
  if (text.trim() === '') return { text: undefined, reason: 'the answer is empty' };
  return { text, tidy: output.indexOf(ANSWER) === start && rest.trim() === '' };
}

/** A verdict without reward. */
export function refused(reason: string): Verdict {
  return { reward: 0, formatReward: 0, reason };
}

/** The verdict on an answer of the right form. */
export function judged(right: boolean, tidy: boolean): Verdict {
  return {
    reward: right ? 1 : 0,
    formatReward: tidy ? 1 : 0,
    reason: right ? 'right' : 'wrong',
  };
}
