import { checkInteger, describe, readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import { type HeadPattern, PatternChecker } from './pattern.js';

/** Patterns per layer and head, as files hold them: ours, and the published ones of MInference. */

/** The patterns of one layer: by head, with a default for those that are not named. */
export interface LayerConfig {
  readonly numHeads: number;
  readonly defaults: HeadPattern;
  /** By head index. */
  readonly heads: Readonly<Record<string, HeadPattern>>;
}

/** Options of {@link loadPatternConfig}. */
export interface PatternConfigOptions {
  /** Query heads, where the file does not say; default: the highest head that is named. */
  readonly numHeads?: number;
  /** Multiplies both numbers of MInference's patterns. Default 1. */
  readonly minferenceRatio?: number;
  /** As vLLM reads them: 30 verticals become 130. Default false. */
  readonly vllmQuirk?: boolean;
  /** Layers before this one are dense, whatever the file says of them. Default 0. */
  readonly startingLayer?: number;
}

/** A whole model's patterns. */
export interface PatternConfig {
  readonly model: string;
  readonly headDim: number;
  readonly lastQ: number;
  readonly layers: readonly LayerConfig[];
}

const FORMAT = 'varlen.sparse-prefill/1';
const OP = 'loadPatternConfig';
const MAX_LAYERS = 4096;
const MAX_HEADS = 65536;

/** What heads that a MInference file does not name do. */
const MINFERENCE_DEFAULT = ['vertical_and_slash', 1000, 6096, 1] as const;

function fail(path: string, problem: string): never {
  throw argumentError('ERR_VARLEN_CONFIG', OP, path, problem, { path });
}

/** One pattern per head from a pattern for all or from a layer. */
export function patternsOf(heads: HeadPattern | LayerConfig, numHeads: number): HeadPattern[] {
  if (typeof heads !== 'object' || heads === null || !('defaults' in heads)) {
    return new Array(numHeads).fill(heads);
  }
  return Array.from({ length: heads.numHeads }, (_, h) => heads.heads[h] ?? heads.defaults);
}

/** Arrays of numbers are what files have where patterns have typed arrays. */
const TYPED = new Map<string, (list: readonly number[]) => Int32Array | Uint8Array>([
  ['vertical', (list) => Int32Array.from(list)],
  ['slash', (list) => Int32Array.from(list)],
  ['cell', (list) => Int32Array.from(list)],
  ['lines', (list) => Int32Array.from(list)],
  ['indptr', (list) => Int32Array.from(list)],
  ['indices', (list) => Int32Array.from(list)],
  ['rowSizes', (list) => Int32Array.from(list)],
  ['colSizes', (list) => Int32Array.from(list)],
  ['inner', (list) => Uint8Array.from(list)],
]);

function withTypedArrays(path: string, value: unknown, depth = 0): unknown {
  if (depth > 64) fail(path, 'nests too deeply; expected at most 64 levels');
  if (Array.isArray(value)) return value.map((item, i) => withTypedArrays(`${path}[${i}]`, item, depth + 1));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, item]) => {
      const typed = TYPED.get(key);
      if (typed === undefined || !Array.isArray(item)) {
        return [key, withTypedArrays(`${path}.${key}`, item, depth + 1)];
      }
      const bad = item.findIndex((x) => !Number.isInteger(x) || Math.abs(x) >= 2 ** 31);
      if (bad >= 0)
        fail(`${path}.${key}[${bad}]`, `is no int32; got ${describe(item[bad])}, expected an integer`);
      return [key, typed(item as number[])];
    }),
  );
}

/**
 * Reads a configuration from the text of a JSON file: ours (`"format": "varlen.sparse-prefill/1"`), or
 * MInference's, an array over layers of `{ "<head>": [type, a, b, score] }`. Nothing unknown is passed over.
 *
 * @param json the text, or what `JSON.parse` made of it
 * @returns one entry per layer; give one to `planPrefill` as `heads`
 * @throws `ERR_VARLEN_CONFIG` with the path of what is wrong; `ERR_VARLEN_OPTION`, `ERR_VARLEN_RANGE`
 *
 * @example
 * ```ts
 * const { layers } = loadPatternConfig(readFileSync('model.json', 'utf8'), { numHeads: 32 });
 * using plan = planPrefill({ heads: layers[0] }, q, k, { cuSeqlens });
 * ```
 */
export function loadPatternConfig(json: unknown, options?: PatternConfigOptions): PatternConfig {
  const known = readOptions(OP, options, ['numHeads', 'minferenceRatio', 'vllmQuirk', 'startingLayer']);
  const { minferenceRatio = 1, vllmQuirk = false, startingLayer = 0, numHeads } = known;
  checkInteger(OP, 'startingLayer', startingLayer, 0, MAX_LAYERS);
  if (numHeads !== undefined) checkInteger(OP, 'numHeads', numHeads, 1, MAX_HEADS);
  if (typeof minferenceRatio !== 'number' || !(minferenceRatio > 0 && minferenceRatio <= 1e6)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      OP,
      'minferenceRatio',
      `is out of range; got ${describe(minferenceRatio)}, expected above 0`,
    );
  }
  const root = parse(json);
  const config = Array.isArray(root)
    ? readMinference(root, numHeads, minferenceRatio, vllmQuirk)
    : readNative(root, numHeads);
  if (startingLayer === 0) return config;
  const dense: HeadPattern = { kind: 'dense' };
  const layers = config.layers.map((layer, i) =>
    i < startingLayer ? { numHeads: layer.numHeads, defaults: dense, heads: {} } : layer,
  );
  return { ...config, layers };
}

function parse(json: unknown): unknown {
  if (typeof json !== 'string') return json;
  try {
    return JSON.parse(json);
  } catch (error) {
    return fail('json', `is no JSON; got ${(error as Error).message}, expected a document`);
  }
}

/** Head indices of an object's keys. */
function headsOf(
  path: string,
  layer: Readonly<Record<string, unknown>>,
  numHeads: number | undefined,
): number {
  let most = 0;
  for (const key of Object.keys(layer)) {
    if (!/^(0|[1-9]\d{0,5})$/.test(key))
      fail(`${path}.${key}`, `is no head; got '${key}', expected an index`);
    if (Number(key) >= (numHeads ?? MAX_HEADS)) {
      fail(`${path}.${key}`, `is no head of this model; got ${key}, expected below ${numHeads ?? MAX_HEADS}`);
    }
    most = Math.max(most, Number(key) + 1);
  }
  return numHeads ?? most;
}

function readLayers(layers: unknown): readonly unknown[] {
  if (!Array.isArray(layers) || layers.length > MAX_LAYERS) {
    return fail(
      'layers',
      `has the wrong type; got ${describe(layers)}, expected an array of at most ${MAX_LAYERS}`,
    );
  }
  return layers;
}

function minferencePattern(path: string, entry: unknown, ratio: number, vllmQuirk: boolean): HeadPattern {
  if (!Array.isArray(entry) || entry.length < 3 || entry.length > 4) {
    return fail(path, `has the wrong type; got ${describe(entry)}, expected [type, a, b, score]`);
  }
  const [type, a, b] = entry as unknown[];
  if (type === 'block_sparse') {
    return { kind: 'block-sparse', block: [64, 64], score: 'mean-pool', select: { blocks: 100 } };
  }
  for (const [n, value] of [a, b].entries()) {
    if (!Number.isInteger(value) || (value as number) < 0 || (value as number) >= 2 ** 31) {
      fail(`${path}[${n + 1}]`, `is out of range; got ${describe(value)}, expected an integer >= 0`);
    }
  }
  const [x, y] = [a, b].map((value) => Math.round((value as number) * ratio));
  switch (type) {
    case 'stream_llm':
      return { kind: 'a-shape', sink: x, local: Math.max(1, y) };
    case 'vertical_and_slash':
      return {
        kind: 'vertical-slash',
        select: { topk: { vertical: vllmQuirk && a === 30 ? 130 : x, slash: y } },
      };
    default:
      return fail(
        `${path}[0]`,
        `is unknown; got ${describe(type)}, expected stream_llm, vertical_and_slash or block_sparse`,
      );
  }
}

function readMinference(
  root: readonly unknown[],
  numHeads: number | undefined,
  ratio: number,
  vllmQuirk: boolean,
): PatternConfig {
  const named = readLayers(root).map((layer, l) => {
    if (typeof layer !== 'object' || layer === null || Array.isArray(layer)) {
      return fail(`layers[${l}]`, `has the wrong type; got ${describe(layer)}, expected an object by head`);
    }
    return layer as Readonly<Record<string, unknown>>;
  });
  const heads = Math.max(1, ...named.map((layer, l) => headsOf(`layers[${l}]`, layer, numHeads)));
  const layers = named.map((layer, l): LayerConfig => {
    const patterns = Object.entries(layer).map(([head, entry]) => [
      head,
      minferencePattern(`layers[${l}].${head}`, entry, ratio, vllmQuirk),
    ]);
    const defaults = minferencePattern('default', MINFERENCE_DEFAULT, ratio, vllmQuirk);
    return Object.freeze({ numHeads: heads, defaults, heads: Object.freeze(Object.fromEntries(patterns)) });
  });
  return Object.freeze({ model: '', headDim: 0, lastQ: 64, layers: Object.freeze(layers) });
}

function readNative(value: unknown, asked: number | undefined): PatternConfig {
  const checker: PatternChecker = new PatternChecker(OP, true);
  const root = checker.object('config', value);
  checker.keys('config', root, [
    'format',
    'model?',
    'numLayers',
    'numHeads',
    'headDim?',
    'lastQ?',
    'budget?',
    'defaults',
    'layers',
  ]);
  if (root.format !== FORMAT)
    fail('format', `is unknown; got ${describe(root.format)}, expected '${FORMAT}'`);
  checker.integer('numHeads', root.numHeads, 1, MAX_HEADS);
  checker.integer('numLayers', root.numLayers, 0, MAX_LAYERS);
  if (asked !== undefined && asked !== root.numHeads) {
    fail('numHeads', `is another model's; got ${String(root.numHeads)}, expected ${asked}`);
  }
  if (root.lastQ !== undefined) checker.integer('lastQ', root.lastQ, 1, 64);
  if (root.headDim !== undefined) checker.integer('headDim', root.headDim, 1);
  if (root.model !== undefined && typeof root.model !== 'string')
    fail('model', 'has the wrong type; expected a string');
  const numHeads = root.numHeads as number;
  const pattern = (path: string, item: unknown): HeadPattern => {
    const typed = withTypedArrays(path, item);
    checker.pattern(path, typed);
    return typed;
  };
  const defaults = pattern('defaults', root.defaults);
  const listed = readLayers(root.layers);
  if (listed.length !== root.numLayers) {
    fail(
      'layers',
      `must be as many as numLayers says; got ${listed.length}, expected ${String(root.numLayers)}`,
    );
  }
  const layers = listed.map((item, l): LayerConfig => {
    const layer = checker.object(`layers[${l}]`, item);
    headsOf(`layers[${l}]`, layer, numHeads);
    const heads = Object.entries(layer).map(([head, entry]): [string, HeadPattern] => {
      const path = `layers[${l}].${head}`;
      const own = checker.object(path, entry);
      if (!('pattern' in own)) return [head, pattern(path, own)];
      checker.keys(path, own, ['pattern', 'score?', 'recall?', 'cost?']);
      return [head, pattern(`${path}.pattern`, own.pattern)];
    });
    return Object.freeze({ numHeads, defaults, heads: Object.freeze(Object.fromEntries(heads)) });
  });
  const {
    model = '',
    headDim = 0,
    lastQ = 64,
  } = root as { model?: string; headDim?: number; lastQ?: number };
  return Object.freeze({ model, headDim, lastQ, layers: Object.freeze(layers) });
}

/** The text of a configuration in our format; {@link loadPatternConfig} reads it back the same. */
export function writePatternConfig(config: PatternConfig): string {
  const plain = (_key: string, value: unknown): unknown =>
    value instanceof Int32Array || value instanceof Uint8Array ? Array.from(value) : value;
  const [first] = config.layers;
  const document = {
    format: FORMAT,
    model: config.model,
    numLayers: config.layers.length,
    numHeads: first?.numHeads ?? 1,
    ...(config.headDim > 0 ? { headDim: config.headDim } : {}),
    lastQ: config.lastQ,
    defaults: first?.defaults ?? { kind: 'dense' },
    layers: config.layers.map(({ heads }) => heads),
  };
  return `${JSON.stringify(document, plain, 2)}\n`;
}

/**
 * The text of a configuration in MInference's layout: a-shapes, and verticals and slashes by count.
 *
 * @throws `ERR_VARLEN_INCOMPATIBLE` for a pattern that the layout cannot say
 */
export function writeMinferenceConfig(config: PatternConfig): string {
  const entry = (path: string, p: HeadPattern): readonly [string, number, number, number] => {
    if (p.kind === 'a-shape') return ['stream_llm', p.sink, p.local, 1];
    if (p.kind === 'vertical-slash' && 'topk' in p.select) {
      return ['vertical_and_slash', p.select.topk.vertical, p.select.topk.slash, 1];
    }
    if (p.kind === 'block-sparse' && 'blocks' in p.select && p.select.blocks === 100) {
      return ['block_sparse', 100, 64, 1];
    }
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      'writeMinferenceConfig',
      path,
      `cannot be said in this layout; got '${p.kind}', expected an a-shape, verticals and slashes by count, or 100 blocks`,
    );
  };
  const layers = config.layers.map(({ heads }, l) =>
    Object.fromEntries(Object.entries(heads).map(([head, p]) => [head, entry(`layers[${l}].${head}`, p)])),
  );
  return JSON.stringify(layers);
}
