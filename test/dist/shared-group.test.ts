import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { build } from 'esbuild';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { joinSharedGroup, type SharedGroupHandle, sharedGroupHandles } from '../../src/dist/shared-group.js';

let folder: string;
let program: string;

beforeAll(async () => {
  // A worker starts outside the test runner, so it needs plain JavaScript.
  folder = mkdtempSync(join(tmpdir(), 'varlen-shared-'));
  program = join(folder, 'worker.cjs');
  const entry = join(import.meta.dirname, '../support/shared-worker.ts');
  await build({
    entryPoints: [entry],
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    outfile: program,
  });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Starts a rank that runs one of the scripts of the worker and resolves to what it posts. */
function start(handle: SharedGroupHandle, script: string) {
  const worker = new Worker(program, { workerData: { handle, script } });
  const result = new Promise<unknown>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
    worker.once('exit', () => reject(new Error('the worker ended without a result')));
  });
  return { worker, result };
}

describe('ranks in worker threads', () => {
  test('five hundred mixed collectives give every rank the same sums', async () => {
    const handles = sharedGroupHandles(3, { mailboxBytes: 64, timeoutMs: 20_000 });
    const results = await Promise.all(handles.map((handle) => start(handle, 'sums').result));
    expect(results[0]).toEqual(results[1]);
    expect(results[0]).toEqual(results[2]);
    // Sum over i < 500 of the three ranks' i * (rank + 1).
    expect(results[0]).toBe((499 * 500 * 6) / 2);
  });

  test('this thread can be a rank beside a worker', async () => {
    const handles = sharedGroupHandles(2, { timeoutMs: 20_000 });
    const other = start(handles[1], 'sums');
    const group = joinSharedGroup(handles[0]);
    let total = 0;
    for (let i = 0; i < 500; i++) total += (await group.allReduce(Float64Array.of(i), 'sum'))[0];
    await group.close();
    expect(await other.result).toBe(total);
  });

  test('a terminated worker is named when the deadline passes', async () => {
    const handles = sharedGroupHandles(2, { timeoutMs: 500 });
    const { worker, result } = start(handles[1], 'one barrier, then sleep');
    const group = joinSharedGroup(handles[0]);
    await group.barrier({ timeoutMs: 20_000 });
    await result;
    await worker.terminate();
    await expect(group.barrier()).rejects.toMatchObject({
      code: 'ERR_VARLEN_DIST_TIMEOUT',
      details: { missingRanks: [1] },
    });
  });

  test('an abort crosses threads with its reason', async () => {
    const handles = sharedGroupHandles(2, { timeoutMs: 20_000 });
    const { worker, result } = start(handles[1], 'abort');
    const group = joinSharedGroup(handles[0]);
    await group.barrier();
    await expect(group.barrier()).rejects.toMatchObject({
      code: 'ERR_VARLEN_DIST_ABORTED',
      message: expect.stringContaining('rank 1 aborted the group: out of data'),
      cause: { message: 'out of data' },
    });
    await result;
    await worker.terminate();
  });
});

test('a ticket is used once', () => {
  const [handle] = sharedGroupHandles(2);
  joinSharedGroup(handle);
  expect(() => joinSharedGroup(handle)).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_BUSY' }));
});

test('more subgroups than promised are refused', async () => {
  const [group] = sharedGroupHandles(1, { subgroups: 1 }).map(joinSharedGroup);
  await group.subgroup([0]);
  await expect(group.subgroup([0])).rejects.toMatchObject({ code: 'ERR_VARLEN_UNSUPPORTED' });
});

test.each([
  { mailboxBytes: 63 },
  { mailboxBytes: Number.NaN },
  { subgroups: -1 },
  { subgroups: 1.5 },
  { timeoutMs: 0 },
])('%j is refused', (options) => {
  expect(() => sharedGroupHandles(2, options)).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_RANGE' }));
});
