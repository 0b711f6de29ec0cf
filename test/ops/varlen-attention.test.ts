import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  type DType,
  deviceInfo,
  memoryStats,
  scope,
  setNumThreads,
  Tensor,
  type VarlenAttentionOptions,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { gradCheck, varlenAttentionReference } from '../../src/testing/index.js';
import { type AttentionGold, varlenAttentionGold } from '../gold/varlen-attention.js';
import { cuSeqlensOf, masksAndScores, packs, selfPacks, trees } from '../support/arbitraries.js';
import {
  type AttentionCase,
  bitsOf,
  device,
  makeCase,
  maxAbs,
  maxError,
  referenceOf,
  shapesOf,
  tensor,
  tensorsOf,
  tries,
  valuesOf,
} from '../support/attention.js';

/** A test body whose tensors go when it ends. */
function scoped<T extends unknown[]>(body: (...args: T) => void): (...args: T) => void {
  return (...args) => scope(() => body(...args));
}

let alive: number;
beforeEach(() => {
  alive = memoryStats().liveTensors;
});
afterEach(() => {
  expect(memoryStats().liveTensors).toBe(alive); // every tensor of a test is disposed, ours inside too
});

/** Forward and backward of a case, everything disposed but the copies. */
function attend(c: AttentionCase, { dtype = 'float32' as DType, withDLse = false } = {}) {
  const { q, k, v, dOut, dLse } = tensorsOf(c, dtype);
  using result = varlenAttention(q, k, v, c.options);
  using gradients = varlenAttentionBackward(dOut, result.saved, withDLse ? { dLse } : {});
  const all = { out: result.out, softmaxLse: result.softmaxLse, ...gradients };
  const read = <T>(of: (t: Tensor) => T) => ({
    out: of(all.out),
    softmaxLse: of(all.softmaxLse),
    dq: of(all.dq),
    dk: of(all.dk),
    dv: of(all.dv),
  });
  const values = read(valuesOf);
  const bits = read(bitsOf);
  for (const t of [q, k, v, dOut, dLse]) t.dispose();
  return { values, bits };
}

/** float32 against the float64 reference, as the native accuracy tests bound it. */
function expectAccurate(c: AttentionCase, withDLse = false): void {
  const want = referenceOf(c, withDLse);
  const { values } = attend(c, { withDLse });
  const { softmaxScale = c.shape.headDim ** -0.5 } = c.options;
  expect(maxError(values.out, want.out)).toBeLessThanOrEqual(5e-6 * maxAbs(c.v));
  expect(maxError(values.softmaxLse, want.softmaxLse)).toBeLessThanOrEqual(
    1e-5 * (1 + maxAbs(want.softmaxLse)),
  );
  // A gradient that is 0 (one key) is the difference of terms as large as scale * dv.
  const terms = Math.abs(softmaxScale) * maxAbs(want.dv);
  expect(maxError(values.dq, want.dq)).toBeLessThanOrEqual(2e-5 * Math.max(maxAbs(want.dq), terms));
  expect(maxError(values.dk, want.dk)).toBeLessThanOrEqual(2e-5 * Math.max(maxAbs(want.dk), terms));
  expect(maxError(values.dv, want.dv)).toBeLessThanOrEqual(2e-5 * maxAbs(want.dv));
}

/** Row ranges of a pack, one sequence at a time. */
function alone(c: AttentionCase, b: number): AttentionCase {
  const { numHeads, numKvHeads, headDim } = c.shape;
  const { cuSeqlensQ, cuSeqlensK, alibiSlopes, keyEnd, ...rest } = c.options;
  const rows = (values: Float32Array, cu: Int32Array, width: number) =>
    values.slice(cu[b] * width, cu[b + 1] * width);
  const slopes = alibiSlopes as Float32Array | undefined;
  const mine = slopes?.length === numHeads ? slopes : slopes?.slice(b * numHeads, (b + 1) * numHeads);
  const lengthQ = cuSeqlensQ[b + 1] - cuSeqlensQ[b];
  const totalQ = shapesOf(c).q[0];
  return {
    shape: {
      ...c.shape,
      tailQ: 0,
      tailK: 0,
      lengthsQ: [lengthQ],
      lengthsK: [cuSeqlensK[b + 1] - cuSeqlensK[b]],
    },
    q: rows(c.q, cuSeqlensQ, numHeads * headDim),
    k: rows(c.k, cuSeqlensK, numKvHeads * headDim),
    v: rows(c.v, cuSeqlensK, numKvHeads * headDim),
    dOut: rows(c.dOut, cuSeqlensQ, numHeads * headDim),
    dLse: Float32Array.from(
      { length: numHeads * lengthQ },
      (_, i) => c.dLse[Math.floor(i / lengthQ) * totalQ + cuSeqlensQ[b] + (i % lengthQ)],
    ),
    options: {
      ...rest,
      ...(mine === undefined ? {} : { alibiSlopes: mine }),
      ...(keyEnd === undefined
        ? {}
        : { keyEnd: (keyEnd as Int32Array).slice(cuSeqlensK[b], cuSeqlensK[b + 1]) }),
      cuSeqlensQ: Int32Array.of(0, lengthQ),
      cuSeqlensK: Int32Array.of(0, cuSeqlensK[b + 1] - cuSeqlensK[b]),
    },
  };
}

/** Bytes of rows `first` to `end` of a float32 result whose rows have `width` numbers. */
function rowsOf(bits: Buffer, first: number, end: number, width: number): Buffer {
  return bits.subarray(4 * first * width, 4 * end * width);
}

function expectPackedEqualsAlone(c: AttentionCase): void {
  const packed = attend(c).bits;
  const { numHeads, numKvHeads, headDim } = c.shape;
  const { cuSeqlensQ, cuSeqlensK } = c.options;
  for (let b = 0; b + 1 < cuSeqlensQ.length; b++) {
    const one = attend(alone(c, b)).bits;
    const q = [cuSeqlensQ[b], cuSeqlensQ[b + 1], numHeads * headDim] as const;
    const k = [cuSeqlensK[b], cuSeqlensK[b + 1], numKvHeads * headDim] as const;
    expect(rowsOf(packed.out, ...q).equals(one.out)).toBe(true);
    expect(rowsOf(packed.dq, ...q).equals(one.dq)).toBe(true);
    expect(rowsOf(packed.dk, ...k).equals(one.dk)).toBe(true);
    expect(rowsOf(packed.dv, ...k).equals(one.dv)).toBe(true);
  }
}

// --- worked example -----------------------------------------------------------------------------

describe('the worked example', () => {
  // Two heads share one key/value head; the second sequence has no query, the third more than keys.
  const rows = (values: number[][]) => Float32Array.from(values.flat());
  const example = {
    q: rows([
      [-0.5, 0.25, -0.75, 0],
      [0.75, -0.25, 0.5, -0.5],
      [0.25, -0.75, 0, 0.75],
      [-0.25, 0.5, -0.5, 0.25],
      [-0.75, 0, 0.75, -0.25],
    ]),
    k: rows([[-0.25, -0.75, 0.5, 0, -0.5, 0.75, 0.25, -0.25, -0.75, 0.5, 0, -0.5]]),
    v: rows([[0.25, -0.5, 0, 0.5, -0.25, 0.25, -0.5, 0, 0.5, -0.25, 0.25, -0.5]]),
    dOut: rows([
      [-0.5, 0.5, 0.25, 0],
      [-0.25, -0.5, 0.5, 0.25],
      [0, -0.25, -0.5, 0.5],
      [0.25, 0, -0.25, -0.5],
      [0.5, 0.25, 0, -0.25],
    ]),
  };
  const offsets = { cuSeqlensQ: Int32Array.of(0, 2, 2, 5), cuSeqlensK: Int32Array.of(0, 3, 4, 6) };
  const call = (options: Partial<VarlenAttentionOptions>) => {
    const q = tensor(example.q, [5, 2, 2]);
    const k = tensor(example.k, [6, 1, 2]);
    const v = tensor(example.v, [6, 1, 2]);
    const { out, softmaxLse, saved } = varlenAttention(q, k, v, {
      ...offsets,
      softmaxScale: 0.5,
      ...options,
    });
    return { out, softmaxLse, ...varlenAttentionBackward(tensor(example.dOut, [5, 2, 2]), saved) };
  };
  /** The expected numbers are printed with six decimals. */
  const expectNear = (got: Tensor, want: (number | null)[]) => {
    const numbers = Array.from(valuesOf(got).slice(0, want.length));
    for (const [i, value] of want.entries()) {
      if (value === null) expect(numbers[i]).toBe(-Infinity);
      else expect(Math.abs(numbers[i] - value)).toBeLessThan(1.1e-6);
    }
  };

  test(
    'causal gives its out, softmaxLse and gradients',
    scoped(() => {
      const { out, softmaxLse, dq, dk, dv } = call({ causal: true });
      // biome-ignore format: one row per line
      expectNear(out, [
      .130855, -.02342, .142463, -.069853,
      .020699, .098554, .033484, .06101,
      0, 0, 0, 0,
      .5, -.25, .5, -.25,
      .392463, -.357537, .349953, -.400047,
    ]);
      // biome-ignore format: one row per line
      expectNear(softmaxLse, [
      .61612, 1.085551, null, .21875, .843627,
      .656127, 1.097916, null, .25, .573012,
    ]);
      // biome-ignore format: one row per line
      expectNear(dq, [
      .058465, .058465, -.005745, -.005745,
      -.029616, -.031411, .016065, -.004113,
      0, 0, 0, 0,
      0, 0, 0, 0,
      -.017235, .02298, .005624, -.007499,
    ]);
      // biome-ignore format: one row per line
      expectNear(dk, [
      .06085, -.026679, -.054315, .020657, -.006535, .006022,
      0, 0, -.022859, .001875, .022859, -.001875,
    ]);
      // biome-ignore format: one row per line
      expectNear(dv, [
      -.014686, .187347, -.043604, .129103, .058291, -.06645,
      0, 0, .284926, -.45749, .215074, -.04251,
    ]);
    }),
  );

  test(
    'full attention gives its out and softmaxLse',
    scoped(() => {
      const { out, softmaxLse } = call({});
      // biome-ignore format: one row per line
      expectNear(out, [
      -.022227, .086479, -.008612, .053272,
      .020699, .098554, .033484, .06101,
      .346228, -.403772, .398167, -.351833,
      .396275, -.353725, .394374, -.355626,
      .392463, -.357537, .349953, -.400047,
    ]);
      // biome-ignore format: one row per line
      expectNear(softmaxLse, [
      1.130192, 1.085551, .67349, .754721, .843627,
      1.142165, 1.097916, .710623, .799055, .573012,
    ]);
    }),
  );

  test(
    'a window of one key to the left changes row 1',
    scoped(() => {
      const { out, dk } = call({ causal: true, windowSize: [1, 0] });
      expectNear(out, [0.130855, -0.02342, 0.142463, -0.069853, -0.096228, 0.403772, -0.098084, 0.401916]);
      expectNear(dk, [0.033232, -0.019488, -0.038703, 0.013862, 0.005471, 0.005626]);
    }),
  );

  test(
    'a softcap bends the scores, alibi tilts them',
    scoped(() => {
      expectNear(call({ causal: true, softcap: 0.5 }).out, [0.130699, -0.022797, 0.141886, -0.067546]);
      const tilted = call({ causal: true, alibiSlopes: Float32Array.of(0.5, 0.25) });
      expectNear(
        tilted.out,
        [0.099953, 0.100188, 0.126953, -0.007812, -0.05217, 0.199844, -0.004815, 0.121886],
      );
    }),
  );
});

// --- gold vectors -------------------------------------------------------------------------------

describe('gold vectors', () => {
  const text = readFileSync(join(__dirname, '../gold/varlen-attention.json'), 'utf8');
  const gold: AttentionGold = JSON.parse(text);

  test('the file is what test/gold/make.ts makes', () => {
    expect(varlenAttentionGold()).toBe(text);
  });

  describe.each(['float32', 'float16', 'bfloat16'] as const)('%s', (dtype) => {
    test.each(gold.cases)(
      '$name',
      scoped(({ options, inputs, ...want }) => {
        const { numHeads, numKvHeads, headDim, cuSeqlensQ, cuSeqlensK, ...rest } = options;
        const shape = (values: readonly number[], heads: number) => [
          values.length / (heads * headDim),
          heads,
          headDim,
        ];
        const make = (values: readonly number[], heads: number) =>
          tensor(Float32Array.from(values), shape(values, heads), dtype);
        const ints = (values: ArrayLike<number> | undefined) => values && Int32Array.from(values);
        const given = {
          ...rest,
          cuSeqlensQ: Int32Array.from(cuSeqlensQ),
          cuSeqlensK: Int32Array.from(cuSeqlensK),
          seqUsedQ: ints(rest.seqUsedQ),
          seqUsedK: ints(rest.seqUsedK),
          keyEnd: ints(rest.keyEnd),
          alibiSlopes: rest.alibiSlopes && Float32Array.from(rest.alibiSlopes),
        } as VarlenAttentionOptions;
        const q = make(inputs.q, numHeads);
        const { out, softmaxLse, saved } = varlenAttention(
          q,
          make(inputs.k, numKvHeads),
          make(inputs.v, numKvHeads),
          given,
        );
        const dLse = inputs.dLse && tensor(Float32Array.from(inputs.dLse), [numHeads, q.shape[0]]);
        const gradients = varlenAttentionBackward(make(inputs.dOut, numHeads), saved, dLse ? { dLse } : {});

        const tolerance = gold.tolerance[dtype];
        for (const [name, got] of Object.entries({
          out,
          dq: gradients.dq,
          dk: gradients.dk,
          dv: gradients.dv,
        })) {
          const wanted = want[name as 'out' | 'dq' | 'dk' | 'dv'];
          expect(maxError(valuesOf(got), wanted), name).toBeLessThanOrEqual(tolerance * maxAbs(wanted));
        }
        const lse = want.softmaxLse.map((x) => x ?? -Infinity);
        expect(maxError(valuesOf(softmaxLse), lse)).toBeLessThanOrEqual(
          gold.tolerance.float32 * (1 + maxAbs(lse)),
        );
      }),
    );
  });
});

// --- properties ---------------------------------------------------------------------------------

describe('properties', () => {
  test('any pack under any mask agrees with the float64 reference', () => {
    fc.assert(
      fc.property(packs, masksAndScores, fc.boolean(), (shape, options, withDLse) => {
        expectAccurate(makeCase(shape, options), withDLse);
      }),
      { numRuns: tries(150) },
    );
  });

  test('any trees over any pack agree with the float64 reference', () => {
    const treePacks = selfPacks.chain((shape) => fc.tuple(fc.constant(shape), trees(shape.lengthsQ)));
    fc.assert(
      fc.property(treePacks, fc.constantFrom(0, 2), ([shape, ends], softcap) => {
        const keyEnd = new Int32Array(ends.length + shape.tailK);
        keyEnd.set(ends);
        expectAccurate(makeCase({ ...shape, tailQ: shape.tailK }, { causal: true, softcap }, { keyEnd }));
      }),
      { numRuns: tries(80) },
    );
  });

  test('a packed sequence gets the bits it gets alone', () => {
    fc.assert(
      fc.property(packs, masksAndScores, (shape, options) => {
        expectPackedEqualsAlone(makeCase(shape, options));
      }),
      { numRuns: tries(60) },
    );
  });

  test('permuting the sequences permutes the results', () => {
    fc.assert(
      fc.property(packs, fc.boolean(), (shape, causal) => {
        const c = makeCase({ ...shape, tailQ: 0, tailK: 0 }, { causal });
        const order = c.shape.lengthsQ.map((_, b) => b).reverse();
        const { numHeads, numKvHeads, headDim } = shape;
        const { cuSeqlensQ, cuSeqlensK } = c.options;
        const reorder = (values: Float32Array, cu: Int32Array, width: number) =>
          Float32Array.from(
            order.flatMap((b) => Array.from(values.subarray(cu[b] * width, cu[b + 1] * width))),
          );
        const reversed: AttentionCase = {
          ...c,
          q: reorder(c.q, cuSeqlensQ, numHeads * headDim),
          k: reorder(c.k, cuSeqlensK, numKvHeads * headDim),
          v: reorder(c.v, cuSeqlensK, numKvHeads * headDim),
          dOut: reorder(c.dOut, cuSeqlensQ, numHeads * headDim),
          options: {
            ...c.options,
            cuSeqlensQ: cuSeqlensOf(order.map((b) => shape.lengthsQ[b])),
            cuSeqlensK: cuSeqlensOf(order.map((b) => shape.lengthsK[b])),
          },
        };
        const before = attend(c).values;
        const after = attend(reversed).values;
        expect(after.out).toEqual(reorder(before.out, cuSeqlensQ, numHeads * headDim));
        expect(after.dq).toEqual(reorder(before.dq, cuSeqlensQ, numHeads * headDim));
        expect(after.dk).toEqual(reorder(before.dk, cuSeqlensK, numKvHeads * headDim));
      }),
      { numRuns: tries(40) },
    );
  });

  test('the number of threads changes no bit', () => {
    const before = deviceInfo().threads;
    try {
      fc.assert(
        fc.property(packs, masksAndScores, (shape, options) => {
          const c = makeCase(
            { ...shape, lengthsQ: [...shape.lengthsQ, 300], lengthsK: [...shape.lengthsK, 400] },
            options,
          );
          setNumThreads(1);
          const want = attend(c).bits;
          for (const threads of [2, 3, 16]) {
            setNumThreads(threads);
            const got = attend(c).bits;
            for (const [name, bits] of Object.entries(want)) {
              expect(got[name as keyof typeof got].equals(bits), `${name}, ${threads} threads`).toBe(true);
            }
          }
        }),
        { numRuns: tries(15) },
      );
    } finally {
      setNumThreads(before);
    }
  });

  test('gradients are central differences of out and of softmaxLse', () => {
    fc.assert(
      fc.property(packs, masksAndScores, fc.boolean(), (shape, options, ofLse) => {
        const c = makeCase({ ...shape, tailQ: 0, tailK: 0 }, { ...options, softmaxScale: 0.3 });
        const { q, k, v, dOut, dLse } = tensorsOf(c);
        const attention = (...inputs: Tensor[]) => {
          const result = varlenAttention(inputs[0], inputs[1], inputs[2], c.options);
          return ofLse ? result.softmaxLse : result.out;
        };
        expect(gradCheck(attention, [q, k, v])).toBeLessThan(1e-3);
        for (const t of [q, k, v, dOut, dLse]) t.dispose();
      }),
      { numRuns: tries(25) },
    );
  });

  test('rows past the last sequence are zero, their lse minus infinity, and empty packs are fine', () => {
    fc.assert(
      fc.property(packs, (shape) => {
        const c = makeCase({ ...shape, tailQ: 3, tailK: 2 });
        const { values } = attend(c);
        const { q, k } = shapesOf(c);
        const zeros = (rows: number, shape: number[]) => new Float32Array(rows * shape[1] * shape[2]);
        expect(values.out.slice(-3 * q[1] * q[2])).toEqual(zeros(3, q));
        expect(values.dq.slice(-3 * q[1] * q[2])).toEqual(zeros(3, q));
        expect(values.dk.slice(-2 * k[1] * k[2])).toEqual(zeros(2, k));
        expect(values.dv.slice(-2 * k[1] * k[2])).toEqual(zeros(2, k));
        for (let h = 0; h < q[1]; h++) {
          expect(Array.from(values.softmaxLse.slice((h + 1) * q[0] - 3, (h + 1) * q[0]))).toEqual([
            -Infinity,
            -Infinity,
            -Infinity,
          ]);
        }
      }),
      { numRuns: tries(30) },
    );
  });

  test(
    'offsets in tensors, one name for both sides and two names give the same bits',
    scoped(() => {
      const shape = { numHeads: 4, numKvHeads: 2, headDim: 16, tailQ: 0, tailK: 0, seed: 4 };
      const lengths = [5, 0, 70, 1];
      const c = makeCase({ ...shape, lengthsQ: lengths, lengthsK: lengths }, { causal: true });
      const { q, k, v } = tensorsOf(c);
      const want = bitsOf(varlenAttention(q, k, v, c.options).out);
      const { cuSeqlensQ: cuSeqlens } = c.options;
      const inTensor = Tensor.from(cuSeqlens, { device });
      const spellings: VarlenAttentionOptions[] = [
        { cuSeqlens },
        { cuSeqlens, maxSeqlen: 70 },
        { cuSeqlens, maxSeqlen: 1e6 },
        { cuSeqlensQ: cuSeqlens },
        { cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens, maxSeqlenQ: 70, maxSeqlenK: 71 },
        { cuSeqlens: inTensor, maxSeqlen: 70 },
        { cuSeqlens: inTensor, maxSeqlen: 70, validate: 'full' },
        { cuSeqlens: inTensor, maxSeqlen: 70, validate: 'none' },
        { cuSeqlensQ: inTensor, cuSeqlensK: cuSeqlens, maxSeqlenQ: 70 },
        { cuSeqlens, seqUsedQ: Int32Array.from(lengths), seqUsedK: Int32Array.from(lengths) },
        { cuSeqlens, numSplits: 1 },
        { cuSeqlens, deterministic: false },
        { cuSeqlens, softmaxScale: 0.25, windowSize: [-1, 0], softcap: 0 },
      ];
      for (const spelling of spellings) {
        const { out } = varlenAttention(q, k, v, { causal: true, ...spelling });
        expect(bitsOf(out).equals(want)).toBe(true);
      }
    }),
  );

  test(
    'views of one packed qkv tensor, and results written into given tensors, change no bit',
    scoped(() => {
      const c = makeCase({
        numHeads: 2,
        numKvHeads: 2,
        headDim: 8,
        lengthsQ: [3, 40],
        lengthsK: [3, 40],
        tailQ: 0,
        tailK: 0,
        seed: 8,
      });
      const { q, k, v, dOut } = tensorsOf(c);
      const want = attend(c).bits;
      const [rows, heads, headDim] = q.shape;
      const packed = new Float32Array(3 * q.size);
      for (const [i, part] of [c.q, c.k, c.v].entries()) {
        for (let row = 0; row < rows; row++) {
          packed.set(
            part.subarray(row * heads * headDim, (row + 1) * heads * headDim),
            (3 * row + i) * heads * headDim,
          );
        }
      }
      const qkv = tensor(packed, [rows, 3 * heads, headDim]);
      const view = (i: number) => qkv.slice(1, i * heads, (i + 1) * heads);
      const empty = (like: Tensor) => Tensor.empty(like.shape, { dtype: 'float32', device });
      const out = empty(q);
      const result = varlenAttention(view(0), view(1), view(2), { ...c.options, out });
      expect(result.out).toBe(out);
      expect(bitsOf(out).equals(want.out)).toBe(true);
      const [dq, dk, dv] = [empty(q), empty(k), empty(v)];
      const gradients = varlenAttentionBackward(dOut, result.saved, { dq, dk, dv });
      expect(gradients.dq).toBe(dq);
      expect(bitsOf(dq).equals(want.dq)).toBe(true);
      expect(bitsOf(dk).equals(want.dk)).toBe(true);
      expect(bitsOf(dv).equals(want.dv)).toBe(true);
    }),
  );

  test(
    'what the caller does to its arrays after the call changes nothing',
    scoped(() => {
      const c = makeCase(
        {
          numHeads: 2,
          numKvHeads: 1,
          headDim: 8,
          lengthsQ: [9, 4],
          lengthsK: [9, 4],
          tailQ: 0,
          tailK: 0,
          seed: 3,
        },
        { causal: true, alibi: 'perHead' },
      );
      const want = attend(c).bits;
      const { q, k, v, dOut } = tensorsOf(c);
      const result = varlenAttention(q, k, v, c.options);
      c.options.cuSeqlensQ.fill(-5);
      c.options.cuSeqlensK.fill(2 ** 30);
      (c.options.alibiSlopes as Float32Array).fill(Number.NaN);
      expect(bitsOf(result.out).equals(want.out)).toBe(true);
      expect(bitsOf(varlenAttentionBackward(dOut, result.saved).dk).equals(want.dk)).toBe(true);
    }),
  );

  test(
    '10^6 sequences of one token, and one of 2^20 rows under a narrow window, work',
    scoped(() => {
      const million = 10 ** 6;
      const values = Float32Array.from({ length: million }, (_, i) => (i % 7) - 3);
      const t = tensor(values, [million, 1, 1]);
      const cuSeqlens = Int32Array.from({ length: million + 1 }, (_, i) => i);
      using packed = varlenAttention(t, t, t, { cuSeqlens, causal: true });
      expect(bitsOf(packed.out).equals(Buffer.from(values.buffer))).toBe(true); // one key: its value

      const long = tensor(new Float32Array(2 ** 20).fill(1), [2 ** 20, 1, 1]);
      using windowed = varlenAttention(long, long, long, {
        cuSeqlens: Int32Array.of(0, 2 ** 20),
        windowSize: [2, 2],
        causal: true,
      });
      const lse = valuesOf(windowed.softmaxLse);
      expect(lse[0]).toBeCloseTo(1, 6);
      expect(lse[2 ** 20 - 1]).toBeCloseTo(1 + Math.log(3), 6); // three keys of score 1
    }),
  );

  test('a shared prompt equals one sequence per answer', () => {
    const [prompt, answers] = [20, [7, 1, 12]];
    const total = prompt + answers.reduce((a, b) => a + b, 0);
    const ends = [...new Array<number>(prompt).fill(total)];
    const starts: number[] = [];
    let row = prompt;
    for (const answer of answers) {
      starts.push(row);
      row += answer;
      ends.push(...new Array<number>(answer).fill(row));
    }
    const c = makeCase(
      {
        numHeads: 4,
        numKvHeads: 2,
        headDim: 8,
        lengthsQ: [total],
        lengthsK: [total],
        tailQ: 0,
        tailK: 0,
        seed: 11,
      },
      { causal: true },
      { keyEnd: Int32Array.from(ends) },
    );
    const shared = attend(c).values;
    const rowsOfAnswer = (n: number) => [
      ...Array.from({ length: prompt }, (_, i) => i),
      ...Array.from({ length: answers[n] }, (_, i) => starts[n] + i),
    ];
    for (const [n, answer] of answers.entries()) {
      const pick = (values: Float32Array, width: number) =>
        Float32Array.from(
          rowsOfAnswer(n).flatMap((r) => Array.from(values.subarray(r * width, (r + 1) * width))),
        );
      const { out } = varlenAttentionReference(
        { q: pick(c.q, 32), k: pick(c.k, 16), v: pick(c.v, 16) },
        { numHeads: 4, numKvHeads: 2, headDim: 8, cuSeqlensQ: [0, prompt + answer], causal: true },
      );
      expect(maxError(pick(shared.out, 32), out)).toBeLessThan(5e-6 * maxAbs(c.v));
    }
  });
});

test('where VARLEN_REQUIRE_CUDA asks for the GPU, it answers', () => {
  using one = tensor(Float32Array.of(1), [1]);
  expect(one.device.kind).toBe(device);
});
