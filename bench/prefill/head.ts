/**
 * One head under a sparse plan and under our own dense kernel.
 *
 * Dense attention of 64K tokens takes many seconds, so there it is timed on 1024 of its queries, in four
 * blocks as its own tasks are, and scaled by the pairs they have: its rate does not depend on the row. Times
 * are processor time of all threads, which other programs on the machine disturb least.
 */
import { varlenAttention } from '../../src/ops/index.js';
import { type HeadPattern, type PrefillPlan, planPrefill, sparsePrefill } from '../../src/prefill/index.js';
import { Stream, Tensor } from '../../src/tensor/index.js';
import { processorSeconds, random } from './processor-time.js';

/** Head dimension of every case. */
export const DIM = 128;
/** Tokens of a frame. */
export const GRID_STRIDE = 196;

/** Slashes in runs of 16 and single verticals, as heads of real models have them. */
export function clusteredSlashes(keys: number, verticals: number, slashes: number): HeadPattern {
  let state = 5;
  const below = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const chosen = new Set<number>([0, 1, 2, 3]);
  while (chosen.size < verticals) chosen.add(below(keys));
  const offsets = new Set<number>(Array.from({ length: 64 }, (_, i) => i));
  while (offsets.size < slashes) {
    const start = below(keys - 16);
    for (let i = 0; i < 16; i++) offsets.add(start + i);
  }
  const sorted = (set: Set<number>): Int32Array => Int32Array.from(set).sort();
  return { kind: 'vertical-slash-fixed', vertical: sorted(chosen), slash: sorted(offsets) };
}

/** A grid with these lines. */
export const grid = (flags: { hline: boolean; vline: boolean; slash: boolean }): HeadPattern => ({
  kind: 'grid',
  stride: GRID_STRIDE,
  phase: 5,
  sink: 16,
  local: 256,
  ...flags,
});

/** Inputs of one head of `tokens`, and the two kernels on them. */
export class HeadBench implements Disposable {
  readonly #tensors: readonly [Tensor, Tensor, Tensor];
  readonly #chunks: readonly { readonly q: Tensor; readonly keys: number }[];
  readonly #stream: Stream;
  readonly #tokens: number;

  constructor(tokens: number) {
    const make = (seed: number): Tensor =>
      Tensor.from(random(tokens * DIM, seed), { shape: [tokens, 1, DIM], dtype: 'bfloat16', device: 'cpu' });
    this.#tokens = tokens;
    this.#tensors = [make(1), make(2), make(3)];
    this.#stream = Stream.of(this.#tensors[0].device);
    const [q] = this.#tensors;
    this.#chunks = [1, 2, 3, 4].map((i) => {
      const keys = Math.max(256, Math.floor((tokens * (2 * i - 1)) / 8));
      return { q: q.slice(0, keys - 256, keys), keys };
    });
  }

  /** Seconds of a full dense pass, from the chunks. */
  async dense(): Promise<number> {
    const [, k, v] = this.#tensors;
    let pairs = 0;
    const seconds = await processorSeconds(this.#stream, () => {
      for (const { q, keys } of this.#chunks) {
        using key = k.slice(0, 0, keys);
        using value = v.slice(0, 0, keys);
        const lengths = { cuSeqlensQ: Int32Array.of(0, 256), cuSeqlensK: Int32Array.of(0, keys) };
        using _result = varlenAttention(q, key, value, { ...lengths, causal: true, numSplits: 1 });
        pairs += 256 * (keys - 256) + (256 * 257) / 2;
      }
    });
    return (seconds * this.#tokens * (this.#tokens + 1)) / 2 / pairs;
  }

  /** Seconds of a full dense pass, measured whole. */
  async denseWhole(): Promise<number> {
    const [q, k, v] = this.#tensors;
    return processorSeconds(this.#stream, () => {
      using _result = varlenAttention(q, k, v, { cuSeqlens: Int32Array.of(0, this.#tokens), causal: true });
    });
  }

  /** Seconds to plan and to run, and the share of pairs that whole tiles issue. */
  async sparse(pattern: HeadPattern): Promise<{ plan: number; run: number; tiles: number }> {
    const [q, k, v] = this.#tensors;
    let made: PrefillPlan | undefined;
    const planning = await processorSeconds(this.#stream, () => {
      made = planPrefill({ heads: pattern }, q, k, {
        cuSeqlens: Int32Array.of(0, this.#tokens),
        denseBelow: 0,
        denseAbove: 1,
      });
    });
    using plan = made!;
    const running = await processorSeconds(this.#stream, () => {
      using _result = sparsePrefill(plan, q, k, v);
    });
    const [{ tileDensity }] = (await plan.stats()).heads;
    return { plan: planning, run: running, tiles: tileDensity };
  }

  [Symbol.dispose](): void {
    for (const { q } of this.#chunks) q.dispose();
    for (const tensor of this.#tensors) tensor.dispose();
  }
}

/** Best times of one pattern, in processor seconds. */
export interface Measured {
  readonly plan: number;
  readonly run: number;
  readonly dense: number;
  readonly tiles: number;
}

/** The best of turns: whatever else the machine does slows both alike, and the best is the least slowed. */
export async function measure(
  bench: HeadBench,
  pattern: HeadPattern,
  turns: number,
  whole = false,
): Promise<Measured> {
  let best = { plan: Infinity, run: Infinity, dense: Infinity, tiles: 0 };
  for (let turn = 0; turn < turns; turn++) {
    const { plan, run, tiles } = await bench.sparse(pattern);
    const dense = whole ? await bench.denseWhole() : Math.min(await bench.dense(), await bench.dense());
    best = {
      plan: Math.min(best.plan, plan),
      run: Math.min(best.run, run),
      dense: Math.min(best.dense, dense),
      tiles,
    };
  }
  return best;
}

/** What a ratio to `dense` seconds was measured against. */
export function against(dense: number): string {
  return `the dense kernel on the same tokens, by turns: ${dense.toFixed(2)} processor seconds`;
}
