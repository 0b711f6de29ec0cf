import { type ParseArgsConfig, parseArgs, styleText } from 'node:util';

/**
 * What all commands of `varlen` share: flags, exit codes and where output goes. Data goes to stdout,
 * words for people to stderr.
 */

/** Exit codes; 130 is what shells report for an interrupted program. */
export const EXIT = { ok: 0, failed: 1, usage: 2, cpuOnly: 3, interrupted: 130 } as const;

/** A command: its words after the name in, an exit code out. */
export interface Command {
  /** What `--help` prints; without it the command answers `--help` itself. */
  readonly usage?: Usage;
  main(argv: readonly string[], signal?: AbortSignal): Promise<number>;
  /** How long it may take to end once interrupted, in milliseconds. Default 2000. */
  readonly graceMs?: number;
}

/** Says how a command is called. */
export interface Usage {
  /** For example `varlen info [--json]`. */
  readonly synopsis: string;
  /** One sentence. */
  readonly summary: string;
  /** A line per flag: `['--json', 'one JSON document on stdout']`. */
  readonly flags: readonly (readonly [flag: string, meaning: string])[];
}

/** A call that names an unknown flag, command or value; `varlen` answers with usage and exit code 2. */
export class UsageError extends Error {
  readonly usage: Usage;

  constructor(message: string, usage: Usage) {
    super(message);
    this.name = 'UsageError';
    this.usage = usage;
  }
}

/** The help text of a command. */
export function helpText({ synopsis, summary, flags }: Usage): string {
  const all = [...flags, ['-h, --help', 'this text'], ['-v, --version', 'version of the package']];
  const width = Math.max(...all.map(([flag]) => flag.length));
  const lines = all.map(([flag, meaning]) => `  ${flag.padEnd(width)}  ${meaning}`);
  return `${synopsis}\n\n${summary}\n\n${lines.join('\n')}\n`;
}

type Flags = NonNullable<ParseArgsConfig['options']>;
type Parsed<F extends Flags> = ReturnType<
  typeof parseArgs<{ options: F; args: string[]; allowPositionals: true; strict: true }>
>;

/**
 * Reads the flags of a command.
 *
 * @throws UsageError for a flag that `options` does not list, or words where none are allowed
 */
export function readFlags<F extends Flags>(
  usage: Usage,
  argv: readonly string[],
  options: F,
  allowPositionals = false,
): Parsed<F> {
  let parsed: Parsed<F>;
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true }) as Parsed<F>;
  } catch (error) {
    // The first sentence says what is wrong; the others advise on `--` and quoting.
    throw new UsageError((error as Error).message.split(/\. |\n/)[0], usage);
  }
  if (!allowPositionals && parsed.positionals.length > 0) {
    throw new UsageError(`unexpected word '${parsed.positionals[0]}'`, usage);
  }
  return parsed;
}

/** Words for people. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** One JSON document, the whole of stdout. */
export function printJson(document: unknown): void {
  process.stdout.write(`${JSON.stringify(document, undefined, 2)}\n`);
}

/** `text` in a style, when stderr is a terminal and NO_COLOR is not set. */
export function colored(style: 'green' | 'red' | 'yellow' | 'bold' | 'dim', text: string): string {
  const plain = !process.stderr.isTTY || Boolean(process.env.NO_COLOR) || process.env.TERM === 'dumb';
  return plain ? text : styleText(style, text);
}

/** Rows as columns of equal width; numbers (by their look) to the right. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const isNumber = (cell: string): boolean => /^-?[\d.,]+$/.test(cell);
  const right = widths.map((_, column) =>
    rows.slice(1).every((row) => isNumber(row[column]) || row[column] === ''),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (right[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join('  ')
      .trimEnd();
  return rows.map(line).join('\n');
}
