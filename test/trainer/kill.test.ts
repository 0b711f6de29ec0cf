import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { buildSync } from 'esbuild';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SeededRandom } from '../../src/seeded-random.js';
import { readMetrics } from '../../src/trainer/metrics-file.js';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { train } from '../../src/trainer/train.js';
import { killedRecipes, parityTask, withoutMachine } from './recipes.js';

const root = join(import.meta.dirname, '../..');
let folder: string;
let program: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-kill-'));
  // The loader looks for the package two folders above its own file.
  program = join(root, 'build-cmake', 'test-programs', `train-${process.pid}.cjs`);
  buildSync({
    entryPoints: [join(root, 'test/trainer/fixtures/train.ts')],
    outfile: program,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    logLevel: 'error',
  });
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  rmSync(program, { force: true });
});

/** Kills per run; with both runs, the twenty of the promise. */
const KILLS = 10;

test.each(['plain', 'partial'] as const)(
  'a %s run that is killed at ten random points ends as if nothing had been',
  {
    timeout: 240_000,
  },
  async (variant) => {
    const out = join(folder, variant);
    const metrics = join(out, 'metrics.jsonl');
    const records = () => (existsSync(metrics) ? readFileSync(metrics, 'utf8').split('\n').length - 1 : 0);
    const start = (...more: string[]): ChildProcess =>
      spawn(process.execPath, [program, out, variant, ...more], { stdio: ['ignore', 'ignore', 'inherit'] });

    const random = new SeededRandom(variant.length);
    const killedAt: string[] = [];
    for (let kill = 0; kill < KILLS; kill++) {
      const child = start(kill === 0 ? '' : 'resume');
      const closed = once(child, 'close');
      // A step further than last time, so that the run gets on; then anywhere in the next steps and their saves.
      const [until, delay] = [records() + 1, 20 * random.uniform()];
      while (records() < until && child.exitCode === null) await pause(1);
      await pause(delay);
      child.kill('SIGKILL');
      const [code, signal] = await closed;
      killedAt.push(`${records()} records, ${signal ?? code}`);
    }
    // Every kill found the run alive.
    expect(killedAt.filter((where) => !where.endsWith('SIGKILL'))).toEqual([]);
    expect(await once(start('resume'), 'close')).toEqual([0, null]);

    const task = parityTask(knightsAndKnaves({ seed: 5 }));
    const whole = join(folder, `${variant}-whole`);
    const { records: expected } = await train({
      task,
      recipe: killedRecipes[variant],
      out: whole,
      device: 'cpu',
    });
    expect(withoutMachine(readMetrics(metrics)), killedAt.join('; ')).toEqual(withoutMachine(expected));
    const model = (path: string) => readFileSync(join(path, 'model/model.safetensors'));
    expect(model(out).equals(model(whole))).toBe(true);
  },
);
