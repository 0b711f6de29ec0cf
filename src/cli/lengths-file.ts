/** Reads sequence lengths from a file: one number or one JSON value per line. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { varlenError } from '../errors.js';

/**
 * Lengths in tokens, one per line of `path`; `-` reads standard input; empty lines are skipped.
 *
 * A line is a plain number, or JSON: a number, an array of tokens, or an object whose `field` (default:
 * `length`, else `inputIds`, else `input_ids`, else `tokens`) holds a number or an array of tokens.
 *
 * @throws VarlenInputError `ERR_VARLEN_DATA` naming the line, `ERR_VARLEN_IO` when reading fails
 */
export async function readLengthsFile(op: string, path: string, field?: string): Promise<Int32Array> {
  const lengths: number[] = [];
  let line = 0;
  try {
    const input = path === '-' ? process.stdin : createReadStream(path);
    // readline does not pass on the stream's error: wait for it beside the lines.
    const failed = new Promise<never>((_, reject) => input.once('error', reject));
    failed.catch(() => {});
    const reader = createInterface({ input, crlfDelay: Infinity })[Symbol.asyncIterator]();
    for (;;) {
      const { done, value } = await Promise.race([reader.next(), failed]);
      if (done) break;
      line++;
      if (value.trim() !== '') lengths.push(lengthOfLine(op, path, line, value, field));
    }
  } catch (cause) {
    if (!(cause instanceof Error && 'syscall' in cause)) throw cause;
    const message = `${op}: ${path} cannot be read: ${cause.message}`;
    throw varlenError('ERR_VARLEN_IO', message, { op, argument: 'file', path }, { cause });
  }
  return Int32Array.from(lengths);
}

const defaultFields = ['length', 'inputIds', 'input_ids', 'tokens'];

function lengthOfLine(op: string, path: string, line: number, text: string, field?: string): number {
  const refuse = (problem: string) => {
    const message = `${op}: ${path}:${line} ${problem}`;
    return varlenError('ERR_VARLEN_DATA', message, { op, argument: 'file', path, line });
  };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw refuse(`is neither a number nor JSON; got ${JSON.stringify(text.slice(0, 40))}`);
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    const row = value as Record<string, unknown>;
    const name = field ?? defaultFields.find((key) => Object.hasOwn(row, key));
    if (name === undefined || !Object.hasOwn(row, name)) {
      throw refuse(`has no length; expected a field ${field ?? defaultFields.join(', ')}`);
    }
    value = row[name];
  }
  const length = Array.isArray(value) ? value.length : value;
  if (typeof length !== 'number' || !Number.isInteger(length) || length < 0 || length >= 2 ** 31) {
    const got = typeof length === 'string' ? JSON.stringify(length.slice(0, 40)) : String(length);
    throw refuse(`holds no length; got ${got}, expected an integer in [0, 2^31) or an array of tokens`);
  }
  return length;
}
