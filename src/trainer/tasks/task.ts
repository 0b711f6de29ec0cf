/** What the trainer asks of a task: problems by number, a worked solution, and a judge. */
import type { Tokenizer } from '../tokenizer/tokenizer.js';

/** Problems to learn from, and problems that are only ever measured on. */
export type Split = 'train' | 'held-out';

/** One problem, as text. */
export interface Problem {
  /** Names the problem itself: equal problems have equal ids. */
  readonly id: string;
  readonly prompt: string;
  /** A worked solution that {@link Task.verify} accepts; what SFT learns from. */
  readonly response?: string;
}

/** What a verifier says of an output. */
export interface Verdict {
  /** 1 for the right answer, else 0. */
  readonly reward: 0 | 1;
  /** 1 when the output ends in one answer of the right form, right or wrong. */
  readonly formatReward: 0 | 1;
  /** Why the reward is what it is, for people. */
  readonly reason: string;
}

/**
 * A source of problems with verifiable answers.
 *
 * Problems are a function of (seed, split, index) only, so that a position in the stream is one
 * number and a run can be resumed anywhere.
 */
export interface Task<P extends Problem = Problem> {
  readonly name: string;
  readonly tokenizer: Tokenizer;
  /** False for data without worked solutions: there is nothing for SFT. */
  readonly hasResponses: boolean;
  /** False for data without answers: there is nothing to verify, so no RL. */
  readonly hasAnswers: boolean;
  /** Problem number `index` of a split; both splits go on for ever. */
  problem(split: Split, index: number): P;
  /** Judges an output. Whatever the output is, the result is a verdict, never an exception. */
  verify(problem: P, output: string): Verdict;
  /** Accuracy of guessing blindly on this problem; undefined: unknown. */
  chance?(problem: P): number;
  /** Facts about generation so far, for the report. */
  facts?(): Readonly<Record<string, number>>;
}
