/** Prompts with responses or answers from a file of one JSON object per line. */
import { createReadStream } from 'node:fs';
import { varlenError } from '../../errors.js';
import { seededPermutation } from '../../seeded-random.js';
import { ByteTokenizer } from '../tokenizer/byte-tokenizer.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { findAnswer, judged, MAX_OUTPUT_CHARS, refused } from './answer.js';
import { problemId, splitOf } from './held-out.js';
import type { Problem, Split, Task } from './task.js';

/** One line of the file. */
export interface JsonlProblem extends Problem {
  /** Line number in the file, from 1. */
  readonly line: number;
  /** For RL: what the answer must be, to the letter but for spaces around it. */
  readonly answer?: string;
}

/** Options of {@link jsonlTask}. */
export interface JsonlOptions {
  /** Leave bad lines out, and count them. Default false: the first one is an error. */
  skipBadLines?: boolean;
}

/** A line longer than that is taken for something other than training data. */
const MAX_LINE_BYTES = 64 << 20;

const OP = 'readJsonl';

/** The problem of one line, or what is wrong with it. */
function parseLine(bytes: Uint8Array, line: number): JsonlProblem | string {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    const encoding = (error as { code?: string }).code === 'ERR_ENCODING_INVALID_ENCODED_DATA';
    return encoding ? 'is not UTF-8' : 'is not JSON';
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return 'is not a JSON object';
  const { prompt, response, answer } = value as Record<string, unknown>;
  if (typeof prompt !== 'string' || prompt === '') return 'has no prompt; expected a string "prompt"';
  for (const [name, text] of Object.entries({ response, answer })) {
    if (text === undefined) continue;
    if (typeof text !== 'string' || text.trim() === '') return `has a bad "${name}"; expected a string`;
  }
  if (response === undefined && answer === undefined) return 'has neither "response" nor "answer"';
  return {
    id: problemId(prompt),
    line,
    prompt,
    ...(response === undefined ? {} : { response: response as string }),
    ...(answer === undefined ? {} : { answer: answer as string }),
  };
}

async function* lines(path: string): AsyncGenerator<Uint8Array> {
  let parts: Buffer[] = [];
  let held = 0;
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      yield Buffer.concat([...parts, chunk.subarray(start, end)]);
      parts = [];
      held = 0;
      start = end + 1;
    }
    // What is too long is not held: its beginning alone is bad enough.
    if (held <= MAX_LINE_BYTES) parts.push(chunk.subarray(start));
    held += chunk.length - start;
  }
  if (held > 0) yield Buffer.concat(parts);
}

/**
 * The problems of a file of `{ "prompt", "response" }` (for SFT) or `{ "prompt", "answer" }` (for RL) or
 * all three; empty lines are passed over.
 *
 * @throws `ERR_VARLEN_DATA` naming file and line, `ERR_VARLEN_IO` when reading fails
 */
export async function readJsonl(
  path: string,
  { skipBadLines = false }: JsonlOptions = {},
): Promise<{ problems: JsonlProblem[]; skipped: number }> {
  const problems: JsonlProblem[] = [];
  let skipped = 0;
  let line = 0;
  const refuse = (at: number, what: string) =>
    varlenError('ERR_VARLEN_DATA', `${OP}: ${path}:${at} ${what}`, {
      op: OP,
      argument: 'path',
      path,
      line: at,
    });
  try {
    for await (const bytes of lines(path)) {
      line++;
      if (bytes.every((byte) => byte === 32 || byte === 9 || byte === 13)) continue;
      const parsed = bytes.length > MAX_LINE_BYTES ? 'is too long' : parseLine(bytes, line);
      if (typeof parsed !== 'string') problems.push(parsed);
      else if (skipBadLines) skipped++;
      else throw refuse(line, parsed);
    }
  } catch (cause) {
    if (!(cause instanceof Error && 'syscall' in cause)) throw cause;
    const message = `${OP}: ${path} cannot be read: ${cause.message}`;
    throw varlenError('ERR_VARLEN_IO', message, { op: OP, argument: 'path', path }, { cause });
  }
  if (problems.length === 0) throw refuse(line, 'ends without a problem');
  return { problems, skipped };
}

/** Files smaller than that hold nothing out: there would be nothing to measure on. */
const LEAST_TO_HOLD_OUT = 16;

/**
 * A task from a file. One in eight prompts is held out, chosen by its hash, and the others are read in
 * a new random order on every pass.
 *
 * RL rewards an output whose final answer (the text after the last `<answer>`, or else the whole output)
 * equals the line's `answer`.
 *
 * @throws `ERR_VARLEN_DATA` with file and line, `ERR_VARLEN_IO`, `ERR_VARLEN_TYPE`
 */
export async function jsonlTask(
  path: string,
  options: JsonlOptions & { seed?: number; tokenizer?: Tokenizer } = {},
): Promise<Task<JsonlProblem>> {
  const { seed = 0, tokenizer = new ByteTokenizer() } = options;
  const { problems, skipped } = await readJsonl(path, options);
  const lacking = (field: 'response' | 'answer') => problems.find((problem) => problem[field] === undefined);
  const [bare, open] = [lacking('response'), lacking('answer')];
  if (bare !== undefined && open !== undefined) {
    const message = `${OP}: ${path}:${open.line} has no "answer" and line ${bare.line} no "response"; expected one of the two on every line`;
    throw varlenError('ERR_VARLEN_DATA', message, { op: OP, argument: 'path', path, line: open.line });
  }
  const parts: Record<Split, JsonlProblem[]> = { train: [], 'held-out': [] };
  for (const problem of problems) parts[splitOf(problem.id)].push(problem);
  if (problems.length < LEAST_TO_HOLD_OUT || parts.train.length === 0 || parts['held-out'].length === 0) {
    parts.train = problems;
    parts['held-out'] = problems;
  }
  let order: { readonly pass: number; readonly of: Split; readonly permutation: Int32Array } | undefined;

  return {
    name: path,
    tokenizer,
    hasResponses: bare === undefined,
    hasAnswers: open === undefined,
    problem(split, index) {
      const own = parts[split];
      const pass = Math.floor(index / own.length);
      if (order?.pass !== pass || order.of !== split) {
        order = { pass, of: split, permutation: seededPermutation(own.length, seed, pass) };
      }
      return own[order.permutation[index % own.length]];
    },
    verify({ answer }, output) {
      if (answer === undefined) return refused('the problem has no answer');
      if (typeof output !== 'string') return refused('not a text');
      if (output.length > MAX_OUTPUT_CHARS) return refused(`longer than ${MAX_OUTPUT_CHARS} characters`);
      const found = findAnswer(output);
      return found.text === undefined
        ? judged(output.trim() === answer.trim(), false)
        : judged(found.text.trim() === answer.trim(), found.tidy);
    },
    facts: () => ({ problems: problems.length, skippedLines: skipped }),
  };
}
