/** The two tables that compare ways of batching with the published runs. */
import { type ComputeResult, type Layout, simulateCompute } from './compute.js';
import { drawLengths, type LengthDistribution, publishedData } from './data.js';
import { batchGranularTime, sampleGranularTime } from './pipeline.js';
import {
  bucketedMaxToken,
  globalMaxToken,
  lengthGrouped,
  onlineReference,
  packedOnline,
  type Schedule,
  type Setting,
  standard,
  strictPadded,
} from './schedules.js';

/** Ways of batching, in the order of the tables. */
export const methods = ['standard', 'hfg', 'gmt', 'bmt', 'odb', 'strict', 'packed'] as const;

/** One of {@link methods}. */
export type Method = (typeof methods)[number];

/** What each {@link Method} is, for legends. */
export const methodNames: Readonly<Record<Method, string>> = {
  standard: 'Standard (batch 1)',
  hfg: 'Length-grouped',
  gmt: 'Global oracle (GMT)',
  bmt: 'Bucketed oracle (BMT)',
  odb: 'ODB rule',
  strict: 'varlen padded',
  packed: 'varlen packed',
};

const layoutOf = (method: Method): Layout => (method === 'packed' ? 'packed' : 'padded');

const schedulers: Readonly<Record<Method, (setting: Setting) => Schedule>> = {
  standard,
  hfg: lengthGrouped,
  gmt: globalMaxToken,
  bmt: bucketedMaxToken,
  odb: (setting) => onlineReference(setting).flat(),
  strict: (setting) => strictPadded(setting).flat(),
  packed: (setting) => packedOnline(setting).flat(),
};

/** One configuration of the compute model. */
export interface ComputeCase {
  readonly data: string;
  readonly setting: Setting;
  /** Fixed cost of a step in token units, `F`. */
  readonly fixed: number;
  /** Published ratio of ODB to Standard, where there is one. */
  readonly published?: number;
}

/** The compute model's answer for one case. */
export interface ComputeRow {
  readonly data: string;
  readonly ranks: number;
  readonly fixed: number;
  readonly published?: number;
  readonly results: Readonly<Record<Method, ComputeResult>>;
  /** Throughput over that of Standard. */
  readonly ratios: Readonly<Record<Method, number>>;
}

/** Runs all methods on one case. */
export function computeRow({ data, setting, fixed, published }: ComputeCase): ComputeRow {
  const entries = methods.map((method) => {
    const result = simulateCompute(setting, schedulers[method](setting), layoutOf(method), fixed);
    return [method, result] as const;
  });
  const results = Object.fromEntries(entries) as Record<Method, ComputeResult>;
  const ratios = Object.fromEntries(
    entries.map(([method, { time }]) => [method, results.standard.time / time]),
  ) as Record<Method, number>;
  const row = { data, ranks: setting.ranks, fixed, results, ratios };
  return published === undefined ? row : { ...row, published };
}

/** Published settings: data, ranks, `F` in token units, ratio of ODB to Standard. */
const publishedCases = [
  ['UltraChat', 8, 250, 1.77],
  ['LLaVA', 8, 250, 1.73],
  ['ShareGPT4o', 8, 250, 2.46],
  ['UltraChat', 16, 2250, 2.86],
  ['ShareGPT4o', 16, 2250, 3.78],
  ['MM-Mix', 16, 2250, 4.43],
] as const;

/** What the tables share: 16,384 samples, 12,288 tokens a group, windows of at most 1024. */
export interface TableOptions {
  readonly samples: number;
  readonly budget: number;
  readonly window: number;
  readonly q: number;
  readonly seed: number;
}

/** Defaults of {@link TableOptions}; `q` is that of a 7B model. */
export const tableDefaults: TableOptions = {
  samples: 16384,
  budget: 12288,
  window: 1024,
  q: 1 / 24576,
  seed: 1,
};

/** A setting on `ranks` ranks with lengths drawn from a distribution. */
export function settingOf(distribution: LengthDistribution, ranks: number, options: TableOptions): Setting {
  const { samples, budget, q, seed } = options;
  const lengths = drawLengths(distribution, samples, seed);
  const window = Math.max(1, Math.min(options.window, Math.floor(samples / ranks)));
  return { lengths, ranks, budget, window, q, seed };
}

/** The compute model on all published settings. */
export function computeTable(options: TableOptions = tableDefaults): ComputeRow[] {
  return publishedCases.map(([data, ranks, fixed, published]) =>
    computeRow({ data, fixed, published, setting: settingOf(publishedData[data], ranks, options) }),
  );
}

/** One configuration of the input-pipeline model. */
export interface PipelineCase {
  readonly data: string;
  readonly setting: Setting;
  readonly fixed: number;
  /** Preparation time: the same for each sample, or proportional to its length. */
  readonly prepare: 'const' | 'length';
  /** Preparation time per sample over workers, relative to ODB's own compute time per sample. */
  readonly rho: readonly number[];
  /** Workers per rank, default 4; batches in flight per worker, default 2; samples in flight, default 1024. */
  readonly workers?: number;
  readonly prefetch?: number;
  readonly inFlight?: number;
}

/** The input-pipeline model's answer for one case: one entry per rho. */
export interface PipelineRow {
  readonly data: string;
  readonly ranks: number;
  readonly fixed: number;
  readonly prepare: 'const' | 'length';
  readonly points: readonly {
    readonly rho: number;
    /** Throughput of the ODB rule over that of the global oracle and of Standard. */
    readonly odbOverGmt: number;
    readonly odbOverStandard: number;
    /** The same for our packed mode. */
    readonly packedOverGmt: number;
    readonly packedOverStandard: number;
  }[];
}

/** Runs Standard, the global oracle, the ODB rule and packed mode behind one input pipeline. */
export function pipelineRow(settings: PipelineCase): PipelineRow {
  const { data, setting, fixed, prepare, rho, workers = 4, prefetch = 2, inFlight = 1024 } = settings;
  const { lengths, ranks } = setting;
  const plain = standard(setting);
  const oracle = globalMaxToken(setting);
  const odb = onlineReference(setting);
  const packed = packedOnline(setting);
  const odbTime = simulateCompute(setting, odb.flat(), 'padded', fixed).time;
  const perSample = odbTime / (lengths.length / ranks);
  const meanLength = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;

  const points = rho.map((load) => {
    const mean = load * workers * perSample;
    const times = Float64Array.from(lengths, (length) =>
      prepare === 'const' ? mean : (mean * length) / meanLength,
    );
    const options = {
      workers,
      prefetch,
      inFlight: Math.max(inFlight, setting.window),
      prepare: times,
      fixed,
    };
    const standardTime = batchGranularTime(setting, plain, 'padded', options);
    const oracleTime = batchGranularTime(setting, oracle, 'padded', options);
    const onlineTime = sampleGranularTime(setting, odb, 'padded', options);
    const packedTime = sampleGranularTime(setting, packed, 'packed', options);
    return {
      rho: load,
      odbOverGmt: oracleTime / onlineTime,
      odbOverStandard: standardTime / onlineTime,
      packedOverGmt: oracleTime / packedTime,
      packedOverStandard: standardTime / packedTime,
    };
  });
  return { data, ranks: setting.ranks, fixed, prepare, points };
}

const pipelineCases = [
  ['ShareGPT4o', 8, 500, 'const', [0, 0.5, 0.8, 0.9, 1]],
  ['ShareGPT4o', 16, 2250, 'const', [0, 0.5, 0.8, 0.9, 1]],
  ['ShareGPT4o', 8, 500, 'length', [0, 0.5, 0.9]],
  ['UltraChat', 8, 500, 'length', [0, 0.3]],
  ['LLaVA', 8, 500, 'const', [0, 0.3, 0.6]],
] as const;

/** The input-pipeline model on the settings of the published claim; windows of 256. */
export function pipelineTable(options: TableOptions = tableDefaults): PipelineRow[] {
  return pipelineCases.map(([data, ranks, fixed, prepare, rho]) => {
    const setting = settingOf(publishedData[data], ranks, { ...options, window: 256 });
    return pipelineRow({ data, fixed, prepare, rho, setting });
  });
}

/** One comparison with the published runs. */
export interface Check {
  readonly what: string;
  readonly measured: number;
  readonly wanted: string;
  readonly ok: boolean;
}

/** Compares both tables with what was published and with what we promise. */
export function acceptance(compute: readonly ComputeRow[], pipeline: readonly PipelineRow[]): Check[] {
  const checks: Check[] = [];
  const add = (what: string, measured: number, wanted: string, ok: boolean) => {
    checks.push({ what, measured, wanted, ok });
  };
  for (const { data, ranks, published, ratios } of compute) {
    const name = `${data}, ${ranks} ranks`;
    if (published !== undefined) {
      const error = ratios.odb / published;
      add(`${name}: ODB rule over published ${published}`, error, '0.9 to 1.1', error >= 0.9 && error <= 1.1);
    }
    if (data === 'UltraChat' || data === 'LLaVA') {
      const share = ratios.odb / ratios.gmt;
      add(`${name}: ODB rule over global oracle`, share, 'at least 0.85', share >= 0.85);
    }
    const strict = ratios.strict / ratios.odb;
    add(`${name}: varlen padded over ODB rule`, strict, 'at least 1', strict >= 1);
    const packed = ratios.packed / ratios.strict;
    add(`${name}: varlen packed over varlen padded`, packed, 'at least 1', packed >= 1);
    const oracle = ratios.packed / ratios.gmt;
    add(`${name}: varlen packed over global oracle`, oracle, 'at least 1', oracle >= 1);
  }
  const shared = pipeline.find(
    ({ data, ranks, prepare }) => data === 'ShareGPT4o' && ranks === 8 && prepare === 'const',
  );
  if (shared !== undefined) {
    const best = Math.max(...shared.points.filter(({ rho }) => rho <= 1).map(({ odbOverGmt }) => odbOverGmt));
    add('ShareGPT4o, 8 ranks: ODB over GMT for some rho <= 1', best, 'at least 2.24', best >= 2.24);
  }
  return checks;
}
