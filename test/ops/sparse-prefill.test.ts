import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { varlenAttention, varlenAttentionBackward } from '../../src/ops/index.js';
import {
  type HeadPattern,
  lseToLog2,
  mergeAttentionStates,
  type PrefillPlan,
  planPrefill,
  type SparsePrefillResult,
  sparsePrefill,
  sparsePrefillBackward,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { patterns } from '../prefill/arbitraries.js';
import { EXACT, randomTensor } from '../prefill/cases.js';

type Values = ArrayLike<number>;

interface Problem {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly lengths: { readonly cuSeqlensQ: Int32Array; readonly cuSeqlensK: Int32Array };
}

function problem(
  queries: number,
  keys: number,
  heads = 2,
  kvHeads = 1,
  dtype: 'float32' | 'float16' | 'bfloat16' = 'float32',
  dim = 16,
): Problem {
  return {
    q: randomTensor([queries, heads, dim], 11, dtype),
    k: randomTensor([keys, kvHeads, dim], 12, dtype),
    v: randomTensor([keys, kvHeads, dim], 13, dtype),
    lengths: { cuSeqlensQ: Int32Array.of(0, queries), cuSeqlensK: Int32Array.of(0, keys) },
  };
}

/** Attention of one head in float64 over exactly the pairs of `mask`. */
async function oracle(
  { q, k, v }: Problem,
  head: number,
  mask: Uint8Array,
): Promise<{ out: Float64Array; lse: Float64Array }> {
  const [qs, ks, vs] = await Promise.all([q.toFloat32(), k.toFloat32(), v.toFloat32()]);
  const [rows, heads, dim] = q.shape;
  const [keys, kvHeads] = k.shape;
  const kv = Math.floor((head * kvHeads) / heads);
  const out = new Float64Array(rows * dim);
  const lse = new Float64Array(rows).fill(-Infinity);
  for (let r = 0; r < rows; r++) {
    const kept = Array.from({ length: keys }, (_, j) => j).filter((j) => mask[r * keys + j] === 1);
    if (kept.length === 0) continue;
    const scores = kept.map((j) => {
      let dot = 0;
      for (let d = 0; d < dim; d++)
        dot += qs[(r * heads + head) * dim + d] * ks[(j * kvHeads + kv) * dim + d];
      return dot * dim ** -0.5;
    });
    const max = Math.max(...scores);
    lse[r] = max + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - max), 0));
    for (const [n, j] of kept.entries()) {
      const weight = Math.exp(scores[n] - lse[r]);
      for (let d = 0; d < dim; d++) out[r * dim + d] += weight * vs[(j * kvHeads + kv) * dim + d];
    }
  }
  return { out, lse };
}

async function headOf({ out }: SparsePrefillResult, head: number): Promise<Values> {
  const [rows, heads, dim] = out.shape;
  const all = await out.toFloat32();
  return Float32Array.from(
    { length: rows * dim },
    (_, i) => all[(Math.floor(i / dim) * heads + head) * dim + (i % dim)],
  );
}

function worst(a: Values, b: Values): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) most = Math.max(most, Math.abs(a[i] - b[i]));
  return most;
}

const ids = (keys: number) =>
  Uint8Array.from({ length: keys }, (_, j) => (Math.floor(j / 23) % 2 === 0 || j % 9 === 0 ? 1 : 0));

test('the result is the softmax over exactly the computed set, whatever the pattern', async () => {
  const shape = fc.tuple(fc.integer({ min: 1, max: 140 }), fc.integer({ min: 0, max: 70 }));
  const cases = shape.chain(([queries, cached]) =>
    fc.record({
      queries: fc.constant(queries),
      keys: fc.constant(queries + cached),
      pattern: patterns(queries, queries + cached),
      slashTile: fc.constantFrom(16, 32, 64, 128),
      causal: fc.constant(true),
    }),
  );
  await fc.assert(
    fc.asyncProperty(cases, async ({ queries, keys, pattern, slashTile }) => {
      const inputs = problem(queries, keys);
      const config = { heads: pattern, slashTile: slashTile as 16 };
      using plan = planPrefill(config, inputs.q, inputs.k, {
        ...inputs.lengths,
        ...EXACT,
        modality: [{ ids: ids(keys) }],
      });
      using result = sparsePrefill(plan, inputs.q, inputs.k, inputs.v);
      const lse = (await result.softmaxLse.data()) as Float32Array;
      for (const head of [0, 1]) {
        const computed = await plan.mask(0, head, 'computed');
        const lines = await plan.mask(0, head, 'lines');
        const acausal = (i: number): boolean => i % keys > Math.floor(i / keys) + keys - queries;
        expect(computed.findIndex((times) => times > 1)).toBe(-1); // P2: never twice
        expect(computed.findIndex((times, i) => lines[i] > times)).toBe(-1); // P1: lines are computed
        expect(computed.findIndex((times, i) => times > 0 && acausal(i))).toBe(-1);
        const expected = await oracle(inputs, head, computed);
        expect(worst(expected.out, await headOf(result, head))).toBeLessThanOrEqual(1e-4);
        expect(worst(expected.lse, lse.subarray(head * queries, (head + 1) * queries))).toBeLessThanOrEqual(
          1e-4,
        );
      }
    }),
    { numRuns: 40 },
  );
}, 120_000);

test('16-bit inputs err no more than twice a dense attention of the same type', async () => {
  const dense = { kind: 'dense' } as const;
  const sparse = { kind: 'a-shape', sink: 20, local: 70 } as const;
  for (const dtype of ['float16', 'bfloat16'] as const) {
    const inputs = problem(300, 300, 2, 1, dtype, 64);
    const errors: number[] = [];
    let largest = 0;
    for (const pattern of [dense, sparse]) {
      using plan = planPrefill({ heads: pattern }, inputs.q, inputs.k, { ...inputs.lengths, ...EXACT });
      using result = sparsePrefill(plan, inputs.q, inputs.k, inputs.v);
      const expected = await oracle(inputs, 1, await plan.mask(0, 1, 'computed'));
      errors.push(worst(expected.out, await headOf(result, 1)));
      largest = expected.out.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    }
    expect(errors[1]).toBeLessThanOrEqual(2 * errors[0] + 1e-3 * largest);
  }
});

test('a group of query heads reads the same as keys and values repeated (P10)', async () => {
  const inputs = problem(150, 150, 4, 2);
  const repeat = async (t: Tensor) => {
    const from = await t.toFloat32();
    const [rows, , dim] = t.shape;
    return Tensor.from(
      Float32Array.from({ length: rows * 4 * dim }, (_, i) => {
        const [row, head, d] = [Math.floor(i / (4 * dim)), Math.floor(i / dim) % 4, i % dim];
        return from[(row * 2 + Math.floor(head / 2)) * dim + d];
      }),
      { shape: [rows, 4, dim], device: 'cpu' },
    );
  };
  const heads: HeadPattern[] = [
    { kind: 'a-shape', sink: 3, local: 30 },
    { kind: 'grid', stride: 9, phase: 2, hline: true, vline: true, slash: true, sink: 2, local: 9 },
    { kind: 'vertical-slash', select: { topk: { vertical: 9, slash: 9 } }, forceSlash: 2, forceVertical: 2 },
    { kind: 'dense' },
  ];
  const [k, v] = [await repeat(inputs.k), await repeat(inputs.v)];
  const results = [];
  for (const [keys, values] of [
    [inputs.k, inputs.v],
    [k, v],
  ] as const) {
    using plan = planPrefill({ heads }, inputs.q, keys, { ...inputs.lengths, ...EXACT });
    using result = sparsePrefill(plan, inputs.q, keys, values);
    results.push(await result.out.toFloat32());
  }
  expect(results[1]).toEqual(results[0]);
});

test('results over a partition of the keys merge into the whole, in either order (P5)', async () => {
  const inputs = problem(120, 120, 1);
  const split = (keep: (j: number) => boolean): HeadPattern => ({
    kind: 'vertical-slash-fixed',
    vertical: Int32Array.from(Array.from({ length: 120 }, (_, j) => j).filter(keep)),
    slash: new Int32Array(0),
  });
  const run = (pattern: HeadPattern): SparsePrefillResult => {
    using plan = planPrefill({ heads: pattern }, inputs.q, inputs.k, { ...inputs.lengths, ...EXACT });
    return sparsePrefill(plan, inputs.q, inputs.k, inputs.v);
  };
  const whole = run({ kind: 'dense' });
  await fc.assert(
    fc.asyncProperty(fc.array(fc.boolean(), { minLength: 120, maxLength: 120 }), async (side) => {
      const [a, b] = [run(split((j) => side[j])), run(split((j) => !side[j]))];
      using merged = mergeAttentionStates(a, b);
      using swapped = mergeAttentionStates(b, a);
      expect(worst(await merged.out.toFloat32(), await whole.out.toFloat32())).toBeLessThanOrEqual(2e-6);
      expect(
        worst(
          (await merged.softmaxLse.data()) as Float32Array,
          (await whole.softmaxLse.data()) as Float32Array,
        ),
      ).toBeLessThanOrEqual(2e-6);
      expect(await swapped.out.toFloat32()).toEqual(await merged.out.toFloat32());
    }),
    { numRuns: 20 },
  );
});

describe('the gradient of a merge', () => {
  test('is the difference of its results, of out and of softmaxLse, to all four inputs', () => {
    const state = (seed: number) => [randomTensor([9, 2, 8], seed), randomTensor([2, 9], seed + 1)] as const;
    const inputs = [...state(31), ...state(41)];
    for (const result of ['out', 'softmaxLse'] as const) {
      const run = (...[o1, l1, o2, l2]: Tensor[]): Tensor =>
        mergeAttentionStates({ out: o1, softmaxLse: l1 }, { out: o2, softmaxLse: l2 })[result];
      expect(gradCheck(run, inputs)).toBeLessThan(1e-3);
    }
  });

  test('over parts of the keys, it is the gradient of attention over all of them', async () => {
    const { q, k, v, lengths } = problem(60, 60);
    const dOut = randomTensor([60, 2, 16], 51);
    const half = (odd: number): HeadPattern => ({
      kind: 'vertical-slash-fixed',
      vertical: Int32Array.from({ length: 30 }, (_, j) => 2 * j + odd),
      slash: new Int32Array(0),
    });
    const leaves = await Promise.all(
      [q, k, v].map(async (t) =>
        Tensor.from(await t.toFloat32(), { shape: t.shape, device: 'cpu', requiresGrad: true }),
      ),
    );
    const run = (pattern: HeadPattern): SparsePrefillResult => {
      using plan = planPrefill({ heads: pattern }, q, k, { ...lengths, ...EXACT });
      return sparsePrefill(plan, leaves[0], leaves[1], leaves[2]);
    };
    // Row 0 keeps no odd key: its log-sum-exp is -Infinity there.
    mergeAttentionStates(run(half(0)), run(half(1))).out.backward(dOut);
    const dense = varlenAttention(q, k, v, { ...lengths, causal: true });
    const expected = varlenAttentionBackward(dOut, dense.saved);
    for (const [i, name] of (['dq', 'dk', 'dv'] as const).entries()) {
      const got = await leaves[i].grad!.toFloat32();
      expect(worst(got, await expected[name].toFloat32())).toBeLessThan(2e-5);
    }
  });
});

test('no queries give an empty result, and no keys give 0 and -Infinity', async () => {
  const none = problem(0, 5);
  using empty = planPrefill({ heads: { kind: 'a-shape', sink: 1, local: 1 } }, none.q, none.k, {
    ...none.lengths,
    ...EXACT,
  });
  using nothing = sparsePrefill(empty, none.q, none.k, none.v);
  expect((await nothing.out.data()).length).toBe(0);
  const keyless = problem(3, 0);
  const config = { heads: { kind: 'a-shape', sink: 1, local: 1 }, causal: false } as const;
  using plan = planPrefill(config, keyless.q, keyless.k, { ...keyless.lengths, ...EXACT });
  using result = sparsePrefill(plan, keyless.q, keyless.k, keyless.v);
  expect(await result.out.toFloat32()).toEqual(new Float32Array(3 * 2 * 16));
  expect(await result.softmaxLse.data()).toEqual(new Float32Array(6).fill(-Infinity));
});

describe('the backward pass', () => {
  const heads: HeadPattern[] = [
    { kind: 'a-shape', sink: 3, local: 9 },
    { kind: 'grid', stride: 9, phase: 2, hline: true, vline: true, slash: true, sink: 2, local: 9 },
  ];
  const planOf = ({ q, k, lengths }: Problem, patterns = heads): PrefillPlan =>
    planPrefill({ heads: patterns }, q, k, { ...lengths, ...EXACT });

  test('gradients are the differences of the results, of out and of softmaxLse', () => {
    const inputs = problem(40, 52);
    using plan = planOf(inputs);
    const { q, k, v } = inputs;
    for (const result of ['out', 'softmaxLse'] as const) {
      const run = (...[a, b, c]: Tensor[]): Tensor => sparsePrefill(plan, a, b, c)[result];
      expect(gradCheck(run, [q, k, v])).toBeLessThan(1e-3);
    }
  });

  test('a bias of keys moves the gradients and gets none', () => {
    const { q, k, v, lengths } = problem(40, 40);
    using plan = planPrefill({ heads, softcap: 3 }, q, k, { ...lengths, ...EXACT });
    const keyBias = randomTensor([2, 40], 7);
    expect(gradCheck((a, b, c) => sparsePrefill(plan, a, b, c, { keyBias }).out, [q, k, v])).toBeLessThan(
      1e-3,
    );
  });

  test('a dense plan has the gradients of dense attention, whichever kernel runs it', async () => {
    const inputs = problem(130, 130);
    const { q, k, v, lengths } = inputs;
    const dOut = randomTensor([130, 2, 16], 21);
    const dense = varlenAttention(q, k, v, { ...lengths, causal: true });
    const expected = varlenAttentionBackward(dOut, dense.saved);
    for (const pattern of [{ kind: 'dense' }, { kind: 'union', of: [{ kind: 'dense' }] }] as HeadPattern[]) {
      using plan = planOf(inputs, [pattern, pattern]);
      using result = sparsePrefill(plan, q, k, v);
      using gradients = sparsePrefillBackward(plan, { q, k, v, ...result, dOut });
      for (const name of ['dq', 'dk', 'dv'] as const) {
        expect(worst(await gradients[name].toFloat32(), await expected[name].toFloat32())).toBeLessThan(2e-5);
      }
    }
  });

  test('a recorded call outlives its plan, its inputs and its results', async () => {
    const inputs = problem(40, 40);
    const { q, k, v } = inputs;
    using plan = planOf(inputs);
    using result = sparsePrefill(plan, q, k, v);
    const dOut = randomTensor([40, 2, 16], 21);
    using gradients = sparsePrefillBackward(plan, { q, k, v, ...result, dOut });
    const leaves = await Promise.all(
      [q, k, v].map(async (t) =>
        Tensor.from(await t.toFloat32(), { shape: t.shape, device: 'cpu', requiresGrad: true }),
      ),
    );
    const again = planOf(inputs);
    const tracked = sparsePrefill(again, leaves[0], leaves[1], leaves[2]);
    again.dispose();
    tracked.softmaxLse.dispose();
    tracked.out.backward(dOut);
    for (const [i, name] of (['dq', 'dk', 'dv'] as const).entries()) {
      expect(await leaves[i].grad!.toFloat32()).toEqual(await gradients[name].toFloat32());
    }
  });
});

test('a plan that is dense throughout runs the dense kernel', async () => {
  const inputs = problem(64, 64);
  using plan = planPrefill({ heads: { kind: 'a-shape', sink: 1, local: 1 } }, inputs.q, inputs.k, {
    ...inputs.lengths,
  });
  expect(plan.allDense).toBe(true); // below `denseBelow`
  using result = sparsePrefill(plan, inputs.q, inputs.k, inputs.v);
  const mask = await plan.mask(0, 0, 'computed');
  const expected = await oracle(inputs, 0, mask);
  expect(worst(expected.out, await headOf(result, 0))).toBeLessThanOrEqual(1e-5);
});

test('base 2 is natural over ln 2', () => {
  expect(lseToLog2(Math.LN2)).toBeCloseTo(1, 15);
});

describe('errors', () => {
  const inputs = problem(20, 20);
  const make = (): PrefillPlan =>
    planPrefill({ heads: { kind: 'dense' } }, inputs.q, inputs.k, { ...inputs.lengths, ...EXACT });
  const failing = (run: () => unknown) => {
    try {
      run();
    } catch (error) {
      return error as { code: string; message: string };
    }
    throw new Error('did not fail');
  };

  test('another batch, dtype or shape than planned is ERR_VARLEN_PLAN_MISMATCH', () => {
    using plan = make();
    const other = problem(21, 21);
    const half = problem(20, 20, 2, 1, 'float16');
    for (const p of [other, half, problem(20, 20, 4, 1), problem(20, 20, 2, 1, 'float32', 8)]) {
      expect(failing(() => sparsePrefill(plan, p.q, p.k, p.v)).code).toBe('ERR_VARLEN_PLAN_MISMATCH');
    }
  });

  test('a disposed plan is ERR_VARLEN_DISPOSED', async () => {
    const plan = make();
    plan.dispose();
    expect(failing(() => sparsePrefill(plan, inputs.q, inputs.k, inputs.v)).code).toBe('ERR_VARLEN_DISPOSED');
    await expect(plan.stats()).rejects.toMatchObject({ code: 'ERR_VARLEN_DISPOSED' });
  });

  test('what is no plan or no tensor is ERR_VARLEN_TYPE', () => {
    using plan = make();
    expect(failing(() => sparsePrefill({} as never, inputs.q, inputs.k, inputs.v)).code).toBe(
      'ERR_VARLEN_TYPE',
    );
    expect(failing(() => sparsePrefill(plan, [] as never, inputs.k, inputs.v)).code).toBe('ERR_VARLEN_TYPE');
    expect(failing(() => mergeAttentionStates(null as never, null as never)).code).toBe('ERR_VARLEN_TYPE');
  });

  test('a bias that requires a gradient is ERR_VARLEN_NO_BACKWARD', () => {
    using plan = make();
    const keyBias = Tensor.from(new Float32Array(2 * 20), {
      shape: [2, 20],
      device: 'cpu',
      requiresGrad: true,
    });
    expect(failing(() => sparsePrefill(plan, inputs.q, inputs.k, inputs.v, { keyBias })).code).toBe(
      'ERR_VARLEN_NO_BACKWARD',
    );
  });

  test('an output given to a recorded call is ERR_VARLEN_INCOMPATIBLE', () => {
    using plan = planPrefill({ heads: { kind: 'a-shape', sink: 1, local: 4 } }, inputs.q, inputs.k, {
      ...inputs.lengths,
      ...EXACT,
    });
    const q = Tensor.from(new Float32Array(20 * 2 * 16), {
      shape: [20, 2, 16],
      device: 'cpu',
      requiresGrad: true,
    });
    const out = randomTensor([20, 2, 16], 1);
    const softmaxLse = randomTensor([2, 20], 1);
    for (const given of [{ out }, { softmaxLse }]) {
      expect(failing(() => sparsePrefill(plan, q, inputs.k, inputs.v, given)).code).toBe(
        'ERR_VARLEN_INCOMPATIBLE',
      );
    }
  });

  test('an output given to a recorded merge is ERR_VARLEN_INCOMPATIBLE', () => {
    const leaf = Tensor.from(new Float32Array(9 * 2 * 8), {
      shape: [9, 2, 8],
      device: 'cpu',
      requiresGrad: true,
    });
    const softmaxLse = randomTensor([2, 9], 1);
    const state = { out: leaf, softmaxLse };
    for (const given of [{ out: randomTensor([9, 2, 8], 1) }, { softmaxLse: randomTensor([2, 9], 2) }]) {
      expect(failing(() => mergeAttentionStates(state, state, given)).code).toBe('ERR_VARLEN_INCOMPATIBLE');
    }
  });

  test('the backward pass refuses what is no call of this plan', () => {
    using plan = make();
    using result = sparsePrefill(plan, inputs.q, inputs.k, inputs.v);
    const saved = { ...inputs, ...result, dOut: result.out };
    const backward = (changed: object, of: PrefillPlan = plan) =>
      failing(() => sparsePrefillBackward(of, { ...saved, ...changed } as never)).code;
    expect(failing(() => sparsePrefillBackward(plan, null as never)).code).toBe('ERR_VARLEN_TYPE');
    expect(backward({ dOut: undefined })).toBe('ERR_VARLEN_TYPE');
    expect(backward({}, {} as never)).toBe('ERR_VARLEN_TYPE');
    expect(backward({ q: problem(21, 20).q })).toBe('ERR_VARLEN_PLAN_MISMATCH');
    expect(backward({ dOut: problem(21, 20).q })).toBe('ERR_VARLEN_SHAPE');
    expect(backward({ dLse: result.out })).toBe('ERR_VARLEN_SHAPE');
    expect(failing(() => sparsePrefillBackward(plan, saved, { dOut: result.out } as never)).code).toBe(
      'ERR_VARLEN_OPTION',
    );
    plan.dispose();
    expect(backward({})).toBe('ERR_VARLEN_DISPOSED');
  });

  test.each([
    [4, 'ERR_VARLEN_HEAD_DIM'],
    [520, 'ERR_VARLEN_HEAD_DIM'],
  ])('a head dimension of %i is %s', (dim, code) => {
    const p = problem(4, 4, 1, 1, 'float32', dim);
    expect(failing(() => planPrefill({ heads: { kind: 'dense' } }, p.q, p.k, p.lengths)).code).toBe(code);
  });

  test('an unknown option is ERR_VARLEN_OPTION', () => {
    using plan = make();
    expect(failing(() => sparsePrefill(plan, inputs.q, inputs.k, inputs.v, { scale: 1 } as never)).code).toBe(
      'ERR_VARLEN_OPTION',
    );
  });
});
