/** Judges answers to knights-and-knaves puzzles, whatever a policy may write. */
import { findAnswer, judged, refused } from '../answer.js';
import type { Verdict } from '../task.js';
import type { Assignment } from './statement.js';

/** Words between a name and its role, and between one person and the next. */
const LINKS = new Set(['is', 'a', '=', ':', '-']);
const SEPARATORS = new Set(['and', ',', ';', '.']);

/** Words and signs; anything else stays visible as a sign of its own and is refused. */
const TOKEN = /[\p{L}\p{M}\p{N}_]+|\S/gu;

/**
 * Compares the last `<answer>` with the solution: `NAME [is a] ROLE`, in any order and spacing, in
 * either case, separated by commas, semicolons, full stops, "and" or nothing.
 *
 * Every person must have exactly one role. An answer that names a person twice is refused even when
 * both roles agree or one of them is right.
 */
export function verifyRoles(output: unknown, names: readonly string[], solution: Assignment): Verdict {
  const answer = findAnswer(output);
  if (answer.text === undefined) return refused(answer.reason);
  const people = new Map(names.map((name, i) => [name.toLowerCase(), i]));
  const roles: (boolean | undefined)[] = names.map(() => undefined);
  let person: number | undefined;
  for (const [raw] of answer.text.matchAll(TOKEN)) {
    const word = raw.toLowerCase();
    // "B is a knight": the article, though A may be a name too.
    const named = raw === 'a' && person !== undefined ? undefined : people.get(word);
    if (named !== undefined) {
      if (person !== undefined) return refused(`${names[person]} has no role`);
      if (roles[named] !== undefined) return refused(`${names[named]} is named twice`);
      person = named;
    } else if (word === 'knight' || word === 'knave') {
      if (person === undefined) return refused(`a role without a person: ${word}`);
      roles[person] = word === 'knight';
      person = undefined;
    } else if (person !== undefined ? !LINKS.has(word) : !SEPARATORS.has(word)) {
      return refused(`not part of an answer: ${JSON.stringify(raw.slice(0, 20))}`);
    }
  }
  if (person !== undefined) return refused(`${names[person]} has no role`);
  const missing = roles.indexOf(undefined);
  if (missing >= 0) return refused(`${names[missing]} is missing`);
  return judged(
    roles.every((knight, i) => knight === solution[i]),
    answer.tidy,
  );
}
