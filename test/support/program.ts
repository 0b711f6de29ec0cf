import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildSync } from 'esbuild';

/** Programs of test/native/programs, run in processes of their own. */

const root = join(import.meta.dirname, '../..');
// The loader looks for the package two folders above its own file.
const folder = join(root, 'build-cmake', 'test-programs');
const bundled = new Map<string, string>();

process.on('exit', () => {
  for (const file of bundled.values()) rmSync(file, { force: true });
});

/** One plain JavaScript file with the program and the package in it: workers start fast from it. */
export function bundle(name: string): string {
  const known = bundled.get(name);
  if (known !== undefined) return known;
  mkdirSync(folder, { recursive: true });
  const outfile = join(folder, `${name}-${process.pid}.cjs`);
  buildSync({
    entryPoints: [join(root, 'test/native/programs', `${name}.ts`)],
    outfile,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    sourcemap: 'inline',
    logLevel: 'error',
  });
  bundled.set(name, outfile);
  return outfile;
}

/** How a program ended. */
export interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; kills it after `timeoutMs`, and `signal` then says so. */
export function run(
  name: string,
  args: readonly string[] = [],
  options: { nodeArgs?: readonly string[]; env?: Record<string, string>; timeoutMs?: number } = {},
): Promise<Ended> {
  const { nodeArgs = [], env = {}, timeoutMs = 60_000 } = options;
  const child: ChildProcess = spawn(process.execPath, [...nodeArgs, bundle(name), ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: timeoutMs,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status, signal) => resolve({ status, signal, stdout, stderr }));
  });
}
