/** Group advantages as plain loops in float64: what `groupAdvantage` is measured against from JavaScript. */
import type { GroupAdvantageOptions } from '../ops/group-advantage.js';

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

function deviation(values: readonly number[]): number {
  const mean = sum(values) / values.length;
  const squares = sum(values.map((value) => (value - mean) ** 2));
  return values.length < 2 ? 0 : Math.sqrt(squares / (values.length - 1));
}

/**
 * Advantages of answers relative to the other answers of their prompt, in float64, straight from the formulas.
 * Answers that are not scored (NaN), without active tokens, or in a group without spread get 0.
 *
 * @example
 * ```ts
 * const advantages = groupAdvantageReference([1, 0, 0.5, 1], [0, 0, 1, 1], { estimator: 'rloo' });
 * ```
 */
export function groupAdvantageReference(
  rewards: ArrayLike<number>,
  groupIds: ArrayLike<number>,
  options: Pick<GroupAdvantageOptions, 'estimator' | 'eps'> & {
    readonly singleton?: 'zero' | 'raw';
    readonly lengths?: ArrayLike<number>;
  } = {},
): Float64Array {
  const { estimator = 'grpo', eps = 1e-6, singleton = 'zero', lengths } = options;
  const length = (i: number): number => lengths?.[i] ?? 1;
  const all = Array.from(rewards, (_, i) => i);
  const scored = all.filter((i) => !Number.isNaN(rewards[i]) && length(i) > 0);
  const batchDeviation = deviation(scored.map((i) => rewards[i]));
  return Float64Array.from(rewards, (reward, i) => {
    if (!scored.includes(i)) return 0;
    const members = scored.filter((j) => groupIds[j] === groupIds[i]);
    const own = members.map((j) => rewards[j]);
    const [n, max] = [own.length, Math.max(...own)];
    if (n === 1) return singleton === 'raw' ? reward : 0;
    if (max - Math.min(...own) <= 1e-6 * Math.max(1, Math.abs(max))) return 0;
    const mean = sum(own) / n;
    switch (estimator) {
      case 'grpo':
        return (reward - mean) / (deviation(own) + eps);
      case 'grpo-nostd':
        return reward - mean;
      case 'grpo-batchstd':
        return (reward - mean) / (batchDeviation + eps);
      case 'rloo':
        // The mean of the others is the baseline.
        return reward - (n * mean - reward) / (n - 1);
      case 'maxrl':
        return (reward - mean) / (mean + eps);
      case 'opo':
        return reward - sum(members.map((j) => length(j) * rewards[j])) / sum(members.map(length));
      case 'passk': {
        const best = members[own.indexOf(max)];
        const second = Math.max(...own.filter((_, k) => members[k] !== best));
        return i === best ? (reward - second) / (deviation(own) + eps) : 0;
      }
    }
  });
}
