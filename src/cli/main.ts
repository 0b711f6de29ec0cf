#!/usr/bin/env node
import { VarlenError } from '../errors.js';
import { type Command, colored, EXIT, helpText, say, UsageError } from './command.js';
import { packageVersion } from './package.js';

/** The program `varlen`: finds the command, runs it, and turns what it throws into an exit code. */

interface Entry {
  readonly summary: string;
  load(): Promise<Command>;
}

// Loaded when called for: `varlen --help` must not read every command's modules.
const COMMANDS: Readonly<Record<string, Entry>> = {
  doctor: {
    summary: 'check this machine: binary, CPU, CUDA, one op per device',
    load: () => import('./doctor.js'),
  },
  info: { summary: 'what the package sees: CPU, threads, CUDA', load: () => import('./info.js') },
  bench: { summary: 'micro-benchmarks of the ops on this machine', load: () => import('./bench.js') },
  build: { summary: 'compile the native binary from source, in place', load: () => import('./build.js') },
  pack: {
    summary: 'pack the lengths of a file into bins of a token budget',
    load: () => import('./pack.js'),
  },
  train: {
    summary: 'post-train a small model on puzzles or a file, with verifiable rewards',
    load: () => import('./train.js'),
  },
  plan: {
    summary: 'search the sparse prefill pattern of each head, and draw it',
    load: () => import('./plan.js'),
  },
  simulate: {
    summary: 'compare ways of batching on given lengths, without a GPU',
    load: () => import('./simulate.js'),
  },
};

function programHelp(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length));
  const lines = Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`);
  return `varlen <command> [flags]\n\n${lines.join('\n')}\n\nvarlen <command> --help shows a command's flags; -v, --version the version.\n`;
}

function complain(message: string): void {
  say(`${colored('red', 'varlen:')} ${message}`);
}

/** How long an interrupted command may take to put things in order, unless it says otherwise. */
const GRACE_MS = 2000;

/** The same Ctrl-C may arrive twice within that time. */
const ECHO_MS = 1000;

/** Ctrl-C, as a command sees it. */
interface Interruption {
  readonly signal: AbortSignal;
  graceMs: number;
}

/** The command's exit code; its errors become words on stderr. */
async function runCommand(
  name: string,
  argv: readonly string[],
  interruption: Interruption,
): Promise<number> {
  const { signal } = interruption;
  try {
    const command = await COMMANDS[name].load();
    interruption.graceMs = command.graceMs ?? GRACE_MS;
    if (command.usage !== undefined && argv.some((word) => word === '-h' || word === '--help')) {
      process.stdout.write(helpText(command.usage));
      return EXIT.ok;
    }
    return await command.main(argv, signal);
  } catch (error) {
    if (signal.aborted) return EXIT.interrupted;
    if (error instanceof UsageError) {
      complain(`${name}: ${error.message}\n\n${helpText(error.usage)}`);
      return EXIT.usage;
    }
    if (!(error instanceof VarlenError)) throw error; // a bug of ours: Node prints its stack
    complain(`${error.code}: ${error.message}`);
    const { exitCode } = error.details;
    return typeof exitCode === 'number' ? exitCode : EXIT.failed;
  }
}

/**
 * Runs `varlen` with the words after its name.
 *
 * @returns 0 done; 1 failed; 2 called wrongly; 3 from `doctor`: well, but without CUDA; 130 interrupted
 */
export async function main(argv: readonly string[], interruption: Interruption): Promise<number> {
  const [name, ...rest] = argv;
  if (name === '-v' || name === '--version' || rest.some((word) => word === '-v' || word === '--version')) {
    process.stdout.write(`${packageVersion()}\n`);
    return EXIT.ok;
  }
  if (name === '-h' || name === '--help') {
    process.stdout.write(programHelp());
    return EXIT.ok;
  }
  if (name === undefined || !Object.hasOwn(COMMANDS, name)) {
    complain(`${name === undefined ? 'no command given' : `unknown command '${name}'`}\n\n${programHelp()}`);
    return EXIT.usage;
  }
  return runCommand(name, rest, interruption);
}

function start(): void {
  const controller = new AbortController();
  const { signal } = controller;
  const interruption: Interruption = { signal, graceMs: GRACE_MS };
  process.once('SIGINT', () => {
    controller.abort();
    const asked = performance.now();
    process.on('SIGINT', () => {
      // A launcher passes on what the terminal has sent to all: that is still the first time.
      if (performance.now() - asked > ECHO_MS) process.exit(EXIT.interrupted);
    });
    setTimeout(() => process.exit(EXIT.interrupted), interruption.graceMs).unref();
  });
  void main(process.argv.slice(2), interruption).then((code) => {
    process.exitCode = signal.aborted ? EXIT.interrupted : code;
  });
}

if (require.main === module) start();
