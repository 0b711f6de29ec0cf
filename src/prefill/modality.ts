import { describe, isArrayOf, wrongType } from '../check.js';
import { argumentError } from '../errors.js';

/** A stretch of keys of one modality. */
export interface ModalityRun {
  readonly modality: string;
  readonly start: number;
  readonly length: number;
  /** Tokens of one video frame or image, where all have as many. */
  readonly frameTokens?: number;
}

/**
 * Which modality each key of a sequence belongs to: an id per key, or runs that cover all keys in order.
 * Ids count through `names`, by default `['text', 'vision']`.
 */
export type ModalityLayout =
  | { readonly ids: Uint8Array; readonly names?: readonly string[]; readonly frameTokens?: number }
  | { readonly runs: readonly ModalityRun[] };

/** A layout read once: ids that count through the names of the whole batch. */
export interface Modalities {
  /** `[Nk]` */
  readonly ids: Uint8Array;
  readonly frameTokens: number | undefined;
}

const DEFAULT_NAMES = ['text', 'vision'];

function fail(op: string, path: string, problem: string): never {
  throw argumentError('ERR_VARLEN_MODALITY', op, path, problem, { path });
}

/** Names of all modalities of a batch, in the order they appear. */
export function modalityNames(op: string, layouts: readonly ModalityLayout[]): string[] {
  const names = new Set<string>();
  for (const [b, layout] of layouts.entries()) {
    const path = `modality[${b}]`;
    if (typeof layout !== 'object' || layout === null) throw wrongType(op, path, layout, 'a ModalityLayout');
    const own =
      'runs' in layout
        ? readRuns(op, path, layout.runs).map(({ modality }) => modality)
        : namesOf(op, path, layout.names);
    for (const name of own) {
      if (typeof name !== 'string' || name === '' || name.includes('>')) {
        fail(op, path, `has an unusable name; got ${describe(name)}, expected words without '>'`);
      }
      names.add(name);
    }
  }
  if (names.size > 16) fail(op, 'modality', `has too many names; got ${names.size}, expected at most 16`);
  return [...names];
}

function namesOf(op: string, path: string, names: unknown): readonly string[] {
  if (names === undefined) return DEFAULT_NAMES;
  if (!Array.isArray(names)) throw wrongType(op, `${path}.names`, names, 'an array');
  return names as readonly string[];
}

function readRuns(op: string, path: string, runs: unknown): readonly ModalityRun[] {
  if (!Array.isArray(runs)) throw wrongType(op, `${path}.runs`, runs, 'an array');
  for (const [n, run] of runs.entries()) {
    if (typeof run !== 'object' || run === null) throw wrongType(op, `${path}.runs[${n}]`, run, 'an object');
  }
  return runs as readonly ModalityRun[];
}

/** Reads the layout of one sequence of `keys` keys. */
export function readModalities(
  op: string,
  path: string,
  layout: ModalityLayout,
  names: readonly string[],
  keys: number,
): Modalities {
  const ids = new Uint8Array(keys);
  if (!('runs' in layout)) {
    if (!isArrayOf(Uint8Array, layout.ids)) throw wrongType(op, `${path}.ids`, layout.ids, 'a Uint8Array');
    if (layout.ids.length !== keys) {
      fail(op, `${path}.ids`, `must have an id per key; got ${layout.ids.length}, expected ${keys}`);
    }
    const own = namesOf(op, path, layout.names);
    const renamed = own.map((name) => names.indexOf(name));
    for (let j = 0; j < keys; j++) {
      const id = layout.ids[j];
      if (id >= own.length)
        fail(op, `${path}.ids[${j}]`, `has no name; got ${id}, expected below ${own.length}`);
      ids[j] = renamed[id];
    }
    return { ids, frameTokens: readFrame(op, path, layout.frameTokens) };
  }
  let covered = 0;
  const frames = new Set<number>();
  for (const [n, run] of readRuns(op, path, layout.runs).entries()) {
    const where = `${path}.runs[${n}]`;
    if (run?.start !== covered || !Number.isInteger(run.length) || run.length < 0) {
      fail(
        op,
        where,
        `must follow the run before it; got start ${describe(run?.start)}, length ${describe(run?.length)}, expected start ${covered}`,
      );
    }
    covered += run.length;
    if (covered > keys) break;
    ids.fill(names.indexOf(run.modality), run.start, covered);
    const frame = readFrame(op, where, run.frameTokens);
    if (frame !== undefined) frames.add(frame);
  }
  if (covered !== keys) fail(op, `${path}.runs`, `must cover all keys; got ${covered}, expected ${keys}`);
  return { ids, frameTokens: frames.size === 1 ? [...frames][0] : undefined };
}

function readFrame(op: string, path: string, frame: number | undefined): number | undefined {
  if (frame === undefined) return undefined;
  if (Number.isInteger(frame) && frame >= 1) return frame;
  return fail(op, `${path}.frameTokens`, `is out of range; got ${describe(frame)}, expected an integer >= 1`);
}
