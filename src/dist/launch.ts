/** Ranks of one job on this machine, as torchrun starts them. */
import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import { constants } from 'node:os';
import { checkInteger, readOptions, wrongType } from '../check.js';
import { varlenError } from '../errors.js';
import { type StoreHost, startStore } from './store-host.js';

/** Options of {@link launch}. */
export interface LaunchOptions {
  /** Number of processes. */
  nproc: number;
  /** Program and arguments. Default: this Node.js and the arguments it was started with. */
  command?: readonly string[];
  /** Variables beside those of this process. */
  env?: Readonly<Record<string, string | undefined>>;
  /** How often the job is started anew after a failure. Default 0. */
  maxRestarts?: number;
  /** Time between SIGTERM and SIGKILL, in milliseconds. Default 10,000. */
  graceMs?: number;
  /** Ends the job. */
  signal?: AbortSignal;
  /** Where the ranks' output goes. Default `'inherit'`. */
  stdio?: StdioOptions;
  /** Told of each process that was started, to read its output. */
  onStart?: (rank: number, child: ChildProcess) => void;
}

/** The rank that ended first without success, and why. */
export interface LaunchFailure {
  readonly rank: number;
  /** Its exit code, if it ended by itself. */
  readonly code: number | null;
  /** The signal that ended it, if one did. */
  readonly signal: NodeJS.Signals | null;
}

/** How a job ended. */
export interface LaunchEnd {
  /** What a shell would see: 0, the first failure's code, or 128 + the number of its signal. */
  readonly exitCode: number;
  /** The first failure of the last attempt. */
  readonly failure: LaunchFailure | undefined;
  readonly restarts: number;
}

const op = 'launch';
const known = ['nproc', 'command', 'env', 'maxRestarts', 'graceMs', 'signal', 'stdio', 'onStart'] as const;

/**
 * Starts `nproc` processes with torchrun's variables (`RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`,
 * `MASTER_PORT`, ...), so that `init()` in each of them makes one group. When a rank fails the others are
 * ended and the first failure is reported. This process serves the store: no rank's end takes it away.
 *
 * ```ts
 * const { exitCode, failure } = await launch({ nproc: 4, command: ['node', 'train.js'] });
 * ```
 *
 * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, and `ERR_VARLEN_IO` when the command
 *   cannot be started
 */
export async function launch(options: LaunchOptions): Promise<LaunchEnd> {
  const given = readOptions(op, options, known);
  const { nproc, maxRestarts = 0, graceMs = 10_000 } = given;
  checkInteger(op, 'options.nproc', nproc, 1, 4096);
  checkInteger(op, 'options.maxRestarts', maxRestarts, 0, 1000);
  checkInteger(op, 'options.graceMs', graceMs, 0, 86_400_000);
  const command = given.command ?? [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  if (!Array.isArray(command) || command.length === 0 || command.some((word) => typeof word !== 'string')) {
    throw wrongType(op, 'options.command', command, 'a program and its arguments');
  }
  given.signal?.throwIfAborted();
  const store = await startStore({ host: '127.0.0.1', port: 0 });
  try {
    for (let restarts = 0; ; restarts++) {
      const failure = await attempt(given, command, graceMs, store, restarts);
      if (failure === undefined) return { exitCode: 0, failure, restarts };
      if (restarts === maxRestarts || given.signal?.aborted) {
        return { exitCode: failure.code ?? 128 + signalNumber(failure.signal), failure, restarts };
      }
    }
  } finally {
    await store.close();
  }
}

/** One start of all ranks; resolves, when all have ended, to the first failure. */
async function attempt(
  { nproc, env, stdio = 'inherit', signal, onStart, maxRestarts = 0 }: LaunchOptions,
  [program, ...args]: readonly string[],
  graceMs: number,
  store: StoreHost,
  restarts: number,
): Promise<LaunchFailure | undefined> {
  let failure: LaunchFailure | undefined;
  let ending: NodeJS.Timeout | undefined;
  let cause: unknown;
  const running = new Set<ChildProcess>();
  const end = (how: NodeJS.Signals = 'SIGTERM') => {
    for (const child of running) child.kill(how);
    ending ??= setTimeout(() => {
      for (const child of running) child.kill('SIGKILL');
    }, graceMs);
  };
  const onAbort = () => end();
  const onSignal = (name: NodeJS.Signals) => end(name);
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of signals) process.on(name, onSignal);
  signal?.addEventListener('abort', onAbort, { once: true });
  const ends: Promise<void>[] = [];
  for (let rank = 0; rank < nproc; rank++) {
    const child = spawn(program, args, {
      stdio,
      env: {
        ...process.env,
        ...env,
        RANK: String(rank),
        LOCAL_RANK: String(rank),
        GROUP_RANK: '0',
        WORLD_SIZE: String(nproc),
        LOCAL_WORLD_SIZE: String(nproc),
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: String(store.port),
        TORCHELASTIC_RUN_ID: `varlen-${process.pid}`,
        TORCHELASTIC_RESTART_COUNT: String(restarts),
        TORCHELASTIC_MAX_RESTARTS: String(maxRestarts),
        TORCHELASTIC_USE_AGENT_STORE: 'True',
      },
    });
    // A process that could not be started has no number, and a signal to none goes to everybody's group.
    if (child.pid !== undefined) running.add(child);
    ends.push(
      new Promise((resolve) => {
        child.once('error', (error) => {
          cause ??= error;
          running.delete(child);
          end();
          resolve();
        });
        child.once('exit', (code, name) => {
          running.delete(child);
          if (code !== 0) {
            failure ??= { rank, code, signal: name };
            end();
          }
          resolve();
        });
      }),
    );
    onStart?.(rank, child);
  }
  if (signal?.aborted) end();
  await Promise.all(ends);
  clearTimeout(ending);
  for (const name of signals) process.off(name, onSignal);
  signal?.removeEventListener('abort', onAbort);
  if (cause === undefined) return failure;
  const message = `${op}: options.command cannot be started: ${(cause as Error).message}`;
  throw varlenError('ERR_VARLEN_IO', message, { op, argument: 'options.command' }, { cause });
}

function signalNumber(name: NodeJS.Signals | null): number {
  return name === null ? 0 : (constants.signals[name] ?? 0);
}
