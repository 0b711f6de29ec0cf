/** How a puzzle is worked out, step by step. */
import { type Assignment, assignments, isTrue, type Statement } from './statement.js';

/** A step of the work. A deduction that does not fit is a contradiction: the assumption falls. */
export type SolverEvent =
  | { readonly kind: 'assume'; readonly assignment: Assignment }
  | {
      readonly kind: 'deduce';
      readonly person: number;
      /** Of what the person said, under the assumption. */
      readonly truth: boolean;
      /** A knight said something true, or a knave something false. */
      readonly fits: boolean;
      readonly knight: boolean;
    }
  | { readonly kind: 'solved'; readonly solution: Assignment };

/**
 * Assumes one assignment after the other, checks what each person said until one contradicts, and goes
 * back for the next. How long that takes grows with the number of people and with luck: the lengths of
 * these traces have a long tail.
 */
export function* solve(statements: readonly Statement[]): Generator<SolverEvent> {
  for (const assignment of assignments(statements.length)) {
    yield { kind: 'assume', assignment };
    let holds = true;
    for (let person = 0; person < statements.length && holds; person++) {
      const knight = assignment[person];
      const truth = isTrue(statements[person], assignment);
      holds = truth === knight;
      yield { kind: 'deduce', person, truth, fits: holds, knight };
    }
    if (!holds) continue;
    yield { kind: 'solved', solution: assignment };
    return;
  }
}
