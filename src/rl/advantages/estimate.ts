/** Advantages of a batch: the fourteen estimators behind one call, on one rank or over many. */
import { type Collective, runAcross, runAlone } from '../collective.js';
import type { AllReduceSum } from '../plan/across.js';
import type { TokenLayout } from '../plan/lengths.js';
import { gae } from './gae.js';
import {
  gdpo,
  grpo,
  grpoBatchStd,
  grpoNoStd,
  maxrl,
  opo,
  passk,
  type Relative,
  reinforceBaseline,
  rloo,
} from './group-relative.js';
import { degenerate, type Groups, groupMoments, hasNoSpread } from './group-stats.js';
import { optimalTokenBaseline } from './optimal-token-baseline.js';
import { type AdvantageInput, type AdvantageOptions, type AdvantageRequest, readRequest } from './options.js';
import { returnsOf, rewardsAtEnd } from './token-returns.js';
import { whitened } from './whiten.js';

/** What an estimator found. */
export interface Advantages {
  /** `[numSeqs]` or `[totalTokens]`, as `per` says; 0 where inactive, masked or not scored. */
  readonly advantages: Float32Array;
  readonly per: 'sequence' | 'token';
  /**
   * `[numSeqs]`, 0 for answers that leave the loss: not scored (`unscored: 'mask'`), or of a group without
   * spread (`maskZeroStdGroups`). Give it to `keepSequences` before counting lengths.
   */
  readonly keep: Uint8Array;
  /** Groups of at least two scored answers that all have the same reward. */
  readonly zeroStdGroups: number;
  /** Groups with a single scored answer. */
  readonly singletonGroups: number;
  /** Active answers without a reward. */
  readonly unscored: number;
  /** `[totalTokens]`, targets of the critic; `gae` only. */
  readonly returns?: Float32Array;
}

/**
 * Advantages of all answers on this rank. Formulas: {@link AdvantageOptions}; all arithmetic is in float64,
 * rounded once at the end.
 *
 * Rewards that are all equal in a group, up to 1e-6 of the largest, give 0, and never noise divided by
 * noise. A single scored answer gets what `singleton` says. A NaN reward means "not scored". Answers
 * without active tokens belong to no group.
 *
 * Throws `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_INCOMPATIBLE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_RANGE`,
 * `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_CU_SEQLENS`; an infinite reward:
 * `ERR_VARLEN_NON_FINITE`; whitening a single token: `ERR_VARLEN_WHITEN_SINGLE`; a group of one under
 * `singleton: 'error'`: `ERR_VARLEN_SINGLETON_GROUP`.
 *
 * @example
 * const rewards = Float32Array.of(1, 0, 0.5, 1);
 * const groupIds = Int32Array.of(0, 0, 1, 1);
 * estimateAdvantages({ rewards, groupIds }, { estimator: 'rloo' }).advantages; // [1, -1, -0.5, 0.5]
 */
export function estimateAdvantages(input: AdvantageInput, options: AdvantageOptions): Advantages {
  return runAlone(estimate(readRequest('estimateAdvantages', input, options)));
}

/**
 * {@link estimateAdvantages} where moments over tokens (whitening) and answers (`grpo-batchstd`) are those of
 * all ranks. Groups must be whole on one rank; gather the rewards first where they are not.
 *
 * Every rank calls it with the same options, also one without answers; at most two all-reduces of two
 * values. When a rank's input is wrong the others reject with `ERR_VARLEN_PEER_ABORTED`.
 *
 * @example
 * const { advantages } = await estimateAdvantagesAcross(
 *   { rewards, cuSeqlens },
 *   { estimator: 'reinforce-pp' },
 *   (x) => group.allReduce(x, 'sum'),
 * );
 */
export async function estimateAdvantagesAcross(
  input: AdvantageInput,
  options: AdvantageOptions,
  allReduceSum: AllReduceSum,
): Promise<Advantages> {
  const op = 'estimateAdvantagesAcross';
  const { estimator, whiten } = (options ?? {}) as Partial<AdvantageRequest>;
  const addsUp = USES_MOMENTS.has(estimator!) && whiten !== false;
  return runAcross(op, () => estimate(readRequest(op, input, options)), allReduceSum, addsUp ? 2 : 0);
}

/** Estimators that (may) add up moments over ranks, and so wait for their peers. */
const USES_MOMENTS: ReadonlySet<string> = new Set([
  'grpo-batchstd',
  'gdpo',
  'reinforce-pp-baseline',
  'reinforce-pp',
  'gae',
]);

/**
 * Advantage of every answer relative to its group, `[numSeqs]`: the short form of
 * {@link estimateAdvantages} for estimators that need nothing but rewards and groups.
 *
 * Throws what that throws.
 *
 * @example
 * groupAdvantages(Float32Array.of(6, 3), Int32Array.of(7, 7), { estimator: 'grpo-nostd' }); // [1.5, -1.5]
 */
export function groupAdvantages(
  rewards: Float32Array | Float64Array,
  groupIds: Int32Array,
  options: AdvantageOptions & { readonly estimator: GroupEstimator },
): Float32Array {
  return estimateAdvantages({ rewards, groupIds }, options).advantages;
}

/** Estimators that need nothing but rewards and groups. */
export type GroupEstimator =
  | 'grpo'
  | 'grpo-nostd'
  | 'grpo-batchstd'
  | 'rloo'
  | 'maxrl'
  | 'passk'
  | 'reinforce';

function* estimate(request: AdvantageRequest): Collective<Advantages> {
  switch (request.estimator) {
    case 'grpo':
      return ofSequences(request, grpo(request));
    case 'grpo-nostd':
      return ofSequences(request, grpoNoStd(request));
    case 'grpo-batchstd':
      return ofSequences(request, yield* grpoBatchStd(request));
    case 'rloo':
      return ofSequences(request, rloo(request));
    case 'maxrl':
      return ofSequences(request, maxrl(request));
    case 'opo':
      return ofSequences(request, opo(request));
    case 'passk':
      return ofSequences(request, passk(request));
    case 'gdpo':
      return ofSequences(request, yield* gdpo(request));
    case 'reinforce-pp-baseline':
      return ofSequences(request, yield* reinforceBaseline(request));
    case 'reinforce': {
      const [rewards] = request.rewards;
      const values = Float64Array.from(rewards, (reward, i) => (request.counts[i] === 1 ? reward : 0));
      return finish(request, values, 'sequence');
    }
    case 'reinforce-pp': {
      const returns = returnsOf(layoutOf(request), rewardsOf(request), request.gamma);
      return finish(request, yield* whitenActive(request, returns), 'token');
    }
    case 'remax': {
      const returns = returnsOf(layoutOf(request), rewardsOf(request), 1);
      const greedy = request.input.greedyRewards!;
      return finish(
        request,
        mapActive(request, (t, i) => returns[t] - greedy[i]),
        'token',
      );
    }
    case 'gae': {
      const { gamma, lambda, input } = request;
      const found = gae(layoutOf(request), rewardsOf(request), input.values!, gamma, lambda);
      const values = request.whiten ? yield* whitenActive(request, found.advantages) : found.advantages;
      const result = finish(
        request,
        mapActive(request, (t) => values[t]),
        'token',
      );
      return { ...result, returns: Float32Array.from(mapActive(request, (t) => found.returns[t])) };
    }
    case 'otb':
      return ofTokenBaseline(request);
  }
}

function ofTokenBaseline(request: AdvantageRequest): Advantages {
  const { op, counts, input, singleton } = request;
  const groups = groupMoments(input.groupIds!, request.rewards[0], counts);
  const fallback = groups.moments.map((group) =>
    group.n === 1 ? degenerate(op, group, singleton) : undefined,
  );
  const returns = returnsOf(layoutOf(request), rewardsOf(request), 1);
  const relative = optimalTokenBaseline(
    layoutOf(request),
    returns,
    input.logprobs!,
    input.sumSquaredProbs!,
    groups.groupOf,
    (i) => counts[i] === 1 && fallback[groups.groupOf[i]] === undefined,
  );
  const raw = (t: number, i: number): number =>
    fallback[groups.groupOf[i]] === 'raw' ? returns[t] : relative[t];
  return finish(request, mapActive(request, raw), 'token', groups);
}

function layoutOf({ input: { cuSeqlens, lossMask } }: AdvantageRequest): TokenLayout {
  return { cuSeqlens: cuSeqlens!, ...(lossMask && { lossMask }) };
}

function rewardsOf(request: AdvantageRequest): ArrayLike<number> {
  return request.input.tokenRewards ?? rewardsAtEnd(layoutOf(request), request.rewards[0]);
}

/** A value for every active token of a scored answer; 0 elsewhere. */
function mapActive(request: AdvantageRequest, value: (t: number, i: number) => number): Float64Array {
  const { cuSeqlens, lossMask } = layoutOf(request);
  const values = new Float64Array(cuSeqlens[cuSeqlens.length - 1]);
  for (let i = 0; i < request.numSeqs; i++) {
    if (request.counts[i] === 0) continue;
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
      if (lossMask === undefined || lossMask[t] !== 0) values[t] = value(t, i);
    }
  }
  return values;
}

/** Whitened over the active tokens of scored answers of all ranks; 0 elsewhere. */
function* whitenActive(request: AdvantageRequest, values: Float64Array): Collective<Float64Array> {
  const counts = mapActive(request, () => 1);
  const result = yield* whitened(request.op, { values, counts });
  return mapActive(request, (t) => result[t]);
}

function ofSequences(request: AdvantageRequest, { values, groups }: Relative): Advantages {
  return finish(request, values, 'sequence', groups);
}

function finish(
  request: AdvantageRequest,
  values: Float64Array,
  per: Advantages['per'],
  groups?: Groups,
): Advantages {
  const { counts, lengths, numSeqs } = request;
  const keep = new Uint8Array(numSeqs).fill(1);
  let unscored = 0;
  const flat = groups?.moments.map(({ n, min, max }) => n > 1 && hasNoSpread(min, max)) ?? [];
  for (let i = 0; i < numSeqs; i++) {
    if (counts[i] === 1) {
      if (request.maskZeroStdGroups && flat[groups!.groupOf[i]]) keep[i] = 0;
    } else if (lengths[i] > 0) {
      unscored += 1;
      if (request.unscored === 'mask') keep[i] = 0;
    }
  }
  return {
    advantages: Float32Array.from(values),
    per,
    keep,
    zeroStdGroups: flat.filter(Boolean).length,
    singletonGroups: groups?.moments.filter(({ n }) => n === 1).length ?? 0,
    unscored,
  };
}
