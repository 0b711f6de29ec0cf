/** `varlen plan`: which keys the heads of a layer need, found on captured or synthetic heads. */
import { mkdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { varlenError } from '../errors.js';
import {
  type Capture,
  type HeadPattern,
  loadPatternConfig,
  planPrefill,
  searchPatterns,
  synthHead,
  writePatternConfig,
} from '../prefill/index.js';
import { readSafetensors, Tensor } from '../tensor/index.js';
import { EXIT, printJson, readFlags, say, table, type Usage, UsageError } from './command.js';
import { integerFlag, numberFlag, wordFlag } from './flag-values.js';
import { writeTextFile } from './pack.js';
import { maskSvg } from './plan-svg.js';

export const usage: Usage = {
  synopsis: 'varlen plan [--synthetic KIND | --captured FILE] [flags]',
  summary:
    'Searches the sparse pattern of each head, or applies those of a configuration, and prints what they keep\nand cost.',
  flags: [
    ['--synthetic KIND', 'grid, slash or mixed: video heads whose pattern is known; the default is mixed'],
    ['--frames N', 'of the synthetic video; default 42'],
    ['--captured FILE', 'q, k and v of one layer, [tokens, heads, headDim], in a safetensors file'],
    ['--config FILE', "apply a configuration, ours or MInference's, instead of searching"],
    ['--layer N', 'of the configuration; default 0'],
    ['--budget N', 'keys per query that a head may cost; default 512'],
    ['--recall X', 'heads below this at four times the budget are dense; default 0.8'],
    ['--out FILE', 'write the layer as a configuration'],
    ['--svg FOLDER', 'draw the mask of each head'],
    ['--seed N', 'of the synthetic head; default 0'],
    ['--json', 'one JSON document on stdout'],
  ],
};

interface HeadRow {
  readonly head: number;
  readonly pattern: HeadPattern;
  readonly found: object;
  readonly recall: number;
  readonly tileDensity: number;
  readonly computedDensity: number;
}

/** Masks of more tokens would fill the memory for the sake of a picture. */
const DRAWN_TOKENS = 8192;

/** Runs the command; 0 done, 1 a file is at fault, 2 called wrongly. */
export async function main(argv: readonly string[], signal?: AbortSignal): Promise<number> {
  const text = { type: 'string' } as const;
  const { values } = readFlags(usage, argv, {
    synthetic: text,
    frames: text,
    captured: text,
    config: text,
    layer: text,
    budget: text,
    recall: text,
    out: text,
    svg: text,
    seed: text,
    json: { type: 'boolean', default: false },
  });
  if (values.captured !== undefined && (values.synthetic ?? values.frames ?? values.seed) !== undefined) {
    throw new UsageError('--synthetic, --frames and --seed cannot be combined with --captured', usage);
  }
  const keys = integerFlag(usage, 'budget', values.budget ?? '512', 8);
  const minRecall = numberFlag(usage, 'recall', values.recall ?? '0.8', 0);
  const layer = integerFlag(usage, 'layer', values.layer ?? '0', 0);
  const capture =
    values.captured === undefined
      ? synthetic(
          wordFlag(usage, 'synthetic', values.synthetic ?? 'mixed', ['grid', 'slash', 'mixed']),
          integerFlag(usage, 'frames', values.frames ?? '42', 1),
          integerFlag(usage, 'seed', values.seed ?? '0', 0),
        )
      : await captured(values.captured);
  const patterns = await patternsFor(capture, values.config, layer, keys, minRecall, signal);
  const rows = await describeHeads(capture, patterns, values.svg);
  if (values.out !== undefined) {
    const heads = Object.fromEntries(patterns.map((pattern, head) => [String(head), pattern]));
    const found = { numHeads: patterns.length, defaults: { kind: 'dense' } as const, heads };
    const config = {
      model: basename(values.captured ?? 'synthetic'),
      headDim: capture.q.shape[2],
      lastQ: 64,
      layers: [found],
    };
    writeTextFile('plan', values.out, writePatternConfig(config));
  }
  if (values.json) printJson(rows);
  else {
    const head = ['head', 'pattern', 'recall', 'computed', 'issued'];
    const body = rows.map((row) => [
      String(row.head),
      JSON.stringify(row.pattern),
      row.recall.toFixed(3),
      row.computedDensity.toFixed(3),
      row.tileDensity.toFixed(3),
    ]);
    process.stdout.write(`${table([head, ...body])}\n`);
  }
  if (values.svg !== undefined) say(`masks: ${values.svg}`);
  return EXIT.ok;
}

function synthetic(kind: 'grid' | 'slash' | 'mixed', frames: number, seed: number): Capture {
  const head = synthHead({ frames, frameTokens: 49, kind, seed });
  const shape = [head.tokens, 1, head.headDim];
  const make = (data: Float32Array): Tensor => Tensor.from(data, { shape });
  return { q: make(head.q), k: make(head.k), v: make(head.v), modality: head.modality };
}

async function captured(path: string): Promise<Capture> {
  const { tensors } = await readSafetensors(path);
  const find = (name: string): Tensor => {
    const entry = tensors[name];
    if (entry?.shape.length !== 3) {
      const got = entry === undefined ? 'none' : `[${entry.shape}]`;
      throw new UsageError(`--captured must hold '${name}' as [tokens, heads, headDim]; got ${got}`, usage);
    }
    return Tensor.from(entry.data, { shape: entry.shape, dtype: entry.dtype });
  };
  return { q: find('q'), k: find('k'), v: find('v') };
}

async function patternsFor(
  capture: Capture,
  config: string | undefined,
  layer: number,
  keys: number,
  minRecall: number,
  signal: AbortSignal | undefined,
): Promise<HeadPattern[]> {
  const numHeads = capture.q.shape[1];
  if (config !== undefined) {
    const { layers } = loadPatternConfig(readText(config), { numHeads });
    if (layer >= layers.length)
      throw new UsageError(`--layer must be below ${layers.length}; got '${layer}'`, usage);
    const { heads, defaults } = layers[layer];
    return Array.from({ length: numHeads }, (_, head) => heads[head] ?? defaults);
  }
  const budget = { kind: 'a-shape', sink: keys >> 2, local: keys - (keys >> 2) } as const;
  const { heads } = await searchPatterns(capture, {
    budget,
    minRecall,
    ...(signal === undefined ? {} : { signal }),
  });
  return heads.map(({ pattern }) => pattern);
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    const why = (cause as Error).message;
    throw varlenError('ERR_VARLEN_IO', `plan: ${path} cannot be read; got ${why}`, { path }, { cause });
  }
}

async function describeHeads(
  capture: Capture,
  patterns: readonly HeadPattern[],
  svg: string | undefined,
): Promise<HeadRow[]> {
  const { q, k, modality } = capture;
  const [tokens] = q.shape;
  using plan = planPrefill({ heads: patterns }, q, k, {
    cuSeqlens: Int32Array.of(0, tokens),
    denseBelow: 0,
    denseAbove: 1,
    certificateRows: 128,
    ...(modality === undefined ? {} : { modality: [modality] }),
  });
  const stats = await plan.stats();
  for (const note of stats.notes) say(note);
  if (svg !== undefined) {
    if (tokens > DRAWN_TOKENS)
      throw new UsageError(`--svg draws at most ${DRAWN_TOKENS} tokens; got ${tokens}`, usage);
    mkdirSync(svg, { recursive: true });
    for (const { head, pattern } of stats.heads) {
      const mask = await plan.mask(0, head, 'computed');
      writeTextFile(
        'plan',
        join(svg, `head-${head}.svg`),
        maskSvg(mask, tokens, `head ${head}: ${pattern.kind}`),
      );
    }
  }
  return stats.heads.map(({ head, pattern, recall, tileDensity, computedDensity }) => ({
    head,
    pattern: patterns[head],
    found: pattern,
    recall: recall?.mean ?? Number.NaN,
    tileDensity,
    computedDensity,
  }));
}
