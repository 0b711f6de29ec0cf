/** What rollouts are worth against the others of their prompt. */
import type { RolloutEntry } from '../../batch/index.js';
import { groupAdvantages } from '../../rl/index.js';

/** A judged rollout. */
export interface Rollout {
  readonly entry: RolloutEntry;
  /** Position of its prompt in the training data: its name on all ranks. */
  readonly group: number;
  readonly advantage: number;
}

/** The rollouts of an update that teach something. */
export interface Judged {
  readonly rollouts: readonly Rollout[];
  readonly groups: number;
  /** Groups in which all earned the same: their rollouts are left out. */
  readonly flat: number;
}

/** Group-relative advantages of rollouts that have their rewards. */
export function judged(entries: readonly RolloutEntry[]): Judged {
  const groupIds = Int32Array.from(entries, ({ promptId }) => Number(promptId));
  const rewards = Float32Array.from(entries, ({ reward }) => reward!);
  const advantages = groupAdvantages(rewards, groupIds, { estimator: 'grpo', singleton: 'zero' });
  const rollouts = entries
    .map((entry, i) => ({ entry, group: groupIds[i], advantage: advantages[i] }))
    .filter(({ advantage, entry }) => advantage !== 0 && entry.tokens.length > 0);
  const groups = new Set(groupIds).size;
  return { rollouts, groups, flat: groups - new Set(rollouts.map(({ group }) => group)).size };
}
