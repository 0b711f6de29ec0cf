/** What an islander may say: roles of people, joined by connectives. */
import type { SeededRandom } from '../../../seeded-random.js';

/** `true` is a knight, who always tells the truth; `false` a knave, who always lies. */
export type Assignment = readonly boolean[];

/** Joins two statements. */
export type Connective = 'and' | 'or' | 'implies' | 'iff';
export const CONNECTIVES: readonly Connective[] = ['and', 'or', 'implies', 'iff'];

/** A statement; people are numbered from 0. */
export type Statement =
  | { readonly kind: 'is'; readonly person: number; readonly knight: boolean }
  | { readonly kind: 'not'; readonly of: Statement }
  | { readonly kind: Connective; readonly left: Statement; readonly right: Statement };

/** Share of plain role statements where a deeper one would be allowed. */
const PLAIN_SHARE = 0.4;

/** A random statement about `people` people, of depth at most `depth` (a plain role has depth 0). */
export function drawStatement(random: SeededRandom, people: number, depth: number): Statement {
  if (depth === 0 || random.uniform() < PLAIN_SHARE) {
    return { kind: 'is', person: random.below(people), knight: random.below(2) === 0 };
  }
  const choice = random.below(CONNECTIVES.length + 1);
  if (choice === CONNECTIVES.length) return { kind: 'not', of: drawStatement(random, people, depth - 1) };
  const left = drawStatement(random, people, depth - 1);
  const right = drawStatement(random, people, depth - 1);
  return { kind: CONNECTIVES[choice], left, right };
}

/** Whether the statement is true when people are what `assignment` says. */
export function isTrue(statement: Statement, assignment: Assignment): boolean {
  switch (statement.kind) {
    case 'is':
      return assignment[statement.person] === statement.knight;
    case 'not':
      return !isTrue(statement.of, assignment);
    case 'and':
      return isTrue(statement.left, assignment) && isTrue(statement.right, assignment);
    case 'or':
      return isTrue(statement.left, assignment) || isTrue(statement.right, assignment);
    case 'implies':
      return !isTrue(statement.left, assignment) || isTrue(statement.right, assignment);
    case 'iff':
      return isTrue(statement.left, assignment) === isTrue(statement.right, assignment);
  }
}

/** Every assignment, all knights first, the last person changing fastest. */
export function* assignments(people: number): Generator<boolean[]> {
  for (let code = 0; code < 2 ** people; code++) {
    yield Array.from({ length: people }, (_, i) => ((code >> (people - 1 - i)) & 1) === 0);
  }
}

/** Knights speak the truth and knaves do not: `knight(i) <=> statements[i]`. */
export function solutions(statements: readonly Statement[]): boolean[][] {
  const found: boolean[][] = [];
  for (const assignment of assignments(statements.length)) {
    if (statements.every((statement, i) => isTrue(statement, assignment) === assignment[i])) {
      found.push(assignment);
    }
  }
  return found;
}
