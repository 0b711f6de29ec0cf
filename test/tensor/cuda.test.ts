import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  Device,
  type DType,
  deviceInfo,
  memoryStats,
  planPrefill,
  rebalanceAttention,
  Stream,
  scope,
  Tensor,
  type VarlenError,
  varlenAttention,
} from '../../src/index.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { rejected, thrown } from '../support/thrown.js';

// `device: 'cuda'` on the emulated GPU: what a program sees of streams, memory and failures.

const device = 'cuda' as const;
const on = (...values: number[]) => Tensor.from(Float32Array.from(values), { device });
const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;
const turn = () => new Promise((resolve) => setTimeout(resolve, 5));

let alive: number;
beforeEach(() => {
  alive = memoryStats().liveTensors;
});
afterEach(() => {
  gpu('go');
  gpu('delay 0');
  expect(memoryStats().liveTensors).toBe(alive);
});

describe('devices', () => {
  test('the machine has its GPU, and nothing goes there unasked', () => {
    const { cuda } = deviceInfo();
    expect(cuda).toMatchObject({ available: true, runtimeVersion: '13.0', driverVersion: '13.0' });
    expect(cuda.available && cuda.devices).toMatchObject([{ computeCapability: '8.0', multiprocessors: 2 }]);
    expect(Device.list().map(String)).toEqual(['cpu', 'cuda:0']);
    expect(Device.resolve('auto')).toBe(Device.cpu());
    expect(codeOf(() => Device.resolve('cuda:1'))).toBe('ERR_VARLEN_DEVICE_INDEX');
  });
});

describe('tensors', () => {
  test('go there and come back, in every element type', async () => {
    const numbers = [0, 1, -2.5, 255, 1e-8, 65504];
    const types: DType[] = ['float32', 'float16', 'bfloat16', 'float64', 'int32', 'int64', 'uint8'];
    for (const dtype of types) {
      using there = Tensor.from(Float32Array.from(numbers), { device, dtype });
      using here = Tensor.from(Float32Array.from(numbers), { device: 'cpu', dtype });
      expect(there.device).toBe(Device.resolve('cuda'));
      expect(await there.data(), dtype).toEqual(await here.data());
      expect(there.dataSync(), dtype).toEqual(here.dataSync());
    }
  });

  test('copy between the devices, with what was enqueued before', async () => {
    using a = Tensor.from(Int32Array.of(1, 2, 3, 4), { shape: [2, 2], device: 'cpu' });
    using there = a.to('cuda');
    using column = there.slice(1, 1, 2);
    using wide = column.to('float32');
    using back = wide.to('cpu');
    expect([String(there.device), String(wide.device), String(back.device)]).toEqual([
      'cuda:0',
      'cuda:0',
      'cpu',
    ]);
    using twice = back.to('float64');
    expect(await twice.data()).toEqual(Float64Array.of(2, 4));
    using stays = there.to('cuda');
    expect(await stays.data()).toEqual(Int32Array.of(1, 2, 3, 4));
  });

  test('views, slices and empty tensors read as on the CPU', async () => {
    using t = Tensor.from(
      Float32Array.from({ length: 12 }, (_, i) => i),
      { shape: [3, 4], device },
    );
    using part = t.slice(1, 1, 3);
    expect(await part.data()).toEqual(Float32Array.of(1, 2, 5, 6, 9, 10));
    using flat = t.view([12]);
    expect(await flat.data()).toEqual(Float32Array.from({ length: 12 }, (_, i) => i));
    using none = on();
    expect(await none.data()).toEqual(new Float32Array(0));
  });

  test('gradients cross the border between the devices', () => {
    scope(() => {
      const leaf = Tensor.from(Float32Array.of(1, 2, 3), { device: 'cpu', requiresGrad: true });
      const there = leaf.to('cuda');
      there.slice(0, 1, 3).backward(on(5, 7), { retainGraph: true });
      there.backward(on(1, 1, 1));
      using sum = leaf.grad as Tensor;
      expect(String(sum.device)).toBe('cpu');
      expect(sum.dataSync()).toEqual(Float32Array.of(1, 6, 8));
      leaf.grad = null;
    });
  });
});

describe('calls', () => {
  test('refuse tensors of another device than their stream, by name', () => {
    scope(() => {
      const q = Tensor.from(new Float32Array(8), { shape: [1, 1, 8], dtype: 'bfloat16', device });
      const k = Tensor.from(new Float32Array(8), { shape: [1, 1, 8], dtype: 'bfloat16', device: 'cpu' });
      const mixed = thrown(() => varlenAttention(q, k, k, { cuSeqlens: Int32Array.of(0, 1) })) as VarlenError;
      expect(mixed.code).toBe('ERR_VARLEN_DEVICE');
      expect(mixed.message).toBe(
        "varlenAttention: k is on another device than the call's stream; got cpu, expected cuda:0",
      );
      expect(codeOf(() => Tensor.from(new Float32Array(1), { device, stream: Stream.of('cpu') }))).toBe(
        'ERR_VARLEN_DEVICE',
      );
    });
  });

  test('of an op without a kernel throw at once', () => {
    using q = Tensor.empty([4, 1, 64], { dtype: 'bfloat16', device });
    const heads = { kind: 'a-shape', sink: 1, local: 2 } as const;
    using plan = planPrefill({ heads }, q, q, { cuSeqlens: Int32Array.of(0, 4) });
    const segments = Int32Array.of(0, 0, 1, 1);
    const error = thrown(() => rebalanceAttention(plan, q, q, q, { segments })) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_UNSUPPORTED');
    expect(error.details).toMatchObject({
      op: 'rebalanceAttention',
      feature: 'rebalanceAttention on cuda:0',
    });
  });
});

describe('streams', () => {
  test('leave the event loop alone while the GPU works', async () => {
    using warm = on(1);
    await warm.data();
    gpu('hold');
    using t = on(1, 2, 3);
    using half = t.to('float16');
    let done = false;
    const reading = half.data().then((values) => {
      done = true;
      return values;
    });
    let ticks = 0;
    for (; ticks < 5; ticks++) await turn();
    expect(done).toBe(false);
    gpu('go');
    expect(await reading).toEqual(Uint16Array.of(0x3c00, 0x4000, 0x4200));
  });

  test('a thousand pending reads settle, each with its own values', async () => {
    const tensors = Array.from({ length: 1000 }, (_, i) => on(i));
    const values = await Promise.all(tensors.map((tensor) => tensor.data()));
    for (const [i, value] of values.entries()) expect(value).toEqual(Float32Array.of(i));
    for (const tensor of tensors) tensor.dispose();
  });

  test('events tell when the GPU passed them, streams wait for each other', async () => {
    using side = new Stream('cuda');
    gpu('delay 4');
    using a = Tensor.from(Float32Array.of(1, 2), { device, stream: side });
    const before = side.record();
    using b = a.to('float16', { stream: side });
    const after = side.record();
    expect(after.ready()).toBe(false);
    using c = b.to('float32', { stream: Stream.of('cuda') });
    expect(await c.data()).toEqual(Float32Array.of(1, 2));
    await after.done();
    expect(after.ready() && before.ready()).toBe(true);
    expect(await after.elapsedMs(before)).toBeGreaterThanOrEqual(4);
    await side.synchronize();
  });

  test('a disposed stream ends what it has', async () => {
    const side = new Stream('cuda');
    gpu('delay 2');
    using a = Tensor.from(Float32Array.of(7), { device, stream: side });
    side.dispose();
    expect(await a.data()).toEqual(Float32Array.of(7));
  });
});

describe('memory', () => {
  test('is counted per device, and a running ahead program does not hold its past', async () => {
    using warm = on(1);
    await warm.data();
    const before = memoryStats('cuda');
    gpu('hold');
    let t = Tensor.from(new Float32Array(1 << 18).fill(3), { device });
    for (let i = 0; i < 40; i++) {
      const next = t.to(i % 2 === 0 ? 'bfloat16' : 'float32');
      t.dispose();
      t = next;
    }
    const { allocated, reserved } = memoryStats('cuda');
    expect(allocated - before.allocated).toBeLessThanOrEqual(2 << 20);
    expect(reserved - before.reserved).toBeLessThanOrEqual(24 << 20);
    gpu('go');
    expect((await t.data())[12345]).toBe(3);
    t.dispose();
    expect(memoryStats('cuda').pinned).toBeGreaterThan(0);
    expect(memoryStats('cpu').pinned).toBe(0);
  });

  test('that is not there is an error with the bytes asked, held and free, and passes', async () => {
    const error = thrown(() => Tensor.empty([1 << 28], { dtype: 'float32', device })) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
    expect(error.details).toMatchObject({ op: 'Tensor.empty', requestedBytes: 2 ** 30, totalBytes: 2 ** 28 });
    expect(error.details.heldBytes).toBeGreaterThanOrEqual(0);
    expect(error.message).toContain('memory of cuda:0 is exhausted; got a request of 1073741824 bytes');
    using small = on(1, 2);
    expect(await small.data()).toEqual(Float32Array.of(1, 2));
  });

  test('that is not there names the largest tensors, each once, beside what is cached', async () => {
    scope(() => {
      const made = [3, 1, 7, 5, 4, 6].map((k) =>
        Tensor.empty([k, 1 << 16], { dtype: k % 2 === 0 ? 'bfloat16' : 'float32', device }),
      );
      made[2].slice(0, 0, 1); // a second name of the largest
      made[2].view([7 << 16]);
      Tensor.from(new Float32Array(8 << 16), { device: 'cpu' }); // elsewhere
      made[3].dispose(); // [5, 65536] float32 is nobody's any more
      const { details, message } = thrown(() =>
        Tensor.empty([1 << 28], { dtype: 'float32', device }),
      ) as VarlenError;
      const largest = [
        'float32 [7, 65536] (1835008 bytes)',
        'bfloat16 [6, 65536] (786432 bytes)',
        'float32 [3, 65536] (786432 bytes)',
        'bfloat16 [4, 65536] (524288 bytes)',
        'float32 [1, 65536] (262144 bytes)',
      ];
      const named = (details.largestTensors as string).split('), ').map((name) => name.replace(/\)?$/, ')'));
      expect(named.sort()).toEqual(largest.sort());
      expect(message).toContain(`; the largest tensors are ${details.largestTensors}`);
      const { allocated, reserved } = memoryStats('cuda');
      expect(details).toMatchObject({ heldBytes: reserved, cachedBytes: reserved - allocated });
      expect(message).toMatch(/ cached\), \d+ of 268435456 are free/);
    });
  });

  test('that is not there for a launch names them too', async () => {
    using t = Tensor.empty([1 << 11, 1 << 11], { dtype: 'float32', device });
    using columns = t.slice(1, 0, 2000); // packed before it is read
    for (let i = 0; i < 8; i++) failNext('allocate', CUDA_ERROR.memoryAllocation);
    const error = (await rejected(columns.data())) as VarlenError;
    gpu('reset');
    expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
    expect(error.details.largestTensors).toContain('float32 [2048, 2048] (16777216 bytes)');
  });

  test('pinned memory that is not there is one too', () => {
    for (let i = 0; i < 2; i++) failNext('allocate_pinned', CUDA_ERROR.memoryAllocation); // it is tried twice
    const error = thrown(() => on(...new Array(3000).fill(1))) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
    expect(error.message).toContain('pinned host memory is exhausted');
  });
});

describe('a failed CUDA call', () => {
  test('rejects with its name, the op and the launch shape, and passes on to what reads the result', async () => {
    using a = on(1, 2, 3);
    failNext('launch', CUDA_ERROR.launchOutOfResources);
    using b = a.to('bfloat16');
    using c = b.to('float32');
    for (const tensor of [b, c]) {
      const error = (await rejected(tensor.data())) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_CUDA');
      expect(error.details).toMatchObject({
        op: 'Tensor.to',
        cudaError: 'cudaErrorLaunchOutOfResources',
        cudaCall: 'cudaLaunchKernel',
        launch: '1 blocks of 256 threads with 0 bytes of shared memory',
      });
      expect(error.details.where).toMatch(/^transfer\.cc:\d+$/);
      expect(error.details.call).toBeGreaterThan(0);
    }
    expect(await a.data()).toEqual(Float32Array.of(1, 2, 3));
    using again = a.to('bfloat16');
    expect(await again.data()).toEqual(Uint16Array.of(0x3f80, 0x4000, 0x4040));
  });

  test('of a copy rejects the tensor it was for', async () => {
    failNext('copy', CUDA_ERROR.invalidValue);
    using a = on(1, 2);
    expect(((await rejected(a.data())) as VarlenError).details.cudaError).toBe('cudaErrorInvalidValue');
    failNext('copy', CUDA_ERROR.invalidValue, 1);
    using b = on(1, 2);
    expect(((await rejected(b.data())) as VarlenError).details.op).toBe('Tensor.data');
    expect(await b.data()).toEqual(Float32Array.of(1, 2));
  });
});
