import { sparsePrefill } from '../ops/sparse-prefill.js';
import type { Tensor } from '../tensor/index.js';
import type { ModalityLayout } from './modality.js';
import type { HeadPattern } from './pattern.js';
import { type PrefillPlan, planPrefill } from './plan.js';
import { adjusted } from './search-candidates.js';

/** What a candidate is judged by. */
export type Objective = 'output-l2' | 'output-count' | 'recall';

/** A candidate as it was compared. */
export interface Tried {
  readonly pattern: HeadPattern;
  /** The objective; smaller is better. */
  readonly score: number;
  /** Share of all pairs that it issues. */
  readonly cost: number;
  /** Mean over all rows of the attention mass that is kept. */
  readonly recall: number;
}

/** One head of a capture: views of its rows. */
export interface OneHead {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly modality: ModalityLayout | undefined;
}

interface Output {
  readonly out: Float32Array;
  readonly lse: Float32Array;
}

/** How far a candidate's cost may be from the budget. */
export const TOLERANCE = 0.05;
const MAX_STEPS = 24;
/** An element that is off by more counts as wrong (MInference's second criterion). */
const WRONG_BY = 5e-3;

/** Compares candidates of one head with its dense attention, at a common cost. */
export class HeadSearch {
  readonly #head: OneHead;
  readonly #objective: Objective;
  readonly #exact: Output;
  /** Share of all pairs that a candidate may issue. */
  readonly target: number;

  private constructor(head: OneHead, objective: Objective, exact: Output, target: number) {
    this.#head = head;
    this.#objective = objective;
    this.#exact = exact;
    this.target = target;
  }

  static async start(head: OneHead, objective: Objective, budget: HeadPattern): Promise<HeadSearch> {
    const exact = await run(head, { kind: 'dense' });
    return new HeadSearch(head, objective, exact, await costOf(head, budget));
  }

  /** A candidate brought to the cost of the budget, and judged. */
  async try(candidate: HeadPattern): Promise<Tried> {
    const pattern = await this.fit(candidate);
    const output = await run(this.#head, pattern);
    const cost = await costOf(this.#head, pattern);
    return { pattern, score: this.#score(output), cost, recall: this.#recall(output) };
  }

  /** Brings a candidate's cost within 5 % of the budget, in steps of 50 keys per row. */
  async fit(pattern: HeadPattern): Promise<HeadPattern> {
    let [best, difference] = [pattern, Infinity];
    let [steps, stride, before] = [0, 8, 0];
    for (let turn = 0; turn < MAX_STEPS; turn++) {
      const candidate = adjusted(pattern, steps);
      const off = (await costOf(this.#head, candidate ?? pattern)) / this.target - 1;
      if (Math.abs(off) < Math.abs(difference)) [best, difference] = [candidate ?? pattern, off];
      if (Math.abs(off) <= TOLERANCE || candidate === undefined) break;
      const towards = off > 0 ? -1 : 1;
      if (towards === -before) {
        if (stride === 1) break; // between two neighbours
        stride >>= 1;
      }
      before = towards;
      while (stride > 1 && adjusted(pattern, steps + towards * stride) === undefined) stride >>= 1;
      steps += towards * stride;
      if (adjusted(pattern, steps) === undefined) break;
    }
    return best;
  }

  /** The objective of a pattern as it is, over the rows that `counts` names. */
  async scoreOf(pattern: HeadPattern, counts: (row: number) => boolean): Promise<number> {
    return this.#score(await run(this.#head, pattern), counts);
  }

  #score({ out, lse }: Output, counts: (row: number) => boolean = () => true): number {
    if (this.#objective === 'recall') return 1 - this.#recall({ out, lse }, counts);
    const exact = this.#exact.out;
    const width = out.length / lse.length;
    let [error, norm, wrong, all] = [0, 0, 0, 0];
    for (let row = 0; row < lse.length; row++) {
      if (!counts(row)) continue;
      for (let i = row * width; i < (row + 1) * width; i++) {
        const off = out[i] - exact[i];
        error += off ** 2;
        norm += exact[i] ** 2;
        wrong += Math.abs(off) > WRONG_BY ? 1 : 0;
        all++;
      }
    }
    if (this.#objective === 'output-count') return all > 0 ? wrong / all : 0;
    return norm > 0 ? Math.sqrt(error / norm) : 0;
  }

  #recall({ lse }: Output, counts: (row: number) => boolean = () => true): number {
    let [sum, rows] = [0, 0];
    for (let row = 0; row < lse.length; row++) {
      if (!counts(row)) continue;
      sum += Math.min(1, Math.exp(lse[row] - this.#exact.lse[row]));
      rows++;
    }
    return rows > 0 ? sum / rows : 1;
  }
}

/** A plan of one head that is neither made dense nor certified. */
function planFor({ q, k, modality }: OneHead, pattern: HeadPattern): PrefillPlan {
  return planPrefill({ heads: pattern }, q, k, {
    cuSeqlens: Int32Array.of(0, q.shape[0]),
    denseBelow: 0,
    denseAbove: 1,
    ...(modality === undefined ? {} : { modality: [modality] }),
  });
}

async function costOf(head: OneHead, pattern: HeadPattern): Promise<number> {
  using plan = planFor(head, pattern);
  return (await plan.stats()).heads[0].tileDensity;
}

async function run(head: OneHead, pattern: HeadPattern): Promise<Output> {
  using plan = planFor(head, pattern);
  using result = sparsePrefill(plan, head.q, head.k, head.v);
  const [out, lse] = await Promise.all([result.out.toFloat32(), result.softmaxLse.toFloat32()]);
  return { out, lse };
}
