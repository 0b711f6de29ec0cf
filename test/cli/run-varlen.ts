import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = join(import.meta.dirname, '..', '..');
// By its address: a child in another folder would not find `tsx` by name.
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** When Ctrl-C comes: after so many milliseconds, or whenever the function calls; false: it has ended before. */
export type Interruption = number | ((interrupt: () => boolean) => Promise<void>);

/** Runs `varlen <argv>` from the sources, in a process of its own. */
export function runVarlen(
  argv: readonly string[],
  env: Readonly<Record<string, string>> = {},
  interruption?: Interruption,
): Promise<Outcome> {
  const child = spawn(process.execPath, ['--import', tsx, join(root, 'src/cli/main.ts'), ...argv], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const interrupt = () => child.kill('SIGINT');
  return new Promise((resolve, reject) => {
    if (typeof interruption === 'number') setTimeout(interrupt, interruption);
    else interruption?.(interrupt).catch(reject);
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
}
