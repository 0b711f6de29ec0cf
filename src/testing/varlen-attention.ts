/**
 * Attention over packed sequences as plain loops in float64: what every fast version is measured
 * against from JavaScript. Written from the formulas in native/ops/varlen-attention/varlen-attention.h
 * and independent of the native code.
 */

/** Elements of q, k, v in row-major order, any number array. */
export interface AttentionInputs {
  /** `[totalTokensQ, numHeads, headDim]` */
  readonly q: ArrayLike<number>;
  /** `[totalTokensK, numKvHeads, headDim]` */
  readonly k: ArrayLike<number>;
  /** `[totalTokensK, numKvHeads, headDim]` */
  readonly v: ArrayLike<number>;
  /** Gradient of the output, in the shape of q; asks for the gradients too. */
  readonly dOut?: ArrayLike<number>;
  /** Gradient of `softmaxLse`, in its shape. Default 0; used only beside `dOut`. */
  readonly dLse?: ArrayLike<number>;
}

/** Shapes and options, named as those of `varlenAttention`. */
export interface AttentionReferenceOptions {
  readonly numHeads: number;
  /** Default `numHeads`. */
  readonly numKvHeads?: number;
  readonly headDim: number;
  readonly cuSeqlensQ: ArrayLike<number>;
  /** Default `cuSeqlensQ`. */
  readonly cuSeqlensK?: ArrayLike<number>;
  /** `[numSeqs]`, rows used out of each slot. Default: all. */
  readonly seqUsedQ?: ArrayLike<number>;
  readonly seqUsedK?: ArrayLike<number>;
  /** Default `headDim ** -0.5`. */
  readonly softmaxScale?: number;
  readonly causal?: boolean;
  readonly windowSize?: readonly [left: number, right: number];
  readonly softcap?: number;
  /** `[numHeads]` or `[numSeqs * numHeads]` */
  readonly alibiSlopes?: ArrayLike<number>;
  /** `[totalTokensK]`, relative to a sequence's start. */
  readonly keyEnd?: ArrayLike<number>;
  /** Compute every n-th query row of a sequence only; the others stay 0. Forward only. Default 1. */
  readonly rowStep?: number;
}

/** Results in float64. Gradients are there when `dOut` was given. */
export interface AttentionReference {
  /** `[totalTokensQ, numHeads, headDim]` */
  readonly out: Float64Array;
  /** `[numHeads, totalTokensQ]`, natural log */
  readonly softmaxLse: Float64Array;
  readonly dq?: Float64Array;
  readonly dk?: Float64Array;
  readonly dv?: Float64Array;
}

function dot(a: ArrayLike<number>, aStart: number, b: ArrayLike<number>, bStart: number, n: number): number {
  let sum = 0;
  for (let d = 0; d < n; d++) sum += a[aStart + d] * b[bStart + d];
  return sum;
}

/** `target[row] += factor * source[row]` */
function addScaled(
  target: Float64Array,
  targetStart: number,
  factor: number,
  source: ArrayLike<number>,
  sourceStart: number,
  n: number,
): void {
  for (let d = 0; d < n; d++) target[targetStart + d] += factor * source[sourceStart + d];
}

/**
 * Attention forward, and backward when `dOut` is given, in float64.
 *
 * @example
 * ```ts
 * const { out } = varlenAttentionReference({ q, k, v }, { numHeads: 2, headDim: 8, cuSeqlensQ: [0, 3, 5] });
 * ```
 */
export function varlenAttentionReference(
  { q, k, v, dOut, dLse }: AttentionInputs,
  options: AttentionReferenceOptions,
): AttentionReference {
  const {
    numHeads,
    headDim,
    cuSeqlensQ,
    causal = false,
    softcap = 0,
    alibiSlopes,
    keyEnd,
    rowStep = 1,
  } = options;
  const { numKvHeads = numHeads, cuSeqlensK = cuSeqlensQ, softmaxScale = headDim ** -0.5 } = options;
  const [windowLeft, windowRight] = options.windowSize ?? [-1, -1];
  const totalTokensQ = q.length / (numHeads * headDim);
  const out = new Float64Array(q.length);
  const softmaxLse = new Float64Array(numHeads * totalTokensQ).fill(-Infinity);
  const dq = new Float64Array(dOut === undefined ? 0 : q.length);
  const dk = new Float64Array(dOut === undefined ? 0 : k.length);
  const dv = new Float64Array(dOut === undefined ? 0 : v.length);

  /** Whether query `i` sees key `j` of a sequence whose diagonal is shifted by `shift`. */
  const keeps = (i: number, j: number, shift: number, firstKey: number): boolean => {
    const position = i + shift;
    if (causal && j > position) return false;
    if (windowLeft >= 0 && j < position - windowLeft) return false;
    if (windowRight >= 0 && j > position + windowRight) return false;
    return keyEnd === undefined || i < keyEnd[firstKey + j];
  };

  for (let b = 0; b + 1 < cuSeqlensQ.length; b++) {
    const firstQuery = cuSeqlensQ[b];
    const firstKey = cuSeqlensK[b];
    const lengthQ = options.seqUsedQ?.[b] ?? cuSeqlensQ[b + 1] - firstQuery;
    const lengthK = options.seqUsedK?.[b] ?? cuSeqlensK[b + 1] - firstKey;
    const shift = lengthK - lengthQ;
    const scores = new Float64Array(lengthK);
    const slopes = new Float64Array(lengthK); // d score / d (scale * q . k): 1 without a cap
    for (let head = 0; head < numHeads; head++) {
      const bias = alibiSlopes?.[alibiSlopes.length === numHeads ? head : b * numHeads + head] ?? 0;
      const kvHead = Math.floor((head * numKvHeads) / numHeads);
      const rowOfQ = (i: number) => ((firstQuery + i) * numHeads + head) * headDim;
      const rowOfK = (j: number) => ((firstKey + j) * numKvHeads + kvHead) * headDim;
      for (let i = 0; i < lengthQ; i += rowStep) {
        const queryRow = rowOfQ(i);
        let maximum = -Infinity;
        for (let j = 0; j < lengthK; j++) {
          if (!keeps(i, j, shift, firstKey)) {
            scores[j] = -Infinity;
            continue;
          }
          let score = softmaxScale * dot(q, queryRow, k, rowOfK(j), headDim);
          slopes[j] = 1;
          if (softcap > 0) {
            const capped = Math.tanh(score / softcap);
            score = softcap * capped;
            slopes[j] = 1 - capped * capped;
          }
          score -= bias * Math.abs(i + shift - j);
          scores[j] = score;
          maximum = Math.max(maximum, score);
        }
        if (maximum === -Infinity) continue; // no key: out = 0, lse = -inf, no gradient

        let sum = 0;
        for (let j = 0; j < lengthK; j++) sum += Math.exp(scores[j] - maximum);
        const lse = maximum + Math.log(sum);
        softmaxLse[head * totalTokensQ + firstQuery + i] = lse;
        for (let j = 0; j < lengthK; j++) {
          const probability = Math.exp(scores[j] - lse);
          if (probability > 0) addScaled(out, queryRow, probability, v, rowOfK(j), headDim);
        }
        if (dOut === undefined) continue;

        const dLseHere = dLse?.[head * totalTokensQ + firstQuery + i] ?? 0;
        const delta = dot(dOut, queryRow, out, queryRow, headDim) - dLseHere;
        for (let j = 0; j < lengthK; j++) {
          const probability = Math.exp(scores[j] - lse);
          if (probability === 0) continue;
          const keyRow = rowOfK(j);
          const dScore = probability * (dot(dOut, queryRow, v, keyRow, headDim) - delta);
          const dProduct = dScore * slopes[j] * softmaxScale;
          addScaled(dq, queryRow, dProduct, k, keyRow, headDim);
          addScaled(dk, keyRow, dProduct, q, queryRow, headDim);
          addScaled(dv, keyRow, probability, dOut, queryRow, headDim);
        }
      }
    }
  }
  return dOut === undefined ? { out, softmaxLse } : { out, softmaxLse, dq, dk, dv };
}
