/** Batch E1: five sequences in two groups, the fifth empty, one token masked. Its results were computed
 * by hand-written float64 loops and every gradient was compared with central differences. */

export const cuSeqlens: Int32Array = Int32Array.of(0, 2, 5, 6, 10, 10);
export const lossMask: Uint8Array = Uint8Array.of(1, 1, 1, 1, 1, 1, 1, 0, 1, 1);
export const groupIds: Int32Array = Int32Array.of(0, 0, 1, 1, 1);
export const rewards: Float64Array = Float64Array.of(1, 0, 0.5, 1, 0);
/** Active tokens per sequence. */
export const lengths: Int32Array = Int32Array.of(2, 3, 1, 3, 0);

export const logprobs: Float64Array = Float64Array.of(
  -0.5,
  -1.2,
  -0.1,
  -2.0,
  -0.7,
  -1.5,
  -0.3,
  -0.9,
  -0.05,
  -2.5,
);
export const oldLogprobs: Float64Array = Float64Array.of(
  -0.6,
  -1.0,
  -0.1,
  -2.5,
  -0.7,
  -0.4,
  -0.35,
  -0.8,
  -0.05,
  -2.0,
);
export const refLogprobs: Float64Array = Float64Array.of(
  -0.55,
  -1.1,
  -0.2,
  -2.2,
  -0.6,
  -0.9,
  -0.3,
  -1.0,
  -0.1,
  -2.1,
);
export const rolloutLogprobs: Float64Array = Float64Array.of(
  -0.62,
  -1.0,
  -0.1,
  -2.4,
  -0.75,
  -0.45,
  -0.3,
  -0.8,
  -0.05,
  -2.05,
);
