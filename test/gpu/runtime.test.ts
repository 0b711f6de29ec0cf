import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, expect, test } from 'vitest';
import { memoryStats, PinnedBuffer, releaseIpc, Stream, Tensor, type VarlenError } from '../../src/index.js';
import { gpu } from '../support/emulated-gpu.js';
import { small } from '../support/gpu-size.js';
import { bundle } from '../support/program.js';
import { thrown } from '../support/thrown.js';

// Of the device runtime what only CUDA itself can show: that it maps one process's memory into another, that
// copies from page-locked memory arrive, that the memory of a whole GPU runs out in words.

const device = 'cuda' as const;

gpu('share');

let child: ChildProcess | undefined;
afterAll(() => child?.kill('SIGKILL'));

test('page-locked memory goes there and comes back, on two streams at once', async () => {
  const size = small ? 1 << 10 : 1 << 24;
  using pinned = new PinnedBuffer(8 * size);
  expect(pinned.zeroCopy).toBe(true);
  const [sent, back] = [new Float32Array(pinned.buffer, 0, size), new Float32Array(pinned.buffer, 4 * size)];
  for (let i = 0; i < size; i++) sent[i] = i % 8191;
  using side = new Stream(device);
  using t = Tensor.empty([size], { dtype: 'float32', device });
  const copied = pinned.copyTo(t, { stream: side });
  await pinned.copyFrom(t, { byteOffset: 4 * size });
  expect(copied.ready()).toBe(true);
  expect(Buffer.from(pinned.buffer, 0, 4 * size).equals(Buffer.from(pinned.buffer, 4 * size))).toBe(true);
  expect(back[size - 1]).toBe((size - 1) % 8191);
});

test('a tensor goes through DLPack and comes back on the same memory', async () => {
  using t = Tensor.from(Float32Array.of(1, 2, 3, 4), { shape: [2, 2], device });
  using column = t.slice(1, 1, 2);
  using back = Tensor.fromDLPack(column.toDLPack());
  t.dispose();
  expect([back.shape, await back.data()]).toEqual([[2, 1], Float32Array.of(2, 4)]);
});

test('another process reads and writes what this one exports', async () => {
  const peer = fork(bundle('ipc-peer'), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  child = peer;
  const ask = async (order: string, argument?: unknown) => {
    peer.send({ order, argument });
    const [answer] = await once(peer, 'message');
    return answer as Record<string, unknown>;
  };
  using before = Tensor.from(new Float32Array(1000), { device });
  using t = Tensor.from(Float32Array.of(1, 2, 3, 4), { device });
  const handle = await t.ipcHandle();
  expect(await ask('open', handle)).toEqual({ device: 'cuda:0', shape: [4] });
  expect(await ask('read')).toEqual({ values: [1, 2, 3, 4] });
  await ask('fill', [5, 6, 7, 8]);
  expect(await t.data()).toEqual(Float32Array.of(5, 6, 7, 8));
  await ask('dispose');
  expect(releaseIpc(handle)).toBe(true);
  await before.data();
});

test('a GPU that is full says who fills it, and works on', async () => {
  using t = Tensor.empty([1 << 12, 1 << 10], { dtype: 'float32', device });
  const error = thrown(() => Tensor.empty([1 << 20, 1 << 20], { dtype: 'float32', device })) as VarlenError;
  expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
  expect(error.details.requestedBytes).toBe(2 ** 42);
  expect(error.details.largestTensors).toContain('float32 [4096, 1024] (16777216 bytes)');
  using again = Tensor.from(Float32Array.of(1), { device });
  expect(await again.data()).toEqual(Float32Array.of(1));
  expect([t.size, memoryStats(device).allocated > 1 << 24]).toEqual([1 << 22, true]);
});
