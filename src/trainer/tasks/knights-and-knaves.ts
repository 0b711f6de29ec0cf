/**
 * Knights and knaves: who tells the truth? The family of logic puzzles that SortedRL, AR-Lopti and
 * Logic-RL train on.
 */

import { argumentError } from '../../errors.js';
import { SeededRandom } from '../../seeded-random.js';
import { ByteTokenizer } from '../tokenizer/byte-tokenizer.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { WordTokenizer } from '../tokenizer/word-tokenizer.js';
import { problemId, splitOf } from './held-out.js';
import { drawNames, englishAnswer, englishPrompt, englishTrace } from './knights-and-knaves/english.js';
import { solve } from './knights-and-knaves/solver.js';
import { type Assignment, drawStatement, type Statement, solutions } from './knights-and-knaves/statement.js';
import {
  LETTERS,
  SYMBOL_WORDS,
  symbolAnswer,
  symbolPrompt,
  symbolTrace,
} from './knights-and-knaves/symbols.js';
import { verifyRoles } from './knights-and-knaves/verifier.js';
import type { Problem, Split, Task, Verdict } from './task.js';

/** A puzzle with exactly one solution. */
export interface Puzzle extends Problem {
  readonly names: readonly string[];
  readonly statements: readonly Statement[];
  readonly solution: Assignment;
  readonly response: string;
  /** The answer line alone. */
  readonly answer: string;
}

/** Options of {@link knightsAndKnaves}. */
export interface KnightsAndKnavesOptions {
  /** Default 0. */
  seed?: number;
  /** Fewest and most people, 2 to 8. Default `[2, 3]`. */
  people?: readonly [least: number, most: number];
  /**
   * Deepest nesting of connectives, 1 to 4. Default 1. Plain roles alone never decide a puzzle: turning
   * everybody around would satisfy them too.
   */
  depth?: number;
  /**
   * `'symbols'` (default): thirty words and a tokenizer of its own. `'english'`: sentences with 48
   * names, as bytes unless `tokenizer` is given.
   */
  text?: 'symbols' | 'english';
  /** For `text: 'english'`. */
  tokenizer?: Tokenizer;
}

const OP = 'knightsAndKnaves';

function checkOptions({ people, depth, text, seed }: Required<Omit<KnightsAndKnavesOptions, 'tokenizer'>>) {
  const refuse = (argument: string, got: unknown, expected: string) =>
    argumentError(
      'ERR_VARLEN_RANGE',
      OP,
      argument,
      `is out of range; got ${String(got)}, expected ${expected}`,
    );
  const [least, most] = people;
  if (!(Number.isInteger(least) && Number.isInteger(most) && least >= 2 && most <= 8 && least <= most)) {
    throw refuse('people', `[${people}]`, 'two integers in 2..8, in order');
  }
  if (!(Number.isInteger(depth) && depth >= 1 && depth <= 4))
    throw refuse('depth', depth, 'an integer in 1..4');
  if (!(Number.isSafeInteger(seed) && seed >= 0)) throw refuse('seed', seed, 'an integer >= 0');
  if (text !== 'symbols' && text !== 'english') {
    const problem = `is unknown; got '${String(text)}', expected 'symbols' or 'english'`;
    throw argumentError('ERR_VARLEN_OPTION', OP, 'text', problem);
  }
}

/**
 * The task. Statements are drawn until exactly one assignment of roles satisfies all of them
 * (`knight(i) <=> statement i is true`), and until the puzzle belongs to the split that was asked for.
 *
 * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`
 *
 * @example
 * ```ts
 * const task = knightsAndKnaves({ people: [2, 2] });
 * const puzzle = task.problem('train', 0);
 * task.verify(puzzle, puzzle.response).reward; // 1
 * ```
 */
export function knightsAndKnaves(options: KnightsAndKnavesOptions = {}): Task<Puzzle> {
  const { seed = 0, people = [2, 3], depth = 1, text = 'symbols' } = options;
  checkOptions({ seed, people, depth, text });
  const tokenizer =
    text === 'symbols' ? new WordTokenizer(SYMBOL_WORDS) : (options.tokenizer ?? new ByteTokenizer());
  let drawn = 0;
  let unique = 0;

  const problem = (split: Split, index: number): Puzzle => {
    const random = new SeededRandom(seed, split === 'train' ? 0 : 1, index);
    const [least, most] = people;
    const size = least + random.below(most - least + 1);
    for (;;) {
      const statements = Array.from({ length: size }, () => drawStatement(random, size, depth));
      drawn++;
      const found = solutions(statements);
      if (found.length !== 1) continue;
      unique++;
      const canonical = symbolPrompt(statements);
      const id = problemId(canonical);
      if (splitOf(id) !== split) continue;
      const [solution] = found;
      const events = [...solve(statements)];
      if (text === 'symbols') {
        const names = LETTERS.slice(0, size);
        const answer = symbolAnswer(solution);
        return { id, prompt: canonical, response: symbolTrace(events), answer, names, statements, solution };
      }
      const names = drawNames(random, size);
      const prompt = englishPrompt(statements, names, random);
      const answer = englishAnswer(solution, names);
      return { id, prompt, response: englishTrace(events, names), answer, names, statements, solution };
    }
  };

  return {
    name: 'knights-and-knaves',
    tokenizer,
    hasResponses: true,
    hasAnswers: true,
    problem,
    verify: ({ names, solution }: Puzzle, output: string): Verdict => verifyRoles(output, names, solution),
    chance: ({ names }) => 2 ** -names.length,
    /** Share of drawn statement sets with exactly one solution, of both splits. */
    facts: () => ({ acceptanceRate: drawn === 0 ? 0 : unique / drawn }),
  };
}
