import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { chunkLabels, expandChunks, successShares } from '../../../src/rl/index.js';
import { cuSeqlensOf } from '../../support/arbitraries.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

test('a success share is successes over tries', () => {
  expect(successShares(Int32Array.of(0, 3, 8), Int32Array.of(4, 4, 8))).toEqual(Float64Array.of(0, 0.75, 1));
  expect(code(() => successShares(Int32Array.of(-1), Int32Array.of(4)))).toBe('ERR_VARLEN_RANGE');
  expect(code(() => successShares(Int32Array.of(1), Int32Array.of(1, 2)))).toBe('ERR_VARLEN_SHAPE');
});

describe('labels of chunks', () => {
  // Two answers: shares 0.25 -> 0.5 -> 0.5 from a prompt of 0.5, and 0.75 from a prompt of 0.25.
  const chunks = {
    shares: Float64Array.of(0.25, 0.5, 0.5, 0.75),
    cuChunks: Int32Array.of(0, 3, 3, 4),
    promptShares: Float64Array.of(0.5, 0, 0.25),
  };

  test.each([
    ['absolute', { kind: 'absolute' }, [0, 1, 1, 1]],
    ['absolute, higher', { kind: 'absolute', threshold: 0.75 }, [0, 0, 0, 1]],
    ['difference', { kind: 'relative-difference', tau: 0.25 }, [0, 1, 0, 1]],
    ['difference, none needed', { kind: 'relative-difference', tau: 0 }, [0, 1, 1, 1]],
    ['ratio', { kind: 'relative-ratio', tau: 2 }, [0, 1, 0, 1]],
    ['ratio, equal', { kind: 'relative-ratio', tau: 1 }, [0, 1, 1, 1]],
  ] as const)('%s', (_, rule, labels) => {
    expect(chunkLabels(chunks, rule)).toEqual(Uint8Array.from(labels));
  });

  test('an absolute rule needs no share of the prompt, a relative one does', () => {
    const { shares, cuChunks } = chunks;
    expect(chunkLabels({ shares, cuChunks }, { kind: 'absolute' })).toHaveLength(4);
    expect(code(() => chunkLabels({ shares, cuChunks }, { kind: 'relative-ratio', tau: 1 }))).toBe(
      'ERR_VARLEN_MISSING_INPUT',
    );
  });

  test('refuse a rule without its threshold, shares above 1 and offsets with another end', () => {
    expect(code(() => chunkLabels(chunks, { kind: 'relative-difference' } as never))).toBe('ERR_VARLEN_TYPE');
    expect(code(() => chunkLabels(chunks, { kind: 'better' } as never))).toBe('ERR_VARLEN_OPTION');
    expect(
      code(() => chunkLabels({ ...chunks, shares: Float64Array.of(0, 0, 0, 2) }, { kind: 'absolute' })),
    ).toBe('ERR_VARLEN_RANGE');
    expect(code(() => chunkLabels({ ...chunks, cuChunks: Int32Array.of(0, 3) }, { kind: 'absolute' }))).toBe(
      'ERR_VARLEN_CU_SEQLENS',
    );
  });
});

describe('values of chunks', () => {
  test('reach every token of their chunk and no other', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(5), fc.integer({ min: -99, max: 99 }))), (chunks) => {
        const offsets = cuSeqlensOf(chunks.map(([length]) => length));
        const tokens = expandChunks(
          Float32Array.from(chunks, ([, value]) => value),
          offsets,
        );
        expect([...tokens]).toEqual(chunks.flatMap(([length, value]) => Array(length).fill(value)));
      }),
      numRuns(0.05),
    );
  });

  test.each([
    ['a start past 0', [1.5], [1, 2], 'ERR_VARLEN_CU_SEQLENS'],
    ['falling offsets', [1, 2], [0, 2, 1], 'ERR_VARLEN_CU_SEQLENS'],
    ['no offsets', [], [], 'ERR_VARLEN_CU_SEQLENS'],
    ['one offset too few', [1, 2], [0, 2], 'ERR_VARLEN_SHAPE'],
    ['NaN', [NaN], [0, 2], 'ERR_VARLEN_RANGE'],
  ])('refuse %s', (_, values, offsets, expected) => {
    expect(code(() => expandChunks(Float32Array.from(values), Int32Array.from(offsets)))).toBe(expected);
  });
});
