/**
 * Who runs what in which step, under each way of batching. A schedule is a list of aligned steps; a
 * step has one group per rank, and an empty group is a rank without work.
 */
import { alignRound, type RoundHeader } from '../../dist/align.js';
import { seededPermutation } from '../../seeded-random.js';
import { fitToSteps } from '../fit.js';
import { groupWindow } from '../grouping.js';
import { batchBySize } from '../packing/batch-by-size.js';
import type { GroupOptions } from '../window-view.js';

/** Indices of samples by step, then by rank. */
export type Schedule = readonly (readonly (readonly number[])[])[];

/** What every schedule is made from. */
export interface Setting {
  /** Tokens per sample, `[numSamples]`. */
  readonly lengths: Int32Array;
  readonly ranks: number;
  /** Tokens per group. */
  readonly budget: number;
  /** Fresh samples per rank and round. */
  readonly window: number;
  /** Weight of the quadratic term, per token. */
  readonly q: number;
  readonly seed: number;
}

/** Batch 1 per rank, in random order: what most trainers do. */
export function standard({ lengths, ranks, seed }: Setting): Schedule {
  return inBlocks(
    [...seededPermutation(lengths.length, seed, 2)].map((i) => [i]),
    ranks,
  );
}

/** Length-grouped batch 1: pools of 50 per rank, each sorted, dealt in blocks of one per rank. */
export function lengthGrouped({ lengths, ranks, seed }: Setting): Schedule {
  const order = [...seededPermutation(lengths.length, seed, 2)];
  const sorted: number[] = [];
  for (let start = 0; start < order.length; start += 50 * ranks) {
    sorted.push(...order.slice(start, start + 50 * ranks).sort((a, b) => lengths[b] - lengths[a] || a - b));
  }
  return inBlocks(
    sorted.map((i) => [i]),
    ranks,
  );
}

/** The global oracle: all lengths known and sorted, cut by budget, batches shuffled. */
export function globalMaxToken(setting: Setting): Schedule {
  const { lengths, ranks, seed } = setting;
  return inBlocks(shuffled(budgetBatches(setting, [...lengths.keys()]), seed), ranks);
}

/** The bucketed oracle: 100 random pools, each cut as the global oracle would. */
export function bucketedMaxToken(setting: Setting): Schedule {
  const { lengths, ranks, seed } = setting;
  const order = [...seededPermutation(lengths.length, seed, 2)];
  const pool = Math.ceil(order.length / 100);
  const batches: number[][] = [];
  for (let start = 0; start < order.length; start += pool) {
    batches.push(...budgetBatches(setting, order.slice(start, start + pool)));
  }
  return inBlocks(shuffled(batches, seed), ranks);
}

/** The reference's online rule, round by round: its grouping, its target, its splitting. */
export function onlineReference(setting: Setting): Schedule[] {
  const { lengths, budget } = setting;
  return inWindows(setting, (windows) => {
    const groups = windows.map((window) => {
      const options = { mode: 'padded', budget: { paddedTokens: budget }, groupingPolicy: 'odb' } as const;
      return groupWindow(pick(lengths, window), options).map((group) => group.map((i) => window[i]));
    });
    // Windows of equal size and no invalid samples: slots and sample counts bound nothing more.
    const filled = windows.filter((window) => window.length > 0).map((window) => window.length);
    const target = Math.max(1, Math.min(Math.max(...groups.map((g) => g.length)), ...filled));
    return groups.map((list) => splitLikeReference(list, target));
  });
}

/** Our protocol with padded groups, round by round. */
export function strictPadded(setting: Setting): Schedule[] {
  return aligned(setting, { mode: 'padded', budget: { paddedTokens: setting.budget } });
}

/** Our protocol with packed groups, round by round: no padding at all. */
export function packedOnline(setting: Setting): Schedule[] {
  return aligned(setting, { mode: 'packed', budget: { packedTokens: setting.budget } });
}

function aligned(setting: Setting, limits: GroupOptions): Schedule[] {
  const { lengths, q } = setting;
  const options: GroupOptions = { ...limits, costOf: (length) => length + q * length * length };
  return inWindows(setting, (windows) => {
    const local = windows.map((window) => pick(lengths, window));
    const groups = local.map((window) => groupWindow(window, options));
    const { target } = alignRound(groups.map((list, rank) => headerOf(local[rank].length, list.length)));
    return groups.map((list, rank) => {
      const { steps } = fitToSteps(list, local[rank], target, options);
      return steps.map((step) => (step ?? []).map((i) => windows[rank][i]));
    });
  });
}

function headerOf(samples: number, steps: number): RoundHeader {
  const plain = { configHash: 0, round: 0, abort: false, drain: false, nonJoin: false };
  return { ...plain, exhausted: true, samples, steps, maxSteps: 2 ** 31 - 1, carryAge: 0 };
}

/** Deals shuffled samples to ranks, cuts windows, and lets `align` align each row of windows. */
function inWindows(setting: Setting, align: (windows: number[][]) => number[][][]): Schedule[] {
  const { lengths, ranks, window, seed } = setting;
  const order = seededPermutation(lengths.length, seed, 2);
  const shards: number[][] = Array.from({ length: ranks }, () => []);
  for (let i = 0; i < order.length; i++) shards[i % ranks].push(order[i]);
  const rounds: Schedule[] = [];
  for (let start = 0; start < shards[0].length; start += window) {
    const byRank = align(shards.map((shard) => shard.slice(start, start + window)));
    // The common permutation of a round changes the order of its steps on all ranks alike.
    const most = Math.max(...byRank.map((list) => list.length));
    const order = seededPermutation(most, seed, 3, start);
    rounds.push([...order].map((step) => byRank.map((list) => list[step] ?? [])));
  }
  return rounds;
}

/** The reference's split: the last group with two samples gives its longest to a group of its own. */
function splitLikeReference(groups: number[][], target: number): number[][] {
  const result = groups.map((group) => [...group]);
  while (result.length < target) {
    const at = result.findLastIndex((group) => group.length >= 2);
    if (at < 0) break;
    const longest = result[at].pop() as number;
    result.splice(at + 1, 0, [longest]);
  }
  return result;
}

function budgetBatches({ lengths, budget }: Setting, items: number[]): number[][] {
  const sorted = items.sort((a, b) => lengths[a] - lengths[b] || a - b);
  return batchBySize(pick(lengths, sorted), Math.max(budget, lengths[sorted.at(-1) ?? 0] ?? 0)).map((batch) =>
    batch.map((i) => sorted[i]),
  );
}

function shuffled(batches: number[][], seed: number): number[][] {
  return [...seededPermutation(batches.length, seed, 4)].map((i) => batches[i]);
}

/** Batch `i` to rank `i mod ranks`; the last step may leave ranks without work. */
function inBlocks(batches: number[][], ranks: number): Schedule {
  const steps: number[][][] = [];
  for (let start = 0; start < batches.length; start += ranks) {
    steps.push(Array.from({ length: ranks }, (_, rank) => batches[start + rank] ?? []));
  }
  return steps;
}

function pick(lengths: Int32Array, indices: readonly number[]): Int32Array {
  return Int32Array.from(indices, (i) => lengths[i]);
}
