import { expect, test } from 'vitest';
import { varlenAttentionReference } from '../../src/testing/index.js';

// Two heads on one key/value head of 2, scale 0.5; the second sequence has no query and one key, in the
// third, the first query sees no key. Results were computed apart from this code, in float64.
const numHeads = 2;
const options = {
  numHeads,
  numKvHeads: 1,
  headDim: 2,
  softmaxScale: 0.5,
  cuSeqlensQ: [0, 2, 2, 5],
  cuSeqlensK: [0, 3, 4, 6],
};
const inputs = {
  q: [
    -0.5, 0.25, -0.75, 0, 0.75, -0.25, 0.5, -0.5, 0.25, -0.75, 0, 0.75, -0.25, 0.5, -0.5, 0.25, -0.75, 0,
    0.75, -0.25,
  ],
  k: [-0.25, -0.75, 0.5, 0, -0.5, 0.75, 0.25, -0.25, -0.75, 0.5, 0, -0.5],
  v: [0.25, -0.5, 0, 0.5, -0.25, 0.25, -0.5, 0, 0.5, -0.25, 0.25, -0.5],
  dOut: [
    -0.5, 0.5, 0.25, 0, -0.25, -0.5, 0.5, 0.25, 0, -0.25, -0.5, 0.5, 0.25, 0, -0.25, -0.5, 0.5, 0.25, 0,
    -0.25,
  ],
};

/** Six decimals, as the expected values are given. */
function rounded(values: Float64Array | undefined): number[] {
  return Array.from(values!, (x) => Math.round(x * 1e6) / 1e6 + 0);
}

test('the worked example, causal: out, softmaxLse and all gradients', () => {
  const { out, softmaxLse, dq, dk, dv } = varlenAttentionReference(inputs, { ...options, causal: true });
  expect(rounded(out)).toEqual([
    0.130855, -0.02342, 0.142463, -0.069853, 0.020699, 0.098554, 0.033484, 0.06101, 0, 0, 0, 0, 0.5, -0.25,
    0.5, -0.25, 0.392463, -0.357537, 0.349953, -0.400047,
  ]);
  expect(rounded(softmaxLse)).toEqual([
    0.61612,
    1.085551,
    -Infinity,
    0.21875,
    0.843627,
    0.656127,
    1.097916,
    -Infinity,
    0.25,
    0.573012,
  ]);
  expect(rounded(dq)).toEqual([
    0.058465, 0.058465, -0.005745, -0.005745, -0.029616, -0.031411, 0.016065, -0.004113, 0, 0, 0, 0, 0, 0, 0,
    0, -0.017235, 0.02298, 0.005624, -0.007499,
  ]);
  expect(rounded(dk)).toEqual([
    0.06085, -0.026679, -0.054315, 0.020657, -0.006535, 0.006022, 0, 0, -0.022859, 0.001875, 0.022859,
    -0.001875,
  ]);
  expect(rounded(dv)).toEqual([
    -0.014686, 0.187347, -0.043604, 0.129103, 0.058291, -0.06645, 0, 0, 0.284926, -0.45749, 0.215074,
    -0.04251,
  ]);
});

test('the worked example with a window, a cap and linear biases', () => {
  const window = varlenAttentionReference(inputs, { ...options, windowSize: [1, 0] });
  expect(rounded(window.out.subarray(4, 8))).toEqual([-0.096228, 0.403772, -0.098084, 0.401916]);
  const capped = varlenAttentionReference(inputs, { ...options, causal: true, softcap: 0.5 });
  expect(rounded(capped.out.subarray(0, 4))).toEqual([0.130699, -0.022797, 0.141886, -0.067546]);
  expect(rounded(capped.dq!.subarray(0, 4))).toEqual([0.056058, 0.058244, -0.005194, -0.005555]);
  const biased = varlenAttentionReference(inputs, { ...options, causal: true, alibiSlopes: [0.5, 0.25] });
  expect(rounded(biased.out.subarray(0, 4))).toEqual([0.099953, 0.100188, 0.126953, -0.007812]);
  expect(rounded(biased.softmaxLse)).toEqual([
    0.385512,
    0.617526,
    -Infinity,
    0.21875,
    0.589742,
    0.521394,
    0.833518,
    -Infinity,
    0.25,
    0.480416,
  ]);
});

test('keyEnd hides a key from the rows past its end: row 5 sees keys 0, 1, 2 and 5', () => {
  const keyEnd = [7, 7, 7, 5, 5, 7, 7]; // a prompt of 3, two answers of 2
  const v = Float64Array.from({ length: 7 }, (_, key) => 2 ** key);
  const zeros = new Float64Array(7); // equal scores: out is the mean of the values seen
  const { out } = varlenAttentionReference(
    { q: zeros, k: zeros, v },
    { numHeads: 1, headDim: 1, cuSeqlensQ: [0, 7], causal: true, keyEnd },
  );
  expect(out[5]).toBeCloseTo((1 + 2 + 4 + 32) / 4, 12);
  expect(out[4]).toBeCloseTo((1 + 2 + 4 + 8 + 16) / 5, 12);
});

test('rowStep computes every n-th row of each sequence and leaves the others zero', () => {
  const all = varlenAttentionReference(inputs, options);
  const some = varlenAttentionReference(
    { q: inputs.q, k: inputs.k, v: inputs.v },
    { ...options, rowStep: 2 },
  );
  expect(some.out.subarray(0, 4)).toEqual(all.out.subarray(0, 4));
  expect(some.out.subarray(4, 8)).toEqual(new Float64Array(4));
  expect(some.out.subarray(8, 12)).toEqual(all.out.subarray(8, 12));
});
