import type { BlockMaskPattern, GridPattern, HeadPattern, PatternChecker, Select } from './pattern.js';

/**
 * Patterns as the words that the native side reads (native/ops/sparse-prefill/pattern.h and estimate.cc).
 * What a pattern finds out later gets room for the most it can find.
 */

/** One sequence, as far as patterns depend on it. */
export interface SequenceShape {
  readonly queries: number;
  readonly keys: number;
  readonly causal: boolean;
  readonly slashTile: number;
  readonly isFinalChunk: boolean;
  readonly minModalityRows: number;
  /** Names of all modalities; empty without a layout. */
  readonly names: readonly string[];
  /** `[keys]` */
  readonly ids: Uint8Array | undefined;
  readonly frameTokens: number | undefined;
  /** Puts an array where all heads can reach it; returns its offset. */
  share(array: Int32Array): number;
}

/** Words of a pattern, and how many its resolved form may have. */
export interface Encoded {
  readonly words: number[];
  readonly capacity: number;
  /** Does any part of it depend on queries and keys? */
  readonly estimated: boolean;
}

/** Numbers of the kinds in native/ops/sparse-prefill/pattern.h. */
export const KIND = {
  dense: 0,
  aShape: 1,
  triShape: 2,
  verticalSlash: 3,
  blocks: 4,
  blockMask: 5,
  grid: 6,
  cellGrid: 7,
  sfFixed: 8,
  qBoundary: 9,
  pairBoundary: 10,
  union: 11,
  selectVerticalSlash: 16,
  selectBlocks: 17,
  searchGrid: 18,
} as const;

/** A guarantee may double a budget three times. */
const MOST_GROWTH = 8;
/** Pairs with fewer keys are dense. */
const MIN_PAIR_KEYS = 256;

const asFloat = new Float32Array(1);
const asBits = new Int32Array(asFloat.buffer);
function floatBits(value: number): number {
  asFloat[0] = value;
  return asBits[0];
}

function node(kind: number, fields: readonly number[]): number[] {
  return [kind, fields.length + 2, ...fields];
}

function known(kind: number, fields: readonly number[]): Encoded {
  const words = node(kind, fields);
  return { words, capacity: words.length, estimated: false };
}

/** Keys that patterns choose from: all of a sequence, or those of a modality inside a pair. */
interface Scope {
  readonly keys: number;
  readonly inBoundary: boolean;
  readonly inPair: boolean;
}

/** Words of a checked pattern for one sequence. */
export function encodePattern(
  checker: PatternChecker,
  path: string,
  pattern: HeadPattern,
  sequence: SequenceShape,
): Encoded {
  return new Encoder(checker, sequence).encode(path, pattern, {
    keys: sequence.keys,
    inBoundary: false,
    inPair: false,
  });
}

class Encoder {
  readonly #checker: PatternChecker;
  readonly #sequence: SequenceShape;

  constructor(checker: PatternChecker, sequence: SequenceShape) {
    this.#checker = checker;
    this.#sequence = sequence;
  }

  encode(path: string, p: HeadPattern, scope: Scope): Encoded {
    switch (p.kind) {
      case 'dense':
        return known(KIND.dense, []);
      case 'a-shape':
        return known(KIND.aShape, [p.sink, p.local]);
      case 'tri-shape':
        return known(KIND.triShape, [p.sink, p.local, this.#sequence.isFinalChunk ? p.last : 0]);
      case 'vertical-slash':
        if (!scope.inBoundary && (p.slashCoord ?? 'absolute') !== 'absolute') {
          this.#checker.fail(
            'ERR_VARLEN_INCOMPATIBLE',
            `${path}.slashCoord`,
            `needs a boundary pattern around it; got '${p.slashCoord}', expected 'absolute'`,
          );
        }
        return this.#select(
          p.select,
          p.forceVertical ?? 30,
          this.#forceSlash(path, p.forceSlash),
          p.slashCoord,
          scope,
        );
      case 'vertical-slash-fixed': {
        const [vertical, slash] = [p.vertical, p.slash].map((list) =>
          p.normalize ? Int32Array.from(new Set(list)).sort() : list,
        );
        return known(KIND.verticalSlash, [
          this.#sequence.slashTile,
          scope.inPair ? 1 : 0,
          vertical.length,
          slash.length,
          ...vertical,
          ...slash,
        ]);
      }
      case 'block-sparse':
        return this.#blocks(path, p, scope);
      case 'block-mask':
        return known(KIND.blockMask, this.#blockMask(path, p, scope));
      case 'grid':
        return this.#grid(path, p, scope);
      case 'cell-grid': {
        if (p.cell.length !== scope.keys) {
          this.#checker.fail(
            'ERR_VARLEN_SHAPE',
            `${path}.cell`,
            `must have a cell per key; got ${p.cell.length}, expected ${scope.keys}`,
          );
        }
        const bad = p.cell.findIndex((cell) => cell < -1 || cell >= scope.keys + (1 << 20));
        if (bad >= 0)
          this.#checker.fail(
            'ERR_VARLEN_INDEX',
            `${path}.cell[${bad}]`,
            `is out of range; got ${p.cell[bad]}, expected -1 or a place`,
          );
        const local = p.local ?? 64;
        const offset = this.#sequence.share(p.cell);
        return known(KIND.cellGrid, [flagsOf(p), p.sink ?? 16, local, offset, p.lines.length, ...p.lines]);
      }
      case 'sf-fixed':
        return known(KIND.sfFixed, [p.period]);
      case 'sf-strided':
        // A band of one period, and the slashes of a grid without sink.
        return known(KIND.grid, [0, -1, p.period, 0, 0, 4, 0, p.period]);
      case 'q-boundary':
        return this.#qBoundary(path, p.by, scope);
      case '2d-boundary':
        return this.#pairBoundary(path, p.by, p.fallback ?? { kind: 'dense' });
      case 'union':
        return children(
          KIND.union,
          p.of.length,
          p.of.map((part, i) => this.encode(`${path}.of[${i}]`, part, scope)),
        );
    }
  }

  #forceSlash(path: string, forced = 100): number {
    if (this.#sequence.causal && forced < 1) {
      this.#checker.fail(
        'ERR_VARLEN_RANGE',
        `${path}.forceSlash`,
        `would leave rows empty; got ${forced}, expected >= 1 where causal`,
      );
    }
    return forced;
  }

  #select(
    select: Select,
    forceVertical: number,
    forceSlash: number,
    coord: string | undefined,
    scope: Scope,
  ): Encoded {
    const { keys } = scope;
    const topk = 'topk' in select ? select.topk : undefined;
    const coverage = 'coverage' in select ? select : undefined;
    const max = coverage?.max ?? -1;
    const most = (wanted: number | undefined, forced: number, from: number): number => {
      if (wanted === undefined) return max < 0 ? from : Math.min(from, Math.max(MOST_GROWTH * max, forced));
      return Math.min(from, Math.max(MOST_GROWTH * wanted, forced));
    };
    const coordinate = { absolute: 0, rank: 1, auto: 2 }[coord ?? (scope.inPair ? 'rank' : 'absolute')]!;
    const words = node(KIND.selectVerticalSlash, [
      this.#sequence.slashTile,
      coordinate,
      forceVertical,
      forceSlash,
      coverage === undefined ? 0 : 1,
      Math.min(topk?.vertical ?? 0, keys),
      Math.min(topk?.slash ?? 0, keys),
      coverage?.min ?? 0,
      max,
      floatBits(coverage?.coverage ?? 1),
    ]);
    // Slashes in positions are chosen among all offsets, even inside a pair.
    const offsets = coordinate === 1 ? keys : this.#sequence.keys;
    const verticals = most(topk?.vertical, forceVertical, keys);
    return { words, capacity: 6 + verticals + most(topk?.slash, forceSlash, offsets), estimated: true };
  }

  #blocks(path: string, p: Extract<HeadPattern, { kind: 'block-sparse' }>, scope: Scope): Encoded {
    if (scope.inPair) {
      this.#checker.fail(
        'ERR_VARLEN_INCOMPATIBLE',
        path,
        "is estimated on positions; got 'block-sparse' inside a pair of modalities, expected another pattern",
      );
    }
    const { queries, keys, slashTile } = this.#sequence;
    const [rows, columns] = p.block;
    const byCoverage = 'coverage' in p.select;
    const words = node(KIND.selectBlocks, [
      rows,
      columns,
      { 'mean-pool': 0, antidiagonal: 1, 'js-switch': 2 }[p.score],
      p.stride ?? 16,
      byCoverage ? 1 : 0,
      'blocks' in p.select ? p.select.blocks : 0,
      floatBits('coverage' in p.select ? p.select.coverage : 0.9),
      slashTile,
    ]);
    const rowBlocks = Math.ceil(keys / rows) - Math.floor((keys - queries) / rows);
    const bits = 7 + Math.max(0, rowBlocks) * Math.ceil(Math.ceil(keys / columns) / 32);
    const capacity = p.score === 'js-switch' ? Math.max(bits, 6 + 2 * keys) : bits;
    return { words, capacity, estimated: true };
  }

  #blockMask(path: string, p: BlockMaskPattern, scope: Scope): number[] {
    if (scope.inPair) {
      this.#checker.fail(
        'ERR_VARLEN_INCOMPATIBLE',
        path,
        "is given in positions; got 'block-mask' inside a pair of modalities, expected another pattern",
      );
    }
    const sizes = (total: number, block: number): Int32Array =>
      Int32Array.from({ length: Math.ceil(total / block) }, (_, i) => Math.min(block, total - i * block));
    const rows = p.rowSizes ?? sizes(this.#sequence.queries, p.block[0]);
    const columns = p.colSizes ?? sizes(scope.keys, p.block[1]);
    const fail = (field: string, problem: string): never =>
      this.#checker.fail('ERR_VARLEN_BLOCK_MASK', `${path}.${field}`, problem);
    const sum = (list: Int32Array): number => list.reduce((a, b) => a + b, 0);
    for (const [name, list, total] of [
      ['rowSizes', rows, this.#sequence.queries],
      ['colSizes', columns, scope.keys],
    ] as const) {
      if (list.some((size) => size < 0) || sum(list) !== total)
        fail(name, `must add up; got ${sum(list)}, expected ${total}`);
    }
    const { indptr, indices } = p;
    if (indptr.length !== rows.length + 1 || indptr[0] !== 0) {
      fail(
        'indptr',
        `must have an entry per row of blocks and one more; got ${indptr.length}, expected ${rows.length + 1} from 0`,
      );
    }
    for (let r = 0; r < rows.length; r++) {
      if (indptr[r + 1] < indptr[r])
        fail(`indptr[${r + 1}]`, `must not decrease; got ${indptr[r + 1]}, expected >= ${indptr[r]}`);
    }
    if (indptr[rows.length] !== indices.length) {
      fail(
        'indices',
        `must be as many as indptr says; got ${indices.length}, expected ${indptr[rows.length]}`,
      );
    }
    let bits = 0;
    for (let r = 0; r < rows.length; r++) {
      for (let e = indptr[r]; e < indptr[r + 1]; e++) {
        if (
          !(indices[e] >= 0 && indices[e] < columns.length) ||
          (e > indptr[r] && indices[e] <= indices[e - 1])
        ) {
          fail(
            `indices[${e}]`,
            `is out of range or out of order; got ${indices[e]}, expected ascending in 0..${columns.length - 1}`,
          );
        }
        bits += rows[r] * columns[indices[e]];
      }
    }
    if (p.inner !== undefined && p.inner.length !== bits) {
      fail('inner', `must have a byte per pair of each block; got ${p.inner.length}, expected ${bits}`);
    }
    const starts = (list: Int32Array): number[] => {
      let total = 0;
      return [0, ...Array.from(list, (size) => (total += size))];
    };
    const packed = new Int32Array(p.inner === undefined ? 0 : Math.ceil(bits / 32));
    p.inner?.forEach((keep, bit) => {
      if (keep !== 0) packed[bit >> 5] |= 1 << (bit & 31);
    });
    return [
      rows.length,
      columns.length,
      p.inner === undefined ? 0 : 1,
      ...starts(rows),
      ...starts(columns),
      ...indptr,
      ...indices,
      ...packed,
    ];
  }

  #grid(path: string, p: GridPattern, scope: Scope): Encoded {
    const { frameTokens, slashTile } = this.#sequence;
    if (p.stride === 'frame' && frameTokens === undefined) {
      this.#checker.fail(
        'ERR_VARLEN_MODALITY',
        `${path}.stride`,
        "asks for the tokens of a frame; got no frameTokens in the modality layout, expected them, or 'search'",
      );
    }
    const stride = p.stride === 'frame' ? frameTokens! : p.stride;
    const [begin, end] = scope.inPair ? [0, -1] : (p.span ?? this.#visionSpan());
    const [sink, local, maxStride] = [p.sink ?? 16, p.local ?? -1, p.maxStride ?? 1024];
    if (typeof stride === 'number' && p.phase !== 'search' && p.probeRows !== 'residue') {
      if (p.phase >= stride) {
        this.#checker.fail(
          'ERR_VARLEN_RANGE',
          `${path}.phase`,
          `is out of range; got ${p.phase}, expected below the stride ${stride}`,
        );
      }
      const width = local < 0 ? Math.max(64, stride) : local;
      return known(KIND.grid, [
        begin,
        end,
        stride,
        p.phase,
        (p.hlinePhase ?? p.phase) % stride,
        flagsOf(p),
        sink,
        width,
      ]);
    }
    const words = node(KIND.searchGrid, [
      begin,
      end,
      stride === 'search' ? -1 : stride,
      p.phase === 'search' ? -1 : p.phase,
      p.probeRows === 'residue' ? -2 : (p.hlinePhase ?? -1),
      flagsOf(p),
      sink,
      local,
      maxStride,
      floatBits(p.minGain ?? 0.05),
      frameTokens ?? 0,
      slashTile,
    ]);
    const { keys } = scope;
    const most = (wanted: number): number => Math.min(keys, MOST_GROWTH * wanted);
    const longest = Math.max(
      100,
      local,
      maxStride,
      2 * (frameTokens ?? 0),
      typeof stride === 'number' ? stride : 0,
    );
    const capacity = Math.max(25, 6 + most(sink + Math.ceil(keys / 4)) + most(longest));
    return { words, capacity, estimated: true };
  }

  /** From the first vision key to the last. */
  #visionSpan(): [begin: number, end: number] {
    const { ids, names, keys } = this.#sequence;
    const vision = names.indexOf('vision');
    if (ids === undefined || vision < 0 || !ids.includes(vision)) return [0, -1];
    const last = ids.lastIndexOf(vision) + 1;
    return [ids.indexOf(vision), last === keys ? -1 : last];
  }

  #needLayout(path: string): Uint8Array {
    const { ids } = this.#sequence;
    if (ids !== undefined) return ids;
    return this.#checker.fail(
      'ERR_VARLEN_MODALITY',
      path,
      'needs a modality layout; got none, expected `modality`',
    );
  }

  #checkNames(path: string, names: readonly string[]): void {
    const unknown = names.find((name) => !this.#sequence.names.includes(name));
    if (unknown !== undefined) {
      this.#checker.fail(
        'ERR_VARLEN_MODALITY',
        path,
        `names an unknown modality; got '${unknown}', expected one of ${this.#sequence.names.join(', ')}`,
      );
    }
  }

  #qBoundary(path: string, by: Readonly<Record<string, HeadPattern>>, scope: Scope): Encoded {
    const ids = this.#needLayout(path);
    const { names, keys, queries, minModalityRows } = this.#sequence;
    this.#checkNames(`${path}.by`, Object.keys(by));
    const parts = names.map((name, id) => {
      const rows = count(ids, id, keys - queries);
      if (by[name] === undefined && ids.includes(id)) {
        this.#checker.fail(
          'ERR_VARLEN_MODALITY',
          `${path}.by`,
          `lacks a modality of the sequence; got no '${name}', expected a pattern for it`,
        );
      }
      if (by[name] === undefined || rows < minModalityRows) return known(KIND.dense, []);
      return this.encode(`${path}.by['${name}']`, by[name], { ...scope, inBoundary: true });
    });
    return children(KIND.qBoundary, names.length, parts);
  }

  #pairBoundary(path: string, by: Readonly<Record<string, HeadPattern>>, fallback: HeadPattern): Encoded {
    const ids = this.#needLayout(path);
    const { names, keys, queries, minModalityRows } = this.#sequence;
    this.#checkNames(
      `${path}.by`,
      Object.keys(by).flatMap((pair) => pair.split('>')),
    );
    const parts = names.flatMap((query, a) => {
      const rows = count(ids, a, keys - queries);
      if (rows > 0 && by[`${query}>${query}`] === undefined) {
        this.#checker.fail(
          'ERR_VARLEN_MODALITY',
          `${path}.by`,
          `lacks a pair that carries the diagonal; got no '${query}>${query}', expected a pattern for it`,
        );
      }
      return names.map((key, b) => {
        const pairKeys = count(ids, b, 0);
        const small = rows < minModalityRows || (minModalityRows > 0 && pairKeys < MIN_PAIR_KEYS);
        const part = small ? ({ kind: 'dense' } as const) : (by[`${query}>${key}`] ?? fallback);
        return this.encode(`${path}.by['${query}>${key}']`, part, {
          keys: pairKeys,
          inBoundary: true,
          inPair: true,
        });
      });
    });
    return children(KIND.pairBoundary, names.length, parts);
  }
}

function count(ids: Uint8Array, id: number, from: number): number {
  let n = 0;
  for (let j = from; j < ids.length; j++) if (ids[j] === id) n++;
  return n;
}

function flagsOf(p: { readonly hline: boolean; readonly vline: boolean; readonly slash: boolean }): number {
  return (p.hline ? 1 : 0) | (p.vline ? 2 : 0) | (p.slash ? 4 : 0);
}

function children(kind: number, n: number, parts: readonly Encoded[]): Encoded {
  let offset = 3 + parts.length;
  const offsets = parts.map(({ words }) => {
    const own = offset;
    offset += words.length;
    return own;
  });
  const words = [kind, offset, n, ...offsets, ...parts.flatMap(({ words }) => words)];
  const capacity = 3 + parts.length + parts.reduce((sum, part) => sum + part.capacity, 0);
  return { words, capacity, estimated: parts.some(({ estimated }) => estimated) };
}
