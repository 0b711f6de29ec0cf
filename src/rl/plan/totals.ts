/** The few global numbers a plan needs, as one vector that ranks can add up. */
import { groupIndex } from '../group-index.js';
import { addExactly, LIMBS, sumOf } from './exact-sum.js';
import { lengthWeight } from './length-weight.js';
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
  const weightOf = lengthWeight(op, aggregation, counted.length);
  const weights = weightOf && new Float64Array(counted.length);
  let tokens = 0;
  let seqs = 0;
  for (let i = 0; i < counted.length; i++) {
    const length = counted[i];
    if (length === 0) continue;
    tokens += length;
    seqs += 1;
    if (weightOf === undefined) continue;
    const weight = weightOf(length, i);
    weights![i] = weight;
    addExactly(vector, WEIGHT, weight);
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
  const groupTokens = new Float64Array(numGroups);
  for (let i = 0; i < counted.length; i++) groupTokens[groupOf[i]] += counted[i];
  for (const tokensOfGroup of groupTokens) if (tokensOfGroup > 0) vector[GROUPS] += 1;
  return { vector, groupOf, groupTokens, ...(weights && { weights }) };
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
