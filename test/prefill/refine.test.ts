import { describe, expect, test } from 'vitest';
import { attentionMass, refinePrompt, synthHead } from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { rejected, thrown } from '../support/thrown.js';
import { randomTensor } from './cases.js';

describe('attentionMass', () => {
  test('is what each key draws from the queries, over the heads of its group', async () => {
    const [queries, tokens, dim] = [5, 40, 16];
    const q = randomTensor([queries, 4, dim], 3);
    const k = randomTensor([tokens, 2, dim], 4);
    const mass = await attentionMass(q, k);
    const [qs, ks] = [await q.toFloat32(), await k.toFloat32()];
    const expected = new Float64Array(tokens * 2);
    for (let r = 0; r < queries; r++) {
      for (let h = 0; h < 4; h++) {
        const kv = h >> 1;
        const scores = Array.from({ length: tokens - queries + r + 1 }, (_, j) => {
          let dot = 0;
          for (let d = 0; d < dim; d++) dot += qs[(r * 4 + h) * dim + d] * ks[(j * 2 + kv) * dim + d];
          return Math.exp(dot / 4);
        });
        const total = scores.reduce((a, b) => a + b, 0);
        for (const [j, s] of scores.entries()) expected[j * 2 + kv] += s / total;
      }
    }
    for (const [i, x] of expected.entries()) expect(mass[i]).toBeCloseTo(x, 5);
    expect(await rejected(attentionMass([] as never, k))).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
  });

  test('a prompt refined by it keeps what a needle hides', async () => {
    const head = synthHead({ frames: 30, frameTokens: 49, kind: 'mixed', seed: 5, needle: 0.4 });
    const shape = [head.tokens, 1, head.headDim];
    using q = Tensor.from(head.q, { shape, device: 'cpu' });
    using k = Tensor.from(head.k, { shape, device: 'cpu' });
    using late = q.slice(0, head.tokens - 64, head.tokens);
    const kept = refinePrompt(await attentionMass(late, k), { modality: head.modality, coverage: 0.8 });
    expect(kept).toContain(head.needle);
    expect(kept.length).toBeLessThan(head.tokens / 2);
  });
});

describe('refinePrompt', () => {
  const mass = [9, 0, 1, 0, 4, 0, 1];

  test('keeps the sinks, the last tokens and most of the mass', () => {
    expect(refinePrompt(mass, { sinks: 1, last: 1, coverage: 0.8 })).toEqual(Int32Array.of(0, 4, 6));
    expect(refinePrompt(mass, { sinks: 0, last: 0, coverage: 0.6 })).toEqual(Int32Array.of(0));
    expect(refinePrompt(mass, { sinks: 2, last: 2, coverage: 1 })).toEqual(Int32Array.of(0, 1, 2, 4, 5, 6));
    expect(refinePrompt([], {})).toEqual(new Int32Array(0));
  });

  test('each modality keeps its own share, and NaN draws nothing', () => {
    const modality = { ids: Uint8Array.from([0, 0, 1, 1, 0, 1, 1]) };
    const given = { sinks: 0, last: 0, coverage: 0.5, modality };
    expect(refinePrompt(mass, given)).toEqual(Int32Array.of(0, 2));
    expect(refinePrompt([Number.NaN, 1, 2], { sinks: 0, last: 0, coverage: 1 })).toEqual(Int32Array.of(1, 2));
  });

  test('coverage takes no token that rounding alone asks for', () => {
    expect(refinePrompt([0.4, 0.05, 0.3, 0.2, 0.05], { sinks: 0, last: 0, coverage: 0.9 })).toEqual(
      Int32Array.of(0, 2, 3),
    );
  });

  test.each<[string, object]>([
    ['ERR_VARLEN_RANGE', { coverage: 0 }],
    ['ERR_VARLEN_RANGE', { coverage: 1.5 }],
    ['ERR_VARLEN_RANGE', { sinks: -1 }],
    ['ERR_VARLEN_RANGE', { last: 0.5 }],
    ['ERR_VARLEN_OPTION', { first: 1 }],
    ['ERR_VARLEN_MODALITY', { modality: { ids: new Uint8Array(3) } }],
  ])('%s, case %#', (code, options) => {
    expect(thrown(() => refinePrompt(mass, options))).toMatchObject({ code });
  });
});
