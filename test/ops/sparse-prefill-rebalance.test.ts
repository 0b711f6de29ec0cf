import { describe, expect, test } from 'vitest';
import {
  type HeadPattern,
  type PrefillPlan,
  planPrefill,
  rebalanceAttention,
  segmentKeyBias,
  sparsePrefill,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { EXACT, randomTensor } from '../prefill/cases.js';
import { rejected, thrown } from '../support/thrown.js';

const [TOKENS, HEADS, DIM] = [120, 2, 16];
const q = randomTensor([TOKENS, HEADS, DIM], 11);
const k = randomTensor([TOKENS, 1, DIM], 12);
/** Values that read a row's probabilities: key j is 1 at place j. */
const identity = Tensor.from(
  Float32Array.from({ length: TOKENS * TOKENS }, (_, i) => Number(i % (TOKENS + 1) === 0)),
  { shape: [TOKENS, 1, TOKENS], device: 'cpu' },
);
/** Three images with text before, between and after them. */
const segments = Int32Array.from({ length: TOKENS }, (_, j) =>
  j < 10 || (j >= 40 && j < 45) || j >= 100 ? -1 : j < 40 ? 0 : j < 80 ? 1 : 2,
);
const planOf = (pattern: HeadPattern = { kind: 'dense' }): PrefillPlan =>
  planPrefill({ heads: pattern }, q, k, { cuSeqlens: Int32Array.of(0, TOKENS), ...EXACT });

/** Probabilities of each row, `[TOKENS, HEADS, TOKENS]`, and their sums over images and over the rest. */
async function masses(
  out: Tensor,
): Promise<{ p: Float32Array; of: (row: number, segment: number) => number }> {
  const p = await out.toFloat32();
  const of = (row: number, segment: number): number => {
    let sum = 0;
    for (let j = 0; j < TOKENS; j++) if (segments[j] === segment) sum += p[row * HEADS * TOKENS + j];
    return sum;
  };
  return { p, of };
}

describe('rebalanceAttention', () => {
  const grid = {
    kind: 'grid',
    stride: 7,
    phase: 2,
    hline: true,
    vline: true,
    slash: true,
    sink: 2,
    local: 9,
  } as const;

  test('strength 0 changes nothing', async () => {
    for (const pattern of [{ kind: 'dense' }, grid] as HeadPattern[]) {
      using plan = planOf(pattern);
      using plain = sparsePrefill(plan, q, k, identity, {
        keyBias: Tensor.from(new Float32Array(HEADS * TOKENS), { shape: [HEADS, TOKENS], device: 'cpu' }),
      });
      using same = rebalanceAttention(plan, q, k, identity, { segments, strength: 0 });
      const [a, b] = [await same.out.toFloat32(), await plain.out.toFloat32()];
      for (let i = 0; i < a.length; i++) expect(Math.abs(a[i] - b[i])).toBeLessThanOrEqual(1e-6);
      const [lse, plainLse] = [await same.softmaxLse.toFloat32(), await plain.softmaxLse.toFloat32()];
      for (let i = 0; i < lse.length; i++) expect(Math.abs(lse[i] - plainLse[i])).toBeLessThanOrEqual(1e-5);
    }
  });

  test('full strength gives the visible images equal masses, and leaves all other keys theirs', async () => {
    using plan = planOf();
    using plain = rebalanceAttention(plan, q, k, identity, { segments, strength: 0 });
    using even = rebalanceAttention(plan, q, k, identity, { segments, strength: 1, maxBias: 50 });
    const [before, after] = [await masses(plain.out), await masses(even.out)];
    for (const row of [0, 9, 30, 50, 90, 119]) {
      const visible = [0, 1, 2].filter((g) => before.of(row, g) > 0);
      const all = visible.reduce((sum, g) => sum + before.of(row, g), 0);
      for (const g of visible) expect(after.of(row, g)).toBeCloseTo(all / visible.length, 5);
      for (let j = 0; j < TOKENS; j++) {
        if (segments[j] >= 0) continue;
        const at = row * HEADS * TOKENS + j;
        expect(Math.abs(after.p[at] - before.p[at])).toBeLessThanOrEqual(1e-6);
      }
    }
  });

  test('shares by size, and given ones', async () => {
    using plan = planOf();
    using plain = rebalanceAttention(plan, q, k, identity, { segments, strength: 0 });
    const before = await masses(plain.out);
    for (const [shares, expected] of [
      ['size', [30, 35, 20]],
      [Float32Array.of(1, 2, 5), [1, 2, 5]],
    ] as const) {
      using made = rebalanceAttention(plan, q, k, identity, { segments, strength: 1, maxBias: 50, shares });
      const after = await masses(made.out);
      const all = [0, 1, 2].reduce((sum, g) => sum + before.of(119, g), 0);
      const total = expected.reduce((a, b) => a + b, 0);
      for (const g of [0, 1, 2]) expect(after.of(119, g)).toBeCloseTo((all * expected[g]) / total, 5);
    }
  });

  test('renaming segments renames their biases and nothing else', async () => {
    using plan = planOf();
    const renamed = segments.map((g) => (g < 0 ? g : (g + 1) % 3));
    using a = rebalanceAttention(plan, q, k, identity, { segments });
    using b = rebalanceAttention(plan, q, k, identity, { segments: renamed });
    const [x, y] = [await a.segmentBias.toFloat32(), await b.segmentBias.toFloat32()];
    for (let row = 0; row < HEADS * TOKENS; row++) {
      for (const g of [0, 1, 2]) expect(y[row * 3 + ((g + 1) % 3)]).toBeCloseTo(x[row * 3 + g], 6);
    }
    const [p, r] = [await a.out.toFloat32(), await b.out.toFloat32()];
    for (let i = 0; i < p.length; i++) expect(Math.abs(p[i] - r[i])).toBeLessThanOrEqual(1e-6);
  });

  test('a bias that is cut off still moves no mass to or from other keys', async () => {
    using plan = planOf();
    using made = rebalanceAttention(plan, q, k, identity, {
      segments,
      strength: 1,
      maxBias: 0.1,
      shares: Float32Array.of(0, 0, 1),
    });
    const { p } = await masses(made.out);
    for (let row = 0; row < TOKENS * HEADS; row++) {
      expect(p.subarray(row * TOKENS, (row + 1) * TOKENS).reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
    }
  });

  test('backward takes the biases as constants: it is that of attention with them as a key bias', async () => {
    // One row per head sees one bias per key, as `keyBias` can say it.
    const row = randomTensor([1, HEADS, DIM], 5);
    const v = randomTensor([TOKENS, 1, DIM], 13);
    const lengths = { cuSeqlensQ: Int32Array.of(0, 1), cuSeqlensK: Int32Array.of(0, TOKENS), ...EXACT };
    using plan = planPrefill({ heads: { kind: 'union', of: [{ kind: 'dense' }] } }, row, k, lengths);
    const leaves = async () =>
      Promise.all(
        [row, k, v].map(async (t) =>
          Tensor.from(await t.toFloat32(), { shape: t.shape, device: 'cpu', requiresGrad: true }),
        ),
      );
    const [a, b] = [await leaves(), await leaves()];
    const made = rebalanceAttention(plan, a[0], a[1], a[2], { segments, strength: 0.7 });
    const table = { data: await made.segmentBias.toFloat32(), shape: made.segmentBias.shape };
    const keyBias = Tensor.from(segmentKeyBias([table], segments), { shape: [HEADS, TOKENS], device: 'cpu' });
    const biased = sparsePrefill(plan, b[0], b[1], b[2], { keyBias });
    const dOut = randomTensor([1, HEADS, DIM], 21);
    made.out.backward(dOut);
    biased.out.backward(dOut);
    for (let i = 0; i < 3; i++) {
      const [got, want] = [await a[i].grad!.toFloat32(), await b[i].grad!.toFloat32()];
      for (let n = 0; n < got.length; n++) expect(Math.abs(got[n] - want[n])).toBeLessThanOrEqual(1e-5);
    }
  });

  test.each<[string, object]>([
    ['ERR_VARLEN_TYPE', { segments: undefined }],
    ['ERR_VARLEN_SHAPE', { segments: new Int32Array(3) }],
    ['ERR_VARLEN_RANGE', { strength: 1.1 }],
    ['ERR_VARLEN_RANGE', { maxBias: -1 }],
    ['ERR_VARLEN_RANGE', { shares: Float32Array.of(-1, 0, 1) }],
    ['ERR_VARLEN_RANGE', { segments: new Int32Array(TOKENS).fill(255) }],
    ['ERR_VARLEN_OPTION', { shares: 'fair' }],
    ['ERR_VARLEN_OPTION', { power: 1 }],
  ])('%s, case %#', (code, changed) => {
    using plan = planOf();
    expect(thrown(() => rebalanceAttention(plan, q, k, identity, { segments, ...changed }))).toMatchObject({
      code,
    });
  });

  test('a segment without a share, or below -1, is ERR_VARLEN_INDEX when the result is read', async () => {
    using plan = planOf();
    for (const bad of [segments.map((g) => g - 1), segments]) {
      using made = rebalanceAttention(plan, q, k, identity, { segments: bad, shares: Float32Array.of(1, 1) });
      expect(await rejected(made.out.data())).toMatchObject({ code: 'ERR_VARLEN_INDEX' });
    }
  });
});

describe('segmentKeyBias', () => {
  test('is the mean over all rows of all calls', () => {
    const first = { data: Float32Array.of(1, 2, 3, 4), shape: [2, 1, 2] }; // two heads, one row
    const second = { data: Float32Array.of(3, 0, 5, 0, 7, 0, 9, 0), shape: [2, 2, 2] };
    const bias = segmentKeyBias([first, second], Int32Array.of(-1, 1, 0));
    expect(Array.from(bias, (b) => Number(b.toFixed(5)))).toEqual([0, 0.66667, 3, 0, 1.33333, 6.33333]);
  });

  test.each<[string, () => unknown]>([
    ['ERR_VARLEN_SHAPE', () => segmentKeyBias([], Int32Array.of(0))],
    [
      'ERR_VARLEN_SHAPE',
      () => segmentKeyBias([{ data: new Float32Array(0), shape: [1, 0, 1] }], Int32Array.of(0)),
    ],
    [
      'ERR_VARLEN_SHAPE',
      () =>
        segmentKeyBias(
          [
            { data: new Float32Array(1), shape: [1, 1, 1] },
            { data: new Float32Array(2), shape: [1, 1, 2] },
          ],
          Int32Array.of(0),
        ),
    ],
    [
      'ERR_VARLEN_INDEX',
      () => segmentKeyBias([{ data: new Float32Array(1), shape: [1, 1, 1] }], Int32Array.of(1)),
    ],
  ])('%s, case %#', (code, run) => {
    expect(thrown(run)).toMatchObject({ code });
  });
});
