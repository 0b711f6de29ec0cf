/** `varlen simulate`: how fast ways of batching are on given lengths, without a GPU. */
import { drawLengths, type LengthDistribution, logNormal, publishedData } from '../batch/simulation/data.js';
import type { Setting } from '../batch/simulation/schedules.js';
import {
  acceptance,
  computeRow,
  computeTable,
  pipelineRow,
  pipelineTable,
  tableDefaults,
} from '../batch/simulation/tables.js';
import { EXIT, printJson, readFlags, say, table, type Usage, UsageError } from './command.js';
import { integerFlag, numberFlag, wordFlag } from './flag-values.js';
import { readLengthsFile } from './lengths-file.js';
import { writeTextFile } from './pack.js';
import {
  checkRows,
  computeRows,
  pipelineRows,
  publishedAssumptions,
  type SimulationReport,
  simulationPage,
} from './simulate-page.js';

const dataNames = Object.keys(publishedData) as (keyof typeof publishedData)[];

export const usage: Usage = {
  synopsis: 'varlen simulate [--dist NAME | --lengths FILE] [flags]',
  summary:
    'Simulates training steps under seven ways of batching. Alone: the published settings, compared with the\npublished figures. With --dist or --lengths: one setting of your own.',
  flags: [
    ['--dist NAME', `lognormal, ${dataNames.join(', ')}`],
    ['--mean X --cv X --cap N', 'of --dist lognormal: mean tokens, coefficient of variation, longest'],
    ['--lengths FILE', 'lengths from a file, as varlen pack reads them'],
    ['--field NAME', 'field of each JSON object of that file'],
    ['--samples N', 'lengths to draw; default 16384'],
    ['--ranks N', 'default 8'],
    ['--budget N', 'tokens per group; default 12288'],
    ['--window N', 'fresh samples per rank and round; default 1024, at most samples / ranks'],
    ['--F X', 'fixed cost of a step in token units; default 250'],
    ['--q X', 'weight of tokens^2; default 1/24576'],
    ['--rho X', 'also simulate the input pipeline at this load; several with commas'],
    ['--prep const|length', 'preparation time per sample; default const'],
    ['--workers N', 'loader workers per rank; default 4'],
    ['--prefetch N', 'batches in flight per worker; default 2'],
    ['--seed N', 'default 1'],
    ['--html FILE', 'write a page with plots'],
    ['--check', 'exit code 1 when a published figure is not met'],
    ['--json', 'one JSON document on stdout'],
  ],
};

/** Runs the command; 0 done, 1 the file is at fault or a check fails, 2 called wrongly. */
export async function main(argv: readonly string[]): Promise<number> {
  const text = { type: 'string' } as const;
  const { values } = readFlags(usage, argv, {
    dist: text,
    mean: text,
    cv: text,
    cap: text,
    lengths: text,
    field: text,
    samples: text,
    ranks: text,
    budget: text,
    window: text,
    F: text,
    q: text,
    rho: text,
    prep: text,
    workers: text,
    prefetch: text,
    seed: text,
    html: text,
    check: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  });
  const own = values.dist !== undefined || values.lengths !== undefined;
  const report = own ? await ownReport(values) : publishedReport(values);

  if (values.html !== undefined) writeTextFile('simulate', values.html, simulationPage(report));
  if (values.json) printJson(report);
  else {
    const parts = [table(computeRows(report.compute))];
    if (report.pipeline.length > 0) parts.push(table(pipelineRows(report.pipeline)));
    if (report.checks.length > 0) parts.push(table(checkRows(report.checks)));
    process.stdout.write(`${parts.join('\n\n')}\n`);
  }
  for (const assumption of report.assumptions) say(`assumed: ${assumption}`);
  if (values.html !== undefined) say(`plots: ${values.html}`);
  return values.check && report.checks.some(({ ok }) => !ok) ? EXIT.failed : EXIT.ok;
}

type Values = Readonly<Record<string, string | boolean | undefined>>;

/** The value of a flag, or its default. */
function flag(values: Values, name: string, byDefault: string): string {
  const value = values[name];
  return typeof value === 'string' ? value : byDefault;
}

function publishedReport(values: Values): SimulationReport {
  const ownOnly = ['mean', 'cv', 'cap', 'field', 'ranks', 'F', 'rho', 'prep', 'workers', 'prefetch'];
  const stray = ownOnly.find((name) => values[name] !== undefined);
  if (stray !== undefined) throw new UsageError(`--${stray} needs --dist or --lengths`, usage);
  const options = {
    samples: integerFlag(usage, 'samples', flag(values, 'samples', String(tableDefaults.samples)), 256),
    budget: integerFlag(usage, 'budget', flag(values, 'budget', String(tableDefaults.budget)), 1),
    window: integerFlag(usage, 'window', flag(values, 'window', String(tableDefaults.window)), 1),
    q: numberFlag(usage, 'q', flag(values, 'q', String(tableDefaults.q)), 0),
    seed: integerFlag(usage, 'seed', flag(values, 'seed', String(tableDefaults.seed)), 0),
  };
  const compute = computeTable(options);
  const pipeline = pipelineTable(options);
  return { assumptions: publishedAssumptions, compute, pipeline, checks: acceptance(compute, pipeline) };
}

async function ownReport(values: Values): Promise<SimulationReport> {
  const seed = integerFlag(usage, 'seed', flag(values, 'seed', '1'), 0);
  const ranks = integerFlag(usage, 'ranks', flag(values, 'ranks', '8'), 1);
  const fixed = numberFlag(usage, 'F', flag(values, 'F', '250'), 0);
  const prepare = wordFlag(usage, 'prep', flag(values, 'prep', 'const'), ['const', 'length']);
  const workers = integerFlag(usage, 'workers', flag(values, 'workers', '4'), 1);
  const prefetch = integerFlag(usage, 'prefetch', flag(values, 'prefetch', '2'), 1);
  const rho = values.rho === undefined ? [] : flag(values, 'rho', '').split(',');
  const loads = rho.map((load) => numberFlag(usage, 'rho', load, 0));

  const { data, lengths, assumptions } = await ownLengths(values, seed);
  if (lengths.length < ranks) {
    throw new UsageError(
      `--ranks must not exceed the ${lengths.length} non-empty samples; got '${ranks}'`,
      usage,
    );
  }
  const asked = integerFlag(usage, 'window', flag(values, 'window', '1024'), 1);
  const setting: Setting = {
    lengths,
    ranks,
    budget: integerFlag(usage, 'budget', flag(values, 'budget', '12288'), 1),
    window: Math.min(asked, Math.floor(lengths.length / ranks)),
    q: numberFlag(usage, 'q', flag(values, 'q', String(1 / 24576)), 0),
    seed,
  };
  const pipeline =
    loads.length === 0 ? [] : [pipelineRow({ data, setting, fixed, prepare, rho: loads, workers, prefetch })];
  return { assumptions, compute: [computeRow({ data, setting, fixed })], pipeline, checks: [] };
}

async function ownLengths(
  values: Values,
  seed: number,
): Promise<{ data: string; lengths: Int32Array; assumptions: string[] }> {
  const { dist, lengths: path, field } = values;
  if (typeof path === 'string') {
    const stray = ['dist', 'mean', 'cv', 'cap', 'samples'].find((name) => values[name] !== undefined);
    if (stray !== undefined) throw new UsageError(`--${stray} cannot be combined with --lengths`, usage);
    const read = await readLengthsFile('simulate', path, typeof field === 'string' ? field : undefined);
    const lengths = read.filter((length) => length > 0);
    const skipped = read.length - lengths.length;
    return {
      data: path,
      lengths,
      assumptions: skipped === 0 ? [] : [`${skipped} empty samples are skipped.`],
    };
  }
  if (field !== undefined) throw new UsageError('--field needs --lengths', usage);
  const name = wordFlag(usage, 'dist', String(dist), ['lognormal', ...dataNames]);
  const samples = integerFlag(usage, 'samples', flag(values, 'samples', '16384'), 1);
  return {
    data: name,
    lengths: drawLengths(distributionOf(values, name), samples, seed),
    assumptions: name === 'lognormal' ? [] : [...publishedAssumptions],
  };
}

function distributionOf(values: Values, name: 'lognormal' | keyof typeof publishedData): LengthDistribution {
  if (name !== 'lognormal') {
    const stray = ['mean', 'cv', 'cap'].find((flagName) => values[flagName] !== undefined);
    if (stray !== undefined) throw new UsageError(`--${stray} needs --dist lognormal`, usage);
    return publishedData[name];
  }
  return logNormal(
    numberFlag(usage, 'mean', flag(values, 'mean', '1000'), 1),
    numberFlag(usage, 'cv', flag(values, 'cv', '0.5'), 0),
    integerFlag(usage, 'cap', flag(values, 'cap', '16384'), 1),
  );
}
