/** One response of one prompt, from loading to training. */
export interface RolloutEntry {
  /** `promptId#k`, or `promptId` when each prompt has one response. */
  readonly id: string;
  readonly promptId: string;
  readonly promptIds: Int32Array;
  /** Number of the prompt group it was loaded with. */
  readonly groupId: number;
  /** Response tokens so far, over all interruptions. */
  tokens: Int32Array;
  /** Natural log, of each token under the policy that drew it, `[tokens.length]`. */
  logprobs: Float32Array;
  /** Policy version that drew each token, `[tokens.length]`, never falling. */
  versions: Int32Array;
  status: 'pending' | 'running' | 'partial' | 'done' | 'consumed' | 'dropped';
  reward?: number;
  /** It ended at the length limit. */
  truncated: boolean;
  /** How often it was stopped while it ran. */
  interruptions: number;
  /** How often its tokens were thrown away. */
  restarts: number;
  /** Policy version when it first ran; -1 before. */
  admitted: number;
}

/** A fresh entry. */
export function newEntry(id: string, promptId: string, promptIds: Int32Array, groupId: number): RolloutEntry {
  return {
    id,
    promptId,
    promptIds,
    groupId,
    tokens: new Int32Array(0),
    logprobs: new Float32Array(0),
    versions: new Int32Array(0),
    status: 'pending',
    truncated: false,
    interruptions: 0,
    restarts: 0,
    admitted: -1,
  };
}

/**
 * Appends a segment that one policy generated: tokens, log-probs and versions stay side by side, so
 * the importance ratio of token t is `exp(logprobNow[t] - entry.logprobs[t])` whoever drew it.
 */
export function appendSegment(
  entry: RolloutEntry,
  tokens: Int32Array,
  logprobs: Float32Array,
  version: number,
): void {
  const before = entry.tokens.length;
  const total = before + tokens.length;
  const allTokens = new Int32Array(total);
  allTokens.set(entry.tokens);
  allTokens.set(tokens, before);
  const allLogprobs = new Float32Array(total);
  allLogprobs.set(entry.logprobs);
  allLogprobs.set(logprobs, before);
  const versions = new Int32Array(total).fill(version, before);
  versions.set(entry.versions);
  entry.tokens = allTokens;
  entry.logprobs = allLogprobs;
  entry.versions = versions;
}

/** Throws the tokens away; the prompt will be answered anew. Returns how many were lost. */
export function restart(entry: RolloutEntry): number {
  const lost = entry.tokens.length;
  entry.tokens = new Int32Array(0);
  entry.logprobs = new Float32Array(0);
  entry.versions = new Int32Array(0);
  entry.status = 'pending';
  entry.truncated = false;
  entry.restarts++;
  delete entry.reward;
  return lost;
}

/** How many versions behind `version` its oldest token is; 0 without tokens. */
export function staleness(entry: RolloutEntry, version: number): number {
  // Versions never fall inside an entry: the first is the oldest.
  return entry.versions.length === 0 ? 0 : version - entry.versions[0];
}
