/**
 * The whole state of a run in one file, so that it is saved whole or not at all: weights and moments as
 * tensors, everything else as text in the metadata. `writeSafetensors` gives the file its name only when
 * it is complete, on the disk and right; until then the old one stays.
 */
import type { RolloutState } from '../batch/rollout/state.js';
import type { BatcherState } from '../batch/state.js';
import { varlenError } from '../errors.js';
import { readSafetensors, type SafetensorsEntry, type Tensor, writeSafetensors } from '../tensor/index.js';

/** Of {@link RunState}. 1 had other names for the moments, and knew neither rollouts nor a reference. */
export const STATE_VERSION = 2;

/** Where the rollouts of one rank stand. */
export interface RolloutsState {
  /** Position of the next prompt in the training data. */
  readonly nextPrompt: number;
  readonly controller: RolloutState;
}

/**
 * Where a run stands, but for its tensors. No generator is in it: every random number of a run is a
 * function of the seed and of one of these counts.
 */
export interface RunState {
  readonly version: typeof STATE_VERSION;
  /** Everything that must be the same to go on; see {@link TrainOptions}. */
  readonly config: string;
  /** What comes next. */
  readonly phase: 'sft' | 'rl' | 'done';
  /** Steps of that phase which are done. */
  readonly step: number;
  /** Positions in the training data of SFT, one per rank; null before it and after it. */
  readonly batchers: readonly BatcherState[] | null;
  /** Rollouts in hand and the next prompts, one per rank; null before RL's first save and after RL. */
  readonly rollouts: readonly RolloutsState[] | null;
  /** Updates of the optimizer of this phase by parameter, for its bias correction. */
  readonly optimizerSteps: Readonly<Record<string, number>>;
  /** Length of `metrics.jsonl` in bytes and in records. */
  readonly metricsBytes: number;
  readonly records: number;
  readonly idleSteps: number;
}

const STATE = 'varlen.trainer';
const OP = 'loadCheckpoint';

/** Saves tensors (by name) and state. @throws `ERR_VARLEN_IO`, the old file intact */
export async function saveCheckpoint(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  state: RunState,
): Promise<void> {
  await writeSafetensors(path, tensors, { [STATE]: JSON.stringify(state) });
}

/** A saved run. */
export interface Checkpoint {
  readonly tensors: Readonly<Record<string, SafetensorsEntry>>;
  readonly state: RunState;
}

const PHASES = ['sft', 'rl', 'done'];

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function isState(value: unknown): value is RunState {
  if (!isRecord(value)) return false;
  const state = value;
  const counts = ['step', 'metricsBytes', 'records', 'idleSteps'];
  return (
    state.version === STATE_VERSION &&
    typeof state.config === 'string' &&
    PHASES.includes(state.phase as string) &&
    isRecord(state.optimizerSteps) &&
    (state.batchers === null || Array.isArray(state.batchers)) &&
    (state.rollouts === null || Array.isArray(state.rollouts)) &&
    counts.every((name) => Number.isSafeInteger(state[name]) && (state[name] as number) >= 0)
  );
}

/**
 * Reads what {@link saveCheckpoint} wrote.
 *
 * @param config of the run that wants to go on
 * @throws `ERR_VARLEN_STATE_MISMATCH` for a run of other options, `ERR_VARLEN_CHECKPOINT` for a file that
 *   is none of ours, `ERR_VARLEN_IO`, `ERR_VARLEN_SAFETENSORS`
 */
export async function loadCheckpoint(path: string, config: string): Promise<Checkpoint> {
  const { tensors, metadata } = await readSafetensors(path);
  let state: unknown;
  try {
    state = JSON.parse(metadata[STATE] ?? '');
  } catch {
    state = undefined;
  }
  if (isRecord(state) && Number.isInteger(state.version) && state.version !== STATE_VERSION) {
    const problem = `has a state of version ${state.version}; expected ${STATE_VERSION}: this package cannot go on with it`;
    throw varlenError('ERR_VARLEN_CHECKPOINT', `${OP}: ${path} ${problem}`, {
      op: OP,
      argument: 'path',
      path,
      version: state.version,
    });
  }
  if (!isState(state)) {
    const message = `${OP}: ${path} holds no state of a run; expected a file that varlen train wrote`;
    throw varlenError('ERR_VARLEN_CHECKPOINT', message, { op: OP, argument: 'path', path });
  }
  if (state.config !== config) {
    const [was, is] = [JSON.parse(state.config), JSON.parse(config)] as Record<string, unknown>[];
    const field = Object.keys({ ...was, ...is }).find(
      (key) => JSON.stringify(was[key]) !== JSON.stringify(is[key]),
    );
    const got = `${JSON.stringify(is[field!])}, expected ${JSON.stringify(was[field!])}`;
    const message = `${OP}: ${path} belongs to a run of other options: ${field}; got ${got}`;
    throw varlenError('ERR_VARLEN_STATE_MISMATCH', message, { op: OP, argument: 'path', path, field });
  }
  return { tensors, state };
}
