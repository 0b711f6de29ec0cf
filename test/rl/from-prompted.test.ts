import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type PromptedBatch, responseBatchFromPrompted } from '../../src/rl/index.js';
import { thrown } from '../support/thrown.js';

const prompted: PromptedBatch = {
  cuSeqlens: Int32Array.of(0, 5, 7, 10),
  promptLengths: Int32Array.of(3, 2, 0),
  lossMask: Uint8Array.of(0, 0, 0, 1, 1, 0, 0, 1, 0, 1),
  logprobs: Float32Array.of(9, 9, 9, -1, -2, 9, 9, -3, -4, -5),
  klMask: Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 1, 1, 1),
  advantages: Float64Array.of(1, 2, 3),
};

test('prompts leave, tool output stays under its mask', () => {
  const batch = responseBatchFromPrompted(prompted);
  expect(batch).toEqual({
    cuSeqlens: Int32Array.of(0, 2, 2, 5),
    rows: Int32Array.of(3, 4, 7, 8, 9),
    lossMask: Uint8Array.of(1, 1, 1, 0, 1),
    logprobs: Float32Array.of(-1, -2, -3, -4, -5),
    klMask: Uint8Array.of(1, 0, 1, 1, 1),
    advantages: Float64Array.of(1, 2, 3),
    advantagesPer: 'sequence',
  });
});

test('advantages of tokens follow their tokens', () => {
  const advantages = Float64Array.from({ length: 10 }, (_, t) => t);
  const batch = responseBatchFromPrompted({ ...prompted, advantages });
  expect(batch.advantages).toEqual(Float64Array.of(3, 4, 7, 8, 9));
  expect(batch.advantagesPer).toBe('token');
});

test('every per-token field is taken at the same rows', () => {
  const rows = fc.array(fc.tuple(fc.nat(4), fc.nat(4)), { maxLength: 6 });
  fc.assert(
    fc.property(rows, (parts) => {
      const cuSeqlens = new Int32Array(parts.length + 1);
      parts.forEach(([prompt, answer], i) => {
        cuSeqlens[i + 1] = cuSeqlens[i] + prompt + answer;
      });
      const values = Float64Array.from({ length: cuSeqlens[parts.length] }, (_, t) => t);
      const fields = [
        'logprobs',
        'oldLogprobs',
        'refLogprobs',
        'rolloutLogprobs',
        'keptLogMass',
        'tokenWeights',
        'entropies',
      ] as const;
      const batch = responseBatchFromPrompted({
        cuSeqlens,
        promptLengths: Int32Array.from(parts, ([prompt]) => prompt),
        ...Object.fromEntries(fields.map((name) => [name, values])),
      });
      for (const name of fields) expect([...batch[name]!]).toEqual([...batch.rows]);
      const spans = parts.flatMap(([prompt, answer], i) =>
        Array.from({ length: answer }, (_, k) => cuSeqlens[i] + prompt + k),
      );
      expect([...batch.rows]).toEqual(spans);
    }),
  );
});

test.each<[string, Partial<PromptedBatch>, string]>([
  ['a prompt longer than its sequence', { promptLengths: Int32Array.of(6, 0, 0) }, 'ERR_VARLEN_RANGE'],
  ['a negative prompt', { promptLengths: Int32Array.of(-1, 0, 0) }, 'ERR_VARLEN_RANGE'],
  ['prompts of another number', { promptLengths: Int32Array.of(1) }, 'ERR_VARLEN_SHAPE'],
  ['offsets that fall', { cuSeqlens: Int32Array.of(0, 5, 4, 10) }, 'ERR_VARLEN_CU_SEQLENS'],
  ['a short field', { logprobs: Float32Array.of(1) }, 'ERR_VARLEN_SHAPE'],
  ['a mask of floats', { lossMask: new Float32Array(10) as never }, 'ERR_VARLEN_DTYPE'],
  ['advantages of neither number', { advantages: Float32Array.of(1, 2) }, 'ERR_VARLEN_SHAPE'],
])('%s is refused', (_name, more, code) => {
  expect(thrown(() => responseBatchFromPrompted({ ...prompted, ...more }))).toMatchObject({ code });
});
