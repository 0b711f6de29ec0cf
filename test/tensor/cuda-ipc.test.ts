import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, describe, expect, test } from 'vitest';
import {
  Device,
  type IpcHandle,
  memoryStats,
  releaseIpc,
  Tensor,
  type VarlenError,
  type VarlenErrorCode,
} from '../../src/index.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { bundle } from '../support/program.js';
import { rejected, thrown } from '../support/thrown.js';

// Two processes and the memory of one emulated GPU, which is a file here. On a real one CUDA maps it: the handles,
// the offsets and the errors are the same, the mapping is CUDA's.

const device = 'cuda' as const;
const numbers = Float32Array.of(1, 2, 3, 4, 5, 6);
gpu('share');

let child: ChildProcess | undefined;
afterEach(async () => {
  if (child !== undefined && child.exitCode === null && child.signalCode === null) {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  child = undefined;
});

/** A process that does as it is told; see the program. */
function peer(): (order: string, argument?: unknown) => Promise<Record<string, unknown>> {
  const process = fork(bundle('ipc-peer'), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  child = process;
  return async (order, argument) => {
    process.send({ order, argument });
    const [answer] = await once(process, 'message');
    return answer as Record<string, unknown>;
  };
}

test('what one process made another one reads, writes, and gives back', async () => {
  const ask = peer();
  using before = Tensor.from(new Float32Array(100), { device }); // so that the next does not begin its segment
  using t = Tensor.from(numbers, { shape: [3, 2], device });
  using rows = t.slice(0, 1, 3);
  const handle = await rows.ipcHandle();
  expect(handle).toMatchObject({ pid: process.pid, dtype: 'float32', shape: [2, 2] });
  expect(handle.byteOffset).toBeGreaterThan(0);
  const sent = JSON.parse(JSON.stringify(handle));
  expect(await ask('open', sent)).toEqual({ device: 'cuda:0', shape: [2, 2] });
  expect(await ask('read')).toEqual({ values: [3, 4, 5, 6] });
  await ask('fill', [9, 8, 7, 6]);
  expect(await t.data()).toEqual(Float32Array.of(1, 2, 9, 8, 7, 6));
  // A second tensor of the same segment, while it is open.
  using other = Tensor.from(Int32Array.of(-1, 2 ** 30), { device });
  const second = await other.ipcHandle();
  expect(second.segment).toBe(handle.segment);
  await ask('open', second);
  expect(await ask('read')).toEqual({ values: [-1, 2 ** 30] });
  expect(await ask('closed')).toEqual({ closed: 0 });
  await ask('dispose');
  expect(await ask('closed')).toEqual({ closed: 1 });
  expect([releaseIpc(handle), releaseIpc(handle), releaseIpc(second)]).toEqual([true, false, true]);
  await before.data();
});

test('the memory stays until it is released, also when the tensor is disposed', async () => {
  const ask = peer();
  const t = Tensor.from(new Float32Array(1000).fill(4), { device });
  const handle = await t.ipcHandle();
  const { allocated } = memoryStats(device);
  t.dispose();
  expect(memoryStats(device).allocated).toBe(allocated);
  using other = Tensor.from(new Float32Array(1000).fill(5), { device }); // would get the memory if it were free
  await other.data();
  await ask('open', handle);
  expect(await ask('sum')).toEqual({ sum: 4000 });
  await ask('dispose');
  releaseIpc(handle);
  expect(memoryStats(device).allocated).toBe(allocated); // with `other` in its place
});

test('a handle waits for the elements, and brings their failure', async () => {
  gpu('hold');
  using t = Tensor.from(numbers, { device });
  let made = false;
  const handle = t.ipcHandle().then((message) => {
    made = true;
    return message;
  });
  await new Promise((resolve) => setTimeout(resolve, 10));
  expect(made).toBe(false);
  gpu('go');
  expect(releaseIpc(await handle)).toBe(true);
  failNext('launch', CUDA_ERROR.launchOutOfResources);
  using half = t.to('bfloat16');
  const error = (await rejected(half.ipcHandle())) as VarlenError;
  expect([error.code, error.details.op]).toEqual(['ERR_VARLEN_CUDA', 'Tensor.to']);
});

describe('errors', () => {
  test('of an export are typed', async () => {
    using cpu = Tensor.from(numbers, { device: 'cpu' });
    expect(((await rejected(cpu.ipcHandle())) as VarlenError).code).toBe('ERR_VARLEN_DEVICE');
    using t = Tensor.from(numbers, { shape: [2, 3], device });
    using column = t.slice(1, 0, 1);
    expect(((await rejected(column.ipcHandle())) as VarlenError).code).toBe('ERR_VARLEN_LAYOUT');
    failNext('export_memory', CUDA_ERROR.invalidValue);
    const failed = (await rejected(t.ipcHandle())) as VarlenError;
    expect(failed.details).toMatchObject({
      op: 'Tensor.ipcHandle',
      cudaCall: 'cudaIpcGetMemHandle',
      cudaError: 'cudaErrorInvalidValue',
    });
    const gone = Tensor.from(numbers, { device });
    gone.dispose();
    expect(((await rejected(gone.ipcHandle())) as VarlenError).code).toBe('ERR_VARLEN_DISPOSED');
  });

  test('of this very process is one', async () => {
    using t = Tensor.from(numbers, { device });
    const handle = await t.ipcHandle();
    const error = thrown(() => Tensor.fromIpc(handle)) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_INCOMPATIBLE');
    expect(error.message).toContain(`got pid ${process.pid}, expected another one's`);
    releaseIpc(handle);
    expect((thrown(() => releaseIpc({ ...handle, pid: 1 })) as VarlenError).code).toBe(
      'ERR_VARLEN_INCOMPATIBLE',
    );
  });

  test('of a process that is gone, before and while it is opened', async () => {
    const ask = peer();
    const handle = (await ask('make', [1, 2, 3])) as unknown as IpcHandle;
    using t = Tensor.fromIpc(handle);
    expect(await t.data()).toEqual(Float32Array.of(1, 2, 3));
    using again = Tensor.fromIpc(handle);
    await again.data();
    t.dispose();
    again.dispose();
    const other = (await ask('make', [4])) as unknown as IpcHandle;
    child!.kill('SIGKILL');
    await once(child!, 'exit');
    const error = thrown(() => Tensor.fromIpc(other)) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_DIST_PEER_LOST');
    expect(error.details.pid).toBe(other.pid);
    // The number may belong to another process by now: CUDA finds out.
    const stranger = thrown(() => Tensor.fromIpc({ ...other, pid: 1 })) as VarlenError;
    expect(stranger.code).toBe('ERR_VARLEN_CUDA');
    expect(stranger.details).toMatchObject({
      op: 'Tensor.fromIpc',
      cudaCall: 'cudaIpcOpenMemHandle',
      cudaError: 'cudaErrorMapBufferObjectFailed',
    });
  });

  test('of a GPU that this process does not see', async () => {
    using t = Tensor.from(numbers, { device });
    const handle = await t.ipcHandle();
    gpu('uuid 7');
    const error = thrown(() => Tensor.fromIpc({ ...handle, pid: 1 })) as VarlenError;
    gpu('uuid 0');
    expect(error.code).toBe('ERR_VARLEN_DEVICE');
    expect(error.details.argument).toBe('handle.deviceUuid');
    releaseIpc(handle);
  });

  test.each<[string, object, VarlenErrorCode]>([
    ['no pid', { pid: undefined }, 'ERR_VARLEN_TYPE'],
    ['a segment that is cut off', { segment: '00' }, 'ERR_VARLEN_RANGE'],
    ['a segment of bytes', { segment: new Uint8Array(64) }, 'ERR_VARLEN_TYPE'],
    ['a UUID of other letters', { deviceUuid: 'z'.repeat(32) }, 'ERR_VARLEN_RANGE'],
    ['an offset past the segment', { byteOffset: 2 ** 40 }, 'ERR_VARLEN_RANGE'],
    ['a misaligned offset', { byteOffset: 1 }, 'ERR_VARLEN_RANGE'],
    ['more elements than the segment', { shape: [2 ** 40] }, 'ERR_VARLEN_RANGE'],
    ['a product beyond numbers', { shape: [2 ** 50, 2 ** 50] }, 'ERR_VARLEN_RANGE'],
    ['seven dimensions', { shape: [1, 1, 1, 1, 1, 1, 1] }, 'ERR_VARLEN_SHAPE'],
    ['an element type that is none', { dtype: 'complex64' }, 'ERR_VARLEN_DTYPE'],
  ])('of a handle with %s', async (_, change, code) => {
    using t = Tensor.from(numbers, { device });
    const handle = await t.ipcHandle();
    const error = thrown(() => Tensor.fromIpc({ ...handle, pid: 1, ...change } as IpcHandle)) as VarlenError;
    expect(error.code).toBe(code);
    releaseIpc(handle);
  });

  test('of what is no handle', () => {
    for (const value of [undefined, null, 'handle', 7]) {
      expect((thrown(() => Tensor.fromIpc(value as never)) as VarlenError).code).toBe('ERR_VARLEN_TYPE');
    }
    expect(Device.list().map(String)).toEqual(['cpu', 'cuda:0']);
  });
});
