import { constants } from 'node:buffer';
import { afterEach, describe, expect, test } from 'vitest';
import {
  type DType,
  memoryStats,
  PinnedBuffer,
  Stream,
  Tensor,
  type VarlenError,
  type VarlenErrorCode,
} from '../../src/index.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { rejected, thrown } from '../support/thrown.js';

// Page-locked memory on the emulated GPU, as JavaScript sees it.

const device = 'cuda' as const;
const turn = () => new Promise((resolve) => setTimeout(resolve, 5)); // the runtime frees a buffer's memory a little later
const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;
const empty = (size: number, dtype: DType = 'float32') => Tensor.empty([size], { dtype, device });

afterEach(() => {
  gpu('go');
  gpu('external 1');
});

/** The same with a runtime that forbids buffers over native memory. */
describe.each([
  ['shares its memory with the GPU', true],
  ['copies where the runtime forbids that', false],
])('a pinned buffer that %s', (_, zeroCopy) => {
  const make = (bytes: number) => {
    gpu(`external ${zeroCopy ? 1 : 0}`);
    return new PinnedBuffer(bytes);
  };

  test('carries elements there and back', async () => {
    using pinned = make(32);
    expect([pinned.zeroCopy, pinned.byteLength, String(pinned.device)]).toEqual([zeroCopy, 32, 'cuda:0']);
    const values = new Float32Array(pinned.buffer);
    expect(values).toEqual(new Float32Array(8)); // whatever was there before
    values.set([1, 2, 3, 4, 5, 6, 7, 8]);
    using t = empty(6);
    await pinned.copyTo(t, { byteOffset: 8 }).done();
    values.fill(0);
    expect(await t.data()).toEqual(Float32Array.of(3, 4, 5, 6, 7, 8));
    using half = t.to('bfloat16');
    await pinned.copyFrom(half, { byteOffset: 2 });
    expect(new Uint16Array(pinned.buffer, 2, 6)).toEqual(half.dataSync());
    expect(new Uint16Array(pinned.buffer, 14)).toEqual(new Uint16Array(9));
  });

  test('reads strided and empty tensors, and writes after what the tensor still waits for', async () => {
    using pinned = make(16);
    using t = Tensor.from(Float32Array.of(1, 2, 3, 4), { shape: [2, 2], device });
    using column = t.slice(1, 1, 2);
    await pinned.copyFrom(column, { byteOffset: 8 });
    expect(new Float32Array(pinned.buffer)).toEqual(Float32Array.of(0, 0, 2, 4));
    gpu('hold');
    using late = Tensor.from(new Float32Array(4).fill(7), { device });
    pinned.copyTo(late);
    gpu('go');
    expect(await late.data()).toEqual(Float32Array.of(0, 0, 2, 4));
    using none = empty(0);
    await pinned.copyTo(none, { byteOffset: 16 }).done();
    await pinned.copyFrom(none, { byteOffset: 16 });
  });

  test('may be disposed while copies are under way', async () => {
    const pinned = make(4096);
    const { buffer } = pinned;
    new Uint8Array(buffer).fill(5);
    using t = empty(4096, 'uint8');
    using other = Tensor.from(new Uint8Array(4096).fill(6), { device });
    await other.data();
    gpu('hold');
    const sent = pinned.copyTo(t);
    const reader = make(4096);
    const read = reader.copyFrom(other);
    reader.dispose();
    pinned.dispose();
    pinned.dispose();
    expect([pinned.disposed, buffer.byteLength]).toEqual([true, 0]);
    await turn();
    // The memory would be free for these if the copies did not hold it.
    using others = make(4096);
    using more = make(4096);
    for (const { buffer } of [others, more]) new Uint8Array(buffer).fill(9);
    gpu('go');
    await Promise.all([sent.done(), read]);
    expect(await t.data()).toEqual(new Uint8Array(4096).fill(5));
    for (const { buffer } of [others, more]) {
      expect(new Uint8Array(buffer)).toEqual(new Uint8Array(4096).fill(9));
    }
  });

  test('is refused after it was disposed, by name', async () => {
    const pinned = make(8);
    pinned.dispose();
    using t = empty(2);
    expect(codeOf(() => pinned.buffer)).toBe('ERR_VARLEN_DISPOSED');
    expect(codeOf(() => pinned.copyTo(t))).toBe('ERR_VARLEN_DISPOSED');
    expect(((await rejected(pinned.copyFrom(t))) as VarlenError).code).toBe('ERR_VARLEN_DISPOSED');
  });

  test('brings the failure of a copy to whoever reads', async () => {
    using pinned = make(8);
    using t = empty(2);
    using written = Tensor.from(Float32Array.of(1, 2), { device });
    await written.data();
    failNext('copy', CUDA_ERROR.invalidValue);
    pinned.copyTo(t);
    const late = (await rejected(t.data())) as VarlenError;
    expect([late.code, late.details.op]).toEqual(['ERR_VARLEN_CUDA', 'PinnedBuffer.copyTo']);
    failNext('copy', CUDA_ERROR.invalidValue);
    const own = (await rejected(pinned.copyFrom(written))) as VarlenError;
    expect([own.code, own.details.op]).toEqual([
      'ERR_VARLEN_CUDA',
      zeroCopy ? 'PinnedBuffer.copyFrom' : 'Tensor.data',
    ]);
    expect(((await rejected(pinned.copyFrom(t))) as VarlenError).details.op).toBe('PinnedBuffer.copyTo');
    await pinned.copyFrom(written); // nothing of it stays
    expect(new Float32Array(pinned.buffer)).toEqual(Float32Array.of(1, 2));
  });

  test.each<[string, (pinned: PinnedBuffer, t: Tensor) => unknown, VarlenErrorCode]>([
    ['a tensor of the CPU', (p) => p.copyTo(cpu()), 'ERR_VARLEN_DEVICE'],
    ['a strided target', (p, t) => p.copyTo(t.view([2, 2]).slice(1, 0, 1)), 'ERR_VARLEN_LAYOUT'],
    ['a tensor that is too large', (p, t) => p.copyTo(t, { byteOffset: 20 }), 'ERR_VARLEN_RANGE'],
    ['a misaligned offset', (p, t) => p.copyTo(t, { byteOffset: 2 }), 'ERR_VARLEN_BUFFER'],
    ['a negative offset', (p, t) => p.copyTo(t, { byteOffset: -4 }), 'ERR_VARLEN_RANGE'],
    ['an offset that is no number', (p, t) => p.copyTo(t, { byteOffset: '0' as never }), 'ERR_VARLEN_TYPE'],
    ['no tensor', (p) => p.copyTo(new Float32Array(1) as never), 'ERR_VARLEN_TYPE'],
    [
      'a stream of the CPU',
      (p, t) => p.copyTo(t, { stream: Stream.of('cpu') as Stream }),
      'ERR_VARLEN_DEVICE',
    ],
    ['an unknown option', (p, t) => p.copyTo(t, { offset: 1 } as never), 'ERR_VARLEN_OPTION'],
    ['a disposed tensor', (p, t) => p.copyTo(disposed(t)), 'ERR_VARLEN_DISPOSED'],
  ])('refuses %s', (_, call, code) => {
    using pinned = make(32);
    using t = empty(4);
    expect(codeOf(() => call(pinned, t))).toBe(code);
  });
});

function disposed(tensor: Tensor): Tensor {
  tensor.dispose();
  return tensor;
}

function cpu(): Tensor {
  return Tensor.from(Float32Array.of(1), { device: 'cpu' });
}

test.each<[string, () => PinnedBuffer, VarlenErrorCode]>([
  ['of no bytes', () => new PinnedBuffer(0), 'ERR_VARLEN_RANGE'],
  ['of half a byte', () => new PinnedBuffer(0.5), 'ERR_VARLEN_RANGE'],
  ['of more than a buffer holds', () => new PinnedBuffer(constants.MAX_LENGTH + 1), 'ERR_VARLEN_RANGE'],
  ['of no number', () => new PinnedBuffer('8' as never), 'ERR_VARLEN_TYPE'],
  ['for the CPU', () => new PinnedBuffer(8, 'cpu'), 'ERR_VARLEN_DEVICE'],
  ['for a GPU that is not there', () => new PinnedBuffer(8, 'cuda:3'), 'ERR_VARLEN_DEVICE_INDEX'],
])('a pinned buffer %s is refused', (_, make, code) => {
  expect(codeOf(make)).toBe(code);
});

test('page-locked memory that is not there is an error with the bytes asked for, and passes', () => {
  for (let i = 0; i < 2; i++) failNext('allocate_pinned', CUDA_ERROR.memoryAllocation); // it is tried twice
  const error = thrown(() => new PinnedBuffer(1 << 20)) as VarlenError;
  expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
  expect(error.details).toMatchObject({ op: 'PinnedBuffer', requestedBytes: 1 << 20 });
  new PinnedBuffer(1 << 20).dispose();
});

test('the memory serves the next buffer', async () => {
  new PinnedBuffer(1 << 20).dispose();
  await turn();
  const { pinned } = memoryStats('cuda');
  for (let i = 0; i < 8; i++) {
    using buffer = new PinnedBuffer(1 << 20);
    const bytes = new Uint8Array(buffer.buffer);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
    bytes.fill(1);
    buffer.dispose();
    await turn();
  }
  expect(memoryStats('cuda').pinned).toBe(pinned);
});

test('the memory of a buffer cannot be sent away', () => {
  using pinned = new PinnedBuffer(8);
  const { buffer } = pinned;
  try {
    structuredClone(buffer, { transfer: [buffer] });
  } catch {
    // Node says no since 21
  }
  expect(pinned.buffer.byteLength).toBe(8);
});
