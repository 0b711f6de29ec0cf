/** Jobs of several processes on this machine, started by the package itself. */
import { spawn, spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { type LaunchOptions, launch } from '../../src/dist/launch.js';
import { sanitized } from '../support/flavour.js';
import { bundle } from '../support/program.js';
import { freePort, RankProcess } from '../support/rank-processes.js';

const hasMpirun = !sanitized && spawnSync('mpirun', ['--version']).status === 0;
if (!hasMpirun) console.log('no mpirun: a job under Open MPI is not tried');

/** Launches the rank program; the processes in the order of their starts. */
async function launched(script: string, options: Partial<LaunchOptions> = {}) {
  const ranks: RankProcess[] = [];
  const end = await launch({
    nproc: 3,
    command: [process.execPath, bundle('dist-rank'), script, '{"timeoutMs":60000}'],
    stdio: ['ignore', 'pipe', 'pipe'],
    onStart: (_, child) => ranks.push(new RankProcess(child)),
    ...options,
  });
  await Promise.all(ranks.map((rank) => rank.ended));
  return { end, ranks };
}

describe('a job of three processes', () => {
  test('is one group', async () => {
    const { end, ranks } = await launched('hello');
    expect(end).toEqual({ exitCode: 0, failure: undefined, restarts: 0 });
    for (const [rank, process] of ranks.entries()) {
      expect(await process.until('ready')).toMatchObject({ rank, size: 3, backend: 'gloo' });
    }
  }, 60_000);

  test('is started anew after a failure, as often as was asked', async () => {
    const { end, ranks } = await launched('fail once', { maxRestarts: 2 });
    expect(end).toEqual({ exitCode: 0, failure: undefined, restarts: 1 });
    expect(ranks).toHaveLength(6);
    const once = await launched('fail once');
    expect(once.end).toEqual({ exitCode: 3, failure: { rank: 1, code: 3, signal: null }, restarts: 0 });
  }, 90_000);

  test('ends with its first failure, ranks that do not listen included', async () => {
    const { end, ranks } = await launched('deaf', { graceMs: 1500 });
    expect(end).toEqual({ exitCode: 137, failure: { rank: 1, code: null, signal: 'SIGKILL' }, restarts: 0 });
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual(['SIGKILL', 'SIGKILL', 'SIGKILL']);
    expect(ranks[0].said.map(({ event }) => event)).toContain('deaf');
  }, 60_000);

  test('ends when its signal fires', async () => {
    const controller = new AbortController();
    const { end } = await launched('never', {
      signal: controller.signal,
      onStart: (rank) => rank === 2 && setTimeout(() => controller.abort(), 300),
    });
    expect(end).toMatchObject({ exitCode: 143, failure: { signal: 'SIGTERM' } });
  }, 60_000);
});

test.runIf(hasMpirun)(
  'a job of three processes under mpirun is one group',
  async () => {
    const port = await freePort();
    const variables = ['-x', 'MASTER_ADDR=127.0.0.1', '-x', `MASTER_PORT=${port}`];
    const rank = [process.execPath, bundle('dist-rank'), 'hello', '{"timeoutMs":60000}'];
    const flags = ['--allow-run-as-root', '--oversubscribe', '-n', '3', ...variables];
    const job = new RankProcess(spawn('mpirun', [...flags, ...rank], { stdio: ['ignore', 'pipe', 'pipe'] }));
    expect({ end: await job.ended, stderr: job.stderr }).toMatchObject({ end: 0 });
    const ready = job.said.filter(({ event }) => event === 'ready');
    expect(ready.map(({ rank, size }) => `${rank}/${size}`).sort()).toEqual(['0/3', '1/3', '2/3']);
  },
  90_000,
);

test.each([
  ['no process', { nproc: 0 }, 'ERR_VARLEN_RANGE'],
  ['an unknown option', { nproc: 1, processes: 2 }, 'ERR_VARLEN_OPTION'],
  ['no program', { nproc: 1, command: [] }, 'ERR_VARLEN_TYPE'],
  ['a program that does not exist', { nproc: 2, command: ['/no/such/program'] }, 'ERR_VARLEN_IO'],
])('%s is refused', async (_, options, code) => {
  await expect(launch(options as LaunchOptions)).rejects.toMatchObject({ code });
});
