/** `varlen pack`: lays the sequences of a file into bins. */
import { writeFileSync } from 'node:fs';
import { type PackAlgo, packAlgos, packPieces } from '../batch/packing/pack.js';
import { fillOf, type Packing } from '../batch/packing/packing.js';
import { varlenError } from '../errors.js';
import { EXIT, printJson, readFlags, say, table, type Usage, UsageError } from './command.js';
import { integerFlag, wordFlag } from './flag-values.js';
import { readLengthsFile } from './lengths-file.js';
import { histogramPlot, htmlTable, page } from './svg.js';

export const usage: Usage = {
  synopsis: 'varlen pack <file> --capacity N [--algo NAME] [flags]',
  summary:
    'Packs sequences into bins of at most N tokens. The file holds one length, or one JSON value, per line\n(a number, an array of tokens, or an object with a field length, inputIds, input_ids or tokens); - reads\nstandard input. Prints one line per bin: the line numbers of its sequences, from 0. A cut sequence is\nwritten index:start+length.',
  flags: [
    ['--capacity N', 'tokens per bin'],
    ['--algo NAME', `${packAlgos.join(', ')}; default bfd`],
    ['--field NAME', 'field of each JSON object that holds the length or the tokens'],
    ['--truncate', 'cut sequences over the capacity instead of refusing them'],
    ['--seed N', 'order of ff-shuffle; default 0'],
    ['--buffer N', 'documents that bestfit-crop chooses among; default 1000'],
    ['--html FILE', 'write a page with plots'],
    ['--json', 'one JSON document on stdout: figures and bins'],
  ],
};

/** Runs the command; 0 done, 1 the file is at fault, 2 called wrongly. */
export async function main(argv: readonly string[]): Promise<number> {
  const { values, positionals } = readFlags(
    usage,
    argv,
    {
      capacity: { type: 'string' },
      algo: { type: 'string', default: 'bfd' },
      field: { type: 'string' },
      truncate: { type: 'boolean', default: false },
      seed: { type: 'string', default: '0' },
      buffer: { type: 'string', default: '1000' },
      html: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
    true,
  );
  if (positionals.length !== 1) throw new UsageError(`needs one file; got ${positionals.length}`, usage);
  if (values.capacity === undefined) throw new UsageError('--capacity is missing', usage);
  const capacity = integerFlag(usage, 'capacity', values.capacity, 1);
  const algo: PackAlgo = wordFlag(usage, 'algo', values.algo, packAlgos);
  const seed = integerFlag(usage, 'seed', values.seed, 0);
  const buffer = integerFlag(usage, 'buffer', values.buffer, 1);

  const lengths = await readLengthsFile('pack', positionals[0], values.field);
  const started = performance.now();
  const oversize = values.truncate ? 'truncate' : 'error';
  const packing = packPieces(lengths, capacity, algo, { oversize, seed, buffer });
  const report = reportOf(lengths, packing, capacity, algo, performance.now() - started);

  if (values.html !== undefined) writePage(values.html, report, packing, capacity);
  if (values.json) printJson({ ...report, bins: binLines(packing, lengths).map((line) => line.split(' ')) });
  else for (const line of binLines(packing, lengths)) process.stdout.write(`${line}\n`);
  say(table(rowsOf(report)));
  if (values.html !== undefined) say(`plots: ${values.html}`);
  return EXIT.ok;
}

interface PackReport {
  readonly algo: PackAlgo;
  readonly capacity: number;
  readonly sequences: number;
  /** Tokens in the file, and those that the bins hold. */
  readonly tokens: number;
  readonly packedTokens: number;
  readonly bins: number;
  /** No packing of these tokens needs fewer. */
  readonly fewestBins: number;
  readonly fill: number;
  /** Sequences in more than one bin. */
  readonly cutSequences: number;
  readonly milliseconds: number;
}

function reportOf(
  lengths: Int32Array,
  packing: Packing,
  capacity: number,
  algo: PackAlgo,
  milliseconds: number,
): PackReport {
  const sum = (array: Int32Array) => array.reduce((total, length) => total + length, 0);
  const packedTokens = sum(packing.lengths);
  return {
    algo,
    capacity,
    sequences: lengths.length,
    tokens: sum(lengths),
    packedTokens,
    bins: packing.offsets.length - 1,
    fewestBins: Math.ceil(packedTokens / capacity),
    fill: fillOf(packing, capacity),
    cutSequences: packing.items.length - new Set(packing.items).size,
    milliseconds: Number(milliseconds.toFixed(3)),
  };
}

function rowsOf(report: PackReport): string[][] {
  const lost = report.tokens - report.packedTokens;
  return [
    ['algorithm', report.algo],
    ['sequences', String(report.sequences)],
    ['tokens', String(report.tokens)],
    ['discarded tokens', String(lost)],
    ['bins', String(report.bins)],
    ['lower bound', String(report.fewestBins)],
    ['fill', `${(100 * report.fill).toFixed(3)} %`],
    ['cut sequences', String(report.cutSequences)],
    ['time', `${report.milliseconds.toFixed(1)} ms`],
  ];
}

/** A line per bin. */
function binLines(packing: Packing, lengths: Int32Array): string[] {
  const { offsets, items, starts } = packing;
  const lines: string[] = [];
  for (let b = 0; b + 1 < offsets.length; b++) {
    const words: string[] = [];
    for (let p = offsets[b]; p < offsets[b + 1]; p++) {
      const whole = starts[p] === 0 && packing.lengths[p] === lengths[items[p]];
      words.push(whole ? String(items[p]) : `${items[p]}:${starts[p]}+${packing.lengths[p]}`);
    }
    lines.push(words.join(' '));
  }
  return lines;
}

function writePage(path: string, report: PackReport, packing: Packing, capacity: number): void {
  const { offsets, lengths } = packing;
  const fill = new Array<number>(40).fill(0);
  const sizes = new Array<number>(40).fill(0);
  let longest = 1;
  for (const length of lengths) longest = Math.max(longest, length);
  for (const length of lengths) sizes[Math.min(39, Math.floor((40 * length) / longest))]++;
  for (let b = 0; b + 1 < offsets.length; b++) {
    let tokens = 0;
    for (let p = offsets[b]; p < offsets[b + 1]; p++) tokens += lengths[p];
    fill[Math.min(39, Math.floor((40 * tokens) / capacity))]++;
  }
  const body = [
    '<h1>varlen pack</h1>',
    `<p class="note">${report.bins} bins of ${capacity} tokens, ${(100 * report.fill).toFixed(3)} % full</p>`,
    htmlTable([['figure', 'value'], ...rowsOf(report)]),
    '<h2>How full the bins are</h2>',
    histogramPlot({ counts: fill, low: 0, high: 100, xLabel: 'fill of a bin, %', yLabel: 'bins' }),
    '<h2>What was packed</h2>',
    histogramPlot({ counts: sizes, low: 0, high: longest, xLabel: 'tokens of a piece', yLabel: 'pieces' }),
  ];
  writeTextFile('pack', path, page('varlen pack', body.join('\n')));
}

/** Writes a file, or throws `ERR_VARLEN_IO`. */
export function writeTextFile(op: string, path: string, text: string): void {
  try {
    writeFileSync(path, text);
  } catch (cause) {
    const message = `${op}: ${path} cannot be written: ${(cause as Error).message}`;
    throw varlenError('ERR_VARLEN_IO', message, { op, argument: 'file', path }, { cause });
  }
}
