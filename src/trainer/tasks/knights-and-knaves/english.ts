/** The long form of a puzzle: English sentences with real names, for models that know the language. */
import type { SeededRandom } from '../../../seeded-random.js';
import { ANSWER } from '../answer.js';
import type { SolverEvent } from './solver.js';
import type { Assignment, Statement } from './statement.js';

/** First names of different length, so that puzzles of one size differ in tokens. */
export const NAMES: readonly string[] = [
  ...['Abigail', 'Alexander', 'Amir', 'Bo', 'Carmen', 'Charlotte', 'Dmitri', 'Ed', 'Eleanor', 'Elizabeth'],
  ...['Fatima', 'Felix', 'Gabriella', 'Gus', 'Hannah', 'Hiroshi', 'Ian', 'Ingrid', 'Isabella', 'Ivy'],
  ...['Jasper', 'Jo', 'Kai', 'Katherine', 'Leo', 'Lucia', 'Maximilian', 'Mei', 'Mia', 'Nathaniel'],
  ...['Nora', 'Olu', 'Olivia', 'Penelope', 'Priya', 'Quentin', 'Rosalind', 'Sam', 'Sebastian', 'Sofia'],
  ...['Theodore', 'Ty', 'Una', 'Victoria', 'Wilhelmina', 'Xavier', 'Yuki', 'Zoe'],
];

/** Different names for `people` people. */
export function drawNames(random: SeededRandom, people: number): string[] {
  const left = [...NAMES];
  return Array.from({ length: people }, () => left.splice(random.below(left.length), 1)[0]);
}

const role = (knight: boolean) => (knight ? 'a knight' : 'a knave');

/** A clause without capital and full stop; `speaker` says "I" of themselves. */
function clause(statement: Statement, names: readonly string[], speaker: number): string {
  const part = (of: Statement) => clause(of, names, speaker);
  switch (statement.kind) {
    case 'is':
      return statement.person === speaker
        ? `I am ${role(statement.knight)}`
        : `${names[statement.person]} is ${role(statement.knight)}`;
    case 'not':
      return `it is not true that ${part(statement.of)}`;
    case 'and':
      return `both ${part(statement.left)} and ${part(statement.right)}`;
    case 'or':
      return `either ${part(statement.left)} or ${part(statement.right)}, or both`;
    case 'implies':
      return `if ${part(statement.left)}, then ${part(statement.right)}`;
    case 'iff':
      return `${part(statement.left)} if and only if ${part(statement.right)}`;
  }
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** Ways to report what somebody said. */
const REPORTS: readonly ((name: string, words: string) => string)[] = [
  (name, words) => `${name} says: "${capital(words)}."`,
  (name, words) => `"${capital(words)}," says ${name}.`,
  (name, words) => `${name} tells you: "${capital(words)}."`,
  (name, words) => `According to ${name}, and in these words: "${capital(words)}."`,
];

function list(items: readonly string[]): string {
  return items.length === 1 ? items[0] : `${items.slice(0, -1).join(', ')} and ${items[items.length - 1]}`;
}

/** The puzzle as a short story; which phrases it uses is `random`'s. */
export function englishPrompt(
  statements: readonly Statement[],
  names: readonly string[],
  random: SeededRandom,
): string {
  const said = statements.map((statement, i) =>
    REPORTS[random.below(REPORTS.length)](names[i], clause(statement, names, i)),
  );
  return [
    `On an island everybody is a knight, who always tells the truth, or a knave, who always lies. You meet ${list(names)}.`,
    ...said,
    `Who is a knight and who is a knave? Think step by step, then end with one line: ${ANSWER} followed by the role of each person.`,
  ].join(' ');
}

/** `<answer> Alice is a knight, Bob is a knave </answer>` */
export function englishAnswer(solution: Assignment, names: readonly string[]): string {
  return `${ANSWER} ${solution.map((knight, i) => `${names[i]} is ${role(knight)}`).join(', ')} </answer>`;
}

/** The work in sentences. */
export function englishTrace(events: Iterable<SolverEvent>, names: readonly string[]): string {
  const sentences: string[] = [];
  let first = true;
  for (const event of events) {
    switch (event.kind) {
      case 'assume': {
        const roles = event.assignment.map((knight, i) => `${names[i]} is ${role(knight)}`);
        sentences.push(`${first ? 'Suppose' : 'Go back. Suppose instead'} ${list(roles)}.`);
        first = false;
        break;
      }
      case 'deduce': {
        const truth = event.truth ? 'true' : 'false';
        const name = names[event.person];
        sentences.push(
          event.fits
            ? `What ${name} says is ${truth}, which fits.`
            : `What ${name} says is ${truth}, but ${name} is ${role(event.knight)}: a contradiction.`,
        );
        break;
      }
      case 'solved':
        sentences.push(`Everything fits.\n${englishAnswer(event.solution, names)}`);
    }
  }
  return sentences.join(' ');
}
