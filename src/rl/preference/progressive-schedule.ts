/** KPOD's curriculum: from the last steps of easy rationales to whole rationales, along a growing budget. */
import { checkInteger, readOptions } from '../../check.js';
import { checkArray, checkFloats, checkNumber, rangeError } from '../check-arrays.js';
import { checkOffsets } from '../offsets.js';

/** Rationales by their steps. */
export interface CurriculumInput {
  /** `[numSteps]`, of `stepDifficulty`, at least 0, steps of one rationale in order. */
  readonly difficulties: Float32Array | Float64Array;
  /** `[numSeqs + 1]`, which steps belong to which rationale. */
  readonly cuSteps: Int32Array;
  /** `[numSeqs]`, cluster of each question, such as k-means over its embedding. Any integers. */
  readonly clusters: Int32Array;
}

/** Options of {@link progressiveSchedule}. */
export interface CurriculumOptions {
  /** Number of the last stage, at which everything is trained; at least 1. */
  stages: number;
  /** Budget of stage 0, between 0 and the sum of all difficulties. */
  initial: number;
  /** How the budget bends: its growth per stage rises with `stage ^ exponent`. Default 0.5. */
  exponent?: number;
  /** Weight of spreading over clusters against filling the budget, at least 0. Default 1. */
  diversity?: number;
}

/** What is trained at one stage. */
export interface CurriculumStage {
  /** From 0 to `stages`. */
  readonly stage: number;
  /** `[numSeqs]`, first trained step of each rationale; its number of steps when none is. Never rises. */
  readonly firstTrainedStep: Int32Array;
  /** `D(stage) = u stage^(exponent + 1) / (exponent + 1) + initial`, with `u` such that all fits at the end. */
  readonly budget: number;
  /** Difficulty of the trained steps, at most `budget`. */
  readonly used: number;
}

/**
 * All stages `0 .. stages` of a progressive curriculum. Stage 0 takes steps from the ends, one per rationale
 * and round, while they fit. Each further stage chooses rationales that grow by one step so as to fill the
 * budget and to spread over clusters: it maximises `-(budget left) + diversity * sum over clusters of
 * sqrt(chosen)` greedily by gain per cost, or takes the best single one if that is better, until nothing
 * fits. Greedy is within `1 - 1/sqrt(e)` of the best choice, not always at it.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION` and
 * `ERR_VARLEN_CU_SEQLENS`.
 *
 * @example
 * const input = {
 *   difficulties: Float64Array.of(1, 2, 3), cuSteps: Int32Array.of(0, 2, 3), clusters: Int32Array.of(0, 1),
 * };
 * progressiveSchedule(input, { stages: 2, initial: 2 })[0].firstTrainedStep; // [1, 1]: only the step of difficulty 2 fits
 */
export function progressiveSchedule(
  input: CurriculumInput,
  options: CurriculumOptions,
): readonly CurriculumStage[] {
  const op = 'progressiveSchedule';
  const { difficulties, cuSteps, clusters } = input;
  checkFloats(op, 'difficulties', difficulties);
  checkOffsets(op, 'cuSteps', cuSteps, difficulties.length);
  const numSeqs = cuSteps.length - 1;
  checkArray(op, 'clusters', clusters, 'Int32Array', numSeqs);
  let total = 0;
  for (let k = 0; k < difficulties.length; k++) {
    checkNumber(op, `difficulties[${k}]`, difficulties[k], { min: 0 });
    total += difficulties[k];
  }
  const known = ['stages', 'initial', 'exponent', 'diversity'] as const;
  const { stages, initial, exponent = 0.5, diversity = 1 } = readOptions(op, options, known);
  checkInteger(op, 'stages', stages, 1);
  checkNumber(op, 'initial', initial, { min: 0 });
  if (initial > total) throw rangeError(op, 'initial', initial, `at most the sum of difficulties, ${total}`);
  checkNumber(op, 'exponent', exponent, { above: -1 });
  checkNumber(op, 'diversity', diversity, { min: 0 });

  const first = Int32Array.from({ length: numSeqs }, (_, i) => cuSteps[i + 1] - cuSteps[i]);
  const costOf = (i: number): number => difficulties[cuSteps[i] + first[i] - 1];
  let used = 0;
  const advance = (i: number): void => {
    used += costOf(i);
    first[i] -= 1;
  };
  const fill = (budget: number): void => {
    for (let grown = true; grown; ) {
      grown = false;
      for (let i = 0; i < numSeqs; i++) {
        if (first[i] === 0 || used + costOf(i) > budget) continue;
        advance(i);
        grown = true;
      }
    }
  };
  const snapshot = (stage: number, budget: number): CurriculumStage =>
    Object.freeze({ stage, firstTrainedStep: first.slice(), budget, used });

  fill(initial);
  const result = [snapshot(0, initial)];
  for (let stage = 1; stage < stages; stage++) {
    const budget = initial + (total - initial) * (stage / stages) ** (exponent + 1);
    for (;;) {
      const open = Int32Array.from(first.keys()).filter((i) => first[i] > 0);
      const chosen = chooseAdvances(
        Float64Array.from(open, costOf),
        open.map((i) => clusters[i]),
        budget - used,
        diversity,
      );
      if (chosen.length === 0) break;
      // Added up in another order a choice may exceed the budget by a rounding error: that item waits.
      const fitting = chosen.filter((place) => {
        const fits = used + costOf(open[place]) <= budget;
        if (fits) advance(open[place]);
        return fits;
      });
      if (fitting.length === 0) break;
    }
    result.push(snapshot(stage, budget));
  }
  // At the end the budget is the sum of all difficulties, whatever the order in which they are added.
  first.fill(0);
  used = total;
  result.push(snapshot(stages, total));
  return Object.freeze(result);
}

/**
 * Items that grow, as places in `costs`: greedy by gain per cost of
 * `-(budget - cost) + diversity * sum over clusters sqrt(chosen)`, or the best single one.
 */
export function chooseAdvances(
  costs: Float64Array,
  clusters: Int32Array,
  budget: number,
  diversity: number,
): number[] {
  const fits = Array.from(costs.keys()).filter((i) => costs[i] <= budget);
  if (fits.length === 0) return [];
  // All items of a cluster gain alike, so the cheapest one gains most per cost.
  const queues = new Map<number, { items: number[]; next: number; chosen: number }>();
  for (const i of fits) {
    const queue = queues.get(clusters[i]) ?? { items: [], next: 0, chosen: 0 };
    queue.items.push(i);
    queues.set(clusters[i], queue);
  }
  if (diversity > 0) {
    for (const { items } of queues.values()) items.sort((a, b) => costs[a] - costs[b] || a - b);
  }
  const chosen: number[] = [];
  let [left, spread] = [budget, 0];
  for (;;) {
    let best: { queue: { next: number; chosen: number }; item: number; rate: number } | undefined;
    for (const queue of queues.values()) {
      // What does not fit now never will: the rest only shrinks.
      while (queue.next < queue.items.length && costs[queue.items[queue.next]] > left) queue.next += 1;
      if (queue.next === queue.items.length) continue;
      const item = queue.items[queue.next];
      const rate = costs[item] === 0 ? Infinity : (diversity * rootStep(queue.chosen)) / costs[item];
      if (best === undefined || rate > best.rate || (rate === best.rate && item < best.item)) {
        best = { queue, item, rate };
      }
    }
    if (best === undefined) break;
    chosen.push(best.item);
    left -= costs[best.item];
    spread += rootStep(best.queue.chosen);
    best.queue.next += 1;
    best.queue.chosen += 1;
  }
  const dearest = fits.reduce((best, i) => (costs[i] > costs[best] ? i : best));
  const single = -(budget - costs[dearest]) + diversity;
  return single > -left + diversity * spread ? [dearest] : chosen;
}

/** What one more item adds to the square root of a cluster's count. */
function rootStep(count: number): number {
  return Math.sqrt(count + 1) - Math.sqrt(count);
}
