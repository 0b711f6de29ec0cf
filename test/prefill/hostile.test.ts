import { describe, expect, test } from 'vitest';
import {
  compressVisualTokens,
  type HeadPattern,
  loadPatternConfig,
  type PrefillPlan,
  planPrefill,
  prefillWorkspaceBytes,
  rebalanceAttention,
  segmentBias,
  sparsePrefill,
} from '../../src/prefill/index.js';
import { EXACT, randomTensor } from './cases.js';

// Whatever a caller hands over is taken as it is meant or refused with a code of ours: never a crash, a hang or an
// error of JavaScript's own.

const throwing = {
  valueOf(): number {
    throw new Error('valueOf was called');
  },
};
const NUMBERS: readonly unknown[] = [
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  -0,
  -1,
  0,
  1,
  1.5,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  2 ** 53 + 2,
  10n,
  '7',
  Symbol('seven'),
  null,
  undefined,
  throwing,
];

function detached(): Int32Array {
  const array = Int32Array.of(0, 1);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
}

function resizable(): Int32Array {
  const buffer = new (ArrayBuffer as unknown as new (n: number, o: object) => ArrayBuffer)(8, {
    maxByteLength: 64,
  });
  return new Int32Array(buffer);
}

const ARRAYS: readonly unknown[] = [
  new Int32Array(0),
  new Float64Array(2),
  new Uint8Array(2),
  [0, 1],
  'ab',
  new DataView(new ArrayBuffer(8)),
  new Uint8Array(new ArrayBuffer(5), 1, 3),
  detached(),
  resizable(),
  new Int32Array(new SharedArrayBuffer(8)),
  Object.freeze({ 0: 0, 1: 1, length: 2 }),
  new Proxy(Int32Array.of(0, 1), {}),
  Int32Array.of(5, 3),
  Int32Array.of(-7, 2 ** 31 - 1),
  null,
];

const q = randomTensor([20, 2, 8], 1);
const k = randomTensor([20, 1, 8], 2);
const cuSeqlens = Int32Array.of(0, 20);
const ids = Uint8Array.from({ length: 20 }, (_, j) => Number(j % 5 < 2));

/** The call succeeds, or throws (or its result rejects) with a code of ours. */
async function survives(label: string, call: () => PrefillPlan | undefined): Promise<void> {
  const known = (error: unknown): void => {
    const { code, message } = error as { code?: string; message: string };
    expect(code ?? message, label).toMatch(/^ERR_VARLEN_/);
  };
  let plan: PrefillPlan | undefined;
  try {
    plan = call();
    if (plan === undefined) return;
    using result = sparsePrefill(plan, q, k, k);
    await result.out.data();
    expect(
      (await plan.mask(0, 1, 'computed')).every((times) => times <= 1),
      label,
    ).toBe(true);
  } catch (error) {
    known(error);
  } finally {
    plan?.dispose();
  }
}

const PATTERNS: readonly HeadPattern[] = [
  { kind: 'a-shape', sink: 1, local: 4 },
  { kind: 'tri-shape', sink: 1, local: 4, last: 2 },
  { kind: 'vertical-slash', select: { topk: { vertical: 2, slash: 2 } }, forceVertical: 1, forceSlash: 1 },
  { kind: 'vertical-slash', select: { coverage: 0.5, min: 1, max: 9 } },
  { kind: 'vertical-slash-fixed', vertical: Int32Array.of(0, 3), slash: Int32Array.of(0, 5) },
  { kind: 'block-sparse', block: [16, 16], score: 'antidiagonal', stride: 8, select: { blocks: 1 } },
  { kind: 'block-sparse', block: [16, 16], score: 'mean-pool', select: { coverage: 0.5 } },
  {
    kind: 'block-mask',
    indptr: Int32Array.of(0, 1, 2),
    indices: Int32Array.of(0, 1),
    block: [10, 10],
    rowSizes: Int32Array.of(9, 11),
    colSizes: Int32Array.of(9, 11),
    inner: new Uint8Array(9 * 9 + 11 * 11).fill(1),
  },
  {
    kind: 'grid',
    stride: 4,
    phase: 1,
    hline: true,
    vline: true,
    slash: true,
    sink: 1,
    local: 2,
    hlinePhase: 2,
    span: [1, 19],
  },
  {
    kind: 'grid',
    stride: 'search',
    phase: 'search',
    hline: false,
    vline: true,
    slash: false,
    maxStride: 9,
    minGain: 0.01,
  },
  {
    kind: 'cell-grid',
    cell: Int32Array.from({ length: 20 }, (_, j) => (j % 5) - 1),
    lines: Int32Array.of(2),
    hline: true,
    vline: true,
    slash: true,
    sink: 1,
    local: 2,
  },
  { kind: 'sf-strided', period: 3 },
  { kind: 'q-boundary', by: { text: { kind: 'a-shape', sink: 1, local: 2 }, vision: { kind: 'dense' } } },
  {
    kind: '2d-boundary',
    by: { 'text>text': { kind: 'a-shape', sink: 1, local: 2 }, 'vision>vision': { kind: 'dense' } },
  },
  { kind: 'union', of: [{ kind: 'a-shape', sink: 1, local: 2 }] },
];

type Path = readonly string[];

/** Paths to everything that is a number, a string or an array of numbers. */
function leavesOf(value: unknown, path: Path = []): Path[] {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return [path];
  return Object.entries(value).flatMap(([key, inner]) => leavesOf(inner, [...path, key]));
}

/** A copy with another value at the path. */
function changed(value: unknown, [key, ...rest]: Path, to: unknown): unknown {
  if (key === undefined) return to;
  const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as Record<string, unknown>;
  copy[key] = changed(copy[key], rest, to);
  return copy;
}

const planOf = (heads: unknown, options: object = {}, config: object = {}): PrefillPlan =>
  planPrefill({ heads, ...config } as never, q, k, {
    cuSeqlens,
    ...EXACT,
    modality: [{ ids }],
    ...options,
  } as never);

describe('planPrefill', () => {
  test.each(PATTERNS.map((pattern) => [pattern.kind, pattern] as const))(
    'every field of %s (case %#), with anything in its place',
    async (_kind, pattern) => {
      for (const path of leavesOf(pattern)) {
        for (const [i, value] of [...NUMBERS, ...ARRAYS, {}, [], true].entries()) {
          await survives(`${path.join('.')} <- ${i}`, () => planOf(changed(pattern, path, value)));
        }
      }
    },
  );

  test('every option and setting, with anything in its place', async () => {
    const options = ['lastQ', 'seed', 'denseBelow', 'denseAbove', 'minModalityRows', 'certificateRows'];
    const lengths = [
      'maxSeqlen',
      'maxSeqlenQ',
      'maxSeqlenK',
      'cuSeqlens',
      'cuSeqlensQ',
      'modality',
      'workspace',
    ];
    const settings = ['softmaxScale', 'softcap', 'slashTile', 'blockM', 'blockN', 'causal', 'heads'];
    const pattern = { kind: 'a-shape', sink: 1, local: 4 };
    for (const [i, value] of [...NUMBERS, ...ARRAYS, {}, [], true].entries()) {
      for (const name of [...options, ...lengths, 'guarantee', 'shareAcrossGroup', 'stream']) {
        await survives(`${name} <- ${i}`, () => planOf(pattern, { [name]: value }));
      }
      for (const name of settings) {
        await survives(`${name} <- ${i}`, () => planOf(pattern, {}, { [name]: value }));
      }
      for (const name of ['minRecall', 'rows', 'onMiss']) {
        await survives(`guarantee.${name} <- ${i}`, () =>
          planOf(pattern, { guarantee: { minRecall: 0.1, [name]: value } }),
        );
      }
      for (const name of ['ids', 'runs', 'names']) {
        await survives(`modality.${name} <- ${i}`, () =>
          planOf(pattern, { modality: [{ ids, [name]: value }] }),
        );
      }
      for (const name of ['modality', 'start', 'length', 'frameTokens']) {
        const run = { modality: 'text', start: 0, length: 20, [name]: value };
        await survives(`runs.${name} <- ${i}`, () => planOf(pattern, { modality: [{ runs: [run] }] }));
      }
      for (const name of ['numHeads', 'numKvHeads', 'totalQ', 'totalK', 'headDim', 'maxSeqlenK']) {
        const sizes = { numHeads: 2, totalQ: 20, totalK: 20, [name]: value };
        await survives(`prefillWorkspaceBytes ${name} <- ${i}`, () => {
          prefillWorkspaceBytes({ heads: pattern as HeadPattern }, sizes as never);
          return undefined;
        });
      }
    }
  });

  test.each([
    ['ERR_VARLEN_SHAPE', [20, 3, 8], [20, 2, 8], 'float32'], // heads that do not divide
    ['ERR_VARLEN_SHAPE', [20, 2, 8], [20, 0, 8], 'float32'],
    ['ERR_VARLEN_SHAPE', [20, 2, 8], [20, 1, 16], 'float32'], // another head dimension
    ['ERR_VARLEN_HEAD_DIM', [20, 2, 0], [20, 1, 0], 'float32'],
    ['ERR_VARLEN_HEAD_DIM', [20, 2, 520], [20, 1, 520], 'float32'],
    ['ERR_VARLEN_DTYPE', [20, 2, 8], [20, 1, 8], 'bfloat16'], // q is float32
  ] as const)('%s for q of %j and k of %j, %s', (code, qShape, kShape, dtype) => {
    const [a, b] = [randomTensor(qShape, 1), randomTensor(kShape, 2, dtype)];
    expect(() => planPrefill({ heads: { kind: 'dense' } }, a, b, { cuSeqlens })).toThrow(
      expect.objectContaining({ code }) as Error,
    );
  });

  test('more blocks than there are, unsorted and repeated ones, and a row of blocks without any', async () => {
    const mask = (indptr: number[], indices: number[]): unknown => ({
      kind: 'block-mask',
      indptr: Int32Array.from(indptr),
      indices: Int32Array.from(indices),
      block: [10, 10],
    });
    for (const [indptr, indices, code] of [
      [[0, 3, 4], [0, 1, 2, 1], 'ERR_VARLEN_BLOCK_MASK'],
      [[0, 2, 3], [1, 0, 1], 'ERR_VARLEN_BLOCK_MASK'],
      [[0, 2, 3], [0, 0, 1], 'ERR_VARLEN_BLOCK_MASK'],
      [[0, 1, 2, 3], [0, 1, 1], 'ERR_VARLEN_BLOCK_MASK'],
      [[0, 1], [-1], 'ERR_VARLEN_BLOCK_MASK'],
      [[0, 2 ** 31 - 1, 1], [0], 'ERR_VARLEN_BLOCK_MASK'],
    ] as const) {
      expect(() => planOf(mask([...indptr], [...indices])), String(indptr)).toThrow(
        expect.objectContaining({ code }) as Error,
      );
    }
    // Rows without any block keep nothing: 0, and not NaN.
    using plan = planOf(mask([0, 0, 1], [1]));
    using result = sparsePrefill(plan, q, k, k);
    const out = await result.out.toFloat32();
    expect(out.subarray(0, 10 * 2 * 8).every((x) => x === 0)).toBe(true);
    expect(out.some(Number.isNaN)).toBe(false);
  });
});

describe('the companions', () => {
  const imageOffsets = Int32Array.of(0, 20);
  const features = randomTensor([20, 4], 3);

  test('compressVisualTokens, every option with anything in its place', async () => {
    const bipartite = { mode: 'bipartite', keepRatio: 0.5, imageOffsets };
    const threshold = { mode: 'threshold', imageOffsets };
    for (const [i, value] of [...NUMBERS, ...ARRAYS, {}, [], true].entries()) {
      for (const [given, names] of [
        [
          bipartite,
          ['keepRatio', 'targetTokens', 'weighting', 'minTokens', 'action', 'frameTokens', 'metric'],
        ],
        [bipartite, ['imageOffsets', 'protected', 'mode', 'stream']],
        [threshold, ['keepRatio', 'threshold', 'minTokens', 'frameTokens', 'imageOffsets', 'protected']],
      ] as const) {
        for (const name of names) {
          await survives(`${name} <- ${i}`, () => {
            compressVisualTokens(features, { ...given, [name]: value } as never)[Symbol.dispose]();
            return undefined;
          });
        }
      }
    }
  });

  test('rebalanceAttention and segmentBias, every option with anything in its place', async () => {
    using plan = planOf({ kind: 'dense' });
    const segments = Int32Array.from({ length: 20 }, (_, j) => (j % 7) - 1);
    for (const [i, value] of [...NUMBERS, ...ARRAYS, {}, [], true].entries()) {
      for (const name of ['segments', 'shares', 'strength', 'maxBias', 'stream']) {
        await survives(`${name} <- ${i}`, () => {
          rebalanceAttention(plan, q, k, k, { segments, [name]: value } as never)[Symbol.dispose]();
          return undefined;
        });
      }
      for (const options of [{ strength: value }, { maxBias: value }]) {
        await survives(`segmentBias <- ${i}`, () => {
          segmentBias([0.5, 0.2], options as never);
          return undefined;
        });
      }
      await survives(`segmentBias <- ${i}`, () => {
        segmentBias(value as never);
        return undefined;
      });
    }
  });
});

test('a configuration with repeated keys, numbers past all numbers and half a surrogate', () => {
  const file = (head: string): string =>
    `{"format":"varlen.sparse-prefill/1","numLayers":1,"numHeads":1,"defaults":{"kind":"dense"},"layers":[{"0":${head}}]}`;
  // JSON's own rule: the last of repeated keys counts.
  const { layers } = loadPatternConfig(file('{"kind":"a-shape","sink":-1,"sink":2,"local":3}'));
  expect(layers[0].heads[0]).toEqual({ kind: 'a-shape', sink: 2, local: 3 });
  for (const head of [
    '{"kind":"a-shape","sink":1e400,"local":3}',
    '{"kind":"a-shape","sink":-1e400,"local":3}',
    '{"kind":"\\ud800","sink":1,"local":3}',
    '{"kind":"a-shape","sink":1,"local":3,"\\udfff":1}',
    '{"kind":"__proto__"}',
    '{"__proto__":{"kind":"dense"}}',
  ]) {
    expect(() => loadPatternConfig(file(head)), head).toThrow(
      expect.objectContaining({ code: 'ERR_VARLEN_CONFIG' }) as Error,
    );
  }
});
