/** The final table of `varlen train`. */
import type { EvalRecord, TrainRecord } from '../trainer/records.js';
import type { Estimate } from '../trainer/statistics.js';
import { evaluations, summarize } from '../trainer/summary.js';
import { clock } from './train-progress.js';

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** `42.0 % (38.1 to 45.9)` */
function interval({ value, low, high }: Estimate): string {
  return `${percent(value)} (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`;
}

const STAGES: readonly (readonly [EvalRecord['after'], string])[] = [
  ['start', 'before SFT'],
  ['sft', 'after SFT'],
  ['rl', 'after RL'],
];

/** Held-out accuracy by stage, with 95 % intervals. */
export function accuracyRows(records: readonly TrainRecord[]): string[][] {
  const measured = evaluations(records);
  const rows: string[][] = [['held-out accuracy', 'sampled', 'greedy', 'right form', 'mean tokens']];
  for (const [after, name] of STAGES) {
    const record = measured.get(after);
    if (record === undefined) continue;
    const { sampled, greedy, format, lengths } = record;
    rows.push([name, interval(sampled), interval(greedy), percent(format), lengths.mean.toFixed(0)]);
  }
  return rows;
}

/** Speed, waste, time and memory of the whole run. */
export function figureRows(records: readonly TrainRecord[]): string[][] {
  const summary = summarize(records);
  const { secondsByPhase: by } = summary;
  return [
    ['figure', 'value'],
    ['tokens per second', Math.round(summary.tokensPerSecond).toLocaleString('en-US')],
    ['padding', percent(summary.paddingRatio)],
    ['time', `${clock(summary.seconds)} (SFT ${clock(by.sft)}, RL ${clock(by.rl)}, eval ${clock(by.eval)})`],
    ['steps', `${summary.sftSteps} SFT, ${summary.rlSteps} RL`],
    ['peak memory of tensors', `${(summary.peakBytes / 2 ** 20).toFixed(1)} MiB`],
  ];
}
