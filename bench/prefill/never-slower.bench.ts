/**
 * Planning and running with the plan's own defaults, against dense attention: `prefill.cpu.never-slower.*`.
 *
 * Three heads at every length: one that keeps everything, one of MInference's verticals and slashes, one of sink
 * and window. Where dense is the better choice, the plan has to make it, and cheaply. Times are by the clock, for
 * a quiet machine: threads that wait for a millisecond's work take processor time too.
 */
import { varlenAttention } from '../../src/ops/index.js';
import { type HeadPattern, type PrefillPlan, planPrefill, sparsePrefill } from '../../src/prefill/index.js';
import { Stream, Tensor } from '../../src/tensor/index.js';
import { atLeast, type TargetResult } from '../batch/measure.js';
import type { Suite } from '../suites.js';
import { DIM } from './head.js';
import { random, wallSeconds } from './processor-time.js';

const HEADS: readonly (readonly [name: string, pattern: HeadPattern])[] = [
  // A union goes through the sparse kernel even when all it holds is dense.
  ['everything', { kind: 'union', of: [{ kind: 'dense' }] }],
  ['verticals and slashes', { kind: 'vertical-slash', select: { topk: { vertical: 1000, slash: 6096 } } }],
  ['sink and window', { kind: 'a-shape', sink: 1024, local: 4096 }],
];

/** Above 16K tokens these last queries alone are computed: enough to fill tiles as the whole would. */
const LAST_QUERIES = 4096;

async function slowest(tokens: number, turns: number): Promise<TargetResult> {
  const make = (rows: number, seed: number): Tensor =>
    Tensor.from(random(rows * DIM, seed), { shape: [rows, 1, DIM], dtype: 'bfloat16', device: 'cpu' });
  const queries = tokens > 16384 ? LAST_QUERIES : tokens;
  using q = make(queries, 1);
  using k = make(tokens, 2);
  using v = make(tokens, 3);
  const lengths = { cuSeqlensQ: Int32Array.of(0, queries), cuSeqlensK: Int32Array.of(0, tokens) };
  const stream = Stream.of(q.device);
  let dense = Infinity;
  const sparse = HEADS.map(() => Infinity);
  for (let turn = 0; turn < turns; turn++) {
    for (const [n, [, heads]] of HEADS.entries()) {
      dense = Math.min(
        dense,
        await wallSeconds(stream, () => {
          using _result = varlenAttention(q, k, v, { ...lengths, causal: true });
        }),
      );
      let plan: PrefillPlan | undefined;
      const seconds = await wallSeconds(stream, () => {
        plan = planPrefill({ heads }, q, k, lengths);
        using _result = sparsePrefill(plan, q, k, v);
      });
      plan?.dispose();
      sparse[n] = Math.min(sparse[n], seconds);
    }
  }
  const rates = HEADS.map(([name], n) => `${name} ${(dense / sparse[n]).toFixed(3)}`);
  return atLeast(0.95, {
    id: `prefill.cpu.never-slower.${tokens / 1024}k`,
    what: `the slowest head at ${tokens / 1024}K tokens, planning included: ${rates.join(', ')}`,
    comparedWith: `the dense kernel on the same queries, by turns: ${(dense * 1e3).toFixed(1)} ms`,
    measured: dense / Math.max(...sparse),
    unit: 'of its speed',
  });
}

/** One suite per length. */
export const neverSlowerSuites: readonly Suite[] = (
  [
    [1024, 60],
    [2048, 40],
    [4096, 20],
    [8192, 10],
    [16384, 5],
    [32768, 5],
    [65536, 3],
  ] as const
).map(([tokens, turns]) => ({
  ids: [`prefill.cpu.never-slower.${tokens / 1024}k`],
  run: async () => [await slowest(tokens, turns)],
}));
