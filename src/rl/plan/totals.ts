/** The few global numbers a plan needs, as one vector that ranks can add up. */
import { groupIndex } from '../group-index.js';
import { LIMBS, sumExactly, sumOf } from './exact-sum.js';
import { lengthWeights } from './length-weight.js';
import type { PlanInput, ResolvedPlan } from './options.js';

/** Sums over the active sequences of the scope, over all ranks. */
export interface PlanTotals {
  /** `N_t`: active tokens. */
  readonly tokens: number;
  /** `N_s`: active sequences. */
  readonly seqs: number;
  /** `P`: groups with an active sequence; 0 when no `groupIds` were given. */
  readonly groups: number;
  /** `sum u_j` of the modes that weigh by length, relative to `normConstant`; else 0. */
  readonly weightSum: number;
  /** Tokens of the entropy bonus. */
  readonly entropyTokens: number;
  /** Sum of the rollout-correction weights; 0 when none were given. */
  readonly correctionSum: number;
}

const TOKENS = 0;
const SEQS = 1;
const GROUPS = 2;
const WEIGHT = 3;
const ENTROPY = WEIGHT + LIMBS;
const CORRECTION = ENTROPY + 1;

/** Values in the vector, before any per-group ones. */
export const NUM_TOTALS: number = CORRECTION + 1;

/** A rank's own sums: the vector to add over ranks, and what its weights are made of. */
export interface LocalTotals {
  /** `[NUM_TOTALS]`, then `T_g` of every group when groups may span ranks. */
  readonly vector: Float64Array;
  /** `[numSeqs]`, `u_i`; 0 where inactive. Absent when the mode does not weigh by length. */
  readonly weights?: Float64Array;
  /** `[numSeqs]`, index of each sequence's group in `groupTokens`. */
  readonly groupOf?: Int32Array;
  /** `T_g` of the groups on this rank. */
  readonly groupTokens?: Float64Array;
}

/** Sums this rank's sequences. `sharedGroups` counts groups `0 .. n-1` that may have members elsewhere. */
export function localTotals(
  op: string,
  input: PlanInput,
  resolved: ResolvedPlan,
  sharedGroups = 0,
): LocalTotals {
  const { counted, aggregation } = resolved;
  const vector = new Float64Array(NUM_TOTALS + sharedGroups);
  const weights = lengthWeights(op, aggregation, counted);
  if (weights !== undefined) sumExactly(weights, vector, WEIGHT);
  let tokens = 0;
  let seqs = 0;
  for (let i = 0; i < counted.length; i++) {
    tokens += counted[i];
    if (counted[i] > 0) seqs += 1;
  }
  vector[TOKENS] = tokens;
  vector[SEQS] = seqs;
  vector[ENTROPY] = input.entropyTokens ?? tokens;
  vector[CORRECTION] = input.correctionSum ?? 0;
  if (input.groupIds === undefined) return { vector, ...(weights && { weights }) };
  if (sharedGroups > 0) {
    for (let i = 0; i < counted.length; i++) vector[NUM_TOTALS + input.groupIds[i]] += counted[i];
    return { vector, groupOf: input.groupIds, ...(weights && { weights }) };
  }
  const { groupOf, numGroups } = groupIndex(input.groupIds);
  const groupTokens = sumByGroup(counted, groupOf, numGroups);
  let groups = 0;
  for (let g = 0; g < numGroups; g++) if (groupTokens[g] > 0) groups += 1;
  vector[GROUPS] = groups;
  return { vector, groupOf, groupTokens, ...(weights && { weights }) };
}

/** `T_g`. Members of a group are usually neighbours, so a run is summed before it is stored. */
function sumByGroup(lengths: Int32Array, groupOf: Int32Array, numGroups: number): Float64Array {
  const sums = new Float64Array(numGroups);
  let sum = 0;
  for (let i = 0; i < lengths.length; i++) {
    sum += lengths[i];
    if (i + 1 < lengths.length && groupOf[i + 1] === groupOf[i]) continue;
    sums[groupOf[i]] += sum;
    sum = 0;
  }
  return sums;
}

/** Reads the vector that was added over all ranks. */
export function readTotals(vector: Float64Array): PlanTotals {
  let groups = vector[GROUPS];
  // A group with members on several ranks is one group: it counts where its tokens are summed.
  for (let g = NUM_TOTALS; g < vector.length; g++) if (vector[g] > 0) groups += 1;
  return Object.freeze({
    tokens: vector[TOKENS],
    seqs: vector[SEQS],
    groups,
    weightSum: sumOf(vector, WEIGHT),
    entropyTokens: vector[ENTROPY],
    correctionSum: vector[CORRECTION],
  });
}
