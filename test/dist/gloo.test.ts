/** The Gloo engine between real processes. */
import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { bundle } from '../support/program.js';
import { endsOf, freePort, startRanks } from '../support/rank-processes.js';
import { hasTorch, torchrun } from '../support/torchrun.js';

if (!hasTorch) console.log('no PyTorch: its results are not compared');

describe('four processes over Gloo', () => {
  test('agree with what each of them computes, for every collective, type, reduction and size', async () => {
    const ranks = await startRanks(4, 'collectives', { init: { timeoutMs: 60_000 } });
    const ends = await endsOf(ranks);
    for (const rank of ranks) expect(rank.said.find(({ event }) => event === 'failed')).toBeUndefined();
    expect(ends).toEqual([0, 0, 0, 0]);
    for (const [r, rank] of ranks.entries()) {
      expect(await rank.until('ready')).toMatchObject({ rank: r, size: 4, backend: 'gloo' });
      expect((await rank.until('checked')).checks).toBe(5 * 5 * (4 + 1 + 4) + 3 * 4 + 2);
      expect(await rank.until('done')).toMatchObject({ state: 'closed' });
      expect(rank.stderr).toBe('');
    }
  }, 120_000);

  test('batch shards of 37, 5, 0 and 18 samples: equal steps, every sample once', async () => {
    const ranks = await startRanks(4, 'batches', { init: { timeoutMs: 60_000 } });
    expect(await endsOf(ranks)).toEqual([0, 0, 0, 0]);
    const expected = [37, 5, 0, 18].flatMap((n, rank) => Array.from({ length: n }, (_, i) => `${rank}/${i}`));
    for (const align of ['split', 'defer']) {
      const said = await Promise.all(ranks.map((rank) => rank.until(`batches: ${align}`)));
      const ids = said.flatMap((one) => one.ids as string[]);
      expect(ids.sort()).toEqual(expected.sort());
      // Equal on all ranks: the number of steps, and what each one says of the job.
      for (const one of said) expect(one.globalTokens).toEqual(said[0].globalTokens);
      expect(said[2].idle).toBe((said[0].globalTokens as unknown[]).length);
      expect(said[0].idle).toBe(0);
    }
  }, 120_000);

  test.runIf(hasTorch)(
    "have PyTorch's results, in one torchrun job and through its store",
    async () => {
      const { status, stdout, stderr } = await torchrun(4, [
        process.execPath,
        bundle('dist-rank'),
        'torch',
        '{"timeoutMs":60000}',
      ]);
      expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
      const said = stdout.split('\n').filter((line) => line.includes('"equal"'));
      expect(said).toHaveLength(4);
      for (const line of said) expect(line).toContain('"values":27000');
    },
    180_000,
  );
});

describe('a worker thread', () => {
  test('that is terminated in the middle of a collective leaves its process well and its peers informed', async () => {
    const port = await freePort();
    const [first] = await startRanks(1, 'wait in a collective', {
      port,
      init: { size: 2, rank: 0, timeoutMs: 60_000 },
      args: ['worker'],
    });
    const [second] = await startRanks(1, 'slow', {
      port,
      init: { size: 2, rank: 1, timeoutMs: 60_000, collectiveTimeoutMs: 60_000 },
    });
    await first.until('waiting');
    first.child.kill('SIGUSR2');
    expect(await first.until('terminated')).toMatchObject({ code: 1 });
    expect(await first.ended).toBe(0);
    expect(await second.until('rejected')).toMatchObject({ code: 'ERR_VARLEN_DIST_PEER_LOST' });
    expect(await second.ended).toBe(0);
  }, 90_000);
});

test('too few file descriptors are refused with the number that is needed', async () => {
  const port = await freePort();
  // A sanitizer is for the rank: the shell does not run under that of threads.
  const { LD_PRELOAD: preload = '' } = process.env;
  const command = `ulimit -n 60; LD_PRELOAD="${preload}" exec "${process.execPath}" "${bundle('dist-rank')}" reduce '{"timeoutMs":20000}'`;
  const env = {
    ...process.env,
    LD_PRELOAD: '',
    RANK: '0',
    WORLD_SIZE: '4',
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(port),
  };
  const { stdout } = spawnSync('sh', ['-c', command], { env, encoding: 'utf8', timeout: 60_000 });
  expect(stdout).toContain('ERR_VARLEN_DIST_STORE');
  expect(stdout).toContain('need 68 file descriptors');
});
