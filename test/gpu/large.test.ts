import { expect, test } from 'vitest';
import { deviceInfo, scope, Tensor, varlenAttention, varlenAttentionBackward } from '../../src/index.js';
import { normals } from '../support/random.js';

// What needs a GPU's memory or its patience. No GPU: these fail, they are not skipped.

const device = 'cuda' as const;

/** `rows` rows of normal values, made of one small block so that JavaScript holds little. */
function filled(rows: number, heads: number, headDim: number, seed: number): Tensor {
  const block = normals(1 << 16, seed);
  const size = rows * heads * headDim;
  const values = new Uint16Array(size);
  const bits = new Uint16Array(new Float32Array(block).buffer);
  for (let i = 0; i < size; i++) values[i] = bits[2 * (i & 0xffff) + 1]; // the upper half: bfloat16
  return Tensor.from(values, { shape: [rows, heads, headDim], dtype: 'bfloat16', device });
}

test('a GPU answers', () => {
  const { cuda } = deviceInfo();
  expect(cuda).toMatchObject({ available: true });
});

test('1.28 million tokens in sequences of 16', () => {
  scope(() => {
    const sequences = 80_000;
    const rows = sequences * 16;
    const cuSeqlens = Int32Array.from({ length: sequences + 1 }, (_, i) => 16 * i);
    const [q, k, v] = [1, 2, 3].map((seed) => filled(rows, 1, 64, seed));
    const { out } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
    // The blocks repeat: sequence i + 64 has the inputs of sequence i, and so its bits.
    const bits = out.dataSync() as Uint16Array;
    const period = 1 << 16;
    for (let i = 0; i < bits.length - period; i += 997) expect(bits[i + period]).toBe(bits[i]);
  });
});

test('offsets past 2^31 elements: the last sequence has the bits it has alone', () => {
  scope(() => {
    const [heads, headDim, tail] = [16, 128, 300];
    const rows = 2 ** 31 / (heads * headDim) + tail;
    const [q, k, v] = [1, 2, 3].map((seed) => filled(rows, heads, headDim, seed));
    const cuSeqlens = Int32Array.of(0, 200, rows - tail, rows - tail, rows);
    // The long one in the middle is not used.
    const used = Int32Array.of(200, 0, 0, tail);
    const { out } = varlenAttention(q, k, v, { cuSeqlens, seqUsedQ: used, seqUsedK: used, causal: true });
    const last = (t: Tensor) => t.slice(0, rows - tail, rows);
    const alone = varlenAttention(last(q), last(k), last(v), {
      cuSeqlens: Int32Array.of(0, tail),
      causal: true,
    });
    expect(last(out).dataSync()).toEqual(alone.out.dataSync());
  });
});

test('a thousand runs give the same bits', () => {
  scope(() => {
    const lengths = [700, 1, 0, 129, 64, 1000];
    const cuSeqlens = Int32Array.from([0, ...lengths]);
    for (let i = 1; i < cuSeqlens.length; i++) cuSeqlens[i] += cuSeqlens[i - 1];
    const rows = cuSeqlens[cuSeqlens.length - 1];
    const [q, k, v] = [1, 2, 3].map((seed) => filled(rows, 8, 128, seed));
    const run = () =>
      scope(() => {
        const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
        const { dq, dk, dv } = varlenAttentionBackward(out, saved);
        return [out, dq, dk, dv].map((tensor) => Buffer.from((tensor.dataSync() as Uint16Array).buffer));
      });
    const first = run();
    for (let i = 0; i < 1000; i++) {
      expect(
        run().every((bits, which) => bits.equals(first[which])),
        String(i),
      ).toBe(true);
    }
  });
});
