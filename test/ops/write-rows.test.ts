import { describe, expect, test } from 'vitest';
import { deviceInfo, embedding, scope, setNumThreads, Tensor, writeRows } from '../../src/index.js';
import { device } from '../support/attention.js';
import { countTensors, expectLate, expectRefused, random, read, values, wrong } from '../support/ops.js';

countTensors();

test('write-rows replaces the rows it names, in order, and leaves the others', () => {
  scope(() => {
    const target = values([3, 2], 1, 2, 3, 4, 5, 6);
    writeRows(target, Int32Array.of(2, 0, 2), values([3, 2], 10, 20, 30, 40, 50, 60));
    expect(read(target)).toEqual([30, 40, 3, 4, 50, 60]);
    // A view is another name for the same memory.
    const flat = target.view([1, 6]);
    writeRows(flat, Int32Array.of(0), values([1, 6], 1, 1, 1, 1, 1, 1));
    expect(read(target)).toEqual([1, 1, 1, 1, 1, 1]);
  });
});

test('write-rows undoes embedding, in every dtype, for any number of threads', () => {
  scope(() => {
    const rows = Int32Array.from({ length: 3000 }, (_, t) => (t * 7919) % 4001);
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
      // A megabyte or so: enough for several threads.
      const source = Tensor.from(new Float32Array(3000 * 100).fill(1 / 3), {
        shape: [3000, 100],
        dtype,
        device,
      });
      const start = new Float32Array(4001 * 100);
      const bits = (tensor: Tensor) => Buffer.from(tensor.dataSync().buffer);
      const written = (threads: number) => {
        setNumThreads(threads);
        const target = Tensor.from(start, { shape: [4001, 100], dtype, device });
        writeRows(target, threads % 2 ? rows : Tensor.from(rows, { device }), source);
        return target;
      };
      const { threads } = deviceInfo();
      const target = written(1);
      // A comparison element by element would take the test a minute.
      for (const others of [2, 3, 16]) expect(bits(written(others)).equals(bits(target))).toBe(true);
      setNumThreads(threads);
      expect(bits(embedding(target, rows)).equals(bits(source))).toBe(true);
      expect((target.dataSync() as Float32Array).filter((x) => x !== 0).length).toBe(300_000);
    }
  });
});

describe('write-rows refuses', () => {
  test('rows outside the target, early or late', async () => {
    using target = random([3, 2], 1);
    using row = random([1, 2], 2);
    for (const bad of [-1, 3, 2 ** 31 - 1]) {
      expectRefused(
        () => writeRows(target, Int32Array.of(bad), row),
        'ERR_VARLEN_INDEX',
        'rows',
        'writeRows',
      );
      const spoilt = random([3, 2], 1);
      using late = Tensor.from(Int32Array.of(bad), { device });
      writeRows(spoilt, late, row);
      await expectLate(spoilt, 'ERR_VARLEN_INDEX', 'writeRows');
    }
  });

  test('shapes, dtypes and layouts that do not fit, overlaps, gradients and wrong types', () => {
    scope(() => {
      const [target, row, rows] = [random([3, 2], 1), random([1, 2], 2), Int32Array.of(0)];
      const refuse = (args: unknown[], code: Parameters<typeof expectRefused>[1], argument?: string) =>
        expectRefused(
          () => writeRows(...(args as [Tensor, Int32Array, Tensor])),
          code,
          argument,
          'writeRows',
        );
      refuse([target, rows, random([1, 3], 1)], 'ERR_VARLEN_SHAPE', 'values');
      refuse([target, rows, random([2, 2], 1)], 'ERR_VARLEN_SHAPE', 'values');
      refuse([target.view([6]), rows, row], 'ERR_VARLEN_SHAPE', 'target');
      refuse([target, rows, random([1, 2], 1, 'float16')], 'ERR_VARLEN_DTYPE', 'values');
      refuse([random([3, 4], 1).slice(1, 0, 2), rows, row], 'ERR_VARLEN_LAYOUT', 'target');
      const tracked = Tensor.from(new Float32Array(2), { shape: [1, 2], device, requiresGrad: true });
      refuse([target, rows, tracked], 'ERR_VARLEN_NO_BACKWARD');
      refuse([wrong(1), rows, row], 'ERR_VARLEN_TYPE', 'target');
      refuse([target, wrong([0]), row], 'ERR_VARLEN_TYPE', 'rows');
      refuse([target, rows, wrong(1)], 'ERR_VARLEN_TYPE', 'values');
      refuse([target, rows, row, wrong({ add: true })], 'ERR_VARLEN_OPTION', 'add');
    });
  });
});
