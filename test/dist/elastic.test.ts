/** A job that loses a rank and is started anew by its launcher goes on from its checkpoint. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { launch } from '../../src/dist/launch.js';
import { bundle } from '../support/program.js';
import { hasTorch, torchrun } from '../support/torchrun.js';

const steps = 20;
if (!hasTorch) console.log('PyTorch is not installed: its elastic restart is not tried');

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-elastic-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The same command for the first start and for the restart. */
function train(out: string): string[] {
  const model = '--quick --device cpu --prompts 2 --eval-problems 2 --eval-samples 2'.split(' ');
  const length = `--sft-steps ${steps} --rl-steps 0 --checkpoint-every 2 --resume`.split(' ');
  return [process.execPath, bundle('train-rank'), ...model, ...length, '--json', '--out', out];
}

const recordsOf = (text: string): { phase?: string; step?: number }[] =>
  text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
const sftSteps = (text: string): (number | undefined)[] =>
  recordsOf(text)
    .filter(({ phase }) => phase === 'sft')
    .map(({ step }) => step);

/** Resolves when the job has written down `n` steps. */
async function trained(out: string, n: number): Promise<void> {
  const file = join(out, 'metrics.jsonl');
  while (!existsSync(file) || sftSteps(readFileSync(file, 'utf8')).length < n) await pause(5);
}

/** Rank 0 said every step, and those after the last checkpoint twice at most; the file has each of them once. */
function expectResumed(out: string, said: string): void {
  const all = Array.from({ length: steps }, (_, i) => i + 1);
  expect(sftSteps(readFileSync(join(out, 'metrics.jsonl'), 'utf8'))).toEqual(all);
  const shown = sftSteps(said);
  expect(new Set(shown)).toEqual(new Set(all));
  expect(shown.filter((step) => step === 1)).toHaveLength(1); // it was not begun anew
  expect(shown.length).toBeLessThan(steps + 10);
}

test.concurrent('under launch with maxRestarts', async () => {
  const out = join(folder, 'launch');
  let said = '';
  let starts = 0;
  const { exitCode, restarts } = await launch({
    nproc: 2,
    command: train(out),
    maxRestarts: 1,
    stdio: ['ignore', 'pipe', 'inherit'],
    onStart(rank, child) {
      child.stdout?.on('data', (chunk: Buffer) => {
        said += chunk.toString();
      });
      if (rank === 1 && starts++ === 0) void trained(out, 5).then(() => child.kill('SIGKILL'));
    },
  });
  expect({ exitCode, restarts }).toEqual({ exitCode: 0, restarts: 1 });
  expectResumed(out, said);
}, 120_000);

test.runIf(hasTorch)(
  'under torchrun with --max-restarts',
  { concurrent: true, timeout: 180_000 },
  async () => {
    const out = join(folder, 'torchrun');
    const { status, stdout, stderr } = await torchrun(2, train(out), {
      flags: ['--max-restarts', '1', '--monitor-interval', '0.1'],
      onStart: ({ pid }) =>
        void trained(out, 5).then(() => {
          const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ');
          process.kill(Number(children.at(-1)), 'SIGKILL');
        }),
    });
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
    expectResumed(out, stdout);
  },
);
