import { afterAll, expect, test } from 'vitest';
import {
  deviceInfo,
  PinnedBuffer,
  scope,
  Tensor,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { small } from '../support/gpu-size.js';
import { normals } from '../support/random.js';

// What needs a GPU's memory or its patience. No GPU: these fail, they are not skipped.

const device = 'cuda' as const;

/** bfloat16 bits of 2^25 normal values: one block of 2^16, over and over. */
const pattern = (() => {
  const block = new Uint16Array(new Float32Array(normals(1 << 16, 1)).buffer).filter((_, i) => i % 2 === 1);
  const size = small ? 1 << 18 : 1 << 25;
  const pinned = new PinnedBuffer(2 * size);
  const bits = new Uint16Array(pinned.buffer);
  for (let i = 0; i < size; i += block.length) bits.set(block, i);
  return pinned;
})();
afterAll(() => pattern.dispose());

/**
 * `rows` rows of normal values, which repeat after 2^16 elements. No JavaScript array is as long as these; `shift`,
 * in rows of one head, tells q, k and v apart.
 */
function filled(rows: number, heads: number, headDim: number, shift: number): Tensor {
  const t = Tensor.empty([rows, heads, headDim], { dtype: 'bfloat16', device });
  const byteOffset = 2 * shift * headDim;
  const step = Math.floor((pattern.byteLength / 2 - (1 << 16)) / (1 << 16)) * ((1 << 16) / (heads * headDim));
  for (let row = 0; row < rows; row += step) {
    using part = t.slice(0, row, Math.min(row + step, rows));
    pattern.copyTo(part, { byteOffset });
  }
  return t;
}

test('a GPU answers', () => {
  const { cuda } = deviceInfo();
  expect(cuda).toMatchObject({ available: true });
});

test('1.28 million tokens in sequences of 16', () => {
  scope(() => {
    const sequences = small ? 80 : 80_000;
    const rows = sequences * 16;
    const cuSeqlens = Int32Array.from({ length: sequences + 1 }, (_, i) => 16 * i);
    const [q, k, v] = [1, 2, 3].map((seed) => filled(rows, 1, 64, seed));
    const { out } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
    // The blocks repeat: sequence i + 64 has the inputs of sequence i, and so its bits.
    const bits = out.dataSync() as Uint16Array;
    const period = 1 << 16;
    expect(bits.length).toBe(rows * 64);
    for (let i = 0; i < bits.length - period; i += 997) expect(bits[i + period]).toBe(bits[i]);
  });
});

test('offsets past 2^31 elements: the last sequence has the bits it has alone', () => {
  scope(() => {
    const [heads, headDim, tail] = small ? [2, 64, 30] : [16, 128, 300];
    const rows = (small ? 2 ** 16 : 2 ** 31) / (heads * headDim) + tail;
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
    const lengths = small ? [70, 1, 0, 12] : [700, 1, 0, 129, 64, 1000];
    const cuSeqlens = Int32Array.from([0, ...lengths]);
    for (let i = 1; i < cuSeqlens.length; i++) cuSeqlens[i] += cuSeqlens[i - 1];
    const rows = cuSeqlens[cuSeqlens.length - 1];
    const [q, k, v] = [1, 2, 3].map((seed) => filled(rows, small ? 1 : 8, small ? 64 : 128, seed));
    const run = () =>
      scope(() => {
        const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
        const { dq, dk, dv } = varlenAttentionBackward(out, saved);
        return [out, dq, dk, dv].map((tensor) => Buffer.from((tensor.dataSync() as Uint16Array).buffer));
      });
    const first = run();
    for (let i = 0; i < (small ? 3 : 1000); i++) {
      expect(
        run().every((bits, which) => bits.equals(first[which])),
        String(i),
      ).toBe(true);
    }
  });
});
