import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { collatePacked, packRows, transferList, unpack } from '../../src/batch/pack.js';
import { collatePadded } from '../../src/batch/pad.js';
import { IGNORE, type Sample } from '../../src/batch/sample.js';
import { thrown } from '../support/thrown.js';

const ids = (...tokens: number[]): Sample => ({ inputIds: Int32Array.from(tokens) });
const X = IGNORE;

describe('collatePacked', () => {
  test('follows the worked example of 3, 2 and 4 tokens padded to a multiple of 4', () => {
    const samples = [ids(11, 12, 13), ids(21, 22), ids(31, 32, 33, 34)];
    const batch = collatePacked(samples, { padToMultipleOf: 4, seqIds: true });
    expect([...batch.inputIds]).toEqual([11, 12, 13, 21, 22, 31, 32, 33, 34, 0, 0, 0]);
    expect([...batch.cuSeqlens]).toEqual([0, 3, 5, 9, 12]);
    expect([...batch.positionIds]).toEqual([0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]);
    expect([...batch.labels]).toEqual([X, 12, 13, X, 22, X, 32, 33, 34, X, X, X]);
    expect([...batch.lossMask]).toEqual([0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0]);
    expect([...batch.seqIds!]).toEqual([0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1, -1]);
    expect(batch).toMatchObject({ maxSeqlen: 4, numSeqs: 3, totalTokens: 12, numPadTokens: 3, weight: 6 });
    expect(batch.keyEnd).toBeUndefined();
    expect(Object.isFrozen(batch)).toBe(true);
  });

  test('shifts labels to the row that predicts them and drops the last', () => {
    const batch = collatePacked([ids(11, 12, 13), ids(21)], { labels: 'shifted' });
    expect([...batch.labels]).toEqual([12, 13, X, X]);
    expect([...batch.lossMask]).toEqual([1, 1, 0, 0]);
    expect(batch.weight).toBe(2);
  });

  test('never counts a label that has no prediction, whatever the sample says', () => {
    const sample = { inputIds: Int32Array.of(1, 2, 3), labels: Int32Array.of(1, X, 3) };
    const batch = collatePacked([sample]);
    expect([...batch.labels]).toEqual([X, X, 3]);
    expect(batch.weight).toBe(1);
    const masked = collatePacked([{ inputIds: Int32Array.of(1, 2, 3), lossMask: Uint8Array.of(1, 0, 1) }]);
    expect([...masked.labels]).toEqual([X, X, 3]);
    expect([...masked.lossMask]).toEqual([0, 0, 1]);
    expect(masked.weight).toBe(1);
  });

  test('counts the same tokens in both label conventions', () => {
    const mask = fc.uint8Array({ min: 0, max: 1, minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(fc.array(mask, { minLength: 1, maxLength: 6 }), (masks) => {
        const samples = masks.map((lossMask) => ({
          inputIds: Int32Array.from(lossMask, (_, i) => i + 1),
          lossMask,
        }));
        const unshifted = collatePacked(samples);
        const shifted = collatePacked(samples, { labels: 'shifted' });
        expect(shifted.weight).toBe(unshifted.weight);
        for (const batch of [unshifted, shifted]) {
          expect(batch.lossMask.reduce((sum, bit) => sum + bit, 0)).toBe(batch.weight);
          batch.labels.forEach((label, row) => {
            expect(label !== X).toBe(batch.lossMask[row] === 1);
          });
        }
        // A label of the shifted batch is the label one row later of the other.
        for (let row = 0; row + 1 < unshifted.totalTokens; row++) {
          if (shifted.lossMask[row] === 1) expect(shifted.labels[row]).toBe(unshifted.labels[row + 1]);
        }
      }),
    );
  });

  test('lays a shared prompt out once and closes each answer to the others', () => {
    const batch = collatePacked([
      {
        promptIds: Int32Array.of(1, 2, 3),
        responses: [{ ids: Int32Array.of(4, 5) }, { ids: Int32Array.of(6, 7) }],
      },
      ids(8, 9),
    ]);
    expect([...batch.inputIds]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect([...batch.keyEnd!]).toEqual([7, 7, 7, 5, 5, 7, 7, 2, 2]);
    expect([...batch.positionIds]).toEqual([0, 1, 2, 3, 4, 3, 4, 0, 1]);
    expect([...batch.responseCuSeqlens!]).toEqual([0, 2, 4]);
    expect([...batch.responseIndex!]).toEqual([3, 4, 5, 6]);
    // The first token of the second answer is predicted by the prompt's last row, not by the row before it.
    expect([...batch.responsePredictor!]).toEqual([2, 3, 2, 5]);
    expect([...batch.responseLossMask!]).toEqual([1, 1, 1, 1]);
    expect([...batch.labels]).toEqual([X, X, X, 4, 5, X, 7, X, 9]);
    expect(batch.weight).toBe(4);
  });

  test('keeps positions of several axes axis-major', () => {
    const sample = { inputIds: Int32Array.of(1, 2), positionIds: Int32Array.of(0, 1, 5, 6, 7, 8) };
    const batch = collatePacked([ids(9), sample], { padToMultipleOf: 4 });
    expect(batch.positionAxes).toBe(3);
    expect([...batch.positionIds]).toEqual([0, 0, 1, 0, 0, 5, 6, 0, 0, 7, 8, 0]);
  });

  test('fills a dirty buffer from a pool completely', () => {
    const allocate = (bytes: number) => new Uint8Array(bytes + 64).fill(0xab).buffer;
    const samples = [
      ids(1, 2, 3),
      { promptIds: Int32Array.of(1), responses: [{ ids: Int32Array.of(2), lossMask: Uint8Array.of(0) }] },
    ];
    for (const labels of ['unshifted', 'shifted'] as const) {
      const options = { labels, seqIds: true, padToMultipleOf: 8 };
      expect(collatePacked(samples, { ...options, allocate })).toEqual(collatePacked(samples, options));
    }
    const dirty = collatePacked(samples, { allocate });
    expect(transferList(dirty)).toEqual([dirty.inputIds.buffer]);
  });

  test('names the sample and both lengths when labels or mask do not fit', () => {
    const bad = { id: 'x7', inputIds: Int32Array.of(1, 2), labels: Int32Array.of(1) };
    expect(thrown(() => collatePacked([bad]))).toMatchObject({
      code: 'ERR_VARLEN_SAMPLE',
      details: { id: 'x7', labels: 1, length: 2 },
    });
    const mask = { id: 8, inputIds: Int32Array.of(1, 2), lossMask: Uint8Array.of(1, 1, 1) };
    expect(thrown(() => collatePacked([mask]))).toMatchObject({
      code: 'ERR_VARLEN_SAMPLE',
      details: { id: 8, lossMask: 3, length: 2 },
    });
  });

  test.each([
    ['no samples', () => collatePacked([]), 'ERR_VARLEN_RANGE'],
    ['an empty sample', () => collatePacked([ids()]), 'ERR_VARLEN_SAMPLE'],
    ['a plain array of ids', () => collatePacked([{ inputIds: [1, 2] as never }]), 'ERR_VARLEN_TYPE'],
    ['null for a sample', () => collatePacked([null as never]), 'ERR_VARLEN_TYPE'],
    ['something else than an array', () => collatePacked('abc' as never), 'ERR_VARLEN_TYPE'],
    [
      'odd positions',
      () => collatePacked([{ inputIds: Int32Array.of(1, 2), positionIds: Int32Array.of(0, 1, 2) }]),
      'ERR_VARLEN_SAMPLE',
    ],
    [
      'axes that differ in a batch',
      () =>
        collatePacked([
          { inputIds: Int32Array.of(1), positionIds: Int32Array.of(0, 1) },
          { inputIds: Int32Array.of(1), positionIds: Int32Array.of(0) },
        ]),
      'ERR_VARLEN_SHAPE',
    ],
    ['a padding multiple of 0', () => collatePacked([ids(1)], { padToMultipleOf: 0 }), 'ERR_VARLEN_RANGE'],
    ['a padding id beyond int32', () => collatePacked([ids(1)], { padId: 2 ** 31 }), 'ERR_VARLEN_RANGE'],
    [
      'an unknown label word',
      () => collatePacked([ids(1)], { labels: 'next' as never }),
      'ERR_VARLEN_OPTION',
    ],
    [
      'a pool that gives too little',
      () => collatePacked([ids(1)], { allocate: () => new ArrayBuffer(4) }),
      'ERR_VARLEN_BUFFER',
    ],
    [
      'an empty answer',
      () => collatePacked([{ promptIds: Int32Array.of(1), responses: [{ ids: new Int32Array(0) }] }]),
      'ERR_VARLEN_SAMPLE',
    ],
    [
      'no answers',
      () => collatePacked([{ promptIds: Int32Array.of(1), responses: [] }]),
      'ERR_VARLEN_SAMPLE',
    ],
  ])('refuses %s', (_, call, code) => {
    expect(thrown(call)).toMatchObject({ code });
  });

  test('refuses rows that int32 offsets cannot address, before it allocates', () => {
    const million = { inputIds: new Int32Array(2 ** 20) };
    const samples = new Array(2 ** 11).fill(million);
    expect(thrown(() => collatePacked(samples))).toMatchObject({ code: 'ERR_VARLEN_OVERFLOW' });
    expect(thrown(() => collatePadded(samples))).toMatchObject({ code: 'ERR_VARLEN_OVERFLOW' });
  });
});

describe('collatePadded', () => {
  test('pads on either side and masks what is not real', () => {
    const samples = [ids(11, 12, 13), ids(21)];
    const right = collatePadded(samples, { padToMultipleOf: 4, padId: 7 });
    expect([...right.inputIds]).toEqual([11, 12, 13, 7, 21, 7, 7, 7]);
    expect([...right.attentionMask]).toEqual([1, 1, 1, 0, 1, 0, 0, 0]);
    expect([...right.labels]).toEqual([X, 12, 13, X, X, X, X, X]);
    expect(right).toMatchObject({ numSeqs: 2, maxSeqlen: 4, totalTokens: 4, numPadTokens: 4, weight: 2 });
    const left = collatePadded(samples, { padSide: 'left', labels: 'shifted' });
    expect([...left.inputIds]).toEqual([11, 12, 13, 0, 0, 21]);
    expect([...left.positionIds]).toEqual([0, 1, 2, 0, 0, 0]);
    expect([...left.attentionMask]).toEqual([1, 1, 1, 0, 0, 1]);
    expect([...left.labels]).toEqual([12, 13, X, X, X, X]);
  });

  test('refuses shared prompts', () => {
    const shared = { promptIds: Int32Array.of(1), responses: [{ ids: Int32Array.of(2) }] };
    expect(thrown(() => collatePadded([shared as never]))).toMatchObject({ code: 'ERR_VARLEN_INCOMPATIBLE' });
  });
});

describe('unpack', () => {
  test('is the exact inverse of packRows', () => {
    const row = fc.array(fc.integer(), { maxLength: 9 }).map((values) => Int32Array.from(values));
    fc.assert(
      fc.property(fc.array(row, { minLength: 1, maxLength: 9 }), (rows) => {
        const { values, cuSeqlens } = packRows(rows);
        expect(unpack(values, cuSeqlens)).toEqual(rows);
      }),
    );
  });

  test('cuts rows of any width and gives back what was collated', () => {
    const samples = [ids(1, 2), ids(3)];
    const { inputIds, cuSeqlens } = collatePacked(samples);
    expect(unpack(inputIds, cuSeqlens)).toEqual(samples.map((sample) => sample.inputIds));
    const wide = unpack(Float32Array.of(1, 2, 3, 4, 5, 6), Int32Array.of(0, 2, 3));
    expect(wide).toEqual([Float32Array.of(1, 2, 3, 4), Float32Array.of(5, 6)]);
  });

  test('refuses offsets that fall and values that do not divide', () => {
    const values = new Int32Array(4);
    expect(thrown(() => unpack(values, Int32Array.of(0, 3, 2)))).toMatchObject({
      code: 'ERR_VARLEN_CU_SEQLENS',
    });
    expect(thrown(() => unpack(values, Int32Array.of(1, 4)))).toMatchObject({
      code: 'ERR_VARLEN_CU_SEQLENS',
    });
    expect(thrown(() => unpack(values, Int32Array.of(0, 3)))).toMatchObject({ code: 'ERR_VARLEN_SHAPE' });
    expect(thrown(() => packRows([]))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
  });
});
