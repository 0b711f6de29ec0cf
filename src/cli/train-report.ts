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

/** A titled plot with its legend, or nothing when there is nothing to draw. */
function section(
  title: string,
  series: readonly Series[],
  xLabel: string,
  yLabel: string,
  note = '',
): string {
  const drawn = series.filter(({ points }) => points.length > 0);
  if (drawn.length === 0) return '';
  const parts = [`<h2>${escapeHtml(title)}</h2>`, linePlot({ series: drawn, xLabel, yLabel })];
  if (drawn.length > 1) parts.push(legend(drawn.map(({ name }, i) => ({ name, color: i + 1 }))));
  if (note !== '') parts.push(`<p class="note">${escapeHtml(note)}</p>`);
  return parts.join('\n');
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
      color: 1 + ((2 * i + k) % 6),
    })),
  );
  return [
    '<h2>Accuracy on held-out problems</h2>',
    barPlot({
      labels: present.map((after) => STAGE_NAMES[STAGES.indexOf(after)]),
      series,
      marks: present.map((after) => {
        const chance = of(runs[0].records, after)?.chance;
        return chance ? 100 * chance : undefined;
      }),
      yLabel: '%',
    }),
    legend(series),
    '<p class="note">Dashed: guessing blindly. Sampled: the mean over samples at temperature 1, which RL optimises.</p>',
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

/** The page of one run, or of several beside each other. */
export function trainPage(title: string, runs: readonly ReportedRun[]): string {
  const several = runs.length > 1;
  const body = [`<h1>${escapeHtml(title)}</h1>`];
  for (const { name, records } of runs) {
    if (several) body.push(`<h2>${escapeHtml(name)}</h2>`);
    body.push(htmlTable(accuracyRows(records)), htmlTable(figureRows(records)));
  }
  const update = 'policy update';
  const step = 'optimizer step';
  body.push(
    accuracyPlot(runs),
    section(
      'Reward of rollouts',
      measures<RlRecord>(runs, 'rl', { reward: (r) => r.reward, 'right form': (r) => r.formatReward }),
      update,
      'mean reward',
    ),
    section(
      'Loss of SFT',
      perRun<SftRecord>(runs.slice(0, 1), 'sft', ({ loss }) => loss),
      step,
      'nats per token',
    ),
    section(
      several ? 'Median length of responses' : 'Length of responses',
      lengthSeries(runs),
      update,
      'tokens',
      several ? '' : 'Short answers finish first; how the spread moves shows what the length weights do.',
    ),
    section(
      'Gradient norm in RL',
      perRun<RlRecord>(runs, 'rl', ({ gradientNorm }) => gradientNorm),
      update,
      'before clipping',
    ),
    section(
      'Gradient norm in SFT',
      perRun<SftRecord>(runs.slice(0, 1), 'sft', ({ gradientNorm }) => gradientNorm),
      step,
      'before clipping',
    ),
    section(
      'Entropy',
      perRun<RlRecord>(runs, 'rl', ({ entropy }) => entropy),
      update,
      'nats per token',
    ),
    section(
      'Trainer against generator',
      measures<RlRecord>(runs, 'rl', {
        mean: ({ mismatch }) => mismatch.mean,
        max: ({ mismatch }) => mismatch.max,
      }),
      update,
      '|log-prob difference|',
      'The same weights score the same tokens twice: packed in training, one by one in sampling.',
    ),
    section(
      'Throughput of SFT',
      perRun<SftRecord>(runs.slice(0, 1), 'sft', ({ machine }) => machine.tokensPerSecond),
      step,
      'tokens per second',
    ),
    section(
      'Throughput of RL, generated and trained tokens',
      perRun<RlRecord>(runs, 'rl', ({ machine }) => machine.tokensPerSecond),
      update,
      'tokens per second',
    ),
    section(
      'Waste in RL',
      measures<RlRecord>(runs, 'rl', {
        'empty slots of the generator so far': ({ machine }) => 100 * machine.bubbleRatio,
        'padding of training batches': ({ paddingRatio }) => 100 * paddingRatio,
      }),
      update,
      '%',
    ),
    section(
      'Padding in SFT',
      perRun<SftRecord>(runs.slice(0, 1), 'sft', ({ paddingRatio }) => 100 * paddingRatio),
      step,
      '%',
    ),
    section(
      'What a batch holds',
      measures<SftRecord>(runs.slice(0, 1), 'sft', {
        'samples of an SFT step': ({ samples }) => samples,
      }),
      step,
      'samples',
      'Samples are grouped by their true lengths to one token budget: as many as fit.',
    ),
    section(
      'How full the token budget is',
      perRun<SftRecord>(runs.slice(0, 1), 'sft', ({ budgetFill }) => 100 * budgetFill),
      step,
      '%',
    ),
    section(
      'Groups that teach',
      measures<RlRecord>(runs, 'rl', {
        'with different rewards': ({ groups, flatGroups }) => groups - flatGroups,
        flat: ({ flatGroups }) => flatGroups,
      }),
      update,
      'prompt groups',
    ),
  );
  const { seconds } = summarize(runs.flatMap(({ records }) => records));
  body.push(
    `<p class="note">${runs.length === 1 ? '' : `${runs.length} runs, `}${seconds.toFixed(0)} s of work.</p>`,
  );
  return page(title, body.filter(Boolean).join('\n'));
}
