/** `report.html`: what a run did, as one page that needs no network. */
import type { EvalRecord, RlRecord, SftRecord, TrainRecord } from '../trainer/records.js';
import { summarize } from '../trainer/summary.js';
import { barPlot, escapeHtml, htmlTable, type LinePlot, legend, linePlot, page } from './svg.js';
import { accuracyRows, figureRows } from './train-table.js';

/** One run, or one of several that are compared. */
export interface ReportedRun {
  /** For example the aggregation rule. */
  readonly name: string;
  readonly records: readonly TrainRecord[];
}

type Points = (readonly [number, number])[];
type Series = LinePlot['series'][number];

/** More points than that say no more at the width of the page; each becomes the mean of its neighbours. */
const MAX_POINTS = 120;

/** At most {@link MAX_POINTS} points: means over equal stretches. */
function thinned(points: Points): Points {
  if (points.length <= MAX_POINTS) return points;
  const result: Points = [];
  for (let i = 0; i < MAX_POINTS; i++) {
    const from = Math.floor((i * points.length) / MAX_POINTS);
    const part = points.slice(from, Math.floor(((i + 1) * points.length) / MAX_POINTS));
    const mean = (axis: 0 | 1) => part.reduce((total, point) => total + point[axis], 0) / part.length;
    result.push([mean(0), mean(1)]);
  }
  return result;
}

const finite = (points: Points): Points => thinned(points.filter(([, y]) => Number.isFinite(y)));

/** Two plots stand side by side. */
const WIDTH = 470;

/** What a section shows besides its lines. */
interface SectionOptions {
  readonly note?: string;
  /** The axis reaches at least so far. */
  readonly top?: number;
}

/** A titled plot with its legend, or nothing when there is nothing to draw. */
function section(
  title: string,
  series: readonly Series[],
  xLabel: string,
  yLabel: string,
  { note, top = 0 }: SectionOptions = {},
): string {
  const drawn = series.filter(({ points }) => points.length > 0);
  if (drawn.length === 0) return '';
  const plot = linePlot({ series: drawn, xLabel, yLabel, top, width: WIDTH });
  const parts = [`<section><h2>${escapeHtml(title)}</h2>`, plot];
  if (drawn.length > 1) parts.push(legend(drawn.map(({ name }, i) => ({ name, color: i + 1 }))));
  if (note !== undefined) parts.push(`<p class="note">${escapeHtml(note)}</p>`);
  return [...parts, '</section>'].join('\n');
}

/** One line per run. */
function perRun<R extends SftRecord | RlRecord>(
  runs: readonly ReportedRun[],
  phase: R['phase'],
  value: (record: R) => number,
): Series[] {
  return runs.map(({ name, records }) => ({
    name,
    points: finite(
      records
        .filter((record): record is R => record.phase === phase)
        .map((record) => [record.step, value(record)]),
    ),
  }));
}

const STAGES: readonly EvalRecord['after'][] = ['start', 'sft', 'rl'];
const STAGE_NAMES = ['before SFT', 'after SFT', 'after RL'];

function accuracyPlot(runs: readonly ReportedRun[]): string {
  const of = (records: readonly TrainRecord[], after: EvalRecord['after']) =>
    records.findLast((record): record is EvalRecord => record.phase === 'eval' && record.after === after);
  const present = STAGES.filter((after) => runs.some(({ records }) => of(records, after) !== undefined));
  if (present.length === 0) return '';
  const series = runs.flatMap(({ name, records }, i) =>
    (['sampled', 'greedy'] as const).map((kind, k) => ({
      name: runs.length === 1 ? kind : `${name}, ${kind}`,
      values: present.map((after) => 100 * (of(records, after)?.[kind].value ?? 0)),
      intervals: present.map((after) => {
        const estimate = of(records, after)?.[kind];
        return estimate === undefined ? undefined : ([100 * estimate.low, 100 * estimate.high] as const);
      }),
      color: 1 + ((2 * i + k) % 6),
    })),
  );
  return [
    '<section><h2>Accuracy on held-out problems</h2>',
    barPlot({
      width: runs.length === 1 ? WIDTH : 960,
      labels: present.map((after) => STAGE_NAMES[STAGES.indexOf(after)]),
      series,
      marks: present.map((after) => {
        const chance = of(runs[0].records, after)?.chance;
        return chance ? 100 * chance : undefined;
      }),
      yLabel: '%',
    }),
    legend(series),
    '<p class="note">Whiskers: 95 % intervals. Dashed: guessing blindly. Sampled: the mean over samples at temperature 1, which RL optimises.</p></section>',
  ].join('\n');
}

function lengthSeries(runs: readonly ReportedRun[]): Series[] {
  if (runs.length > 1) return perRun<RlRecord>(runs, 'rl', ({ lengths }) => lengths.p50);
  const named = [
    ['longest', 'max'],
    ['90 %', 'p90'],
    ['median', 'p50'],
    ['10 %', 'p10'],
  ] as const;
  return named.map(([name, key]) => ({
    name,
    points: perRun<RlRecord>(runs, 'rl', ({ lengths }) => lengths[key])[0].points,
  }));
}

/** Lines of one run by measure; of several runs, the first measure by run. */
function measures<R extends SftRecord | RlRecord>(
  runs: readonly ReportedRun[],
  phase: R['phase'],
  values: Readonly<Record<string, (record: R) => number>>,
): Series[] {
  const named = Object.entries(values);
  if (runs.length > 1) return perRun<R>(runs, phase, named[0][1]);
  return named.map(([name, value]) => ({ name, points: perRun<R>(runs, phase, value)[0].points }));
}

const UPDATE = 'policy update';
const STEP = 'optimizer step';

function rlSections(runs: readonly ReportedRun[]): string[] {
  const several = runs.length > 1;
  const rl = (values: Readonly<Record<string, (record: RlRecord) => number>>) =>
    measures<RlRecord>(runs, 'rl', values);
  const any = (has: (record: RlRecord) => boolean) =>
    runs.some(({ records }) => records.some((record) => record.phase === 'rl' && has(record)));
  const sections = [
    section(
      'Reward of rollouts',
      rl({ reward: (r) => r.reward, 'right form': (r) => r.formatReward }),
      UPDATE,
      'mean reward',
      { top: 1 },
    ),
    section(
      several ? 'Median length of responses' : 'Length of responses',
      lengthSeries(runs),
      UPDATE,
      'tokens',
      several ? {} : { note: 'How the spread moves shows what the length weights do.' },
    ),
    section('Entropy', rl({ entropy: (r) => r.entropy }), UPDATE, 'nats per token'),
    section('Gradient norm in RL', rl({ norm: (r) => r.gradientNorm }), UPDATE, 'before clipping'),
    section(
      'Groups that teach',
      rl({ 'with different rewards': (r) => r.groups - r.flatGroups, flat: (r) => r.flatGroups }),
      UPDATE,
      'prompt groups',
    ),
    section(
      'Trainer against generator',
      rl({ mean: (r) => r.mismatch.mean, max: (r) => r.mismatch.max }),
      UPDATE,
      '|log-prob difference|',
      { note: 'The same weights score the same tokens: packed in training, one by one in sampling.' },
    ),
    section(
      'Throughput of RL',
      rl({ 'generated and trained tokens': (r) => r.machine.tokensPerSecond }),
      UPDATE,
      'tokens per second',
    ),
    section(
      'Waste in RL',
      rl({
        'empty slots of the generator so far': (r) => 100 * r.machine.bubbleRatio,
        'padding of training batches': (r) => 100 * r.paddingRatio,
      }),
      UPDATE,
      '%',
      { top: 100 },
    ),
  ];
  if (any(({ referenceKl }) => referenceKl !== null)) {
    const divergence = rl({ 'KL (k3)': (r) => r.referenceKl ?? Number.NaN });
    sections.push(section('Distance from the policy after SFT', divergence, UPDATE, 'nats per token'));
  }
  if (any(({ staleness }) => staleness.max > 0)) {
    const ages = rl({ mean: (r) => r.staleness.mean, oldest: (r) => r.staleness.max });
    sections.push(section('Age of trained tokens', ages, UPDATE, 'updates'));
  }
  return sections;
}

function sftSections(run: ReportedRun): string[] {
  const sft = (values: Readonly<Record<string, (record: SftRecord) => number>>) =>
    measures<SftRecord>([run], 'sft', values);
  return [
    section('Loss of SFT', sft({ loss: (r) => r.loss }), STEP, 'nats per token'),
    section('Gradient norm in SFT', sft({ norm: (r) => r.gradientNorm }), STEP, 'before clipping'),
    section('Throughput of SFT', sft({ rate: (r) => r.machine.tokensPerSecond }), STEP, 'tokens per second'),
    section('What a batch holds', sft({ samples: (r) => r.samples }), STEP, 'samples', {
      note: 'Samples are grouped by their true lengths to one token budget: as many as fit.',
    }),
    section(
      'How the token budget is spent',
      sft({
        used: (r) => 100 * r.budgetFill,
        'of it response tokens': (r) => (100 * r.budgetFill * r.supervisedTokens) / Math.max(1, r.tokens),
        'of it padding': (r) => 100 * r.paddingRatio,
      }),
      STEP,
      '%',
      { top: 100 },
    ),
  ];
}

/** The page of one run, or of several beside each other. */
export function trainPage(title: string, runs: readonly ReportedRun[]): string {
  const several = runs.length > 1;
  const body = [`<h1>${escapeHtml(title)}</h1>`];
  for (const { name, records } of runs) {
    if (several) body.push(`<h2>${escapeHtml(name)}</h2>`);
    body.push(htmlTable(accuracyRows(records)), htmlTable(figureRows(records)));
  }
  const accuracy = accuracyPlot(runs);
  const charts = [...(several ? [] : [accuracy]), ...rlSections(runs), ...sftSections(runs[0])];
  if (several) body.push(accuracy);
  body.push('<div class="charts">', ...charts, '</div>');
  const { seconds } = summarize(runs.flatMap(({ records }) => records));
  body.push(`<p class="note">${several ? `${runs.length} runs, ` : ''}${seconds.toFixed(0)} s of work.</p>`);
  return page(title, body.filter(Boolean).join('\n'));
}
