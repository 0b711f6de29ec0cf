/** Advantages of whole answers, relative to the other answers of their group. */
import { rangeError } from '../check-arrays.js';
import type { Collective } from '../collective.js';
import { degenerate, type GroupMoments, type Groups, groupMoments, hasNoSpread } from './group-stats.js';
import type { AdvantageRequest } from './options.js';
import { moments, whitened } from './whiten.js';

/** Advantages in float64, and the groups they came from. */
export interface Relative {
  readonly values: Float64Array;
  readonly groups: Groups;
}

type Formula = (reward: number, group: GroupMoments, i: number) => number;

/** Applies a formula to every scored answer; degenerate groups get what `singleton` says, or 0. */
function apply(request: AdvantageRequest, rewards: ArrayLike<number>, formula: Formula): Relative {
  const { op, singleton, counts, numSeqs } = request;
  const groups = groupMoments(request.input.groupIds!, rewards, counts);
  const fallback = groups.moments.map((group) => (group.n === 0 ? 'zero' : degenerate(op, group, singleton)));
  const values = new Float64Array(numSeqs);
  for (let i = 0; i < numSeqs; i++) {
    if (counts[i] === 0) continue;
    const g = groups.groupOf[i];
    if (fallback[g] === undefined) values[i] = formula(rewards[i], groups.moments[g], i);
    else if (fallback[g] === 'raw') values[i] = rewards[i];
  }
  return { values, groups };
}

/** `(R - mu) / (sigma + eps)` (GRPO: Shao et al. 2024, eq. 3.2). */
export function grpo(request: AdvantageRequest, rewards: ArrayLike<number> = request.rewards[0]): Relative {
  return apply(request, rewards, (reward, { mean, std }) => (reward - mean) / (std + request.eps));
}

/** `R - mu` (Dr. GRPO: Liu et al. 2025). */
export function grpoNoStd(request: AdvantageRequest): Relative {
  return apply(request, request.rewards[0], (reward, { mean }) => reward - mean);
}

/** `(R - mu) / (sigma + eps)` with sigma of all scored answers on all ranks. */
export function* grpoBatchStd(request: AdvantageRequest): Collective<Relative> {
  const [rewards] = request.rewards;
  const all = { values: Float64Array.from(rewards), counts: request.counts };
  const { variance } = yield* moments(all);
  const scale = 1 / (Math.sqrt(variance) + request.eps);
  return apply(request, rewards, (reward, { mean }) => (reward - mean) * scale);
}

/** `(R - mu) n / (n - 1)`: the mean of the others as baseline (Ahmadian et al. 2024). */
export function rloo(request: AdvantageRequest): Relative {
  return apply(request, request.rewards[0], (reward, { mean, n }) => ((reward - mean) * n) / (n - 1));
}

/** `(R - mu) / (mu + eps)`: only for rewards whose group means are above 0. */
export function maxrl(request: AdvantageRequest): Relative {
  const { op, eps } = request;
  return apply(request, request.rewards[0], (reward, { mean }, i) => {
    if (!(mean > 0)) throw rangeError(op, `rewards (group of sequence ${i})`, mean, 'a mean above 0');
    return (reward - mean) / (mean + eps);
  });
}

/** `R - sum L R / sum L`: the length-weighted mean as baseline (OPO: Hao et al. 2025). */
export function opo(request: AdvantageRequest): Relative {
  const { lengths, counts } = request;
  const [rewards] = request.rewards;
  const { groupOf, moments: all } = groupMoments(request.input.groupIds!, rewards, counts);
  const weighted = new Float64Array(all.length);
  const total = new Float64Array(all.length);
  for (let i = 0; i < groupOf.length; i++) {
    if (counts[i] === 0) continue;
    weighted[groupOf[i]] += lengths[i] * rewards[i];
    total[groupOf[i]] += lengths[i];
  }
  return apply(request, rewards, (reward, _group, i) => reward - weighted[groupOf[i]] / total[groupOf[i]]);
}

/** The best answer gets `(R - second best) / (sigma + eps)`, the others 0; the first of equals is best. */
export function passk(request: AdvantageRequest): Relative {
  const { counts, eps } = request;
  const [rewards] = request.rewards;
  const { groupOf, moments: all } = groupMoments(request.input.groupIds!, rewards, counts);
  const best = new Int32Array(all.length).fill(-1);
  const second = new Float64Array(all.length).fill(-Infinity);
  for (let i = 0; i < groupOf.length; i++) {
    if (counts[i] === 0) continue;
    const g = groupOf[i];
    if (best[g] < 0) {
      best[g] = i;
    } else if (rewards[i] > rewards[best[g]]) {
      second[g] = rewards[best[g]];
      best[g] = i;
    } else {
      second[g] = Math.max(second[g], rewards[i]);
    }
  }
  return apply(request, rewards, (reward, { std }, i) =>
    best[groupOf[i]] === i ? (reward - second[groupOf[i]]) / (std + eps) : 0,
  );
}

/** `sum_k w_k grpo(R^k)`, then whitened over the active tokens of all ranks. */
export function* gdpo(request: AdvantageRequest): Collective<Relative> {
  const parts = request.rewards.map((rewards) => grpo(request, rewards));
  const values = new Float64Array(request.numSeqs);
  parts.forEach((part, k) => {
    for (let i = 0; i < values.length; i++) values[i] += request.weights[k] * part.values[i];
  });
  // A group is without spread when no component has any.
  const { groupOf } = parts[0].groups;
  const spread = parts[0].groups.moments.map((_, g) => {
    const of = parts.map((part) => part.groups.moments[g]);
    return of.find(({ n, min, max }) => n > 1 && !hasNoSpread(min, max)) ?? of[0];
  });
  return { values: yield* whitenTokens(request, values), groups: { groupOf, moments: spread } };
}

/** `R - mu`, then whitened over the active tokens of all ranks (REINFORCE++: Hu et al. 2025). */
export function* reinforceBaseline(request: AdvantageRequest): Collective<Relative> {
  const { values, groups } = grpoNoStd(request);
  return { values: yield* whitenTokens(request, values), groups };
}

/** Whitens advantages of answers as if each stood at every active token. */
function whitenTokens(request: AdvantageRequest, values: Float64Array): Collective<Float64Array> {
  const counts = request.lengths.map((length, i) => (request.counts[i] === 1 ? length : 0));
  return whitened(request.op, { values, counts });
}
