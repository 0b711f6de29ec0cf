/** How a job starts: what launchers say, and what is wrong with it, before any rank is met. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { init } from '../../src/dist/init.js';
import { readLaunchEnvironment } from '../../src/dist/launch-environment.js';
import { distCandidates, loadDist } from '../../src/native/load-dist.js';
import { thrown } from '../support/thrown.js';

afterEach(() => vi.unstubAllEnvs());

/** The variables of one launcher, and nothing of this process's own. */
function launchedWith(variables: Record<string, string>): void {
  for (const name of Object.keys(process.env)) {
    if (/^(RANK|WORLD_SIZE|LOCAL_|MASTER_|SLURM_|OMPI_|PMI|TORCHELASTIC_|JOB_COMPLETION)/.test(name)) {
      vi.stubEnv(name, undefined);
    }
  }
  for (const [name, value] of Object.entries(variables)) vi.stubEnv(name, value);
}

describe('the environment of', () => {
  const nothing = {
    localRank: undefined,
    localSize: undefined,
    slurm: false,
    agentStore: false,
    epoch: '0',
    runId: '0',
    interfaceAddress: undefined,
    warnings: [],
  };
  const at = { host: 'node1', port: 29500 };
  const master = { MASTER_ADDR: 'node1', MASTER_PORT: '29500' };
  test.each([
    [
      'torchrun',
      {
        RANK: '3',
        WORLD_SIZE: '8',
        LOCAL_RANK: '1',
        LOCAL_WORLD_SIZE: '2',
        ...master,
        TORCHELASTIC_RUN_ID: 'job',
        TORCHELASTIC_RESTART_COUNT: '2',
        TORCHELASTIC_USE_AGENT_STORE: 'True',
      },
      {
        ...nothing,
        ...at,
        rank: 3,
        size: 8,
        localRank: 1,
        localSize: 2,
        runId: 'job',
        epoch: '2',
        agentStore: true,
      },
    ],
    [
      'Slurm',
      {
        SLURM_PROCID: '5',
        SLURM_NTASKS: '6',
        SLURM_LOCALID: '1',
        SLURM_NTASKS_PER_NODE: '2',
        SLURM_JOB_ID: '77',
        ...master,
      },
      { ...nothing, ...at, rank: 5, size: 6, localRank: 1, localSize: 2, runId: '77', slurm: true },
    ],
    [
      'Open MPI',
      {
        OMPI_COMM_WORLD_RANK: '0',
        OMPI_COMM_WORLD_SIZE: '2',
        OMPI_COMM_WORLD_LOCAL_RANK: '0',
        OMPI_COMM_WORLD_LOCAL_SIZE: '2',
        PMIX_RANK: '0',
        PMIX_NAMESPACE: 'ns1',
        ...master,
      },
      { ...nothing, ...at, rank: 0, size: 2, localRank: 0, localSize: 2, runId: 'ns1' },
    ],
    [
      'a Kubernetes indexed job',
      { JOB_COMPLETION_INDEX: '2', WORLD_SIZE: '4', ...master },
      { ...nothing, ...at, rank: 2, size: 4 },
    ],
    ['no launcher', {}, { ...nothing, rank: undefined, size: undefined, host: undefined, port: undefined }],
  ])('%s is understood', (_, variables, expected) => {
    expect(readLaunchEnvironment(variables)).toEqual(expected);
  });

  test('two launchers that contradict each other: the first wins, aloud', () => {
    const { rank, warnings } = readLaunchEnvironment({ RANK: '1', SLURM_PROCID: '0', WORLD_SIZE: '2' });
    expect(rank).toBe(1);
    expect(warnings).toEqual(['RANK=1 wins over SLURM_PROCID=0']);
  });

  test.each([
    [{ RANK: '-1' }, "RANK='-1' is no whole number"],
    [{ RANK: '01' }, "RANK='01'"],
    [{ RANK: '1e3' }, "RANK='1e3'"],
    [{ WORLD_SIZE: '12345678' }, "WORLD_SIZE='12345678'"],
    [{ WORLD_SIZE: '0' }, "WORLD_SIZE='0'"],
    [{ RANK: '4', WORLD_SIZE: '4' }, "RANK='4' is no rank of WORLD_SIZE=4"],
    [{ SLURM_PROCID: 'x' }, "SLURM_PROCID='x'"],
    [{ MASTER_PORT: '0' }, "MASTER_PORT='0' is no port"],
    [{ MASTER_PORT: '70000' }, "MASTER_PORT='70000' is no port"],
    [{ MASTER_PORT: 'http' }, "MASTER_PORT='http'"],
    [{ GLOO_SOCKET_IFNAME: 'none9' }, "GLOO_SOCKET_IFNAME='none9' is no interface"],
  ])('%j is refused by name', (variables, words) => {
    const error = thrown(() => readLaunchEnvironment(variables as never));
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_ENV' });
    expect((error as Error).message).toContain(words);
  });

  test('an interface is its address; exclusions of NCCL are left aside', () => {
    const [name, addresses] = Object.entries(networkInterfaces())[0];
    const expected = addresses!.find(({ family }) => family === 'IPv4') ?? addresses![0];
    expect(readLaunchEnvironment({ VARLEN_SOCKET_IFNAME: name }).interfaceAddress).toBe(expected.address);
    expect(readLaunchEnvironment({ NCCL_SOCKET_IFNAME: '^docker' }).interfaceAddress).toBeUndefined();
  });
});

describe('init', () => {
  test('without a launcher is a job of one rank', async () => {
    launchedWith({});
    const group = await init();
    expect([group.rank, group.size, group.backend]).toEqual([0, 1, 'local']);
    expect([...(await group.allReduce(Int32Array.of(4), 'sum'))]).toEqual([4]);
    await group.close();
  });

  test('makes a Gloo group of one rank when asked to, and a second one after it', async () => {
    const port = await new Promise<number>((resolve) => {
      const server = createServer().listen(0, '127.0.0.1', () => {
        const { port } = server.address() as { port: number };
        server.close(() => resolve(port));
      });
    });
    launchedWith({ RANK: '0', WORLD_SIZE: '1', MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port) });
    for (let turn = 0; turn < 2; turn++) {
      const group = await init({ backend: 'gloo', timeoutMs: 30_000 });
      expect(group.backend).toBe('gloo');
      for (const length of [1, 5000]) {
        expect((await group.allReduce(new Float64Array(length).fill(3), 'avg')).every((x) => x === 3)).toBe(
          true,
        );
        const all = await group.allGather(new Int32Array(length).fill(2), new Int32Array(length));
        expect(all.every((x) => x === 2)).toBe(true);
        expect((await group.allGatherV(new Uint8Array(length)))[0]).toHaveLength(length);
      }
      await group.close();
    }
  }, 60_000);

  test.each([
    ['an unknown option', { world: 3 }, 'ERR_VARLEN_OPTION'],
    ['an engine for tensors on a GPU', { backend: 'nccl', size: 2, rank: 0 }, 'ERR_VARLEN_DIST_UNAVAILABLE'],
    ['an unknown engine', { backend: 'mpi', size: 2, rank: 0 }, 'ERR_VARLEN_OPTION'],
    [
      'the local engine for several processes',
      { backend: 'local', size: 2, rank: 0 },
      'ERR_VARLEN_INCOMPATIBLE',
    ],
    ['no deadline', { timeoutMs: 0 }, 'ERR_VARLEN_RANGE'],
    ['a rank outside the job', { rank: 2, size: 2 }, 'ERR_VARLEN_RANGE'],
    ['a rank without a size', { rank: 2 }, 'ERR_VARLEN_DIST_ENV'],
    ['a size without a rank', { size: 2 }, 'ERR_VARLEN_DIST_ENV'],
    ['no meeting point', { rank: 0, size: 2 }, 'ERR_VARLEN_DIST_ENV'],
    ['no port', { rank: 0, size: 2, store: { host: '127.0.0.1' } }, 'ERR_VARLEN_DIST_ENV'],
    [
      'an impossible port',
      { rank: 0, size: 2, store: { host: '127.0.0.1', port: 70_000 } },
      'ERR_VARLEN_RANGE',
    ],
    ['more ranks than a flat group holds', { rank: 0, size: 513 }, 'ERR_VARLEN_DIST_WORLD_TOO_LARGE'],
  ])('with %s is refused', async (_, options, code) => {
    launchedWith({});
    await expect(init(options as never)).rejects.toMatchObject({ code });
  });

  test('under Slurm without an address says what to put into the job file', async () => {
    launchedWith({ SLURM_PROCID: '0', SLURM_NTASKS: '2' });
    await expect(init()).rejects.toThrow('scontrol show hostnames');
  });

  test('at a port that is taken, on a host that is unknown, at an address of another machine: in seconds', async () => {
    const started = performance.now();
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', () => resolve()));
    const { port } = taken.address() as { port: number };
    launchedWith({ RANK: '0', WORLD_SIZE: '2' });
    const attempt = (store: object) => init({ timeoutMs: 60_000, store: { port: 29_499, ...store } });
    const failed = { code: 'ERR_VARLEN_DIST_STORE' };
    await expect(attempt({ host: '127.0.0.1', port })).rejects.toMatchObject({
      ...failed,
      details: { systemCode: 'EADDRINUSE' },
    });
    await expect(attempt({ host: 'no-such-host.invalid', serve: false })).rejects.toMatchObject(failed);
    await expect(attempt({ host: 'no-such-host.invalid' })).rejects.toMatchObject(failed);
    await expect(attempt({ host: '192.0.2.1' })).rejects.toMatchObject({
      ...failed,
      details: { systemCode: 'EADDRNOTAVAIL' },
    });
    expect(performance.now() - started).toBeLessThan(20_000);
    taken.close();
  }, 60_000);

  test('can be given up', async () => {
    launchedWith({ RANK: '1', WORLD_SIZE: '2' });
    const store = { host: '127.0.0.1', port: 29_498, serve: false };
    const reason = new Error('never mind');
    await expect(init({ signal: AbortSignal.abort(reason), store })).rejects.toBe(reason);
    const controller = new AbortController();
    const pending = init({ signal: controller.signal, store });
    setTimeout(() => controller.abort(reason), 100);
    await expect(pending).rejects.toBe(reason);
  });
});

describe('a machine without the second binary', () => {
  test('says where it was looked for and how to get it', () => {
    const root = mkdtempSync(join(tmpdir(), 'varlen-dist-'));
    const error = thrown(() => loadDist(root)) as Error;
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_UNAVAILABLE' });
    for (const path of distCandidates(root)) expect(error.message).toContain(path);
    expect(error.message).toContain('libgloo-dev');
    rmSync(root, { recursive: true });
  });

  test('or with one that does not load keeps the reason of the loader', () => {
    const root = mkdtempSync(join(tmpdir(), 'varlen-dist-'));
    const [path] = distCandidates(root);
    mkdirSync(join(root, 'build', 'Release'), { recursive: true });
    writeFileSync(path, 'no library');
    const error = thrown(() => loadDist(root)) as Error & { cause: Error };
    expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_UNAVAILABLE' });
    expect(error.message).toContain(error.cause.message);
    rmSync(root, { recursive: true });
  });

  test('is refused by init, and nothing else is affected', async () => {
    const root = mkdtempSync(join(tmpdir(), 'varlen-dist-'));
    vi.resetModules();
    launchedWith({ VARLEN_PREBUILD: root });
    const { init: fresh } = await import('../../src/dist/init.js');
    const job = { rank: 0, size: 2, store: { host: '127.0.0.1', port: 29_497 } };
    await expect(fresh(job)).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_UNAVAILABLE' });
    const alone = await fresh({ rank: 0, size: 1 });
    expect(await alone.allReduce(Int32Array.of(1), 'sum')).toEqual(Int32Array.of(1));
    rmSync(root, { recursive: true });
  });
});
