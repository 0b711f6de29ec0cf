import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  DLPackHandle,
  type DType,
  memoryStats,
  Stream,
  scope,
  Tensor,
  type VarlenError,
  type VarlenErrorCode,
} from '../../src/index.js';
import {
  deletedByPeer,
  makePeerTensor,
  type PeerTensor,
  peekByPeer,
  readByPeer,
  releaseByPeer,
} from '../support/dlpack-peer.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { rejected, thrown } from '../support/thrown.js';

// Tensors of two libraries in one process: ours, and test/tensor/dlpack-peer.c.

const sides = ['cpu', 'cuda'] as const;
const bytesOf = (values: Float32Array) => new Uint8Array(values.buffer);
const numbers = Float32Array.of(1, 2, 3, 4, 5, 6);
const import_ = (tensor: PeerTensor) =>
  Tensor.fromDLPack(
    new DLPackHandle(makePeerTensor({ bytes: bytesOf(numbers), ...tensor }), {
      versioned: tensor.versioned ?? true,
    }),
  );

/** Deleters run on the streams' threads, a moment after the last use. */
async function expectDeleted(count: number): Promise<void> {
  for (let i = 0; i < 500 && deletedByPeer() < count; i++) await new Promise((done) => setTimeout(done, 2));
  expect(deletedByPeer()).toBe(count);
}

let alive: number;
let deleted: number;
beforeEach(() => {
  alive = memoryStats().liveTensors;
  deleted = deletedByPeer();
});
afterEach(() => {
  gpu('go');
  gpu('delay 0');
  expect(memoryStats().liveTensors).toBe(alive);
});

describe('what another library made', () => {
  test('is read without a copy, and deleted once when the last use is done', async () => {
    const tensor = import_({});
    expect(tensor.shape).toEqual([2, 3]);
    using column = tensor.slice(1, 2, 3);
    tensor.dispose();
    expect(await column.data()).toEqual(Float32Array.of(3, 6));
    expect(deletedByPeer()).toBe(deleted);
    column.dispose();
    await expectDeleted(deleted + 1);
  });

  test.each([
    ['strides and a byte offset', { shape: [2, 2], strides: [1, 2], byteOffset: 4 }, [2, 4, 3, 5]],
    ['the struct from before versions', { versioned: false }, [1, 2, 3, 4, 5, 6]],
    ['page-locked host memory', { deviceType: 3 }, [1, 2, 3, 4, 5, 6]],
    ['memory that may not be written', { flags: 1 }, [1, 2, 3, 4, 5, 6]],
    ['rows that lie upon each other', { strides: [0, 1] }, [1, 2, 3, 1, 2, 3]],
    ['a tensor without elements', { shape: [0, 3] }, []],
    ['a scalar', { shape: [] }, [1]],
  ])('%s are read as they are meant', async (_, tensor, want) => {
    using t = import_(tensor);
    expect(await t.data()).toEqual(Float32Array.from(want));
    t.dispose();
    await expectDeleted(deleted + 1);
  });

  test('is written in place, unless it must not be', async () => {
    for (const flags of [0, 1]) {
      const pointer = makePeerTensor({ flags, bytes: bytesOf(numbers) });
      const { data } = readByPeer(pointer);
      using t = Tensor.fromDLPack(new DLPackHandle(pointer));
      using half = t.slice(0, 0, 1);
      using handle = half.toDLPack();
      expect(readByPeer(handle.pointer).data !== data).toBe(flags === 1);
    }
    await expectDeleted(deleted + 2);
  });

  test.each<[string, PeerTensor, VarlenErrorCode]>([
    ['another major version', { major: 2 }, 'ERR_VARLEN_UNSUPPORTED'],
    ['complex numbers', { code: 5, bits: 64 }, 'ERR_VARLEN_DTYPE'],
    ['vectors as elements', { lanes: 2 }, 'ERR_VARLEN_DTYPE'],
    ['seven dimensions', { shape: [1, 1, 1, 1, 1, 1, 1] }, 'ERR_VARLEN_SHAPE'],
    ['a negative dimension', { shape: [2, -1] }, 'ERR_VARLEN_SHAPE'],
    ['negative strides', { strides: [-3, 1] }, 'ERR_VARLEN_LAYOUT'],
    ['more than memory holds', { shape: [2 ** 52, 2 ** 52] }, 'ERR_VARLEN_OVERFLOW'],
    ['a misaligned offset', { byteOffset: 2 }, 'ERR_VARLEN_BUFFER'],
    ['a device we have no memory on', { deviceType: 10 }, 'ERR_VARLEN_DEVICE'],
    ['a GPU that is not there', { deviceType: 2, deviceId: 1 }, 'ERR_VARLEN_DEVICE_INDEX'],
  ])('%s is refused, and the handle stays its own', (_, tensor, code) => {
    const handle = new DLPackHandle(makePeerTensor(tensor));
    const error = thrown(() => Tensor.fromDLPack(handle)) as VarlenError;
    expect(error.code).toBe(code);
    expect(error.message).toMatch(/^Tensor\.fromDLPack: (handle|.*index)|^Device\.cuda: index/);
    expect([handle.consumed, deletedByPeer()]).toEqual([false, deleted]);
    handle.dispose();
    handle.dispose();
    expect([handle.consumed, deletedByPeer()]).toEqual([true, deleted + 1]);
  });
});

describe.each(sides)('an export from %s', (device) => {
  test('is what the other library reads, in every type', async () => {
    const types: [DType, number, number][] = [
      ['float32', 2, 32],
      ['float16', 2, 16],
      ['bfloat16', 4, 16],
      ['float64', 2, 64],
      ['int32', 0, 32],
      ['int64', 0, 64],
      ['uint8', 1, 8],
    ];
    for (const [dtype, code, bits] of types) {
      using whole = Tensor.from(numbers, { shape: [2, 3], dtype, device });
      using part = whole.slice(1, 1, 3);
      using handle = part.toDLPack();
      await handle.ready();
      const seen = readByPeer(handle.pointer);
      expect(seen, dtype).toMatchObject({ major: 1, flags: 0, code, bits, lanes: 1, byteOffset: 0 });
      expect(seen).toMatchObject({ shape: [2, 2], strides: [3, 1], deviceId: 0 });
      expect(seen.deviceType).toBe(device === 'cpu' ? 1 : 2);
    }
  });

  test('lies where the tensor does, and keeps the memory after it', async () => {
    const t = Tensor.from(numbers, { device });
    const handle = t.toDLPack({ versioned: false });
    await handle.ready();
    t.dispose();
    using other = Tensor.from(new Float32Array(6).fill(9), { device }); // would take the memory if it were free
    const pointer = handle.take();
    // An emulated GPU's memory is the host's.
    expect(peekByPeer(readByPeer(pointer, false).data, 24)).toEqual(bytesOf(numbers));
    releaseByPeer(pointer, false);
    await other.data();
  });

  test('comes back as a tensor on the same memory, after what still writes it', async () => {
    using t = Tensor.from(numbers, { shape: [3, 2], device });
    if (device === 'cuda') gpu('delay 5'); // of every entry: this stream has two before the other one's read
    using twice = t.to('float64');
    const handle = twice.toDLPack();
    using side = new Stream(device);
    using back = Tensor.fromDLPack(handle, { stream: side });
    expect([back.dtype, String(back.device), handle.consumed]).toEqual([
      'float64',
      String(twice.device),
      true,
    ]);
    twice.dispose();
    expect(await back.data()).toEqual(Float64Array.from(numbers));
  });
});

describe('a handle', () => {
  test('is used up once', () => {
    using t = Tensor.from(numbers, { device: 'cpu' });
    const handle = t.toDLPack();
    using back = Tensor.fromDLPack(handle);
    expect(back.shape).toEqual([6]);
    for (const again of [() => Tensor.fromDLPack(handle), () => handle.take(), () => handle.pointer]) {
      expect((thrown(again) as VarlenError).code).toBe('ERR_VARLEN_DISPOSED');
    }
  });

  test('that is disposed cannot be awaited', async () => {
    using t = Tensor.from(numbers, { device: 'cpu' });
    const handle = t.toDLPack();
    handle.dispose();
    expect(((await rejected(handle.ready())) as VarlenError).code).toBe('ERR_VARLEN_DISPOSED');
  });

  test.each<[string, () => unknown, VarlenErrorCode]>([
    ['a number', () => new DLPackHandle(8 as never), 'ERR_VARLEN_TYPE'],
    ['null', () => new DLPackHandle(0n), 'ERR_VARLEN_RANGE'],
    ['a negative address', () => new DLPackHandle(-8n), 'ERR_VARLEN_RANGE'],
    ['an odd address', () => new DLPackHandle(17n), 'ERR_VARLEN_RANGE'],
    ['65 bits', () => new DLPackHandle(1n << 64n), 'ERR_VARLEN_RANGE'],
    ['an unknown option', () => new DLPackHandle(8n, { version: 1 } as never), 'ERR_VARLEN_OPTION'],
    ['versioned: 1', () => new DLPackHandle(8n, { versioned: 1 } as never), 'ERR_VARLEN_TYPE'],
    ['a bare pointer', () => Tensor.fromDLPack(8n as never), 'ERR_VARLEN_TYPE'],
  ])('of %s is refused', (_, make, code) => {
    expect((thrown(make) as VarlenError).code).toBe(code);
  });

  test('of a tensor that requires gradients is refused', () => {
    scope(() => {
      const leaf = Tensor.from(numbers, { device: 'cpu', requiresGrad: true });
      const error = thrown(() => leaf.toDLPack()) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_INCOMPATIBLE');
      leaf.detach().toDLPack().dispose();
      expect((thrown(() => leaf.view([2, 3]).toDLPack()) as VarlenError).code).toBe(
        'ERR_VARLEN_INCOMPATIBLE',
      );
    });
  });

  test('brings the failure of the op that should have made the elements', async () => {
    using t = Tensor.from(numbers, { device: 'cuda' });
    await t.data();
    failNext('launch', CUDA_ERROR.launchOutOfResources);
    using half = t.to('bfloat16');
    using handle = half.toDLPack();
    expect(((await rejected(handle.ready())) as VarlenError).details.op).toBe('Tensor.to');
    using back = Tensor.fromDLPack(handle);
    expect(((await rejected(back.data())) as VarlenError).details.op).toBe('Tensor.to');
  });

  test('of one stream is waited for by another', async () => {
    using side = new Stream('cuda');
    gpu('hold');
    using t = Tensor.from(numbers, { device: 'cuda', stream: side });
    using handle = t.toDLPack({ stream: Stream.of('cuda') });
    const reached = Stream.of('cuda').record();
    expect(reached.ready()).toBe(false);
    gpu('go');
    await reached.done();
    expect(peekByPeer(readByPeer(handle.pointer).data, 24)).toEqual(bytesOf(numbers));
  });
});

test('memory of a GPU that another library owns is a tensor there', async () => {
  using t = Tensor.from(numbers, { device: 'cuda' });
  using handle = t.toDLPack();
  await handle.ready();
  const { data } = readByPeer(handle.pointer);
  const foreign = import_({ deviceType: 2, data: data + 8n, shape: [2], strides: [1] });
  using wide = foreign.to('float64');
  foreign.dispose();
  expect(await wide.data()).toEqual(Float64Array.of(3, 4));
  await expectDeleted(deleted + 1);
});
