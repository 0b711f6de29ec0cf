/**
 * The input-pipeline model: samples must be prepared by workers before a step can use them.
 *
 * A loader that hands out whole batches in order waits for the worker with the largest batch while the
 * others stand by; online batching prepares single samples and never does.
 */
import { type Layout, stepCosts } from './compute.js';
import type { Schedule, Setting } from './schedules.js';

/** How samples are prepared. Times in the token units of the compute model. */
export interface PipelineOptions {
  /** Workers per rank. */
  readonly workers: number;
  /** Batches in flight per worker of a batch-granular loader. */
  readonly prefetch: number;
  /** Samples in flight per rank of a sample-granular loader. */
  readonly inFlight: number;
  /** Preparation time of each sample, `[numSamples]`. */
  readonly prepare: Float64Array;
  /** Fixed cost of a step. */
  readonly fixed: number;
}

/**
 * Total time when worker `k` of each rank prepares whole batches `k, k + workers, ...`, delivered in order.
 *
 * Batch `j` starts when its worker is done with `j - workers` and batch `j - workers * prefetch` has
 * been taken; a step starts when every rank has its batch.
 */
export function batchGranularTime(
  setting: Setting,
  schedule: Schedule,
  layout: Layout,
  options: PipelineOptions,
): number {
  const { workers, prefetch, prepare, fixed } = options;
  const costs = stepCosts(setting, schedule, layout);
  const ready = Array.from({ length: setting.ranks }, () => new Float64Array(schedule.length));
  const taken = new Float64Array(schedule.length);
  let now = 0;
  schedule.forEach((step, j) => {
    let start = now;
    const freed = j < workers * prefetch ? 0 : taken[j - workers * prefetch];
    step.forEach((group, rank) => {
      const before = j < workers ? 0 : ready[rank][j - workers];
      let work = 0;
      for (const i of group) work += prepare[i];
      ready[rank][j] = Math.max(before, freed) + work;
      start = Math.max(start, ready[rank][j]);
    });
    taken[j] = start;
    now = start + fixed + costs[j];
  });
  return now;
}

/**
 * Total time when the workers of a rank prepare single samples in order and a round starts when every
 * rank's window is full.
 *
 * `rounds[k]` is the number of steps of round `k`. At most `inFlight` samples of a rank are prepared or
 * waiting; a sample leaves when its step starts.
 */
export function sampleGranularTime(
  setting: Setting,
  rounds: readonly Schedule[],
  layout: Layout,
  options: PipelineOptions,
): number {
  const { workers, inFlight, prepare, fixed } = options;
  const free = Array.from({ length: setting.ranks }, () => new Float64Array(workers));
  /** When the n-th sample of a rank left, in order of leaving. */
  const left: number[][] = Array.from({ length: setting.ranks }, () => []);
  const read = new Int32Array(setting.ranks);
  let now = 0;
  for (const round of rounds) {
    let full = 0;
    for (let rank = 0; rank < setting.ranks; rank++) {
      for (const step of round) {
        for (const i of step[rank]) {
          const slot = earliest(free[rank]);
          const room = read[rank] < inFlight ? 0 : left[rank][read[rank] - inFlight];
          read[rank]++;
          free[rank][slot] = Math.max(free[rank][slot], room) + prepare[i];
          full = Math.max(full, free[rank][slot]);
        }
      }
    }
    now = Math.max(now, full);
    for (const [j, cost] of stepCosts(setting, round, layout).entries()) {
      round[j].forEach((group, rank) => {
        for (let n = 0; n < group.length; n++) left[rank].push(now);
      });
      now += fixed + cost;
    }
  }
  return now;
}

function earliest(times: Float64Array): number {
  let best = 0;
  for (let i = 1; i < times.length; i++) if (times[i] < times[best]) best = i;
  return best;
}
