import { varlenAttention } from '../../ops/index.js';
import { type HeadPattern, planPrefill, sparsePrefill } from '../../prefill/index.js';
import { Stream, Tensor } from '../../tensor/index.js';
import { type BenchLine, type BenchOptions, round, takeTurns } from './measure.js';

/** Sparse heads against the dense kernel on the same long sequence. */

const HEAD_DIM = 128;

const CASES: readonly { readonly shape: string; readonly length: number; readonly pattern: HeadPattern }[] = [
  { shape: '8192, a-shape(256, 1024)', length: 8192, pattern: { kind: 'a-shape', sink: 256, local: 1024 } },
  {
    shape: '16384, grid 196',
    length: 16384,
    pattern: {
      kind: 'grid',
      stride: 196,
      phase: 5,
      hline: true,
      vline: true,
      slash: false,
      sink: 16,
      local: 256,
    },
  },
];

/** The same numbers on every run, roughly normal. */
function random(size: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: size }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * 1.7;
  });
}

/** The bench `sparse-prefill`. */
export async function* benchSparsePrefill({
  device,
  quick,
  signal,
}: BenchOptions): AsyncGenerator<BenchLine> {
  const stream = Stream.of(device);
  for (const { shape, length, pattern } of quick ? CASES.slice(0, 1) : CASES) {
    const [q, k, v] = [1, 2, 3].map((seed) =>
      Tensor.from(random(length * HEAD_DIM, seed), {
        shape: [length, 1, HEAD_DIM],
        dtype: 'bfloat16',
        device,
      }),
    );
    const cuSeqlens = Int32Array.of(0, length);
    using plan = planPrefill({ heads: pattern }, q, k, { cuSeqlens, denseBelow: 0 });
    const { heads } = await plan.stats();
    const [ours, dense] = await takeTurns(
      [
        async () => {
          using _result = sparsePrefill(plan, q, k, v);
          await stream.synchronize();
        },
        async () => {
          using _result = varlenAttention(q, k, v, { cuSeqlens, causal: true });
          await stream.synchronize();
        },
      ],
      quick ? 0.3 : 3,
      signal,
    );
    const pairs = (heads[0].computedDensity * length * (length + 1)) / 2;
    yield {
      op: 'sparsePrefill',
      impl: pattern.kind,
      device: String(device),
      dtype: 'bfloat16',
      shape,
      ...ours,
      gbps: null,
      tflops: round((4 * HEAD_DIM * pairs) / ours.medianUs / 1e6),
      rooflineFraction: null,
      comparedWith: 'the dense causal kernel',
      ratio: round(dense.medianUs / ours.medianUs),
    };
    for (const tensor of [q, k, v]) tensor.dispose();
  }
}
