import { type AttentionReferenceOptions, varlenAttentionReference } from '../../src/testing/index.js';
import { normals } from '../support/random.js';

/** One call with its results; `-Infinity` is written as `null`. */
export interface AttentionGoldCase {
  readonly name: string;
  readonly options: AttentionReferenceOptions & {
    readonly numKvHeads: number;
    readonly cuSeqlensQ: readonly number[];
    readonly cuSeqlensK: readonly number[];
  };
  readonly inputs: {
    readonly q: readonly number[];
    readonly k: readonly number[];
    readonly v: readonly number[];
    readonly dOut: readonly number[];
    readonly dLse?: readonly number[];
  };
  readonly out: readonly number[];
  readonly softmaxLse: readonly (number | null)[];
  readonly dq: readonly number[];
  readonly dk: readonly number[];
  readonly dv: readonly number[];
}

export interface AttentionGold {
  readonly formula: string;
  readonly dtype: string;
  readonly made: string;
  /** Allowed error relative to the largest absolute value of each result. */
  readonly tolerance: Readonly<Record<'float32' | 'float16' | 'bfloat16', number>> & { readonly why: string };
  readonly cases: readonly AttentionGoldCase[];
}

const provenance = {
  formula:
    'native/ops/varlen-attention/varlen-attention.h: softmax attention per sequence, bottom-right aligned masks; gradients by the chain rule',
  dtype: 'float64 from inputs that every dtype holds exactly (multiples of 1/32 below 4)',
  made: 'varlenAttentionReference of varlen/testing through test/gold/make.ts, rounded to 10 digits',
  tolerance: {
    // JSON holds the numbers; the reason stands beside them.
    float32: 4e-6,
    float16: 4 * 2 ** -11,
    bfloat16: 4 * 2 ** -8,
    why: 'float32: a few tens of float32 roundings of 6e-8. 16 bits: arithmetic is float32, results round once (2^-11, 2^-8), and gradients also see the rounding of out through delta; 4 covers both. softmaxLse is float32 in every dtype',
  },
};

const shared = { numHeads: 4, numKvHeads: 2, headDim: 4, cuSeqlensQ: [0, 3, 3, 8, 10], cuSeqlensK: [0, 5, 6, 9, 9] };

const cases: readonly (readonly [string, AttentionReferenceOptions, { dLse?: boolean; tail?: number }?])[] = [
  ['full attention, a sequence without queries and one without keys', shared],
  ['causal, more queries than keys in one sequence', { ...shared, causal: true }],
  ['causal, rows past the last sequence', { ...shared, causal: true }, { tail: 2 }],
  ['window of 2 keys to the left and 1 to the right', { ...shared, windowSize: [2, 1] }],
  ['causal window with a gradient of softmaxLse', { ...shared, causal: true, windowSize: [1, 0] }, { dLse: true }],
  ['softcap 1.5 on scale 1', { ...shared, softcap: 1.5, softmaxScale: 1 }],
  ['alibi', { ...shared, alibiSlopes: [0.5, 0.25, 0.125, 0.0625] }],
  [
    'causal, softcap, alibi per sequence',
    { ...shared, causal: true, softcap: 2, alibiSlopes: Array.from({ length: 16 }, (_, i) => ((i * 5) % 8) / 8) },
  ],
  ['slots used in part', { ...shared, causal: true, seqUsedQ: [2, 0, 5, 1], seqUsedK: [4, 1, 0, 0] }],
  ['one key/value head, negative scale', { ...shared, numKvHeads: 1, softmaxScale: -0.5, causal: true }],
  [
    'a shared prompt of 3 with answers of 2 and 2, then a chain of 2',
    { ...shared, causal: true, cuSeqlensQ: [0, 7, 9], cuSeqlensK: [0, 7, 9], keyEnd: [7, 7, 7, 5, 5, 7, 7, 2, 2] },
    { dLse: true },
  ],
  ['headDim 1', { ...shared, headDim: 1, causal: true }],
];

/** Multiples of 1/32 below 4: exact in float16 and bfloat16. */
function exact(count: number, seed: number): number[] {
  return Array.from(normals(count, seed), (x) => Math.max(-127, Math.min(127, Math.round(x * 32))) / 32);
}

function digits(values: Iterable<number>): number[] {
  return Array.from(values, (x) => Number(x.toPrecision(10)));
}

function makeCase(
  [name, options, { dLse = false, tail = 0 } = {}]: (typeof cases)[number],
  index: number,
): AttentionGoldCase {
  const { numHeads, headDim, numKvHeads = numHeads } = options;
  const cuSeqlensQ = Array.from(options.cuSeqlensQ);
  const cuSeqlensK = Array.from(options.cuSeqlensK ?? cuSeqlensQ);
  const totalQ = cuSeqlensQ[cuSeqlensQ.length - 1] + tail;
  const totalK = cuSeqlensK[cuSeqlensK.length - 1] + tail;
  const inputs = {
    q: exact(totalQ * numHeads * headDim, 10 * index),
    k: exact(totalK * numKvHeads * headDim, 10 * index + 1),
    v: exact(totalK * numKvHeads * headDim, 10 * index + 2),
    dOut: exact(totalQ * numHeads * headDim, 10 * index + 3),
    ...(dLse ? { dLse: exact(totalQ * numHeads, 10 * index + 4) } : {}),
  };
  const { out, softmaxLse, dq, dk, dv } = varlenAttentionReference(inputs, options);
  return {
    name,
    options: { ...options, numKvHeads, cuSeqlensQ, cuSeqlensK },
    inputs,
    out: digits(out),
    softmaxLse: digits(softmaxLse).map((x) => (x === -Infinity ? null : x)),
    dq: digits(dq!),
    dk: digits(dk!),
    dv: digits(dv!),
  };
}

/** The gold file of attention: one line per array. */
export function varlenAttentionGold(): string {
  const gold: AttentionGold = { ...provenance, cases: cases.map(makeCase) };
  const text = JSON.stringify(gold, null, 1);
  return `${text.replace(/\[\s+([-\d.,\se+null]*?)\s+\]/g, (_, list: string) => `[${list.replace(/\s+/g, ' ')}]`)}\n`;
}
