import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type VarlenErrorCode, varlenError } from '../errors.js';
import { EXIT, readFlags, say, type Usage, UsageError } from './command.js';
import { packageRoot } from './package.js';

export const usage: Usage = {
  synopsis: 'varlen build [--cuda on|off|auto] [--archs LIST] [--debug]',
  summary:
    'Compiles the native binary from the sources in this package, in place. Needs a C++20 compiler, cmake 3.24,\nmake or ninja, and the headers of Google Highway; CUDA needs nvcc.',
  flags: [
    ['--cuda on|off|auto', 'on: fail without nvcc; auto (default): when nvcc and a GPU are there'],
    [
      '--archs LIST',
      'CUDA architectures, such as 90a-real or "80;90a-real"; default: the GPUs of this machine',
    ],
    ['--debug', 'a build for debuggers, in build/Debug'],
  ],
};

const CUDA_WORDS = ['on', 'off', 'auto'];

/** The line in which the build script says what went wrong: `ERR_VARLEN_BUILD_TOOLS: missing ...`. */
const FAILURE = /^(ERR_VARLEN_BUILD_(?:TOOLS|FAILED)): (.*)$/;

/** Runs the build script; its words pass through to stderr, all but the one that becomes the error. */
async function compile(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  signal: AbortSignal | undefined,
): Promise<void> {
  const script = join(packageRoot, 'scripts', 'build-native.cjs');
  if (!existsSync(script)) {
    throw varlenError(
      'ERR_VARLEN_BUILD_FAILED',
      `build: the sources are missing; got no ${script}, expected the whole package`,
      {
        op: 'build',
      },
    );
  }
  const child = spawn(process.execPath, [script, ...args], {
    env,
    signal,
    stdio: ['ignore', 'inherit', 'pipe'],
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? EXIT.failed));
  });
  let failure: RegExpExecArray | null = null;
  createInterface({ input: child.stderr }).on('line', (line) => {
    const found = FAILURE.exec(line);
    if (found === null) say(line);
    else failure = found;
  });
  const exitCode = await ended;
  if (exitCode === 0) return;
  const [, code, reason] = failure ?? [
    '',
    'ERR_VARLEN_BUILD_FAILED',
    `the build script ended with ${exitCode}`,
  ];
  throw varlenError(code as VarlenErrorCode, `build: ${reason}`, { op: 'build', exitCode });
}

/**
 * `varlen build`: compiles the binary for this machine.
 *
 * @throws `ERR_VARLEN_BUILD_TOOLS` names what to install; `ERR_VARLEN_BUILD_FAILED` carries cmake's exit code
 */
export async function main(argv: readonly string[], signal?: AbortSignal): Promise<number> {
  const { values } = readFlags(usage, argv, {
    cuda: { type: 'string' },
    archs: { type: 'string' },
    debug: { type: 'boolean' },
  });
  const { cuda, archs, debug } = values;
  if (cuda !== undefined && !CUDA_WORDS.includes(cuda)) {
    throw new UsageError(`--cuda takes ${CUDA_WORDS.join(', ')}; got '${cuda}'`, usage);
  }
  const env = {
    ...process.env,
    ...(cuda === undefined ? {} : { VARLEN_CUDA: cuda.toUpperCase() }),
    ...(archs === undefined ? {} : { VARLEN_CUDA_ARCHS: archs }),
  };
  await compile(debug ? ['--debug'] : [], env, signal);
  return EXIT.ok;
}
