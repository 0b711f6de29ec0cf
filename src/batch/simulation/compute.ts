/**
 * The compute model: a step takes `F + max over ranks of C`, in token units.
 *
 * `C = tokens + q * area`: for padded groups `tokens = count * longest` and `area = count * longest^2`,
 * for packed ones the sums of length and length squared. `F` is the fixed cost of a step (launches,
 * optimizer, gradient exchange) divided by the time per token.
 */
import type { Schedule, Setting } from './schedules.js';

/** What a schedule costs. */
export interface ComputeResult {
  readonly samples: number;
  readonly steps: number;
  /** Token units. */
  readonly time: number;
  /** Padding over computed tokens. */
  readonly padding: number;
  /** `sum of max / sum of mean - 1` of the ranks' costs. */
  readonly straggler: number;
  /** Rank-steps without work. */
  readonly idle: number;
}

/** How a group of samples is laid out for the model. */
export type Layout = 'padded' | 'packed';

/** Cost of one group in token units. */
export function groupCost(lengths: Int32Array, group: readonly number[], layout: Layout, q: number): number {
  let tokens = 0;
  let area = 0;
  let longest = 0;
  for (const i of group) {
    tokens += lengths[i];
    area += lengths[i] ** 2;
    longest = Math.max(longest, lengths[i]);
  }
  return layout === 'packed' ? tokens + q * area : group.length * (longest + q * longest ** 2);
}

/** Time of each step without its fixed part: the slowest rank's cost. */
export function stepCosts(setting: Setting, schedule: Schedule, layout: Layout): number[] {
  return schedule.map((step) =>
    Math.max(...step.map((group) => groupCost(setting.lengths, group, layout, setting.q))),
  );
}

/** Runs a schedule through the model. */
export function simulateCompute(
  setting: Setting,
  schedule: Schedule,
  layout: Layout,
  fixed: number,
): ComputeResult {
  const { lengths, ranks, q } = setting;
  let samples = 0;
  let time = 0;
  let real = 0;
  let computed = 0;
  let sumMax = 0;
  let sumMean = 0;
  let idle = 0;
  for (const step of schedule) {
    let largest = 0;
    for (const group of step) {
      const cost = groupCost(lengths, group, layout, q);
      largest = Math.max(largest, cost);
      sumMean += cost / ranks;
      if (group.length === 0) idle++;
      samples += group.length;
      let longest = 0;
      let tokens = 0;
      for (const i of group) {
        tokens += lengths[i];
        longest = Math.max(longest, lengths[i]);
      }
      real += tokens;
      computed += layout === 'packed' ? tokens : group.length * longest;
    }
    sumMax += largest;
    time += fixed + largest;
  }
  const padding = computed === 0 ? 0 : 1 - real / computed;
  const straggler = sumMean === 0 ? 0 : sumMax / sumMean - 1;
  return { samples, steps: schedule.length, time, padding, straggler, idle };
}
