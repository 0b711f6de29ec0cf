import { expect, test } from 'vitest';
import { memoryStats, Stream, Tensor, type VarlenError } from '../../src/index.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { rejected, thrown } from '../support/thrown.js';

// A GPU that is lost stays lost: this file has it for itself.

test('a sticky error rejects every pending promise, names the first op, and later calls throw', async () => {
  const device = 'cuda' as const;
  using a = Tensor.from(Float32Array.of(1, 2), { device });
  expect(await a.data()).toEqual(Float32Array.of(1, 2));

  gpu('hold');
  failNext('kernel', CUDA_ERROR.illegalAddress);
  using b = a.to('bfloat16');
  using c = b.to('float32');
  const pending = [a.data(), b.data(), c.data(), Stream.of('cuda').synchronize()];
  const settled = Promise.allSettled(pending);
  // All of it is on the GPU: a call that met the error itself would tell its own name.
  while (Number(gpu('count copy')) < 5) await new Promise((resolve) => setTimeout(resolve, 1));
  gpu('go');
  for (const [i, result] of (await settled).entries()) {
    expect(result.status, String(i)).toBe('rejected');
    const error = (result as PromiseRejectedResult).reason as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_CUDA');
    expect(error.details).toMatchObject({ op: 'Tensor.to', cudaError: 'cudaErrorIllegalAddress' });
  }

  for (const call of [
    () => a.to('float16'),
    () => a.dataSync(),
    () => Tensor.from(Float32Array.of(1), { device }),
    () => new Stream('cuda').record(),
  ]) {
    const error = thrown(call) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_DEVICE_LOST');
    expect(error.message).toContain('cuda:0 is lost since Tensor.to failed on cuda:0');
    expect(error.details.cudaError).toBe('cudaErrorIllegalAddress');
  }
  expect(((await rejected(a.data())) as VarlenError).code).toBe('ERR_VARLEN_DEVICE_LOST');

  // The process lives, and the CPU works.
  using here = Tensor.from(Float32Array.of(3), { device: 'cpu' });
  expect(await here.data()).toEqual(Float32Array.of(3));
  expect(memoryStats('cuda').allocated).toBeGreaterThan(0);
});
