import { expect, test } from 'vitest';
import { Device, deviceInfo, Tensor, type VarlenError } from '../../src/index.js';
import { gpu } from '../support/emulated-gpu.js';
import { thrown } from '../support/thrown.js';

// The probe is asked once per process: one answer per file. The others are native/core/cuda/probe_test.cc's.

test('a driver that is too old is named with both versions, and the CPU works', async () => {
  gpu('driver 12040');
  const { cuda } = deviceInfo();
  expect(cuda).toMatchObject({
    available: false,
    code: 'DRIVER_TOO_OLD',
    runtimeVersion: '13.0',
    driverVersion: '12.4',
  });
  const error = thrown(() => Tensor.from(Float32Array.of(1), { device: 'cuda' })) as VarlenError;
  expect(error.code).toBe('ERR_VARLEN_NO_CUDA');
  expect(error.details.code).toBe('DRIVER_TOO_OLD');
  expect(error.message).toContain('driver supports CUDA 12.4, this build needs 13.0: driver 580 or newer');
  expect(Device.list()).toEqual([Device.cpu()]);
  using here = Tensor.from(Float32Array.of(1), { device: 'auto' });
  expect(await here.data()).toEqual(Float32Array.of(1));
});
