import { describe, expect, test } from 'vitest';
import { Device, deviceInfo, setNumThreads, type VarlenError } from '../../src/index.js';
import { thrown } from '../support/thrown.js';

const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;

describe('Device', () => {
  test('equal devices are the same frozen object', () => {
    expect(Device.cpu()).toBe(Device.resolve('cpu'));
    expect(Device.resolve(Device.cpu())).toBe(Device.cpu());
    expect(Object.isFrozen(Device.cpu())).toBe(true);
    expect(String(Device.cpu())).toBe('cpu');
    expect(Device.list()[0]).toBe(Device.cpu());
  });

  test('auto is the CPU, also where a GPU could be used; the list has them all', () => {
    const { cuda } = deviceInfo();
    expect(Device.resolve('auto')).toBe(Device.cpu());
    expect(Device.list()).toHaveLength(cuda.available ? 1 + cuda.devices.length : 1);
  });

  test('cuda says why it is not available, or which index is too large', () => {
    const { cuda } = deviceInfo();
    const error = thrown(() => Device.resolve(cuda.available ? 'cuda:1023' : 'cuda')) as VarlenError;
    if (cuda.available) {
      expect(error.code).toBe('ERR_VARLEN_DEVICE_INDEX');
    } else {
      expect(error.code).toBe('ERR_VARLEN_NO_CUDA');
      expect(error.details.code).toBe(cuda.code);
      expect(error.message).toContain(cuda.reason);
    }
  });

  test('refuses what is no device', () => {
    for (const word of [
      '',
      'CPU',
      'cpu:0',
      'cuda:',
      'cuda:-1',
      'cuda:1.5',
      'cuda:99999',
      'gpu',
      '__proto__',
    ]) {
      expect(
        codeOf(() => Device.resolve(word as 'cpu')),
        word,
      ).toBe('ERR_VARLEN_OPTION');
    }
    for (const value of [undefined, null, 0, {}, Symbol('s'), 1n]) {
      expect(codeOf(() => Device.resolve(value as 'cpu'))).toBe('ERR_VARLEN_TYPE');
    }
    for (const index of [-1, 0.5, Number.NaN, 2 ** 31, Infinity]) {
      expect(codeOf(() => Device.cuda(index))).toBe('ERR_VARLEN_RANGE');
    }
  });
});

test('deviceInfo is frozen, and tells the threads that setNumThreads sets', () => {
  const before = deviceInfo();
  expect(Object.isFrozen(before) && Object.isFrozen(before.cpu) && Object.isFrozen(before.cuda)).toBe(true);
  setNumThreads(3);
  expect(deviceInfo().threads).toBe(3);
  setNumThreads(before.threads);
  for (const count of [0, -1, 1025, 1.5, Number.NaN, Infinity]) {
    expect(codeOf(() => setNumThreads(count))).toBe('ERR_VARLEN_RANGE');
  }
  expect(codeOf(() => setNumThreads('2' as unknown as number))).toBe('ERR_VARLEN_TYPE');
  expect(deviceInfo().threads).toBe(before.threads);
});
