import fc from 'fast-check';
import { expect, test } from 'vitest';
import { batchBySize } from '../../../src/batch/packing/batch-by-size.js';
import { numRuns, runTimeout } from '../../support/num-runs.js';

const sorted = [2, 3, 3, 4, 5, 5, 9, 10];

test('eight sentences under 20 padded tokens make three batches', () => {
  expect(batchBySize(sorted, 20, 0, 1)).toEqual([
    [0, 1, 2, 3],
    [4, 5],
    [6, 7],
  ]);
});

test('a cap of three sentences makes [0, 1, 2] [3, 4, 5] [6, 7]', () => {
  expect(batchBySize(sorted, 20, 3, 1)).toEqual([
    [0, 1, 2],
    [3, 4, 5],
    [6, 7],
  ]);
});

test('a batch above the multiple is cut down to a multiple, also at the end', () => {
  expect(batchBySize([1, 1, 1, 1, 1], 4, 0, 3).map((batch) => batch.length)).toEqual([3, 2]);
  expect(batchBySize(new Array(10).fill(1), 0, 0, 8).map((batch) => batch.length)).toEqual([8, 2]);
});

test('without limits everything is one batch; nothing makes no batch', () => {
  expect(batchBySize([5, 1, 9], 0)).toEqual([[0, 1, 2]]);
  expect(batchBySize([], 10)).toEqual([]);
});

test(
  'equals the plain rule of fairseq, batch by batch',
  () => {
    const lengths = fc.array(fc.integer({ min: 1, max: 30 }), { maxLength: 60 });
    const limits = fc.tuple(
      fc.constantFrom(0, 30, 47, 90),
      fc.integer({ min: 0, max: 9 }),
      fc.integer({ min: 1, max: 5 }),
    );
    fc.assert(
      fc.property(lengths, limits, (lens, [maxTokens, maxSentences, multiple]) => {
        const batches = batchBySize(lens, maxTokens, maxSentences, multiple);
        expect(batches).toEqual(plain(lens, maxTokens, maxSentences, multiple));
        expect(batches.flat()).toEqual([...lens.keys()]);
      }),
      numRuns(0.3),
    );
  },
  runTimeout(0.3, 3),
);

test('a sentence above maxTokens, and limits that are no integers, are refused', () => {
  expect(() => batchBySize([1, 21], 20)).toThrow(
    expect.objectContaining({ code: 'ERR_VARLEN_RANGE', details: expect.objectContaining({ index: 1 }) }),
  );
  expect(() => batchBySize([1], Number.NaN)).toThrow(/batchBySize: maxTokens must be an integer/);
  expect(() => batchBySize([1], 4, 0.5)).toThrow(/maxSentences/);
  expect(() => batchBySize([1], 4, 0, 0)).toThrow(/multiple/);
  expect(() => batchBySize([-1], 4)).toThrow(/lengths\[0\]/);
});

/** fairseq's slow baseline: append one by one, look back when the next does not fit. */
function plain(lengths: number[], maxTokens: number, maxSentences: number, multiple: number): number[][] {
  const batches: number[][] = [];
  let batch: number[] = [];
  const overflows = (candidate: number[]) =>
    (maxTokens > 0 && Math.max(...candidate.map((i) => lengths[i])) * candidate.length > maxTokens) ||
    (maxSentences > 0 && candidate.length > maxSentences);
  const close = () => {
    const kept = Math.max(multiple * Math.floor(batch.length / multiple), batch.length % multiple);
    const count = batch.length > multiple ? multiple * Math.floor(batch.length / multiple) : kept;
    batches.push(batch.slice(0, count));
    batch = batch.slice(count);
  };
  for (let i = 0; i < lengths.length; i++) {
    while (batch.length > 0 && overflows([...batch, i])) close();
    batch.push(i);
  }
  while (batch.length > 0) close();
  return batches;
}
