/** native/dist/nccl.h and the engine above it, over a library with NCCL's names. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NcclEngine } from '../../src/dist/nccl-engine.js';
import { StoreClient } from '../../src/dist/store-client.js';
import { StoreServer } from '../../src/dist/store-server.js';

const root = join(import.meta.dirname, '../..');
const here = join(import.meta.dirname, 'nccl');
const folder = mkdtempSync(join(tmpdir(), 'varlen-nccl-'));
const fake = join(folder, 'libfake-nccl.so');
const program = join(folder, 'nccl-test');

// No sanitizer for the compiler, nor for what it makes here.
const plain = { ...process.env, LD_PRELOAD: '' };

function compile(...args: string[]): void {
  const flags = ['-std=c++20', '-O0', '-Wall', '-Wextra', '-Werror', '-I', join(root, 'native')];
  const { status, stderr } = spawnSync('c++', [...flags, ...args], { encoding: 'utf8', env: plain });
  expect(status, stderr).toBe(0);
}

beforeAll(() => {
  compile('-fPIC', '-shared', join(here, 'fake-nccl.cc'), '-o', fake);
  compile(join(here, 'nccl-test.cc'), join(root, 'native/dist/nccl.cc'), '-ldl', '-pthread', '-o', program);
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true }));

test('the communicator does what its header says', () => {
  const { status, stdout } = spawnSync(program, [fake], { encoding: 'utf8', timeout: 60_000, env: plain });
  expect(stdout).toContain('8 passed');
  expect(status).toBe(0);
}, 60_000);

describe('the engine', () => {
  /** Two ranks of one process, each with a connection of its own to one store. */
  async function join2(options: { library?: string; timeoutMs?: number; ranks?: readonly number[] } = {}) {
    const { library = fake, timeoutMs = 10_000, ranks = [0, 1] } = options;
    const server = await StoreServer.listen('127.0.0.1', 0);
    const address = { host: '127.0.0.1', port: server.port };
    const stores = await Promise.all(ranks.map(() => StoreClient.connect(address, 5000)));
    const joined = ranks.map((rank, i) =>
      NcclEngine.join({ store: stores[i], prefix: '/varlen/0/0/0', rank, size: 2, timeoutMs, library }),
    );
    const settled = await Promise.allSettled(joined);
    for (const store of stores) store.close();
    await server.close();
    return settled;
  }

  const engines = (settled: PromiseSettledResult<NcclEngine>[]): NcclEngine[] =>
    settled.map((one) => {
      if (one.status === 'rejected') throw one.reason;
      return one.value;
    });

  test('brings the unique id through the store, and ranks together', async () => {
    const [first, second] = engines(await join2());
    expect(first.version).toBe(23007);
    for (const engine of [first, second]) engine.check();
    first.close();
    second.close();
  });

  test('refuses on the caller’s side what no device memory can be', async () => {
    const [first, second] = engines(await join2());
    const call = { send: 0n, receive: 64n, count: 1, dtype: 'float32', stream: 64n } as const;
    const refused = (more: object) => () =>
      first.allReduce({ ...call, send: 64n, op: 'sum', ...more } as never);
    expect(refused({ send: 0n })).toThrow(/send is no address; got 0/);
    expect(refused({ receive: 12 })).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_TYPE' }));
    expect(refused({ count: -1 })).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_RANGE' }));
    expect(refused({ dtype: 'int4' })).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_DTYPE' }));
    expect(refused({ op: 'product' })).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_OPTION' }));
    // What the library itself refuses comes back with its number and its words.
    expect(refused({ dtype: 'float64' })).toThrow(
      expect.objectContaining({
        code: 'ERR_VARLEN_DIST_NCCL',
        details: expect.objectContaining({ result: 4 }),
      }),
    );
    first.close();
    second.close();
  });

  test('an abort is an error on the peer, found by its next check', async () => {
    const [first, second] = engines(await join2());
    first.abort();
    expect(() => second.check()).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_DIST_NCCL' }));
    expect(() => second.check()).toThrow(/remote process exited/);
    expect(() => first.check()).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_CLOSED' }));
    second.abort();
  });

  test('a rank that does not come is a deadline', async () => {
    const [only] = await join2({ ranks: [0], timeoutMs: 300 });
    expect(only).toMatchObject({ status: 'rejected', reason: { code: 'ERR_VARLEN_DIST_TIMEOUT' } });
  });

  test('a library that is missing is unavailable, with the loader’s words', async () => {
    for (const one of await join2({ library: '/nowhere/libnccl.so.2', timeoutMs: 500 })) {
      expect(one).toMatchObject({ status: 'rejected', reason: { code: 'ERR_VARLEN_DIST_UNAVAILABLE' } });
      expect((one as PromiseRejectedResult).reason.message).toContain('/nowhere/libnccl.so.2');
    }
  });
});
