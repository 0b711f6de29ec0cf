import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inject } from 'vitest';

/** Where a program of this name is on the PATH of the tests. */
function which(name: string): string {
  return realpathSync(execFileSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).trim());
}

/** An empty project of a user, on a machine whose PATH holds node, npm and sh alone. */
export class Consumer {
  readonly folder: string = mkdtempSync(join(tmpdir(), 'varlen-consumer-'));
  readonly installed: string = join(this.folder, 'node_modules', 'varlen');
  readonly #bin: string = join(this.folder, '.bin');

  constructor(files: Record<string, string> = {}) {
    mkdirSync(this.#bin);
    for (const name of ['node', 'npm', 'sh']) symlinkSync(which(name), join(this.#bin, name));
    this.write({ 'package.json': '{ "name": "consumer", "private": true }', ...files });
  }

  write(files: Record<string, string>): void {
    for (const [name, text] of Object.entries(files)) writeFileSync(join(this.folder, name), text);
  }

  /** Installs the packed package; what npm printed. */
  install(...flags: string[]): string {
    const { status, output } = this.run('npm', ['install', inject('tarball'), '--prefer-offline', ...flags]);
    if (status !== 0) throw new Error(output);
    return output;
  }

  /** Runs a program of the bare PATH in the project. */
  run(program: string, args: string[], env: Record<string, string> = {}): Ran {
    const { status, stdout, stderr } = spawnSync(join(this.#bin, program), args, {
      cwd: this.folder,
      encoding: 'utf8',
      env: { PATH: this.#bin, HOME: process.env.HOME, VARLEN_NUM_THREADS: '2', ...env },
    });
    return { status, stdout, output: stdout + stderr };
  }
}

interface Ran {
  status: number | null;
  stdout: string;
  /** stdout, then stderr. */
  output: string;
}
