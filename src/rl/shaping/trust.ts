/** Trust-GRPO: a thinking reward that counts as far as it can be trusted (SophiaVL-R1, section 3.3 and its code). */
import { readOptions } from '../../check.js';
import { checkArray, checkFloats, checkNumber, rangeError } from '../check-arrays.js';
import { groupIndex } from '../group-index.js';

/** Scores of the answers of a batch. */
export interface ThinkingScores {
  /** `[numSeqs]`, outcome reward `a` of every answer, in [0, 1]. */
  readonly outcomes: Float32Array | Float64Array;
  /** `[numSeqs]`, thinking reward `q` of every answer. */
  readonly thinking: Float32Array | Float64Array;
  /** `[numSeqs]`, equal value = same prompt. */
  readonly groupIds: Int32Array;
}

/** Options of {@link trustRewards}; the defaults are those of the published code. */
export interface TrustOptions {
  /** Optimizer steps so far. */
  step: number;
  /** Steps in which the thinking reward fades to 1/e of its weight. Default 500. */
  annealSteps?: number;
  /** Weight of the thinking reward at step 0. Default 0.3. */
  weight?: number;
  /** An answer is correct from this outcome. Default 0.5. */
  correctFrom?: number;
  /** An answer below this outcome has thinking reward 0. Default 0.2. */
  thinkingFrom?: number;
  /** A group whose outcomes are all at least this, or all at most `1 -` this, keeps its outcomes. Default 0.9. */
  unanimous?: number;
}

/** Rewards of {@link trustRewards}, and how far each group's thinking reward was trusted. */
export interface TrustedRewards {
  /** `[numSeqs]`, `a + weight * exp(-step / annealSteps) * trust * q`. */
  readonly rewards: Float64Array;
  /** `[numSeqs]`, trust in (0, 1], the same for all answers of a prompt; 0 where the group was unanimous. */
  readonly trust: Float64Array;
}

/**
 * Outcome rewards plus thinking rewards, weighted by trust: 1 when the correct answers of a prompt think
 * at least as well as the wrong ones on average (or one of the two kinds is missing), else
 * `exp(mean of correct - mean of wrong)`.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * const outcomes = Float64Array.of(1, 0.3);
 * const thinking = Float64Array.of(0.4, 0.9);
 * trustRewards({ outcomes, thinking, groupIds: Int32Array.of(1, 1) }, { step: 0 }).trust; // both exp(-0.5)
 */
export function trustRewards(scores: ThinkingScores, options: TrustOptions): TrustedRewards {
  const op = 'trustRewards';
  const { outcomes, thinking, groupIds } = scores;
  const resolved = readOptions(op, options, [
    'step',
    'annealSteps',
    'weight',
    'correctFrom',
    'thinkingFrom',
    'unanimous',
  ]);
  const { step, annealSteps = 500, weight = 0.3 } = resolved;
  const { correctFrom = 0.5, thinkingFrom = 0.2, unanimous = 0.9 } = resolved;
  checkNumber(op, 'step', step, { min: 0 });
  checkNumber(op, 'annealSteps', annealSteps, { above: 0 });
  checkNumber(op, 'weight', weight, { min: 0 });
  checkNumber(op, 'correctFrom', correctFrom);
  checkNumber(op, 'thinkingFrom', thinkingFrom);
  checkNumber(op, 'unanimous', unanimous, { min: 0.5, max: 1 });
  checkArray(op, 'groupIds', groupIds, 'Int32Array');
  checkFloats(op, 'outcomes', outcomes, groupIds.length);
  checkFloats(op, 'thinking', thinking, groupIds.length);
  outcomes.forEach((outcome, i) => {
    if (!(outcome >= 0 && outcome <= 1)) throw rangeError(op, `outcomes[${i}]`, outcome, 'between 0 and 1');
  });
  const scored = Float64Array.from(thinking, (score, i) => {
    if (outcomes[i] < thinkingFrom) return 0;
    if (!Number.isFinite(score)) throw rangeError(op, `thinking[${i}]`, score, 'a finite number');
    return score;
  });

  const { groupOf, numGroups } = groupIndex(groupIds);
  const groups = Array.from({ length: numGroups }, () => ({
    lowest: Infinity,
    highest: -Infinity,
    right: { sum: 0, count: 0 },
    wrong: { sum: 0, count: 0 },
  }));
  groupOf.forEach((g, i) => {
    const group = groups[g];
    group.lowest = Math.min(group.lowest, outcomes[i]);
    group.highest = Math.max(group.highest, outcomes[i]);
    const side = outcomes[i] >= correctFrom ? group.right : group.wrong;
    side.sum += scored[i];
    side.count += 1;
  });
  const trustOf = groups.map(({ lowest, highest, right, wrong }) => {
    // 0.9 in float32 is below 0.9 in float64, and 1 - 0.9 is below 0.1: allow for the rounding.
    if (lowest >= unanimous - 1e-7 || highest <= 1 - unanimous + 1e-7) return 0;
    if (right.count === 0 || wrong.count === 0) return 1;
    return Math.exp(Math.min(0, right.sum / right.count - wrong.sum / wrong.count));
  });
  const fade = weight * Math.exp(-step / annealSteps);
  return Object.freeze({
    rewards: scored.map((score, i) => outcomes[i] + fade * trustOf[groupOf[i]] * score),
    trust: Float64Array.from(groupOf, (g) => trustOf[g]),
  });
}
