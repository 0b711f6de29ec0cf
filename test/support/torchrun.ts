/** Jobs under PyTorch's launcher, where PyTorch is installed. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { sanitized } from './flavour.js';

/** False under a sanitizer too: Python would report its own leaks. */
export const hasTorch: boolean =
  !sanitized &&
  spawnSync('python3', ['-c', 'import importlib.util as u; exit(u.find_spec("torch") is None)']).status === 0;

/** How a job ended. */
export interface TorchrunEnd {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `command` once per rank under torchrun. `onStart` gets the launcher. */
export function torchrun(
  n: number,
  command: readonly string[],
  options: { flags?: readonly string[]; onStart?: (launcher: ChildProcess) => void } = {},
): Promise<TorchrunEnd> {
  const { flags = [], onStart } = options;
  const run = ['-m', 'torch.distributed.run', '--nproc-per-node', String(n), '--no-python', ...flags];
  const meet = ['--rdzv-backend', 'c10d', '--rdzv-endpoint', '127.0.0.1:0'];
  const child = spawn('python3', [...run, ...meet, ...command], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 170_000,
  });
  onStart?.(child);
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].on('data', (chunk: Buffer) => {
      output[name] += chunk.toString();
    });
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, ...output }));
  });
}
