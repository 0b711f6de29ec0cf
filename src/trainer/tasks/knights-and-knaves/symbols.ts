/** The short form of a puzzle: about thirty words, for small models that start from nothing. */
import { ANSWER } from '../answer.js';
import type { SolverEvent } from './solver.js';
import { type Assignment, CONNECTIVES, type Statement } from './statement.js';

/** People, in order. */
export const LETTERS = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'] as const;

/** Every word of the short form. */
export const SYMBOL_WORDS: readonly string[] = [
  ...['<think>', ANSWER, 'says', '.', '(', ')', 'not', ...CONNECTIVES],
  ...['knight', 'knave', 'K', 'N', 'try', 'true', 'false', 'ok', 'bad'],
  ...LETTERS,
];

const role = (knight: boolean) => (knight ? 'knight' : 'knave');

function said(statement: Statement): string {
  switch (statement.kind) {
    case 'is':
      return `${LETTERS[statement.person]} ${role(statement.knight)}`;
    case 'not':
      return `not ${statement.of.kind === 'is' ? said(statement.of) : `( ${said(statement.of)} )`}`;
    default:
      return `( ${said(statement.left)} ${statement.kind} ${said(statement.right)} )`;
  }
}

/** `A says B knave . B says ( A knight iff B knight ) . <think>` */
export function symbolPrompt(statements: readonly Statement[]): string {
  return `${statements.map((statement, i) => `${LETTERS[i]} says ${said(statement)} .`).join(' ')} <think>`;
}

/** `<answer> A knight B knave` */
export function symbolAnswer(solution: Assignment): string {
  return `${ANSWER} ${solution.map((knight, i) => `${LETTERS[i]} ${role(knight)}`).join(' ')}`;
}

/** `try A K B K A false bad try A K B N A true ok B false ok <answer> ...` */
export function symbolTrace(events: Iterable<SolverEvent>): string {
  const words: string[] = [];
  for (const event of events) {
    switch (event.kind) {
      case 'assume':
        words.push('try', ...event.assignment.map((knight, i) => `${LETTERS[i]} ${knight ? 'K' : 'N'}`));
        break;
      case 'deduce':
        words.push(LETTERS[event.person], String(event.truth), event.fits ? 'ok' : 'bad');
        break;
      case 'solved':
        words.push(symbolAnswer(event.solution));
    }
  }
  return words.join(' ');
}
