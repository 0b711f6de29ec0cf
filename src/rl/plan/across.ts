/** The same plan over many ranks, for one injected all-reduce. */
import { checkBoolean, wrongType } from '../../check.js';
import { argumentError, varlenError } from '../../errors.js';
import { rangeError } from '../check-arrays.js';
import { type AggregationPlanOptions, type PlanInput, type ResolvedPlan, resolvePlan } from './options.js';
import { type AggregationPlan, finishPlan } from './plan.js';
import { type LocalTotals, localTotals, NUM_TOTALS } from './totals.js';

/** Adds a vector over all ranks, element by element: `(x) => group.allReduce(x, 'sum')`. */
export type AllReduceSum = (local: Float64Array) => Promise<Float64Array>;

/** Settings of {@link planAggregationAcross}. */
export type AcrossOptions = AggregationPlanOptions & {
  /** All members of a group are on one rank. Default true. */
  readonly groupsAreLocal?: boolean;
  /**
   * Groups over all ranks, when they are not rank-local: `groupIds` are then `0 .. numGroups - 1` and mean
   * the same group on every rank.
   */
  readonly numGroups?: number;
};

/**
 * The plan of a scope that is spread over ranks: each rank gives its own sequences and gets their weights
 * as if all had been planned together. Every rank must call it once per scope, also one without any
 * sequence; no two ranks need equal numbers of sequences or micro-batches.
 *
 * One all-reduce of 8 float64 values (plus one per group when `groupsAreLocal` is false): tokens,
 * sequences, groups, the sum of length weights in three limbs, entropy tokens, correction weights. Sums
 * are exact, so weights do not depend on how the sequences lie on the ranks, to the last bit. A group
 * that spans ranks counts once.
 *
 * When a rank's input is wrong that rank rejects with the reason and all others with
 * `ERR_VARLEN_PEER_ABORTED`: nobody is left waiting. Throws what {@link planAggregation} throws.
 *
 * @example
 * const plan = await planAggregationAcross(
 *   { lengths, groupIds },
 *   { aggregation: { mode: 'delta-l', alpha: 0.75, normConstant: 8192 }, worldSize: group.size },
 *   (x) => group.allReduce(x, 'sum'),
 * );
 */
export async function planAggregationAcross(
  input: PlanInput,
  options: AcrossOptions,
  allReduceSum: AllReduceSum,
): Promise<AggregationPlan> {
  const op = 'planAggregationAcross';
  if (typeof allReduceSum !== 'function') throw wrongType(op, 'allReduceSum', allReduceSum, 'a function');
  let mine: { resolved: ResolvedPlan; local: LocalTotals };
  try {
    mine = prepare(op, input, options);
  } catch (error) {
    // The peers are waiting in the all-reduce: NaN tells them. Its own failure would only hide `error`.
    const groups = sharedGroupsOf(options);
    await allReduceSum(new Float64Array(NUM_TOTALS + groups).fill(Number.NaN)).catch(() => undefined);
    throw error;
  }
  const { resolved, local } = mine;
  const summed = await allReduceSum(local.vector);
  if (!(summed instanceof Float64Array) || summed.length !== local.vector.length) {
    const got = summed instanceof Float64Array ? `${summed.length} values` : typeof summed;
    const problem = `returned something else; got ${got}, expected a Float64Array of ${local.vector.length}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, 'allReduceSum', problem);
  }
  if (Number.isNaN(summed[0])) {
    throw varlenError('ERR_VARLEN_PEER_ABORTED', `${op}: a peer has bad input; that rank has the reason`);
  }
  return finishPlan(op, input, resolved, local, summed);
}

function prepare(
  op: string,
  input: PlanInput,
  options: AcrossOptions,
): { resolved: ResolvedPlan; local: LocalTotals } {
  const resolved = resolvePlan(op, input, options, ['groupsAreLocal', 'numGroups']);
  if (resolved.scope === 'micro-batch') {
    const problem = "has sums of its own on every rank; got 'micro-batch', expected a scope shared by ranks";
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'scope', problem);
  }
  const { groupsAreLocal = true, numGroups } = options;
  checkBoolean(op, 'groupsAreLocal', groupsAreLocal);
  if (groupsAreLocal) {
    if (numGroups !== undefined) {
      const problem = `has no use while groups are local; got ${numGroups}, expected none`;
      throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'numGroups', problem);
    }
    return { resolved, local: localTotals(op, input, resolved) };
  }
  if (numGroups === undefined) {
    const problem = 'is needed when groups are not local; got none, expected an integer >= 1';
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'numGroups', problem);
  }
  if (!(Number.isSafeInteger(numGroups) && numGroups >= 1)) {
    throw rangeError(op, 'numGroups', numGroups, 'an integer >= 1');
  }
  if (input.groupIds === undefined) {
    const problem = 'is needed when groups are not local; got none, expected an Int32Array';
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'groupIds', problem);
  }
  input.groupIds.forEach((id, i) => {
    if (id < 0 || id >= numGroups) {
      throw rangeError(op, `groupIds[${i}]`, id, `an integer between 0 and ${numGroups - 1}`);
    }
  });
  return { resolved, local: localTotals(op, input, resolved, numGroups) };
}

/** Per-group values that the peers expect, as far as this rank's options can be read. */
function sharedGroupsOf(options: AcrossOptions | undefined): number {
  const { groupsAreLocal, numGroups } = options ?? {};
  return groupsAreLocal === false && Number.isSafeInteger(numGroups) ? Math.max(0, numGroups!) : 0;
}
