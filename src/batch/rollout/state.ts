/** What a rollout controller has in hand between two updates, as JSON: for checkpoints. */
import { varlenError } from '../../errors.js';
import type { RolloutEntry } from './entry.js';

/** A loaded rollout that no update has taken. */
export interface SavedEntry
  extends Pick<
    RolloutEntry,
    'id' | 'promptId' | 'groupId' | 'truncated' | 'interruptions' | 'restarts' | 'admitted'
  > {
  readonly status: 'pending' | 'partial' | 'done';
  readonly reward?: number;
  /** Little-endian 32-bit values in base64. */
  readonly promptIds: string;
  readonly tokens: string;
  readonly logprobs: string;
  readonly versions: string;
}

/** Where a controller stands when an update is done. */
export interface RolloutState {
  /** The policy that generates next. */
  readonly version: number;
  /** Prompt groups loaded so far. */
  readonly groups: number;
  /** In order of loading. */
  readonly entries: readonly SavedEntry[];
}

const OP = 'RolloutController';

function text({ buffer, byteOffset, byteLength }: Int32Array | Float32Array): string {
  return Buffer.from(buffer, byteOffset, byteLength).toString('base64');
}

function memory(base64: string): ArrayBuffer {
  const bytes = Buffer.from(base64, 'base64');
  // A copy of its own: a pooled buffer may begin at any address.
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
}

/** An entry that does not run, ready to be written. */
export function saveEntry(entry: RolloutEntry): SavedEntry {
  const { id, promptId, groupId, truncated, interruptions, restarts, admitted, reward } = entry;
  return {
    id,
    promptId,
    groupId,
    truncated,
    interruptions,
    restarts,
    admitted,
    ...(reward === undefined ? {} : { reward }),
    status: entry.status as SavedEntry['status'],
    promptIds: text(entry.promptIds),
    tokens: text(entry.tokens),
    logprobs: text(entry.logprobs),
    versions: text(entry.versions),
  };
}

/** The entry that was saved. @throws `ERR_VARLEN_STATE_MISMATCH` for one whose parts do not fit together */
export function loadEntry(saved: SavedEntry): RolloutEntry {
  const entry: RolloutEntry = {
    ...saved,
    promptIds: new Int32Array(memory(saved.promptIds)),
    tokens: new Int32Array(memory(saved.tokens)),
    logprobs: new Float32Array(memory(saved.logprobs)),
    versions: new Int32Array(memory(saved.versions)),
  };
  const { tokens, logprobs, versions, status } = entry;
  if (tokens.length === logprobs.length && tokens.length === versions.length) {
    if (['pending', 'partial', 'done'].includes(status)) return entry;
  }
  const got = `${tokens.length} tokens, ${logprobs.length} log-probs, ${versions.length} versions, status '${status}'`;
  const message = `${OP}: resume: rollout '${saved.id}' does not fit together; got ${got}`;
  throw varlenError('ERR_VARLEN_STATE_MISMATCH', message, { op: OP, argument: 'resume', id: saved.id });
}
