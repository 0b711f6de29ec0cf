/** Values of flags as numbers and words. */
import { type Usage, UsageError } from './command.js';

/** A finite number of at least `minimum`, or UsageError. */
export function numberFlag(usage: Usage, flag: string, value: string, minimum: number): number {
  const parsed = value.trim() === '' ? Number.NaN : Number(value);
  if (Number.isFinite(parsed) && parsed >= minimum) return parsed;
  throw new UsageError(`--${flag} must be a number of at least ${minimum}; got '${value}'`, usage);
}

/** An integer in `minimum..2^31 - 1`, or UsageError. */
export function integerFlag(usage: Usage, flag: string, value: string, minimum: number): number {
  const parsed = value.trim() === '' ? Number.NaN : Number(value);
  if (Number.isInteger(parsed) && parsed >= minimum && parsed < 2 ** 31) return parsed;
  throw new UsageError(`--${flag} must be an integer of at least ${minimum}; got '${value}'`, usage);
}

/** One of `words`, or UsageError. */
export function wordFlag<T extends string>(
  usage: Usage,
  flag: string,
  value: string,
  words: readonly T[],
): T {
  const word = words.find((candidate) => candidate === value);
  if (word !== undefined) return word;
  throw new UsageError(`--${flag} must be one of ${words.join(', ')}; got '${value}'`, usage);
}
