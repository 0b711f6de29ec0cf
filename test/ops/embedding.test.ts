import { describe, expect, test } from 'vitest';
import { embedding, scope, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
  wrong,
} from '../support/ops.js';

countTensors();
const ids = Int32Array.of(2, 0, 2);

test('embedding picks rows, and adds the gradients of a repeated row in order', () => {
  scope(() => {
    const weight = Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), {
      shape: [3, 2],
      device,
      requiresGrad: true,
    });
    const out = embedding(weight, ids);
    expect(read(out)).toEqual([5, 6, 1, 2, 5, 6]);
    out.backward(values([3, 2], 1, 10, 2, 20, 4, 40));
    expect(read(weight.grad)).toEqual([2, 20, 0, 0, 5, 50]);
    weight.grad?.dispose();
  });
});

test('embedding keeps a float32 gradient of a 16-bit table', () => {
  scope(() => {
    const weight = Tensor.from(Float32Array.of(1, 2), {
      shape: [2, 1],
      dtype: 'bfloat16',
      device,
      requiresGrad: true,
    });
    const out = embedding(weight, new Int32Array(300));
    out.backward(Tensor.from(new Float32Array(300).fill(1), { shape: [300, 1], dtype: 'bfloat16', device }));
    expect(weight.grad?.dtype).toBe('float32');
    expect(read(weight.grad)).toEqual([300, 0]); // bfloat16 would stop at 256
    weight.grad?.dispose();
  });
});

test('embedding agrees with differences, with ids on the host and in a tensor', () => {
  scope(() => {
    const weight = random([7, 5], 1);
    const many = Int32Array.from({ length: 40 }, (_, i) => (i * i) % 7);
    const inTensor = Tensor.from(many, { device });
    expect(gradCheck((w) => embedding(w, many), [weight])).toBeLessThan(1e-3);
    expect(gradCheck((w) => embedding(w, inTensor), [weight])).toBeLessThan(1e-3);
  });
});

test('embedding reads its ids at the call, not at backward', () => {
  scope(() => {
    const weight = Tensor.from(Float32Array.of(1, 2), { shape: [2, 1], device, requiresGrad: true });
    const changing = Int32Array.of(1);
    const out = embedding(weight, changing);
    changing[0] = 0;
    out.backward();
    expect(read(weight.grad)).toEqual([0, 1]);
    weight.grad?.dispose();
  });
});

test('embedding gives the same bits for any number of threads', () => {
  scope(() => {
    const many = Int32Array.from({ length: 3000 }, (_, i) => (i * 31) % 500);
    const table = random([500, 40], 1);
    expectSameOnThreads(() => {
      const weight = Tensor.from(table.dataSync() as Float32Array, {
        shape: [500, 40],
        device,
        requiresGrad: true,
      });
      const out = embedding(weight, many);
      out.backward(random([3000, 40], 2));
      return [out, taken(weight)];
    });
  });
});

describe('embedding refuses', () => {
  const weight = (): Tensor => random([3, 2], 1);

  test('ids outside the table, early or late', async () => {
    using table = weight();
    for (const bad of [-1, 3, 2 ** 31 - 1]) {
      expectRefused(() => embedding(table, Int32Array.of(0, bad)), 'ERR_VARLEN_INDEX', 'ids', 'embedding');
      using late = Tensor.from(Int32Array.of(0, bad), { device });
      await expectLate(embedding(table, late), 'ERR_VARLEN_INDEX', 'embedding');
    }
  });

  test('wrong types, dtypes, ranks and options', () => {
    scope(() => {
      const table = weight();
      expectRefused(() => embedding(wrong(1), ids), 'ERR_VARLEN_TYPE', 'weight', 'embedding');
      expectRefused(() => embedding(table, wrong([1])), 'ERR_VARLEN_TYPE', 'ids', 'embedding');
      expectRefused(() => embedding(table, wrong(new Uint8Array(1))), 'ERR_VARLEN_DTYPE', 'ids', 'embedding');
      const flat = table.view([6]);
      expectRefused(() => embedding(flat, ids), 'ERR_VARLEN_SHAPE', 'weight', 'embedding');
      const whole = Tensor.from(new Int32Array(6), { shape: [3, 2], device });
      expectRefused(() => embedding(whole, ids), 'ERR_VARLEN_DTYPE', 'weight', 'embedding');
      expectRefused(
        () => embedding(table, ids, wrong({ padId: 0 })),
        'ERR_VARLEN_OPTION',
        'padId',
        'embedding',
      );
      const gone = weight();
      gone.dispose();
      expectRefused(() => embedding(gone, ids), 'ERR_VARLEN_DISPOSED', 'weight', 'embedding');
    });
  });
});
