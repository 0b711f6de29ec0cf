/** The tables of `varlen simulate` as text and as a page. */
import {
  type Check,
  type ComputeRow,
  methodNames,
  methods,
  type PipelineRow,
} from '../batch/simulation/tables.js';
import { barPlot, escapeHtml, htmlTable, legend, linePlot, page } from './svg.js';

/** Everything that `varlen simulate` has to say; the JSON document. */
export interface SimulationReport {
  /** What is assumed rather than known. */
  readonly assumptions: readonly string[];
  readonly compute: readonly ComputeRow[];
  readonly pipeline: readonly PipelineRow[];
  readonly checks: readonly Check[];
}

/** What the tables of the published settings take for granted. */
export const publishedAssumptions: readonly string[] = [
  'Mean lengths of UltraChat, LLaVA and ShareGPT4o are assumed: 1200, 500 and 1800 tokens; their coefficients of variation are published.',
  'Lengths are log-normal (MM-Mix: a mixture of two), cut at 4096, 2048 and 16384 tokens.',
  'A step takes F + max over ranks of tokens + q * tokens^2, in token units; F is calibrated on published step times.',
  'The bucketed oracle is modelled as 100 random pools; the published definition was not readable.',
];

const name = ({ data, ranks }: { data: string; ranks: number }) => `${data} · ${ranks}`;

/** Throughput over Standard, a row per setting. */
export function computeRows(rows: readonly ComputeRow[]): string[][] {
  const head = ['data', 'ranks', 'F', ...methods.slice(1), 'published', 'padding odb', 'straggler packed'];
  return [
    head,
    ...rows.map(({ data, ranks, fixed, published, ratios, results }) => [
      data,
      String(ranks),
      String(fixed),
      ...methods.slice(1).map((method) => ratios[method].toFixed(2)),
      published === undefined ? '' : published.toFixed(2),
      `${(100 * results.odb.padding).toFixed(1)} %`,
      `${(100 * results.packed.straggler).toFixed(1)} %`,
    ]),
  ];
}

/** Ratios behind one input pipeline, a row per load. */
export function pipelineRows(rows: readonly PipelineRow[]): string[][] {
  const head = [
    'data',
    'ranks',
    'F',
    'prep',
    'rho',
    'odb/gmt',
    'odb/standard',
    'packed/gmt',
    'packed/standard',
  ];
  return [
    head,
    ...rows.flatMap(({ data, ranks, fixed, prepare, points }) =>
      points.map((point) => [
        data,
        String(ranks),
        String(fixed),
        prepare,
        String(point.rho),
        point.odbOverGmt.toFixed(2),
        point.odbOverStandard.toFixed(2),
        point.packedOverGmt.toFixed(2),
        point.packedOverStandard.toFixed(2),
      ]),
    ),
  ];
}

/** Measured against wanted. */
export function checkRows(checks: readonly Check[]): string[][] {
  const rows = checks.map(({ what, measured, wanted, ok }) => [
    what,
    measured.toFixed(3),
    wanted,
    ok ? 'ok' : 'short',
  ]);
  return [['check', 'measured', 'wanted', ''], ...rows];
}

/** A page that needs no network. */
export function simulationPage({ assumptions, compute, pipeline, checks }: SimulationReport): string {
  const body = [
    '<h1>Batching, simulated</h1>',
    '<p class="note">Throughput of ways of batching sequences of different length, without a GPU.</p>',
  ];
  if (compute.length > 0) {
    // One colour per method, in every plot.
    const series = methods.slice(1).map((method, color) => ({ method, color, name: methodNames[method] }));
    const online = series.filter(({ method }) => ['odb', 'strict', 'packed'].includes(method));
    body.push(
      '<h2>Throughput over batch 1 in random order</h2>',
      barPlot({
        labels: compute.map(name),
        series: series.map((s) => ({ ...s, values: compute.map(({ ratios }) => ratios[s.method]) })),
        marks: compute.map(({ published }) => published),
        yLabel: 'samples/s over Standard',
      }),
      legend(series),
      '<p class="note">Data set · ranks. Dashed: the published figure for ODB.</p>',
      htmlTable(computeRows(compute)),
      '<h2>Time lost to the slowest rank</h2>',
      barPlot({
        labels: compute.map(name),
        series: online.map((s) => ({
          ...s,
          values: compute.map(({ results }) => 100 * results[s.method].straggler),
        })),
        yLabel: 'sum of max / sum of mean - 1, %',
      }),
      legend(online),
    );
  }
  const lines = pipeline.filter(({ points }) => points.length > 1);
  if (lines.length > 0) {
    const names = lines.map(({ data, ranks, prepare }) => `${data}, ${ranks} ranks, prep by ${prepare}`);
    body.push(
      '<h2>Behind an input pipeline: ODB rule over the global oracle</h2>',
      linePlot({
        series: lines.map(({ points }, i) => ({
          name: names[i],
          points: points.map(({ rho, odbOverGmt }) => [rho, odbOverGmt] as const),
        })),
        band: [2.24, 2.39],
        xLabel: 'rho: preparation per sample over workers, relative to compute per sample',
        yLabel: 'throughput ratio',
      }),
      legend(names.map((line, i) => ({ name: line, color: i + 1 }))),
      '<p class="note">Shaded: the published range for ShareGPT4o on one node, 2.24 to 2.39.</p>',
    );
  }
  if (pipeline.length > 0) body.push(htmlTable(pipelineRows(pipeline)));
  if (checks.length > 0) body.push('<h2>Checks</h2>', htmlTable(checkRows(checks)));
  body.push(
    '<h2>Assumptions</h2>',
    `<ul>${assumptions.map((line) => `<li>${escapeHtml(line)}</li>`).join('')}</ul>`,
  );
  return page('Batching, simulated', body.join('\n'));
}
