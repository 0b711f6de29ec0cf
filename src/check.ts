import { argumentError } from './errors.js';

/** Checks of arguments that every layer needs, and the words their errors share. */

/** What a value is, in the words of an error message. */
export function describe(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'object') {
    const name = (value as object).constructor?.name;
    if (ArrayBuffer.isView(value) && isDetached(value)) return `a detached ${name}`;
    return name === undefined ? 'an object' : `${/^[AEIOU]/.test(name) ? 'an' : 'a'} ${name}`;
  }
  if (typeof value === 'string') return `the string '${value}'`;
  if (typeof value === 'symbol' || typeof value === 'bigint') return `the ${typeof value} ${String(value)}`;
  return typeof value === 'function' ? 'a function' : String(value);
}

/** Its memory was transferred away: nothing but its length of 0 can be read. */
export function isDetached({ buffer }: ArrayBufferView): boolean {
  try {
    new Uint8Array(buffer, 0, 0);
    return false;
  } catch {
    return true;
  }
}

/** A typed array of this kind whose elements can be read: no proxy of one, and not detached. */
export function isArrayOf<T extends ArrayBufferView>(
  kind: abstract new (...args: never[]) => T,
  value: unknown,
): value is T {
  return ArrayBuffer.isView(value) && value instanceof kind && !isDetached(value);
}

/** The error of a value whose JavaScript type is wrong. */
export function wrongType(op: string, argument: string, value: unknown, expected: string): Error {
  return argumentError(
    'ERR_VARLEN_TYPE',
    op,
    argument,
    `has the wrong type; got ${describe(value)}, expected ${expected}`,
  );
}

/** Edits that turn one word into the other. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}

/** An object that inherits nothing. Unlike `Object.create(null)` V8 does not make it a dictionary. */
const Bare = function Bare() {} as unknown as new () => Record<string, unknown>;
Bare.prototype = Object.create(null);

/**
 * A copy of a caller's options with only their own, known keys, so that getters run once and nothing
 * is inherited. An unknown key is an error that names the nearest known one.
 */
export function readOptions<T extends object>(
  op: string,
  options: T | undefined,
  known: readonly (keyof T & string)[],
): T {
  if (options === undefined) return new Bare() as T;
  if (typeof options !== 'object' || options === null) throw wrongType(op, 'options', options, 'an object');
  const copy = new Bare();
  for (const key of Object.keys(options)) {
    if (!(known as readonly string[]).includes(key)) {
      const [nearest] = [...known].sort((a, b) => distance(a, key) - distance(b, key));
      throw argumentError(
        'ERR_VARLEN_OPTION',
        op,
        key,
        `is not an option; got '${key}', expected one of ${known.join(', ')} (did you mean '${nearest}'?)`,
      );
    }
    copy[key] = (options as Record<string, unknown>)[key];
  }
  return copy as T;
}

/** Refuses what is neither `true` nor `false`. */
export function checkBoolean(op: string, argument: string, value: unknown): asserts value is boolean {
  if (typeof value !== 'boolean') throw wrongType(op, argument, value, 'a boolean');
}

/** Refuses what is not a whole number between `min` and `max`. */
export function checkInteger(
  op: string,
  argument: string,
  value: unknown,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): void {
  if (typeof value !== 'number') throw wrongType(op, argument, value, 'a number');
  if (Number.isInteger(value) && value >= min && value <= max) return;
  const upper = max === Number.MAX_SAFE_INTEGER ? `>= ${min}` : `between ${min} and ${max}`;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    op,
    argument,
    `is out of range; got ${value}, expected an integer ${upper}`,
    { path: argument, value, allowed: upper },
  );
}
