import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type DType, memoryStats, scope, Tensor, VarlenError } from '../../src/index.js';
import {
  deserializePlan,
  type HeadPattern,
  mergeAttentionStates,
  PrefillPlan,
  type PrefillPlanOptions,
  planPrefill,
  serializePlan,
  sparsePrefill,
} from '../../src/prefill/index.js';
import { EXACT } from '../prefill/cases.js';
import '../support/emulated-gpu.js';
import { normals } from '../support/random.js';
import { rejected, thrown } from '../support/thrown.js';

// From TypeScript to the kernels of the emulated GPU and back.

type Side = 'cpu' | 'cuda';

const [QUERIES, KEYS, HEADS, KV_HEADS, DIM] = [70, 100, 2, 1, 32];
const lengths = { cuSeqlensQ: Int32Array.of(0, 30, QUERIES), cuSeqlensK: Int32Array.of(0, 41, KEYS) };
const modality = [41, 59].map((keys) => ({
  ids: Uint8Array.from({ length: keys }, (_, j) => Number(j % 9 === 0 || Math.floor(j / 17) % 2 === 0)),
}));

function inputs(device: Side, dtype: DType = 'bfloat16', requiresGrad = false) {
  const make = (rows: number, heads: number, seed: number) =>
    Tensor.from(normals(rows * heads * DIM, seed), {
      shape: [rows, heads, DIM],
      dtype,
      device,
      requiresGrad,
    });
  return { q: make(QUERIES, HEADS, 1), k: make(KEYS, KV_HEADS, 2), v: make(KEYS, KV_HEADS, 3) };
}

interface Outcome {
  readonly out: ArrayLike<number>;
  readonly lse: ArrayLike<number>;
  readonly masks: readonly Uint8Array[];
}

/** What a pattern gives on one device. */
async function outcome(
  device: Side,
  heads: HeadPattern,
  dtype: DType = 'bfloat16',
  options?: Partial<PrefillPlanOptions>,
): Promise<Outcome> {
  const { q, k, v } = inputs(device, dtype);
  using plan = planPrefill({ heads }, q, k, { ...lengths, ...EXACT, modality, ...options });
  using result = sparsePrefill(plan, q, k, v);
  const masks = await Promise.all(
    [0, 1].flatMap((b) => [0, 1].map((head) => plan.mask(b, head, 'computed'))),
  );
  const [out, lse] = [await result.out.toFloat32(), (await result.softmaxLse.data()) as Float32Array];
  for (const tensor of [q, k, v]) tensor.dispose();
  return { out, lse, masks };
}

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    if (a[i] !== b[i]) largest = Math.max(largest, Math.abs(a[i] - b[i]));
  }
  return largest;
}

const grid = { kind: 'grid', stride: 7, phase: 2, hline: true, vline: true, slash: true, sink: 2, local: 9 };
const PATTERNS = {
  dense: { kind: 'union', of: [{ kind: 'dense' }] }, // by this op, not by dense attention
  'a-shape': { kind: 'a-shape', sink: 3, local: 20 },
  'tri-shape': { kind: 'tri-shape', sink: 3, local: 8, last: 9 },
  'vertical-slash, estimated': {
    kind: 'vertical-slash',
    select: { topk: { vertical: 6, slash: 6 } },
    forceVertical: 2,
    forceSlash: 3,
  },
  'vertical-slash, given': {
    kind: 'vertical-slash-fixed',
    vertical: Int32Array.of(1, 33),
    slash: Int32Array.of(0, 25),
  },
  'block-sparse': { kind: 'block-sparse', block: [16, 16], score: 'mean-pool', select: { blocks: 2 } },
  grid: grid as HeadPattern,
  'grid, searched': { ...grid, stride: 'search', phase: 'search', minGain: 0 } as HeadPattern,
  'strided baseline': { kind: 'sf-strided', period: 11 },
  'q-boundary': { kind: 'q-boundary', by: { text: grid as HeadPattern, vision: { kind: 'dense' } } },
  '2d-boundary': {
    kind: '2d-boundary',
    by: {
      'text>text': { kind: 'a-shape', sink: 2, local: 9 },
      'vision>vision': grid as HeadPattern,
      'vision>text': { kind: 'a-shape', sink: 4, local: 2 },
    },
  },
} satisfies Record<string, HeadPattern>;

let tensors = 0;
beforeAll(() => {
  tensors = memoryStats().liveTensors;
});
afterAll(() => expect(memoryStats().liveTensors).toBe(tensors));

describe('sparsePrefill on the GPU', () => {
  test.each(Object.entries(PATTERNS))("chooses the CPU's pairs and agrees with it: %s", async (_, heads) => {
    const [there, here] = [await outcome('cuda', heads), await outcome('cpu', heads)];
    expect(there.masks).toEqual(here.masks);
    // One rounding of the output, and one of P that the CPU does not make.
    expect(distance(there.out, here.out)).toBeLessThanOrEqual(0.03);
    expect(distance(there.lse, here.lse)).toBeLessThanOrEqual(2e-5);
  });

  test('has float16, and the same bits in every run and for a plan from data', async () => {
    const heads = PATTERNS.grid;
    const here = await outcome('cpu', heads, 'float16');
    const { q, k, v } = inputs('cuda', 'float16');
    using plan = planPrefill({ heads }, q, k, { ...lengths, ...EXACT, modality });
    using first = sparsePrefill(plan, q, k, v);
    expect(distance(await first.out.toFloat32(), here.out)).toBeLessThanOrEqual(0.004);
    const bits = await first.out.data();
    using again = sparsePrefill(plan, q, k, v);
    expect(await again.out.data()).toEqual(bits);
    using read = PrefillPlan.from(deserializePlan(serializePlan(await plan.data())), { device: 'cuda' });
    using third = sparsePrefill(read, q, k, v);
    expect(await third.out.data()).toEqual(bits);
    for (const tensor of [q, k, v]) tensor.dispose();
  });

  test('takes a bias of keys', async () => {
    const results = await Promise.all(
      (['cpu', 'cuda'] as const).map(async (device) => {
        const { q, k, v } = inputs(device);
        using keyBias = Tensor.from(normals(HEADS * KEYS, 7), { shape: [HEADS, KEYS], device });
        using plan = planPrefill({ heads: PATTERNS['a-shape'], softcap: 3 }, q, k, { ...lengths, ...EXACT });
        using result = sparsePrefill(plan, q, k, v, { keyBias });
        for (const tensor of [q, k, v]) tensor.dispose();
        return result.out.toFloat32();
      }),
    );
    expect(distance(results[1], results[0])).toBeLessThanOrEqual(0.03);
  });

  test('certifies recall from the copies of q and k', async () => {
    const stats = await Promise.all(
      (['cpu', 'cuda'] as const).map(async (device) => {
        const { q, k, v } = inputs(device);
        using plan = planPrefill({ heads: PATTERNS['a-shape'] }, q, k, {
          ...lengths,
          ...EXACT,
          certificateRows: 16,
        });
        for (const tensor of [q, k, v]) tensor.dispose();
        return (await plan.stats()).heads.map(({ recall, computedDensity }) => ({ recall, computedDensity }));
      }),
    );
    expect(stats[1]).toEqual(stats[0]);
    expect(stats[0][0].recall?.mean).toBeGreaterThan(0);
  });

  test('a guarantee that is missed rejects the read', async () => {
    const { q, k, v } = inputs('cuda');
    using plan = planPrefill({ heads: { kind: 'a-shape', sink: 0, local: 1 } }, q, k, {
      ...lengths,
      ...EXACT,
      guarantee: { minRecall: 1, rows: 8, onMiss: 'throw' },
    });
    using result = sparsePrefill(plan, q, k, v);
    expect(((await rejected(result.out.data())) as VarlenError).code).toBe('ERR_VARLEN_RECALL');
    for (const tensor of [q, k, v]) tensor.dispose();
  });

  test('merges attention states, in either order to the same bits', async () => {
    const { q, k, v } = inputs('cuda');
    const run = (vertical: number[]) => {
      const heads: HeadPattern = {
        kind: 'vertical-slash-fixed',
        vertical: Int32Array.from(vertical),
        slash: new Int32Array(0),
      };
      using plan = planPrefill({ heads }, q, k, { ...lengths, ...EXACT });
      return sparsePrefill(plan, q, k, v);
    };
    const columns = Array.from({ length: 59 }, (_, j) => j);
    using a = run(columns.filter((j) => j % 3 === 0));
    using b = run(columns.filter((j) => j % 3 !== 0));
    using whole = run(columns);
    using merged = mergeAttentionStates(a, b);
    using swapped = mergeAttentionStates(b, a);
    expect(await swapped.out.data()).toEqual(await merged.out.data());
    expect(distance(await merged.out.toFloat32(), await whole.out.toFloat32())).toBeLessThanOrEqual(0.03);
    const lse = async (state: { softmaxLse: Tensor }) => (await state.softmaxLse.data()) as Float32Array;
    expect(distance(await lse(merged), await lse(whole))).toBeLessThanOrEqual(1e-5);
    for (const tensor of [q, k, v]) tensor.dispose();
  });
});

describe('errors', () => {
  const code = (call: () => unknown) => (thrown(call) as VarlenError).code;

  test('float32 has no CUDA kernel: ERR_VARLEN_UNSUPPORTED when read', async () => {
    const { q, k, v } = inputs('cuda', 'float32');
    using plan = planPrefill({ heads: PATTERNS['a-shape'] }, q, k, { ...lengths, ...EXACT });
    using result = sparsePrefill(plan, q, k, v);
    expect(((await rejected(result.out.data())) as VarlenError).code).toBe('ERR_VARLEN_UNSUPPORTED');
    for (const tensor of [q, k, v]) tensor.dispose();
  });

  test('the backward pass is ERR_VARLEN_UNSUPPORTED', () => {
    scope(() => {
      const { q, k, v } = inputs('cuda', 'bfloat16', true);
      const plan = planPrefill({ heads: PATTERNS['a-shape'] }, q, k, { ...lengths, ...EXACT });
      const { out } = sparsePrefill(plan, q, k, v);
      const dOut = Tensor.empty(out.shape, { dtype: 'bfloat16', device: 'cuda' });
      expect(code(() => out.backward(dOut))).toBe('ERR_VARLEN_UNSUPPORTED');
      plan.dispose();
    });
  });

  test('a plan for the other device is ERR_VARLEN_PLAN_MISMATCH', () => {
    scope(() => {
      const [there, here] = [inputs('cuda'), inputs('cpu')];
      const plan = planPrefill({ heads: PATTERNS['a-shape'] }, here.q, here.k, { ...lengths, ...EXACT });
      expect(code(() => sparsePrefill(plan, there.q, there.k, there.v))).toBe('ERR_VARLEN_PLAN_MISMATCH');
      plan.dispose();
    });
  });

  test("a caller's memory for the plan is ERR_VARLEN_INCOMPATIBLE", () => {
    scope(() => {
      const { q, k } = inputs('cuda');
      const workspace = Tensor.empty([10_000], { dtype: 'int32', device: 'cpu' });
      expect(
        code(() => planPrefill({ heads: PATTERNS['a-shape'] }, q, k, { ...lengths, ...EXACT, workspace })),
      ).toBe('ERR_VARLEN_INCOMPATIBLE');
    });
  });

  test('words that are no plan are refused before anything is launched', async () => {
    const { q, k, v } = inputs('cuda');
    using plan = planPrefill({ heads: PATTERNS['vertical-slash, given'] }, q, k, { ...lengths, ...EXACT });
    const data = await plan.data();
    for (let i = 0; i < data.words.length; i += 3) {
      const words = data.words.slice();
      words[i] = -7;
      using bad = PrefillPlan.from({ ...data, words }, { device: 'cuda' });
      using result = sparsePrefill(bad, q, k, v);
      const settled = await result.out.data().catch((error: unknown) => error);
      if (settled instanceof Error) {
        expect(settled).toBeInstanceOf(VarlenError);
        expect((settled as VarlenError).code).not.toBe('ERR_VARLEN_CUDA');
      }
    }
    for (const tensor of [q, k, v]) tensor.dispose();
  });
});
