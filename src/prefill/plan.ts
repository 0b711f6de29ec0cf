import { checkInteger, describe, isArrayOf, readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { countPlan, planMask, planTiles, type RunnablePlan, resolvePlan } from '../ops/sparse-prefill.js';
import { Device, type DeviceLike, type DType, type Stream, Tensor } from '../tensor/index.js';
import { type LayerConfig, patternsOf } from './config.js';
import { type Encoded, encodePattern, KIND, type SequenceShape } from './encode.js';
import { type ModalityLayout, modalityNames, readModalities } from './modality.js';
import { type HeadPattern, PatternChecker } from './pattern.js';
import { type PatternSummary, summarize } from './summary.js';

/** What the heads of a layer attend to. */
export interface PrefillConfig {
  /** One pattern for all heads, one per query head, or a layer of a configuration file. */
  readonly heads: HeadPattern | readonly HeadPattern[] | LayerConfig;
  /** Default true. */
  readonly causal?: boolean;
  /** Default `headDim ** -0.5`. Estimates use it as well. */
  readonly softmaxScale?: number;
  /** 0 is off, the default. */
  readonly softcap?: number;
  /** Rows over which a slash is rounded up to a square: 16, 32, 64 or 128. Default 64. */
  readonly slashTile?: 16 | 32 | 64 | 128;
}

/** What happens to a head that keeps too little of its attention mass. */
export interface RecallGuarantee {
  /** Mean recall over the certificate's rows, 0 to 1. */
  readonly minRecall: number;
  /** Rows of the certificate. Default 128. */
  readonly rows?: number;
  /** Double the budget up to three times and then go dense, go dense, keep it, or fail. Default `'densify'`. */
  readonly onMiss?: 'densify' | 'dense' | 'warn' | 'throw';
}

/** Options of {@link planPrefill}. */
export interface PrefillPlanOptions {
  /** Prefix sums of the lengths, `[numSeqs + 1]`, for q and k alike. */
  readonly cuSeqlens?: Int32Array;
  readonly maxSeqlen?: number;
  /** Instead of `cuSeqlens`: chunked prefill, where earlier keys are cached. */
  readonly cuSeqlensQ?: Int32Array;
  readonly cuSeqlensK?: Int32Array;
  readonly maxSeqlenQ?: number;
  readonly maxSeqlenK?: number;
  /** One layout per sequence. */
  readonly modality?: readonly ModalityLayout[];
  /** Last queries that patterns are estimated from, 1 to 64. Default 64. */
  readonly lastQ?: number;
  /** False for all chunks of a prompt but the last. Default true. */
  readonly isFinalChunk?: boolean;
  /** Of the certificate's rows. Default 0. */
  readonly seed?: number;
  /** `'union'`: the query heads of one key/value head compute what any of them chose. Default `'none'`. */
  readonly shareAcrossGroup?: 'none' | 'union';
  /** Sequences with fewer keys are dense. Default 8192. */
  readonly denseBelow?: number;
  /** Heads that would compute more than this share of all pairs are dense; 1: never. Default 0.8. */
  readonly denseAbove?: number;
  /** A modality with fewer queries is dense. Default 128. */
  readonly minModalityRows?: number;
  /** Default: no certificate is made. */
  readonly guarantee?: RecallGuarantee;
  /** Rows of a recall certificate without a guarantee. Default 0. */
  readonly certificateRows?: number;
  /** Memory for the plan, int32 on the CPU; at least {@link prefillWorkspaceBytes}. For q on the CPU. */
  readonly workspace?: Tensor;
  /** For q on the CPU; plans for a GPU are made on the CPU's own stream. */
  readonly stream?: Stream;
}

/** What one head of one sequence computes. Densities are shares of all causal pairs. */
export interface HeadStats {
  readonly sequence: number;
  readonly head: number;
  /** What estimation arrived at. */
  readonly pattern: PatternSummary;
  /** Pairs of the pattern as defined. */
  readonly linesDensity: number;
  /** Pairs that are computed. */
  readonly computedDensity: number;
  /** Pairs whose arithmetic is issued, tile padding included: speed follows this one. */
  readonly tileDensity: number;
  readonly tiles: number;
  /** Attention mass that is kept, over the certificate's rows; `undefined` without a certificate. */
  readonly recall:
    | { readonly mean: number; readonly p5: number; readonly min: number; readonly lowerBound: number }
    | undefined;
  /** Times that a guarantee or `denseAbove` doubled the budget; 4: made dense. */
  readonly densified: number;
  /** Rows of the probe with scores that are not finite. */
  readonly nonFinite: number;
  /** Verticals and slashes that no key or row can use. */
  readonly ignoredIndices: number;
  readonly estimateMs: number;
  readonly buildMs: number;
}

/** Statistics of a plan. */
export interface PrefillStats {
  readonly heads: readonly HeadStats[];
  readonly bytes: number;
  /** Advice: slashes that cost far more than they name, recall below the guarantee. */
  readonly notes: readonly string[];
}

/** The tiles of one head: rows that are computed together, and the keys each of them keeps. */
export interface PlanIndices {
  /** Tile t holds `rows[tileRows[t] .. tileRows[t + 1]]` and `columns[tileColumns[t] .. tileColumns[t + 1]]`. */
  readonly tileRows: Int32Array;
  readonly tileColumns: Int32Array;
  readonly rows: Int32Array;
  readonly columns: Int32Array;
  /** Two words per column: bit r is set when row r of the tile keeps it. */
  readonly rowBits: Int32Array;
}

/** A plan as plain data. */
export interface PrefillPlanData {
  readonly words: Int32Array;
  readonly report: Float64Array;
  readonly cuSeqlensQ: Int32Array;
  readonly cuSeqlensK: Int32Array;
  readonly causal: boolean;
  readonly softmaxScale: number;
  readonly softcap: number;
  readonly dtype: DType;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly allDense: boolean;
}

const OP = 'planPrefill';
const MAGIC = 0x31505356; // "VSP1", as native/ops/sparse-prefill/pattern.h has it
const HEADER_WORDS = 6;
const REPORT_WORDS = 8;
const COUNT_WORDS = 6;
const ON_MISS = { densify: 0, dense: 1, warn: 2, throw: 3 } as const;

/** FNV-1a over 64 bits. */
function fingerprintOf(parts: readonly (string | number | Int32Array)[]): string {
  let hash = 0xcbf29ce484222325n;
  for (const part of parts) {
    const text = typeof part === 'object' ? `${part.join(',')};` : `${part};`;
    for (let i = 0; i < text.length; i++) {
      hash = ((hash ^ BigInt(text.charCodeAt(i))) * 0x100000001b3n) & 0xffffffffffffffffn;
    }
  }
  return hash.toString(16).padStart(16, '0');
}

/**
 * Which keys every query attends to, ready to run: a frozen value. Its words live in host memory, wherever q
 * is; {@link PrefillPlan.stats}, `mask`, `indices` and `data` read them, and a GPU keeps what it makes of them.
 */
export class PrefillPlan implements RunnablePlan, Disposable {
  readonly words: Tensor;
  readonly device: Device;
  readonly cuSeqlensQ: Int32Array;
  readonly cuSeqlensK: Int32Array;
  readonly causal: boolean;
  readonly softmaxScale: number;
  readonly softcap: number;
  readonly dtype: DType;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly allDense: boolean;
  readonly fingerprint: string;
  /** Bytes of the plan. */
  readonly workspaceBytes: number;
  readonly #report: Tensor;
  readonly #ownsWords: boolean;
  readonly #minRecall: number;

  /** @internal `planPrefill` and `PrefillPlan.from` make plans. */
  constructor(
    made: Omit<PrefillPlanData, 'words' | 'report'>,
    device: Device,
    words: Tensor,
    report: Tensor,
    ownsWords: boolean,
    minRecall: number,
  ) {
    this.words = words;
    this.device = device;
    this.cuSeqlensQ = made.cuSeqlensQ;
    this.cuSeqlensK = made.cuSeqlensK;
    this.causal = made.causal;
    this.softmaxScale = made.softmaxScale;
    this.softcap = made.softcap;
    this.dtype = made.dtype;
    this.numHeads = made.numHeads;
    this.numKvHeads = made.numKvHeads;
    this.headDim = made.headDim;
    this.allDense = made.allDense;
    this.workspaceBytes = words.byteLength;
    this.fingerprint = fingerprintOf([
      made.cuSeqlensQ,
      made.cuSeqlensK,
      made.numHeads,
      made.numKvHeads,
      made.headDim,
      made.dtype,
    ]);
    this.#report = report;
    this.#ownsWords = ownsWords;
    this.#minRecall = minRecall;
    Object.freeze(this);
  }

  /** A plan from its data, for tensors of a device. Its contents are checked when it runs. */
  static from(data: PrefillPlanData, options?: { device?: DeviceLike }): PrefillPlan {
    const { device = 'auto' } = readOptions('PrefillPlan.from', options, ['device']);
    const on = Device.resolve(device);
    const words = Tensor.from(data.words, { device: 'cpu' });
    const shape = [data.cuSeqlensQ.length - 1, data.numHeads, REPORT_WORDS];
    const report = Tensor.from(data.report, { shape, device: 'cpu' });
    return new PrefillPlan(data, on, words, report, true, 0);
  }

  get disposed(): boolean {
    return this.words.disposed;
  }

  get numSeqs(): number {
    return this.cuSeqlensQ.length - 1;
  }

  /** Rows and keys of a sequence. */
  #shapeOf(op: string, sequence: number): [rows: number, keys: number] {
    this.#checkAlive(op);
    checkInteger(op, 'sequence', sequence, 0, Math.max(0, this.numSeqs - 1));
    const { cuSeqlensQ: q, cuSeqlensK: k } = this;
    return [q[sequence + 1] - q[sequence], k[sequence + 1] - k[sequence]];
  }

  #checkAlive(op: string): void {
    if (this.disposed) throw varlenError('ERR_VARLEN_DISPOSED', `${op}: the plan was disposed`, { op });
  }

  /** What each head computes and keeps. Counts are exact up to 512 tiles of a head, sampled above. */
  async stats(): Promise<PrefillStats> {
    this.#checkAlive('plan.stats');
    const { numSeqs, numHeads } = this;
    using counts = countPlan(this.words, [numSeqs, numHeads, COUNT_WORDS]);
    const [counted, report, words] = (await Promise.all([
      counts.data(),
      this.#report.data(),
      this.words.data(),
    ])) as [Float64Array, Float64Array, Int32Array];
    const notes: string[] = [];
    const heads = Array.from({ length: numSeqs * numHeads }, (_, i): HeadStats => {
      const [sequence, head] = [Math.floor(i / numHeads), i % numHeads];
      const [lines, computed, issued, pairs, tiles] = counted.subarray(
        i * COUNT_WORDS,
        (i + 1) * COUNT_WORDS,
      );
      const [mean, p5, min, lowerBound, densified, nonFinite, estimateMs, buildMs] = report.subarray(
        i * REPORT_WORDS,
        (i + 1) * REPORT_WORDS,
      );
      const share = (n: number): number => (pairs > 0 ? n / pairs : 0);
      const keys = this.cuSeqlensK[sequence + 1] - this.cuSeqlensK[sequence];
      const pattern = summarize(words, words[HEADER_WORDS + 3 * numSeqs + 3 * i + 1]);
      if (computed > 3 * lines && pattern.kind === 'vertical-slash') {
        notes.push(
          `sequence ${sequence}, head ${head}: isolated slashes compute ${(computed / lines).toFixed(1)} pairs for each they name; a smaller slashTile or a grid costs less`,
        );
      }
      if (mean < this.#minRecall) {
        notes.push(
          `sequence ${sequence}, head ${head}: recall ${mean.toFixed(3)} is below ${this.#minRecall}`,
        );
      }
      return Object.freeze({
        sequence,
        head,
        pattern,
        linesDensity: share(lines),
        computedDensity: share(computed),
        tileDensity: share(issued),
        tiles,
        recall: Number.isNaN(mean) ? undefined : Object.freeze({ mean, p5, min, lowerBound }),
        densified,
        nonFinite,
        ignoredIndices: ignored(pattern, keys),
        estimateMs,
        buildMs,
      });
    });
    return Object.freeze({
      heads: Object.freeze(heads),
      bytes: this.workspaceBytes,
      notes: Object.freeze(notes),
    });
  }

  /**
   * The set of one head, `[rows, keys]`: 1 where the pair is computed (`'computed'`), or where the pattern as
   * defined keeps it (`'lines'`). A softmax over exactly the computed set is what `sparsePrefill` returns.
   */
  async mask(sequence: number, head: number, set: 'lines' | 'computed'): Promise<Uint8Array> {
    const shape = this.#shapeOf('plan.mask', sequence);
    checkInteger('plan.mask', 'head', head, 0, this.numHeads - 1);
    if (set !== 'lines' && set !== 'computed') {
      throw argumentError(
        'ERR_VARLEN_OPTION',
        'plan.mask',
        'set',
        `is unknown; got ${describe(set)}, expected 'lines' or 'computed'`,
      );
    }
    using mask = planMask(this.words, sequence, head, set === 'lines', shape);
    return (await mask.data()) as Uint8Array;
  }

  /** The tiles of one head as compressed rows: what a run computes, in its own order. */
  async indices(sequence: number, head: number): Promise<PlanIndices> {
    const [rows] = this.#shapeOf('plan.indices', sequence);
    checkInteger('plan.indices', 'head', head, 0, this.numHeads - 1);
    // Sizes first: a row stands in one tile of its near keys, and perhaps in one of its slashes.
    let sizes = { tiles: 0, rows, columns: 0 };
    for (;;) {
      const tiles = planTiles(this.words, sequence, head, sizes);
      try {
        const [tileRows, tileColumns, rowList, columns, rowBits] = (await Promise.all([
          tiles.tileRows.data(),
          tiles.tileColumns.data(),
          tiles.rows.data(),
          tiles.columns.data(),
          tiles.rowBits.data(),
        ])) as Int32Array[];
        return Object.freeze({
          tileRows,
          tileColumns,
          rows: rowList.subarray(0, tileRows.at(-1)),
          columns,
          rowBits,
        });
      } catch (error) {
        const needed = neededSize(error);
        if (needed === undefined) throw error;
        sizes = { ...sizes, ...needed };
      } finally {
        for (const tensor of Object.values(tiles)) tensor.dispose();
      }
    }
  }

  /** The plan as plain data, for {@link serializePlan}. */
  async data(): Promise<PrefillPlanData> {
    this.#checkAlive('plan.data');
    const [words, report] = (await Promise.all([this.words.data(), this.#report.data()])) as [
      Int32Array,
      Float64Array,
    ];
    const { cuSeqlensQ, cuSeqlensK, causal, softmaxScale, softcap, dtype } = this;
    const { numHeads, numKvHeads, headDim, allDense } = this;
    return Object.freeze({
      words,
      report,
      cuSeqlensQ,
      cuSeqlensK,
      causal,
      softmaxScale,
      softcap,
      dtype,
      numHeads,
      numKvHeads,
      headDim,
      allDense,
    });
  }

  /** Gives the plan's memory back. */
  dispose(): void {
    if (this.#ownsWords) this.words.dispose();
    this.#report.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Sizes that the native side asks for: its first answer says how many tiles, rows or columns there are. */
function neededSize(error: unknown): { tiles: number } | { rows: number } | { columns: number } | undefined {
  const match = /(tileRows|rows|columns) is too small; got \d+, expected (\d+)/.exec(
    String((error as Error)?.message),
  );
  if (match === null) return undefined;
  const size = Number(match[2]);
  if (match[1] === 'tileRows') return { tiles: size - 1 };
  return match[1] === 'rows' ? { rows: size } : { columns: size };
}

function ignored(pattern: PatternSummary, keys: number): number {
  if (pattern.kind !== 'vertical-slash') return 0;
  const beyond = (list: Int32Array): number => list.reduce((n, x) => n + (x >= keys ? 1 : 0), 0);
  return beyond(pattern.vertical) + beyond(pattern.slash);
}

/** Query heads of a layer; more than any model has, and few enough to have a pattern each. */
const MAX_HEADS = 2 ** 16;

const OPTION_NAMES = [
  'cuSeqlens',
  'maxSeqlen',
  'cuSeqlensQ',
  'cuSeqlensK',
  'maxSeqlenQ',
  'maxSeqlenK',
  'modality',
  'lastQ',
  'isFinalChunk',
  'seed',
  'shareAcrossGroup',
  'denseBelow',
  'denseAbove',
  'minModalityRows',
  'guarantee',
  'certificateRows',
  'workspace',
  'stream',
] as const;

/** What a plan is laid out from: shapes and patterns, no elements. */
interface Layout {
  readonly config: Int32Array;
  readonly words: number;
  readonly allDense: boolean;
  /** Is anything of it to be found out from queries and keys? */
  readonly estimated: boolean;
}

interface LayoutInput {
  readonly op: string;
  readonly heads: readonly HeadPattern[];
  readonly numKvHeads: number;
  readonly cuSeqlensQ: Int32Array;
  readonly cuSeqlensK: Int32Array;
  readonly causal: boolean;
  readonly slashTile: number;
  readonly given: PrefillPlanOptions;
}

/** Patterns in words, every head with room for what it may find out. */
function layOut(input: LayoutInput): Layout {
  const { op, heads, cuSeqlensQ, cuSeqlensK, causal, slashTile, given } = input;
  const { modality, denseBelow = 8192, isFinalChunk = true, minModalityRows = 128 } = given;
  const [numSeqs, numHeads] = [cuSeqlensQ.length - 1, heads.length];
  const checker = new PatternChecker(op);
  if (modality !== undefined && !Array.isArray(modality))
    throw wrongType(op, 'modality', modality, 'an array');
  if (modality !== undefined && modality.length !== numSeqs) {
    throw argumentError(
      'ERR_VARLEN_MODALITY',
      op,
      'modality',
      `must have a layout per sequence; got ${modality.length}, expected ${numSeqs}`,
    );
  }
  const names = modality === undefined ? [] : modalityNames(op, modality);
  const start = HEADER_WORDS + 3 * (numSeqs + numSeqs * numHeads);
  const shared: Int32Array[] = [];
  const offsets = new Map<ArrayBufferView, number>();
  let end = start;
  const share = (array: Int32Array, key: ArrayBufferView = array): number => {
    const known = offsets.get(key);
    if (known !== undefined) return known;
    const offset = end;
    offsets.set(key, offset);
    shared.push(array);
    end += array.length;
    return offset;
  };

  const sequences: number[] = [];
  const encoded: Encoded[] = []; // per (sequence, head); equal patterns of a sequence are one object
  let allDense = true;
  for (let b = 0; b < numSeqs; b++) {
    const queries = cuSeqlensQ[b + 1] - cuSeqlensQ[b];
    const keys = cuSeqlensK[b + 1] - cuSeqlensK[b];
    if (causal && queries > keys) {
      throw argumentError(
        'ERR_VARLEN_CU_SEQLENS',
        op,
        'cuSeqlensQ',
        `has more queries than keys; got ${queries} in sequence ${b}, expected at most ${keys}`,
      );
    }
    const layout = modality?.[b] && readModalities(op, `modality[${b}]`, modality[b], names, keys);
    let packedIds = 0;
    if (layout !== undefined && keys > 0) {
      const padded = new Uint8Array(Math.ceil(keys / 4) * 4);
      padded.set(layout.ids);
      packedIds = share(new Int32Array(padded.buffer));
    }
    sequences.push(queries, keys, packedIds);
    const shape: SequenceShape = {
      queries,
      keys,
      causal,
      slashTile,
      isFinalChunk,
      minModalityRows,
      names,
      ids: layout?.ids,
      frameTokens: layout?.frameTokens,
      share,
    };
    const dense = keys < denseBelow;
    const byPattern = new Map<HeadPattern, Encoded>();
    for (const [h, pattern] of heads.entries()) {
      let own = byPattern.get(pattern);
      if (own === undefined) {
        const asked: HeadPattern = dense ? { kind: 'dense' } : pattern;
        own = encodePattern(checker, heads.length === 1 ? 'heads' : `heads[${h}]`, asked, shape);
        byPattern.set(pattern, own);
        if (own.words[0] !== KIND.dense && queries > 0) allDense = false;
      }
      encoded.push(own);
    }
  }

  // A group that shares a plan needs room for all its heads' patterns.
  const group = given.shareAcrossGroup === 'union' ? numHeads / input.numKvHeads : 1;
  const capacities = encoded.map(({ capacity }, i) => {
    if (group === 1) return Math.max(capacity, 2);
    const first = Math.floor(i / group) * group;
    return 3 + group + encoded.slice(first, first + group).reduce((sum, one) => sum + one.capacity, 0);
  });
  const entries: number[] = [];
  const nodes: number[][] = [];
  const placed = new Map<Encoded, number>();
  let [configEnd, planEnd] = [end, end];
  for (const [i, one] of encoded.entries()) {
    if (!placed.has(one)) {
      placed.set(one, configEnd);
      nodes.push(one.words);
      configEnd += one.words.length;
    }
    entries.push(placed.get(one)!, planEnd, capacities[i]);
    planEnd += capacities[i];
  }
  if (planEnd >= 2 ** 31) {
    throw argumentError(
      'ERR_VARLEN_OVERFLOW',
      op,
      'heads',
      `need a plan too large for int32 offsets; got ${planEnd} words, expected < 2^31`,
    );
  }
  const config = new Int32Array(configEnd);
  config.set([MAGIC, numSeqs, numHeads, causal ? 1 : 0, names.length, planEnd]);
  config.set(sequences, HEADER_WORDS);
  config.set(entries, HEADER_WORDS + sequences.length);
  let at = start;
  for (const part of [...shared, ...nodes]) {
    config.set(part, at);
    at += part.length;
  }
  const estimated = encoded.some((one) => one.estimated);
  return { config, words: planEnd, allDense, estimated };
}

/** The patterns of all heads: given one by one, or one for all. */
function readHeads(op: string, config: PrefillConfig, numHeads: number): readonly HeadPattern[] {
  const checker: PatternChecker = new PatternChecker(op);
  const { heads } = checker.object('config', config) as unknown as PrefillConfig;
  checker.keys('config', config as unknown as Record<string, unknown>, [
    'heads',
    'causal?',
    'softmaxScale?',
    'softcap?',
    'slashTile?',
  ]);
  const list = Array.isArray(heads)
    ? (heads as readonly HeadPattern[])
    : patternsOf(heads as HeadPattern | LayerConfig, numHeads);
  if (list.length !== numHeads) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      op,
      'heads',
      `must name every query head; got ${list.length} patterns, expected ${numHeads}, or one for all`,
    );
  }
  const checked = new Set<HeadPattern>();
  for (const [h, pattern] of list.entries()) {
    if (checked.has(pattern)) continue;
    checker.pattern(`heads[${h}]`, pattern);
    checked.add(pattern);
  }
  const { slashTile = 64 } = config;
  if (![16, 32, 64, 128].includes(slashTile)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      'slashTile',
      `is out of range; got ${describe(slashTile)}, expected 16, 32, 64 or 128`,
    );
  }
  return list;
}

/** The offsets of q or of k, copied and checked as far as the plan's layout depends on them. */
function readOffsets(op: string, argument: string, offsets: unknown, total: number): Int32Array {
  if (!isArrayOf(Int32Array, offsets)) {
    if (ArrayBuffer.isView(offsets)) {
      throw argumentError(
        'ERR_VARLEN_DTYPE',
        op,
        argument,
        `has the wrong element type; got ${describe(offsets)}, expected Int32Array`,
      );
    }
    throw wrongType(op, argument, offsets, 'an Int32Array');
  }
  const fail = (problem: string): never => {
    throw argumentError('ERR_VARLEN_CU_SEQLENS', op, argument, problem);
  };
  if (offsets.length === 0 || offsets[0] !== 0) fail(`must start at 0; got ${offsets[0]}, expected 0`);
  for (let b = 1; b < offsets.length; b++) {
    if (offsets[b] < offsets[b - 1])
      fail(`must not decrease; got ${offsets[b]}, expected >= ${offsets[b - 1]}`);
  }
  if (offsets[offsets.length - 1] !== total) {
    fail(`must end at the number of rows; got ${offsets[offsets.length - 1]}, expected ${total}`);
  }
  return offsets.slice();
}

function readLengths(
  op: string,
  given: PrefillPlanOptions,
  totalQ: number,
  totalK: number,
): [Int32Array, Int32Array] {
  const { cuSeqlens, cuSeqlensQ = cuSeqlens, cuSeqlensK = cuSeqlensQ } = given;
  if (cuSeqlensQ === undefined) {
    throw argumentError(
      'ERR_VARLEN_MISSING_INPUT',
      op,
      'cuSeqlens',
      'is required; got nothing, expected cuSeqlens, or cuSeqlensQ and cuSeqlensK',
    );
  }
  if (cuSeqlens !== undefined && given.cuSeqlensQ !== undefined) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      op,
      'cuSeqlens',
      'is given beside the separate ones; got both, expected one spelling',
    );
  }
  const names =
    cuSeqlens === undefined ? (['cuSeqlensQ', 'cuSeqlensK'] as const) : (['cuSeqlens', 'cuSeqlens'] as const);
  const q = readOffsets(op, names[0], cuSeqlensQ, totalQ);
  const k = readOffsets(op, names[1], cuSeqlensK, totalK);
  if (q.length !== k.length) {
    throw argumentError(
      'ERR_VARLEN_CU_SEQLENS',
      op,
      'cuSeqlensK',
      `must have as many entries as cuSeqlensQ; got ${k.length}, expected ${q.length}`,
    );
  }
  for (const [argument, offsets, max] of [
    ['maxSeqlenQ', q, given.maxSeqlenQ ?? given.maxSeqlen],
    ['maxSeqlenK', k, given.maxSeqlenK ?? given.maxSeqlen],
  ] as const) {
    if (max === undefined) continue;
    checkInteger(op, argument, max, 0);
    for (let b = 1; b < offsets.length; b++) {
      if (offsets[b] - offsets[b - 1] > max) {
        throw argumentError(
          'ERR_VARLEN_MAX_SEQLEN',
          op,
          argument,
          `is smaller than a sequence; got ${max}, expected >= ${offsets[b] - offsets[b - 1]}`,
        );
      }
    }
  }
  return [q, k];
}

interface Guarantee {
  readonly recallRows: number;
  readonly minRecall: number;
  readonly onMiss: number;
}

function readGuarantee(op: string, given: PrefillPlanOptions): Guarantee {
  const { guarantee, certificateRows = 0 } = given;
  checkInteger(op, 'certificateRows', certificateRows, 0, 4096);
  if (guarantee === undefined) return { recallRows: certificateRows, minRecall: 0, onMiss: ON_MISS.warn };
  const known = readOptions(op, guarantee, ['minRecall', 'rows', 'onMiss']);
  const { minRecall, rows = 128, onMiss = 'densify' } = known;
  if (typeof minRecall !== 'number' || !(minRecall >= 0 && minRecall <= 1)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      'guarantee.minRecall',
      `is out of range; got ${describe(minRecall)}, expected 0..1`,
    );
  }
  checkInteger(op, 'guarantee.rows', rows, 1, 4096);
  if (typeof onMiss !== 'string' || !Object.hasOwn(ON_MISS, onMiss)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'guarantee.onMiss',
      `is unknown; got ${describe(onMiss)}, expected ${Object.keys(ON_MISS).join(', ')}`,
    );
  }
  return { recallRows: rows, minRecall, onMiss: ON_MISS[onMiss] };
}

/**
 * Decides which keys the queries of each head attend to, from the queries and keys themselves: estimates
 * verticals, slashes, strides and blocks, certifies how much attention mass they keep, and adds keys where
 * that is too little. Enqueued like any op; what fails later rejects the reads that depend on the plan.
 *
 * A plan is a frozen value for these lengths, heads and dtype. It may run many times.
 *
 * Plans are made on the CPU. Where q and k are on a GPU and something is to be estimated or certified, they
 * are copied to host memory first, behind the calls that make them and without blocking the caller; patterns
 * whose parameters are all given need no copy.
 *
 * @param q `[totalTokensQ, numHeads, headDim]`, float32, float16 or bfloat16
 * @param k `[totalTokensK, numKvHeads, headDim]`, dtype of q
 * @throws `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_MAX_SEQLEN`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`,
 *   `ERR_VARLEN_HEAD_DIM`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_INDEX`, `ERR_VARLEN_BLOCK_MASK`,
 *   `ERR_VARLEN_MODALITY`, `ERR_VARLEN_INCOMPATIBLE`, `ERR_VARLEN_WORKSPACE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OVERFLOW`; later `ERR_VARLEN_RECALL`
 *
 * @example
 * ```ts
 * const heads = { kind: 'vertical-slash', select: { topk: { vertical: 500, slash: 700 } } } as const;
 * using plan = planPrefill({ heads }, q, k, { cuSeqlens, guarantee: { minRecall: 0.95 } });
 * const { out } = sparsePrefill(plan, q, k, v);
 * console.log((await plan.stats()).heads[0].recall);
 * ```
 */
export function planPrefill(
  config: PrefillConfig,
  q: Tensor,
  k: Tensor,
  options: PrefillPlanOptions,
): PrefillPlan {
  for (const [name, tensor] of [
    ['q', q],
    ['k', k],
  ] as const) {
    if (!(tensor instanceof Tensor)) throw wrongType(OP, name, tensor, 'a Tensor');
    if (tensor.shape.length === 3) continue;
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      OP,
      name,
      `has the wrong rank; got shape [${tensor.shape}], expected [totalTokens, numHeads, headDim]`,
    );
  }
  const given = readOptions<PrefillPlanOptions>(OP, options, OPTION_NAMES);
  const [totalQ, numHeads, headDim] = q.shape;
  const [totalK, numKvHeads] = k.shape;
  if (numKvHeads === 0 || numHeads % numKvHeads !== 0) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      OP,
      'k',
      `must have a number of heads that divides q's; got ${numKvHeads} for ${numHeads}, expected a divisor`,
    );
  }
  const heads = readHeads(OP, config, numHeads);
  const { causal = true, softmaxScale = headDim ** -0.5, softcap = 0, slashTile = 64 } = config;
  const [cuSeqlensQ, cuSeqlensK] = readLengths(OP, given, totalQ, totalK);
  const { lastQ = 64, seed = 0, denseAbove = 0.8, shareAcrossGroup = 'none', stream } = given;
  checkInteger(OP, 'lastQ', lastQ, 1, 64);
  checkInteger(OP, 'seed', seed, 0);
  checkInteger(OP, 'denseBelow', given.denseBelow ?? 0, 0);
  checkInteger(OP, 'minModalityRows', given.minModalityRows ?? 0, 0);
  if (typeof denseAbove !== 'number' || !(denseAbove > 0 && denseAbove <= 1)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      OP,
      'denseAbove',
      `is out of range; got ${describe(denseAbove)}, expected in (0, 1]`,
    );
  }
  if (shareAcrossGroup !== 'none' && shareAcrossGroup !== 'union') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'shareAcrossGroup',
      `is unknown; got ${describe(shareAcrossGroup)}, expected 'none' or 'union'`,
    );
  }
  const guarantee = readGuarantee(OP, given);
  const layout = layOut({ op: OP, heads, numKvHeads, cuSeqlensQ, cuSeqlensK, causal, slashTile, given });

  const onCpu = q.device.kind === 'cpu';
  if (!onCpu && given.workspace !== undefined) {
    // Nothing would keep the caller from writing the next plan there while the GPU still needs this one.
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      OP,
      'workspace',
      `cannot hold a plan for a GPU; got one for ${q.device}, expected none`,
    );
  }
  const host = (tensor: Tensor): Tensor => {
    if (onCpu) return tensor.detach();
    using plain = tensor.detach();
    if (layout.estimated || guarantee.recallRows > 0) return plain.to('cpu');
    // Never read: rows and heads are all that counts, in the smallest head dimension there is.
    return Tensor.empty([tensor.shape[0], tensor.shape[1], 8], { dtype: tensor.dtype, device: 'cpu' });
  };
  const words = planMemory(given.workspace, layout.words, Device.resolve('cpu'));
  const shape = [cuSeqlensQ.length - 1, numHeads, REPORT_WORDS];
  const report = Tensor.empty(shape, { dtype: 'float64', device: 'cpu' });
  try {
    using hostQ = host(q);
    using hostK = host(k);
    resolvePlan(
      {
        q: hostQ,
        k: hostK,
        config: layout.config,
        cuSeqlensQ,
        cuSeqlensK,
        softmaxScale,
        softcap,
        lastQ,
        ...guarantee,
        seed,
        denseAbove,
        shareGroup: shareAcrossGroup === 'union',
        plan: words,
        report,
      },
      words.device,
      onCpu ? stream : undefined,
    );
  } catch (error) {
    words.dispose();
    report.dispose();
    throw error;
  }
  const { allDense } = layout;
  const { dtype } = q;
  return new PrefillPlan(
    { cuSeqlensQ, cuSeqlensK, causal, softmaxScale, softcap, dtype, numHeads, numKvHeads, headDim, allDense },
    q.device,
    words,
    report,
    true,
    guarantee.minRecall,
  );
}

/** Memory for the words: the caller's, or new. */
function planMemory(workspace: Tensor | undefined, words: number, device: Device): Tensor {
  if (workspace === undefined) return Tensor.empty([words], { dtype: 'int32', device });
  if (!(workspace instanceof Tensor)) throw wrongType(OP, 'workspace', workspace, 'a Tensor');
  if (workspace.dtype !== 'int32' || workspace.shape.length !== 1) {
    throw argumentError(
      'ERR_VARLEN_DTYPE',
      OP,
      'workspace',
      `has the wrong form; got ${workspace.dtype} [${workspace.shape}], expected int32 [words]`,
    );
  }
  if (workspace.shape[0] < words) {
    throw argumentError(
      'ERR_VARLEN_WORKSPACE',
      OP,
      'workspace',
      `is too small; got ${workspace.byteLength} bytes, expected at least ${4 * words}`,
      { neededBytes: 4 * words },
    );
  }
  return workspace.slice(0, 0, words);
}

/** Shapes of {@link prefillWorkspaceBytes}. */
export interface WorkspaceShape {
  readonly numHeads: number;
  readonly numKvHeads?: number;
  readonly headDim?: number;
  readonly totalQ: number;
  readonly totalK: number;
  readonly maxSeqlenK?: number;
  readonly numSeqs?: number;
}

/**
 * Bytes that a plan of one long sequence of these sizes may need at most; a pack of shorter ones needs at
 * most as much for its patterns, and 12 bytes per (sequence, head) more.
 *
 * @example
 * ```ts
 * const bytes = prefillWorkspaceBytes({ heads }, { numHeads: 32, totalQ: 1 << 20, totalK: 1 << 20 });
 * ```
 */
export function prefillWorkspaceBytes(config: PrefillConfig, shape: WorkspaceShape): number {
  const op = 'prefillWorkspaceBytes';
  const known = readOptions(op, shape, [
    'numHeads',
    'numKvHeads',
    'headDim',
    'totalQ',
    'totalK',
    'maxSeqlenK',
    'numSeqs',
  ]);
  const { numHeads, numKvHeads = numHeads, totalQ, totalK, numSeqs = 1 } = known;
  for (const [name, value] of Object.entries({ numHeads, numKvHeads, totalQ, totalK, numSeqs })) {
    checkInteger(op, name, value, 0, name.endsWith('Heads') ? MAX_HEADS : 2 ** 31 - 1);
  }
  const heads = readHeads(op, config, numHeads);
  const layout = layOut({
    op,
    heads,
    numKvHeads,
    cuSeqlensQ: Int32Array.of(0, totalQ),
    cuSeqlensK: Int32Array.of(0, totalK),
    causal: config.causal ?? true,
    slashTile: config.slashTile ?? 64,
    given: { denseBelow: 0 },
  });
  return 4 * (layout.words + 3 * (numSeqs - 1) * (1 + numHeads));
}
