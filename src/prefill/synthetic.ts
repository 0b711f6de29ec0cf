import { checkInteger, readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import type { ModalityLayout, ModalityRun } from './modality.js';

/**
 * Heads whose attention is known: queries and keys with planted sinks, a local band, lines at one place of
 * every frame, and codes that join equal places of frames. No model is needed to try a planner on them.
 */

/** What {@link synthHead} plants: column lines, slashes, or both; the band and the sink are always there. */
export type SynthKind = 'grid' | 'slash' | 'mixed';

/** Options of {@link synthHead}. */
export interface SynthOptions {
  /** Frames of the video. */
  readonly frames: number;
  /** Tokens per frame. */
  readonly frameTokens: number;
  readonly kind: SynthKind;
  /** Default 64; at least 40. */
  readonly headDim?: number;
  readonly seed?: number;
  /** Place of the lines in a frame. Default `seed`-dependent. */
  readonly phase?: number;
  /** A run of text after every so many frames; 0, the default: only at the end. */
  readonly textEvery?: number;
  /** Tokens of such a run. Default 0. */
  readonly textLength?: number;
  /** Row lines as well: queries on a line attend almost evenly. Default false. */
  readonly rowLines?: boolean;
  /**
   * Keys that only queries of one modality look for, at places of their own: `'query'` plants 24 for text and 24 for
   * vision, `'pair'` 12 among the keys of each modality for the queries of each. Default: none.
   */
  readonly boundary?: 'query' | 'pair';
  /** A key that the last text queries look for, at this share of the sequence. */
  readonly needle?: number;
}

/** One synthetic head. */
export interface SynthHead {
  readonly tokens: number;
  readonly headDim: number;
  readonly phase: number;
  /** `[tokens, headDim]` */
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** Place in its frame of each token; -1: text. */
  readonly cell: Int32Array;
  /** Position of the needle, or -1. */
  readonly needle: number;
  readonly modality: ModalityLayout;
}

/** Text queries at the end, which every head has. */
const TAIL = 64;

/** Mulberry32: small, and the same on every machine. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed * 0x9e3779b9) >>> 0;
  }

  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }
}

/** Frames and text runs in order; the tail of text last. */
function layOut(
  options: Required<Pick<SynthOptions, 'frames' | 'frameTokens' | 'textEvery' | 'textLength'>>,
): {
  cell: Int32Array;
  runs: ModalityRun[];
} {
  const { frames, frameTokens, textEvery, textLength } = options;
  const cell: number[] = [];
  const runs: ModalityRun[] = [];
  const add = (modality: string, length: number): void => {
    const start = cell.length;
    for (let i = 0; i < length; i++) cell.push(modality === 'vision' ? i % frameTokens : -1);
    if (length > 0) runs.push({ modality, start, length, ...(modality === 'vision' ? { frameTokens } : {}) });
  };
  for (let frame = 0; frame < frames; ) {
    const count = textEvery > 0 ? Math.min(textEvery, frames - frame) : frames;
    add('vision', count * frameTokens);
    frame += count;
    if (textEvery > 0) add('text', textLength);
  }
  add('text', TAIL);
  return { cell: Int32Array.from(cell), runs };
}

/**
 * A head whose attention pattern is known.
 *
 * Components stand in dimensions of their own and add a fixed amount to the scaled logits: sink 9, band 6,
 * lines and codes 8, needle 12, over a noise of `0.5 N(0, 1)`.
 *
 * @throws `ERR_VARLEN_RANGE` for sizes below 1 or a head dimension below 40, `ERR_VARLEN_OPTION`
 *
 * @example
 * ```ts
 * const head = synthHead({ frames: 160, frameTokens: 49, kind: 'grid', phase: 5 });
 * const q = Tensor.from(head.q, { shape: [head.tokens, 1, head.headDim] });
 * ```
 */
export function synthHead(options: SynthOptions): SynthHead {
  const op = 'synthHead';
  const known = readOptions(op, options, [
    'frames',
    'frameTokens',
    'kind',
    'headDim',
    'seed',
    'phase',
    'textEvery',
    'textLength',
    'rowLines',
    'boundary',
    'needle',
  ]);
  const { frames, frameTokens, kind, headDim = 64, seed = 0, rowLines = false } = known;
  const { textEvery = 0, textLength = 0, boundary, needle } = known;
  checkInteger(op, 'frames', frames, 1);
  checkInteger(op, 'frameTokens', frameTokens, 1);
  checkInteger(op, 'headDim', headDim, 40);
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'textEvery', textEvery, 0);
  checkInteger(op, 'textLength', textLength, 0);
  if (!['grid', 'slash', 'mixed'].includes(kind)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'kind',
      `is unknown; got '${String(kind)}', expected grid, slash, mixed`,
    );
  }
  if (boundary !== undefined && boundary !== 'query' && boundary !== 'pair') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'boundary',
      `is unknown; got '${String(boundary)}', expected query, pair`,
    );
  }
  if (needle !== undefined && !(needle >= 0 && needle <= 1)) {
    throw argumentError('ERR_VARLEN_RANGE', op, 'needle', `is out of range; got ${needle}, expected 0..1`);
  }
  const random = new Random(seed + 1);
  const { phase = Math.floor(random.uniform() * frameTokens) } = known;
  checkInteger(op, 'phase', phase, 0, frameTokens - 1);

  const { cell, runs } = layOut({ frames, frameTokens, textEvery, textLength });
  const tokens = cell.length;
  const noise = (scale: number): Float32Array =>
    Float32Array.from({ length: tokens * headDim }, () => scale * random.normal());
  const [q, k, v] = [noise(0.5), noise(0.5), noise(1)];
  // What a pair of unit vectors adds to a logit is then `gain`.
  const strength = (gain: number): number => Math.sqrt(gain * Math.sqrt(headDim));
  let dim = 0;
  const plant = (
    size: number,
    gain: number,
    ofQuery: (x: number, d: number) => number,
    ofKey = ofQuery,
  ): void => {
    const factor = strength(gain);
    for (let x = 0; x < tokens; x++) {
      for (let d = 0; d < size; d++) {
        q[x * headDim + dim + d] += factor * ofQuery(x, d);
        k[x * headDim + dim + d] += factor * ofKey(x, d);
      }
    }
    dim += size;
  };
  const one = (): number => 1;
  plant(1, 9, one, (x) => (x < 4 ? 1 : 0));
  const frequencies = Array.from({ length: 8 }, () => random.normal() / 40);
  plant(16, 6, (x, d) => {
    const angle = frequencies[d >> 1] * x;
    return (d % 2 === 0 ? Math.cos(angle) : Math.sin(angle)) / Math.sqrt(8);
  });
  if (kind !== 'slash') plant(1, 8, one, (x) => (cell[x] === phase ? 1 : 0));
  if (kind !== 'grid') {
    const codes = Array.from({ length: frameTokens }, () => {
      const code = Array.from({ length: 16 }, () => random.normal());
      const norm = Math.hypot(...code);
      return code.map((c) => c / norm);
    });
    plant(16, 8, (x, d) => (cell[x] < 0 ? 0 : codes[cell[x]][d]));
  }
  if (boundary !== undefined) {
    const isText = (x: number): boolean => cell[x] < 0;
    for (const text of [true, false]) {
      const queries = (x: number): number => (isText(x) === text ? 1 : 0);
      for (const keysOf of boundary === 'query' ? [undefined] : [true, false]) {
        const places = Array.from({ length: tokens - TAIL }, (_, x) => x).filter(
          (x) => keysOf === undefined || isText(x) === keysOf,
        );
        const wanted = boundary === 'query' ? 24 : 12;
        const chosen = new Set<number>();
        while (chosen.size < Math.min(wanted, places.length)) {
          chosen.add(places[Math.floor(random.uniform() * places.length)]);
        }
        plant(1, 8, queries, (x) => (chosen.has(x) ? 1 : 0));
      }
    }
  }
  const hidden =
    needle === undefined ? -1 : Math.min(tokens - TAIL - 1, Math.floor(needle * (tokens - TAIL)));
  if (hidden >= 0) {
    plant(
      1,
      12,
      (x) => (x >= tokens - TAIL ? 1 : 0),
      (x) => (x === hidden ? 1 : 0),
    );
  }
  if (rowLines) {
    for (let x = 0; x < tokens; x++) {
      if (cell[x] !== phase) continue;
      for (let d = 0; d < headDim; d++) q[x * headDim + d] *= 0.05;
    }
  }
  return Object.freeze({ tokens, headDim, phase, q, k, v, cell, needle: hidden, modality: { runs } });
}
