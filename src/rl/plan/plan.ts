/** The aggregation plan: which factor each sequence's loss gets, decided once before the first kernel. */
import { argumentError } from '../../errors.js';
import { lengthHash } from '../../ops/length-hash.js';
import type { SequenceScales } from '../../ops/sequence-scales.js';
import { rangeError } from '../check-arrays.js';
import type { Aggregation } from './aggregation.js';
import { type AggregationPlanOptions, type PlanInput, type ResolvedPlan, resolvePlan } from './options.js';
import { type LocalTotals, localTotals, NUM_TOTALS, type PlanTotals, readTotals } from './totals.js';

/**
 * Weights of the sequences of one scope, or of a part of it. A frozen value: to change something, plan
 * again. Only the contents of its typed arrays are not frozen (JavaScript cannot); do not write to them.
 */
export interface AggregationPlan extends SequenceScales {
  readonly aggregation: Aggregation;
  readonly scope: 'optimizer-step' | 'rollout-batch' | 'micro-batch';
  readonly gradReduction: 'mean' | 'sum';
  readonly worldSize: number;
  readonly lengthMask: 'base' | 'effective';
  readonly numSeqs: number;
  /** `[numSeqs]`, active tokens by the caller's mask, as given. */
  readonly lengths: Int32Array;
  /** `[numSeqs]`, the names of the sequences, when they were given. */
  readonly ids?: readonly (string | number)[];
  /** Position of the first sequence in the plan that was sliced; 0 in a whole one. */
  readonly start: number;
  /** `[numSeqs]`, `s_i`, rounded once from float64; 0 where inactive. Never divide it again. */
  readonly seqScale: Float32Array;
  /** `N_t` of the whole scope, also in a slice. */
  readonly activeTokens: number;
  /** What undoes the trainer's reduction: `worldSize` for a mean, else 1; times the steps of a rollout batch. */
  readonly gradScale: number;
  /** Factor `h_t` of the entropy bonus: `gradScale` over the entropy tokens of all ranks; 0 without any. */
  readonly entropyScale: number;
  /** Sums over the whole scope, also in a slice. */
  readonly totals: PlanTotals;
  /** 64-bit hash of `lengths`: an op refuses a batch with other lengths. */
  readonly lengthHash: string;
  /**
   * The plan of sequences `start .. end - 1`, in plan order: what a micro-batch takes. Weights are the
   * same numbers, so gradients of micro-batches are simply added.
   *
   * Throws `ERR_VARLEN_RANGE`.
   */
  slice(start: number, end: number): AggregationPlan;
}

/**
 * The plan of one scope whose sequences are all here: on one rank, or with the lengths of all ranks at
 * hand (each rank then takes its `slice`). For ranks that know only their own lengths see
 * {@link planAggregationAcross}.
 *
 * Weights are those of {@link Aggregation}, in float64, rounded once to float32. A sequence without
 * active tokens has weight 0 and counts nowhere; a scope without any gives all zeros. Micro-batches take
 * `plan.slice(start, end)` and add their gradients up: never divide by accumulation steps, never multiply
 * by a `StepInfo.lossScale`.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_OPTION`, `ERR_VARLEN_INCOMPATIBLE` and `ERR_VARLEN_MISSING_INPUT`.
 *
 * @example
 * const lengths = Int32Array.of(2, 3, 1, 3);
 * const plan = planAggregation({ lengths }, { aggregation: { mode: 'token-mean' } });
 * plan.seqScale; // 1/9 each
 */
export function planAggregation(input: PlanInput, options: AggregationPlanOptions): AggregationPlan {
  const op = 'planAggregation';
  const resolved = resolvePlan(op, input, options);
  const local = localTotals(op, input, resolved);
  return finishPlan(op, input, resolved, local, local.vector);
}

/** Makes the plan from a rank's own sums and those of all ranks. */
export function finishPlan(
  op: string,
  input: PlanInput,
  resolved: ResolvedPlan,
  local: LocalTotals,
  globalVector: Float64Array,
): AggregationPlan {
  const totals = readTotals(globalVector);
  const groupTokens = local.groupTokens ?? globalVector.subarray(NUM_TOTALS);
  const { gradScale, factor, counted, aggregation, scope, gradReduction, worldSize, lengthMask } = resolved;
  const seqScale = scales(op, aggregation, counted, factor, totals, local, groupTokens);
  const lengths = input.lengths.slice();
  return freezePlan({
    aggregation,
    scope,
    gradReduction,
    worldSize,
    lengthMask,
    numSeqs: lengths.length,
    lengths,
    ...(input.ids && { ids: Object.freeze([...input.ids]) }),
    start: 0,
    seqScale,
    activeTokens: totals.tokens,
    gradScale,
    entropyScale: totals.entropyTokens > 0 ? gradScale / totals.entropyTokens : 0,
    totals,
    lengthHash: lengthHash(lengths),
  });
}

/** `s_i` of every sequence: {@link Aggregation}'s table, times `factor`. */
function scales(
  op: string,
  aggregation: Aggregation,
  lengths: Int32Array,
  factor: number,
  totals: PlanTotals,
  { weights, groupOf }: LocalTotals,
  groupTokens: Float64Array,
): Float32Array {
  const seqScale = new Float32Array(lengths.length);
  const constant = (scale: number): Float32Array => {
    for (let i = 0; i < lengths.length; i++) if (lengths[i] > 0) seqScale[i] = scale;
    return seqScale;
  };
  const fill = (scaleOf: (i: number) => number): Float32Array => {
    for (let i = 0; i < lengths.length; i++) if (lengths[i] > 0) seqScale[i] = scaleOf(i);
    return seqScale;
  };
  if (totals.seqs === 0) return seqScale;
  switch (aggregation.mode) {
    case 'token-mean':
      return constant(factor / totals.tokens);
    case 'token-sum':
      return constant(factor);
    case 'seq-mean-token-sum':
      return constant(factor / totals.seqs);
    case 'seq-mean-token-sum-norm':
      return constant(factor / (totals.seqs * aggregation.normConstant));
    case 'seq-mean-token-mean':
      return fill((i) => factor / (totals.seqs * lengths[i]));
    case 'group-mean-token-mean':
      return fill((i) => factor / (totals.groups * groupTokens[groupOf![i]]));
    case 'delta-l':
    case 'inverse-variance': {
      const { weightSum } = totals;
      if (!(weightSum > 0 && weightSum < Infinity)) {
        throw rangeError(op, 'aggregation', weightSum, 'weights whose sum float64 can hold');
      }
      const unit = factor / aggregation.normConstant / weightSum;
      if (unit === Infinity) {
        // A weight that float64 rounds to 0 would become NaN.
        throw rangeError(op, 'aggregation', weightSum, 'weights that float64 can divide by their sum');
      }
      for (let i = 0; i < lengths.length; i++) seqScale[i] = unit * weights![i];
      return seqScale;
    }
  }
}

function freezePlan(fields: Omit<AggregationPlan, 'slice'>): AggregationPlan {
  return Object.freeze({ ...fields, slice: (start: number, end: number) => slicePlan(fields, start, end) });
}

function slicePlan(plan: Omit<AggregationPlan, 'slice'>, start: number, end: number): AggregationPlan {
  const inside = Number.isInteger(start) && Number.isInteger(end) && 0 <= start && start <= end;
  if (!inside || end > plan.numSeqs) {
    const problem = `is out of range; got ${start} .. ${end}, expected 0 <= start <= end <= ${plan.numSeqs}`;
    throw argumentError('ERR_VARLEN_RANGE', 'plan.slice', 'start, end', problem);
  }
  const { ids } = plan;
  const lengths = plan.lengths.subarray(start, end);
  return freezePlan({
    ...plan,
    numSeqs: end - start,
    lengths,
    ...(ids && { ids: Object.freeze(ids.slice(start, end)) }),
    start: plan.start + start,
    seqScale: plan.seqScale.subarray(start, end),
    lengthHash: lengthHash(lengths),
  });
}
