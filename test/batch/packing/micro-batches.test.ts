import fc from 'fast-check';
import { expect, test } from 'vitest';
import { microBatches } from '../../../src/batch/packing/micro-batches.js';
import { numRuns, runTimeout } from '../../support/num-runs.js';

test('1000 tokens under a limit of 500 make two micro-batches of 500 tokens', () => {
  // 500 tokens each; [0, 3] costs more, since attention is quadratic.
  expect(microBatches([400, 300, 200, 100], 500)).toEqual([
    [0, 3],
    [1, 2],
  ]);
});

test('the light micro-batches stand at both ends', () => {
  // One sequence each, cost by rank: 5 4 3 2 1 -> even ranks backwards (1 3 5), then odd (4 2).
  const lengths = [500, 400, 300, 200, 100];
  const order = microBatches(lengths, 500, { min: 5 }).map(([i]) => lengths[i]);
  expect(order).toEqual([100, 300, 500, 400, 200]);
});

test('the count is raised to min and rounded up to a multiple', () => {
  const lengths = new Array(16).fill(10);
  expect(microBatches(lengths, 100)).toHaveLength(2);
  expect(microBatches(lengths, 100, { min: 3 })).toHaveLength(3);
  expect(microBatches(lengths, 100, { min: 3, multipleOf: 4 })).toHaveLength(4);
});

test(
  'every sequence is in exactly one micro-batch and none is empty',
  () => {
    const lengths = fc.array(fc.integer({ min: 0, max: 100 }), { minLength: 4, maxLength: 40 });
    fc.assert(
      fc.property(
        lengths,
        fc.integer({ min: 100, max: 400 }),
        fc.integer({ min: 1, max: 4 }),
        (lens, limit, min) => {
          const parts = microBatches(lens, limit, { min });
          expect(parts.flat().sort((a, b) => a - b)).toEqual([...lens.keys()]);
          expect(Math.min(...parts.map((part) => part.length))).toBeGreaterThan(0);
          const tokens = lens.reduce((sum, length) => sum + length, 0);
          expect(parts).toHaveLength(Math.max(min, Math.min(lens.length, Math.ceil(tokens / limit))));
        },
      ),
      numRuns(0.1),
    );
  },
  runTimeout(0.1, 3),
);

test('the balance follows costOf', () => {
  // By count the two short ones go together; by squared length the long one needs a part of its own.
  const parts = microBatches([30, 10, 10, 10], 30, { min: 2, costOf: (length) => length ** 2 });
  expect(parts).toEqual([[0], [1, 2, 3]]);
});

test('bad limits, sequences over the limit, and too few sequences are refused', () => {
  expect(() => microBatches([10, 50], 40)).toThrow(
    expect.objectContaining({ code: 'ERR_VARLEN_RANGE', details: expect.objectContaining({ index: 1 }) }),
  );
  expect(() => microBatches([10, 10], 40, { min: 3 })).toThrow(
    /too few sequences; got 2, expected one for each of 3/,
  );
  expect(() => microBatches([10, 10, 10], 40, { multipleOf: 4 })).toThrow(/each of 4/);
  expect(() => microBatches([], 40)).toThrow(/too few sequences/);
  expect(() => microBatches([10], 0)).toThrow(/maxTokens/);
  expect(() => microBatches([10], 40, { multipleOf: 0 })).toThrow(/multipleOf/);
});
