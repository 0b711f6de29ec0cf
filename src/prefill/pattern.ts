import { describe, isArrayOf } from '../check.js';
import { argumentError, type VarlenErrorCode } from '../errors.js';

/** Which keys each query of a head attends to. Defaults and limits: docs/guide/sparse-prefill.md. */

/** How many verticals and slashes are kept: the best so many, or the fewest that hold a share of the mass. */
export type Select =
  | { readonly topk: { readonly vertical: number; readonly slash: number } }
  | { readonly coverage: number; readonly min?: number; readonly max?: number };

/** Coordinates of slashes: positions, ranks within a modality, or whichever holds more mass. */
export type SlashCoord = 'absolute' | 'rank' | 'auto';

/** Every causal pair. */
export interface DensePattern {
  readonly kind: 'dense';
}
/** Key `j < sink`, or within the last `local` keys, the query's own included. */
export interface AShapePattern {
  readonly kind: 'a-shape';
  readonly sink: number;
  readonly local: number;
}
/** An a-shape whose last `last` queries are dense; in chunked prefill those of the final chunk. */
export interface TriShapePattern {
  readonly kind: 'tri-shape';
  readonly sink: number;
  readonly local: number;
  readonly last: number;
}
/** Key columns and diagonals, found from the last queries. */
export interface VerticalSlashPattern {
  readonly kind: 'vertical-slash';
  readonly select: Select;
  /** The first keys, always kept. Default 30. */
  readonly forceVertical?: number;
  /** The nearest diagonals, always kept; at least 1 where causal. Default 100. */
  readonly forceSlash?: number;
  /** Default `'absolute'`, inside a pair of modalities `'rank'`. */
  readonly slashCoord?: SlashCoord;
}
/** Key columns and diagonals that are given. */
export interface FixedVerticalSlashPattern {
  readonly kind: 'vertical-slash-fixed';
  /** Key positions, ascending. */
  readonly vertical: Int32Array;
  /** Offsets `i - j`, ascending from 0. */
  readonly slash: Int32Array;
  /** Sort and drop repeats instead of refusing them. Default false. */
  readonly normalize?: boolean;
}
/** Blocks of queries and keys chosen by an estimate of their attention. */
export interface BlockSparsePattern {
  readonly kind: 'block-sparse';
  readonly block: readonly [rows: number, columns: number];
  /** Means of blocks, sums along antidiagonals, or means where they fit and verticals and slashes where not. */
  readonly score: 'mean-pool' | 'antidiagonal' | 'js-switch';
  /** Of the antidiagonals. Default 16. */
  readonly stride?: 8 | 16;
  readonly select: { readonly blocks: number } | { readonly coverage: number };
}
/** Blocks of queries and keys that are given, as compressed rows. */
export interface BlockMaskPattern {
  readonly kind: 'block-mask';
  /** `[numRowBlocks + 1]` */
  readonly indptr: Int32Array;
  /** Column blocks of each row of blocks, ascending. */
  readonly indices: Int32Array;
  readonly block: readonly [rows: number, columns: number];
  /** Sizes of the row blocks instead, summing to the queries of the sequence. */
  readonly rowSizes?: Int32Array;
  /** Sizes of the column blocks instead, summing to its keys. */
  readonly colSizes?: Int32Array;
  /** One byte per pair of each listed block, row-major: 1 keeps it. */
  readonly inner?: Uint8Array;
}
/** Lines at one place of every frame: row lines, column lines, and diagonals between equal places. */
export interface GridPattern {
  readonly kind: 'grid';
  /** Tokens per frame, those of the modality layout, or found from the last queries. */
  readonly stride: number | 'frame' | 'search';
  readonly phase: number | 'search';
  readonly hline: boolean;
  readonly vline: boolean;
  readonly slash: boolean;
  /** Default 16. */
  readonly sink?: number;
  /** Default `max(64, stride)`. */
  readonly local?: number;
  /** Longest stride that is searched. Default 1024. */
  readonly maxStride?: number;
  /** Smaller gains fall back to verticals and slashes. Default 0.05. */
  readonly minGain?: number;
  /** Default: `phase`. */
  readonly hlinePhase?: number;
  /** `'residue'` finds the row lines from one query per place of a frame. Default `'last'`. */
  readonly probeRows?: 'last' | 'residue';
  /** Positions that the frames cover. Default: the vision part of the modality layout, else everything. */
  readonly span?: readonly [begin: number, end: number];
}
/** A grid whose places are given token by token: frames of any size, with gaps. */
export interface CellGridPattern {
  readonly kind: 'cell-grid';
  /** Place of each key in its frame, `[Nk]`; -1: none. */
  readonly cell: Int32Array;
  /** Places that are lines. */
  readonly lines: Int32Array;
  readonly hline: boolean;
  readonly vline: boolean;
  readonly slash: boolean;
  readonly sink?: number;
  readonly local?: number;
}
/** The sparse transformer's patterns (Child et al. 2019), for comparison. */
export interface SparseTransformerPattern {
  readonly kind: 'sf-fixed' | 'sf-strided';
  readonly period: number;
}
/** One pattern per modality of the query. */
export interface QBoundaryPattern {
  readonly kind: 'q-boundary';
  readonly by: Readonly<Record<string, HeadPattern>>;
}
/** One pattern per (query modality, key modality): `'vision>text'`. */
export interface PairBoundaryPattern {
  readonly kind: '2d-boundary';
  readonly by: Readonly<Record<`${string}>${string}`, HeadPattern>>;
  /** Of pairs that `by` does not name. Default dense. */
  readonly fallback?: HeadPattern;
}
/** Everything that one of them keeps. */
export interface UnionPattern {
  readonly kind: 'union';
  readonly of: readonly HeadPattern[];
}

/** The pattern of one head. */
export type HeadPattern =
  | DensePattern
  | AShapePattern
  | TriShapePattern
  | VerticalSlashPattern
  | FixedVerticalSlashPattern
  | BlockSparsePattern
  | BlockMaskPattern
  | GridPattern
  | CellGridPattern
  | SparseTransformerPattern
  | QBoundaryPattern
  | PairBoundaryPattern
  | UnionPattern;

/** Keys that a pattern may have, by kind; a trailing `?` marks those that may be absent. */
const KEYS: Readonly<Record<HeadPattern['kind'], readonly string[]>> = {
  dense: [],
  'a-shape': ['sink', 'local'],
  'tri-shape': ['sink', 'local', 'last'],
  'vertical-slash': ['select', 'forceVertical?', 'forceSlash?', 'slashCoord?'],
  'vertical-slash-fixed': ['vertical', 'slash', 'normalize?'],
  'block-sparse': ['block', 'score', 'stride?', 'select'],
  'block-mask': ['indptr', 'indices', 'block', 'rowSizes?', 'colSizes?', 'inner?'],
  grid: [
    'stride',
    'phase',
    'hline',
    'vline',
    'slash',
    'sink?',
    'local?',
    'maxStride?',
    'minGain?',
    'hlinePhase?',
    'probeRows?',
    'span?',
  ],
  'cell-grid': ['cell', 'lines', 'hline', 'vline', 'slash', 'sink?', 'local?'],
  'sf-fixed': ['period'],
  'sf-strided': ['period'],
  'q-boundary': ['by'],
  '2d-boundary': ['by', 'fallback?'],
  union: ['of'],
};

const MAX_DEPTH = 8;
const MAX_INT = 2 ** 31 - 1;

/** Says what is wrong with a pattern, and where; a configuration file has a code of its own. */
export class PatternChecker {
  readonly op: string;
  readonly #config: boolean;

  constructor(op: string, config = false) {
    this.op = op;
    this.#config = config;
  }

  fail(code: VarlenErrorCode, path: string, problem: string): never {
    throw argumentError(this.#config ? 'ERR_VARLEN_CONFIG' : code, this.op, path, problem, { path });
  }

  #range(path: string, value: unknown, expected: string): never {
    const code = typeof value === 'number' ? 'ERR_VARLEN_RANGE' : 'ERR_VARLEN_TYPE';
    this.fail(code, path, `is out of range; got ${describe(value)}, expected ${expected}`);
  }

  integer(path: string, value: unknown, min: number, max: number = MAX_INT): void {
    if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
      this.#range(path, value, max === MAX_INT ? `an integer >= ${min}` : `an integer in ${min}..${max}`);
    }
  }

  #share(path: string, value: unknown): void {
    if (typeof value !== 'number' || !(value > 0 && value <= 1)) this.#range(path, value, 'in (0, 1]');
  }

  #oneOf(path: string, value: unknown, allowed: readonly unknown[]): void {
    if (allowed.includes(value)) return;
    if (typeof value === 'number' && allowed.every((word) => typeof word === 'number')) {
      this.#range(path, value, `one of ${allowed.join(', ')}`);
    }
    this.fail(
      'ERR_VARLEN_OPTION',
      path,
      `is unknown; got ${describe(value)}, expected one of ${allowed.join(', ')}`,
    );
  }

  #flag(path: string, value: unknown): void {
    if (typeof value !== 'boolean') {
      this.fail('ERR_VARLEN_TYPE', path, `has the wrong type; got ${describe(value)}, expected a boolean`);
    }
  }

  #ints(path: string, value: unknown): asserts value is Int32Array {
    if (!isArrayOf(Int32Array, value)) {
      this.fail(
        'ERR_VARLEN_TYPE',
        path,
        `has the wrong type; got ${describe(value)}, expected an Int32Array`,
      );
    }
  }

  object(path: string, value: unknown): Readonly<Record<string, unknown>> {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      this.fail('ERR_VARLEN_TYPE', path, `has the wrong type; got ${describe(value)}, expected an object`);
    }
    return value as Readonly<Record<string, unknown>>;
  }

  /** Refuses keys that are not among `known`, and missing ones that do not end in `?`. */
  keys(path: string, value: Readonly<Record<string, unknown>>, known: readonly string[]): void {
    const names = known.map((name) => name.replace('?', ''));
    for (const key of Object.keys(value)) {
      if (!names.includes(key)) {
        this.fail(
          'ERR_VARLEN_OPTION',
          `${path}.${key}`,
          `is not known here; expected one of ${names.join(', ')}`,
        );
      }
    }
    for (const key of known) {
      if (!key.endsWith('?') && value[key] === undefined) {
        this.fail('ERR_VARLEN_MISSING_INPUT', `${path}.${key}`, 'is required; got nothing, expected a value');
      }
    }
  }

  #select(path: string, value: unknown): void {
    const select = this.object(path, value);
    if ('topk' in select) {
      this.keys(path, select, ['topk']);
      const topk = this.object(`${path}.topk`, select.topk);
      this.keys(`${path}.topk`, topk, ['vertical', 'slash']);
      this.integer(`${path}.topk.vertical`, topk.vertical, 0);
      this.integer(`${path}.topk.slash`, topk.slash, 0);
      return;
    }
    this.keys(path, select, ['coverage', 'min?', 'max?']);
    this.#share(`${path}.coverage`, select.coverage);
    if (select.min !== undefined) this.integer(`${path}.min`, select.min, 0);
    if (select.max !== undefined) this.integer(`${path}.max`, select.max, 0);
  }

  #block(path: string, value: unknown, sizes: readonly number[] | undefined): void {
    if (!Array.isArray(value) || value.length !== 2) {
      this.fail(
        'ERR_VARLEN_TYPE',
        path,
        `has the wrong type; got ${describe(value)}, expected [rows, columns]`,
      );
    }
    value.forEach((size: unknown, i) => {
      if (sizes === undefined) this.integer(`${path}[${i}]`, size, 1);
      else this.#oneOf(`${path}[${i}]`, size, sizes);
    });
  }

  #indices(path: string, list: Int32Array, normalize: unknown): void {
    if (normalize === true) {
      if (list.some((x) => x < 0))
        this.fail('ERR_VARLEN_INDEX', path, 'holds a negative index; expected >= 0');
      return;
    }
    for (let n = 0; n < list.length; n++) {
      if (list[n] >= 0 && (n === 0 || list[n] > list[n - 1])) continue;
      this.fail(
        'ERR_VARLEN_INDEX',
        `${path}[${n}]`,
        `is negative, repeated or out of order; got ${list[n]}, expected ascending from 0 (or normalize: true)`,
      );
    }
  }

  /** Checks everything about a pattern that no sequence is needed for. */
  pattern(path: string, value: unknown, depth = 0, insideBoundary = false): asserts value is HeadPattern {
    if (depth > MAX_DEPTH) {
      this.fail(
        'ERR_VARLEN_RANGE',
        path,
        `nests too deeply; got depth ${depth}, expected at most ${MAX_DEPTH}`,
      );
    }
    const p = this.object(path, value);
    const kinds = Object.keys(KEYS);
    if (typeof p.kind !== 'string' || !kinds.includes(p.kind)) {
      this.fail(
        'ERR_VARLEN_OPTION',
        `${path}.kind`,
        `is unknown; got ${describe(p.kind)}, expected one of ${kinds.join(', ')}`,
      );
    }
    const kind = p.kind as HeadPattern['kind'];
    this.keys(path, p, ['kind', ...KEYS[kind]]);
    if (p.sink !== undefined) this.integer(`${path}.sink`, p.sink, 0);
    if (p.local !== undefined) this.integer(`${path}.local`, p.local, 1);
    if (kind.includes('grid'))
      for (const flag of ['hline', 'vline', 'slash']) this.#flag(`${path}.${flag}`, p[flag]);
    switch (kind) {
      case 'tri-shape':
        this.integer(`${path}.last`, p.last, 0);
        break;
      case 'vertical-slash':
        this.#select(`${path}.select`, p.select);
        if (p.forceVertical !== undefined) this.integer(`${path}.forceVertical`, p.forceVertical, 0);
        if (p.forceSlash !== undefined) this.integer(`${path}.forceSlash`, p.forceSlash, 0);
        if (p.slashCoord !== undefined)
          this.#oneOf(`${path}.slashCoord`, p.slashCoord, ['absolute', 'rank', 'auto']);
        break;
      case 'vertical-slash-fixed':
        if (p.normalize !== undefined) this.#flag(`${path}.normalize`, p.normalize);
        for (const list of ['vertical', 'slash']) {
          this.#ints(`${path}.${list}`, p[list]);
          this.#indices(`${path}.${list}`, p[list], p.normalize);
        }
        break;
      case 'block-sparse':
        this.#blockSparse(path, p);
        break;
      case 'block-mask':
        this.#blockMask(path, p);
        break;
      case 'grid':
        this.#grid(path, p);
        break;
      case 'cell-grid':
        this.#ints(`${path}.cell`, p.cell);
        this.#ints(`${path}.lines`, p.lines);
        break;
      case 'sf-fixed':
      case 'sf-strided':
        this.integer(`${path}.period`, p.period, 1);
        break;
      case 'q-boundary':
      case '2d-boundary':
        if (insideBoundary) {
          this.fail(
            'ERR_VARLEN_INCOMPATIBLE',
            path,
            'is a boundary pattern inside another; expected one level',
          );
        }
        for (const [name, part] of Object.entries(this.object(`${path}.by`, p.by))) {
          this.pattern(`${path}.by['${name}']`, part, depth + 1, true);
        }
        if (p.fallback !== undefined) this.pattern(`${path}.fallback`, p.fallback, depth + 1, true);
        break;
      case 'union':
        if (!Array.isArray(p.of) || p.of.length === 0 || p.of.length > 256) {
          this.fail(
            'ERR_VARLEN_TYPE',
            `${path}.of`,
            `has the wrong type; got ${describe(p.of)}, expected 1 to 256 patterns`,
          );
        }
        // A union is no boundary, but what it joins must be of one level too.
        for (const [i, part] of p.of.entries()) this.pattern(`${path}.of[${i}]`, part, depth + 1, true);
        break;
      default:
        break;
    }
  }

  #blockSparse(path: string, p: Readonly<Record<string, unknown>>): void {
    this.#block(`${path}.block`, p.block, [16, 32, 64, 128]);
    this.#oneOf(`${path}.score`, p.score, ['mean-pool', 'antidiagonal', 'js-switch']);
    if (p.stride !== undefined) this.#oneOf(`${path}.stride`, p.stride, [8, 16]);
    const select = this.object(`${path}.select`, p.select);
    if ('blocks' in select) {
      this.keys(`${path}.select`, select, ['blocks']);
      this.integer(`${path}.select.blocks`, select.blocks, 1);
    } else {
      this.keys(`${path}.select`, select, ['coverage']);
      this.#share(`${path}.select.coverage`, select.coverage);
    }
  }

  #blockMask(path: string, p: Readonly<Record<string, unknown>>): void {
    this.#block(`${path}.block`, p.block, undefined);
    for (const name of ['indptr', 'indices', 'rowSizes', 'colSizes'] as const) {
      if (p[name] !== undefined) this.#ints(`${path}.${name}`, p[name]);
    }
    if (p.inner !== undefined && !isArrayOf(Uint8Array, p.inner)) {
      this.fail(
        'ERR_VARLEN_TYPE',
        `${path}.inner`,
        `has the wrong type; got ${describe(p.inner)}, expected a Uint8Array`,
      );
    }
  }

  #grid(path: string, p: Readonly<Record<string, unknown>>): void {
    if (p.stride !== 'frame' && p.stride !== 'search') this.integer(`${path}.stride`, p.stride, 1);
    if (p.phase !== 'search') {
      const below = typeof p.stride === 'number' ? p.stride - 1 : MAX_INT;
      this.integer(`${path}.phase`, p.phase, 0, below);
    }
    if (p.hlinePhase !== undefined) {
      this.integer(
        `${path}.hlinePhase`,
        p.hlinePhase,
        0,
        typeof p.stride === 'number' ? p.stride - 1 : MAX_INT,
      );
    }
    if (p.maxStride !== undefined) this.integer(`${path}.maxStride`, p.maxStride, 4);
    if (p.minGain !== undefined && !(typeof p.minGain === 'number' && p.minGain >= 0 && p.minGain <= 1)) {
      this.#range(`${path}.minGain`, p.minGain, 'in [0, 1]');
    }
    if (p.probeRows !== undefined) this.#oneOf(`${path}.probeRows`, p.probeRows, ['last', 'residue']);
    if (p.span === undefined) return;
    if (!Array.isArray(p.span) || p.span.length !== 2) {
      this.fail(
        'ERR_VARLEN_TYPE',
        `${path}.span`,
        `has the wrong type; got ${describe(p.span)}, expected [begin, end]`,
      );
    }
    this.integer(`${path}.span[0]`, p.span[0], 0);
    this.integer(`${path}.span[1]`, p.span[1], p.span[0]);
  }
}
