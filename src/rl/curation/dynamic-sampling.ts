/** Which groups of answers teach anything (DAPO's dynamic sampling, section 3.2). */
import { checkInteger, readOptions } from '../../check.js';
import { hasNoSpread } from '../advantages/group-stats.js';
import { checkArray, checkFloats } from '../check-arrays.js';
import { groupIndex } from '../group-index.js';

/** Options of {@link dynamicSampling}. */
export interface DynamicSamplingOptions {
  /** Groups that the update needs. */
  groups: number;
}

/** What {@link dynamicSampling} keeps. Groups stand in the order of their first member. */
export interface DynamicSample {
  /** Sequences of the kept groups, ascending. */
  readonly indices: Int32Array;
  /** Ids of the kept groups, `groups` at most. */
  readonly keptGroups: Int32Array;
  /** Ids of the groups beyond `groups` that could be kept for the next update. */
  readonly spareGroups: Int32Array;
  /** Ids of the groups whose answers all earned the same. */
  readonly droppedGroups: Int32Array;
  /** How many groups are still missing. */
  readonly missing: number;
  /**
   * How many more prompts to sample, at the rate at which groups could be kept so far; `missing` when there
   * is no rate to go by. 0 when nothing is missing.
   */
  readonly promptsToSample: number;
}

/**
 * Keeps groups whose rewards differ, and says how many more are needed: answers that all earned the same
 * have advantage 0.
 *
 * Rewards are the same when they differ by at most `1e-6 * max(1, |max|)`, so that float noise in a
 * constant group is no spread. NaN means "not scored" and counts nowhere.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @param rewards `[numSeqs]`
 * @param groupIds `[numSeqs]`, equal value = same prompt
 *
 * @example
 * const sample = dynamicSampling(Float32Array.of(1, 1, 0, 1), Int32Array.of(7, 7, 8, 8), { groups: 2 });
 * [sample.keptGroups, sample.missing, sample.promptsToSample]; // [[8], 1, 2]
 */
export function dynamicSampling(
  rewards: Float32Array | Float64Array,
  groupIds: Int32Array,
  options: DynamicSamplingOptions,
): DynamicSample {
  const op = 'dynamicSampling';
  checkFloats(op, 'rewards', rewards);
  checkArray(op, 'groupIds', groupIds, 'Int32Array', rewards.length);
  const { groups } = readOptions(op, options, ['groups']);
  checkInteger(op, 'groups', groups, 1);

  const { groupOf, numGroups } = groupIndex(groupIds);
  const lowest = new Float64Array(numGroups).fill(Infinity);
  const highest = new Float64Array(numGroups).fill(-Infinity);
  const names = new Int32Array(numGroups);
  groupOf.forEach((g, i) => {
    names[g] = groupIds[i];
    if (Number.isNaN(rewards[i])) return;
    lowest[g] = Math.min(lowest[g], rewards[i]);
    highest[g] = Math.max(highest[g], rewards[i]);
  });
  // A group without a single score has nothing above its lowest.
  const differs = Array.from(names, (_, g) => {
    return highest[g] > lowest[g] && !hasNoSpread(lowest[g], highest[g]);
  });
  const useful = Int32Array.from(differs.keys()).filter((g) => differs[g]);
  const kept = new Set(useful.subarray(0, groups));
  const missing = groups - kept.size;
  const rate = useful.length / numGroups;
  const nameOf = (list: Int32Array): Int32Array => list.map((g) => names[g]);
  return Object.freeze({
    indices: Int32Array.from(groupOf.keys()).filter((i) => kept.has(groupOf[i])),
    keptGroups: nameOf(useful.subarray(0, groups)),
    spareGroups: nameOf(useful.subarray(groups)),
    droppedGroups: names.filter((_, g) => !differs[g]),
    missing,
    promptsToSample: rate > 0 ? Math.ceil(missing / rate) : missing,
  });
}
