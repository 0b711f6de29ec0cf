import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { memoryStats, Tensor, VarlenError, varlenAttention } from '../../src/index.js';
import { failing } from '../support/failing.js';
import { bundle } from '../support/program.js';
import { rejected, thrown } from '../support/thrown.js';

describe('reading', () => {
  test('data and dataSync give arrays of the caller’s own', async () => {
    using t = Tensor.from(Float32Array.of(1, 2));
    const first = (await t.data()) as Float32Array;
    first.fill(9);
    expect(await t.data()).toEqual(Float32Array.of(1, 2));
    expect(t.dataSync()).not.toBe(t.dataSync());
  });

  test('many reads at once each get their own elements', async () => {
    const tensors = Array.from({ length: 200 }, (_, i) => Tensor.from(Int32Array.of(i, -i)));
    const arrays = await Promise.all(tensors.map((t) => t.data()));
    for (const [i, array] of arrays.entries()) expect(array).toEqual(Int32Array.of(i, -i));
    for (const t of tensors) t.dispose();
  });

  test('a tensor may be disposed while it is read', async () => {
    const t = Tensor.from(new Float32Array(1 << 20).fill(3));
    const reading = t.data();
    t.dispose();
    expect((await reading).every((value) => value === 3)).toBe(true);
  });

  test('toFloat32 gives values whatever the dtype', async () => {
    for (const dtype of ['float32', 'float16', 'bfloat16', 'float64', 'int32', 'int64', 'uint8'] as const) {
      using t = Tensor.from(Float32Array.of(0, 2, 96), { dtype });
      expect(await t.toFloat32(), dtype).toEqual(Float32Array.of(0, 2, 96));
    }
    expect(memoryStats().liveTensors).toBe(0);
  });

  test('toTensorLike has the names of both conventions, and Tensor.from takes it back', async () => {
    using t = Tensor.from(Uint16Array.of(0x3f80, 0x4000), { dtype: 'bfloat16', shape: [1, 2] });
    const like = await t.toTensorLike();
    expect(like).toEqual({
      type: 'bfloat16',
      dtype: 'bfloat16',
      dims: [1, 2],
      shape: [1, 2],
      data: Uint16Array.of(0x3f80, 0x4000),
    });
    const { shape: _, ...onnx } = like;
    using again = Tensor.from(onnx);
    expect(again.dataSync()).toEqual(t.dataSync());
  });

  test('a disposed tensor is ERR_VARLEN_DISPOSED, rejected or thrown; disposing twice is nothing', async () => {
    const t = Tensor.from(Float32Array.of(1));
    t.dispose();
    t.dispose();
    expect(t.disposed).toBe(true);
    expect(String(t)).toContain('disposed');
    for (const error of [
      await rejected(t.data()),
      await rejected(t.toFloat32()),
      await rejected(t.toTensorLike()),
      thrown(() => t.dataSync()),
      thrown(() => t.backward()),
    ]) {
      expect(error).toMatchObject({ code: 'ERR_VARLEN_DISPOSED', details: { argument: 'this' } });
    }
  });
});

describe('a failure after the call has returned', () => {
  test('rejects data() with the op and the call number', async () => {
    using out = failing();
    const error = (await rejected(out.data())) as VarlenError;
    expect(error).toBeInstanceOf(VarlenError);
    expect(error.code).toBe('ERR_VARLEN_CU_SEQLENS');
    expect(error.details).toMatchObject({ op: 'varlenAttention', argument: 'cuSeqlensQ' });
    expect(error.details.call).toBeGreaterThan(0);
    expect(error.message).toContain(`(call ${String(error.details.call)} of its stream)`);
    expect(thrown(() => out.dataSync())).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
  });

  test('numbers the calls of the stream one by one', async () => {
    using first = failing();
    using second = failing();
    const [a, b] = (await Promise.all([first.data(), second.data()].map(rejected))) as VarlenError[];
    expect(b.details.call).toBe((a.details.call as number) + 1);
  });

  test('travels through every op that reads the result, and no further', async () => {
    using out = failing();
    using converted = out.to('bfloat16');
    using view = converted.view([4]);
    using again = view.to('float32');
    const error = (await rejected(again.data())) as VarlenError;
    expect(error.details.op).toBe('varlenAttention');
    using fine = Tensor.from(Float32Array.of(1));
    expect(await fine.data()).toEqual(Float32Array.of(1));
  });

  test('comes after what was read before, in the order of the calls', async () => {
    const q = Tensor.from(new Float32Array(4).fill(1), { shape: [4, 1, 1] });
    const out = Tensor.from(new Float32Array(4).fill(7), { shape: [4, 1, 1] });
    const bad = Tensor.from(Int32Array.of(0, 9));
    const before = out.data();
    varlenAttention(q, q, q, { cuSeqlens: bad, maxSeqlen: 9, out });
    const after = rejected(out.data());
    expect(await before).toEqual(new Float32Array(4).fill(7));
    expect(await after).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
  });

  test('has no cause of its own unless VARLEN_DEBUG asks for one', async () => {
    using out = failing();
    expect((await rejected(out.data())) as Error).not.toHaveProperty('cause');
  });

  test('points to the call that made the tensor under VARLEN_DEBUG=1', () => {
    const program = bundle('late-failure');
    const stdout = execFileSync(process.execPath, ['--enable-source-maps', program], {
      env: { ...process.env, VARLEN_DEBUG: '1' },
      encoding: 'utf8',
    });
    expect(JSON.parse(stdout)).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    expect(stdout).toContain('callerOfTheOp');
  });
});
