/** What a run comes to, from its records. */
import type { EvalRecord, RlRecord, SftRecord, TrainRecord } from './records.js';
import { sum } from './statistics.js';

/** The last line of `varlen train --json`; accuracies are 0..1, `null` where nothing was measured. */
export interface Summary {
  /** Mean over samples at temperature 1 on held-out problems. */
  readonly accuracyBefore: number | null;
  readonly accuracyAfterSft: number | null;
  readonly accuracyAfterRl: number | null;
  readonly greedyBefore: number | null;
  readonly greedyAfterSft: number | null;
  readonly greedyAfterRl: number | null;
  readonly chance: number | null;
  /** Tokens trained on and generated, evaluation included, per second of the run. */
  readonly tokensPerSecond: number;
  /** Of all training batches. */
  readonly paddingRatio: number;
  /** Of the whole run. */
  readonly seconds: number;
  readonly secondsByPhase: Readonly<Record<'sft' | 'rl' | 'eval', number>>;
  readonly sftSteps: number;
  readonly rlSteps: number;
  readonly peakBytes: number;
}

/** Evaluations by what had been trained, the last of each. */
export function evaluations(records: readonly TrainRecord[]): Map<EvalRecord['after'], EvalRecord> {
  return new Map(records.filter((record) => record.phase === 'eval').map((record) => [record.after, record]));
}

const stepMs = ({ machine }: TrainRecord) => sum(Object.values(machine.ms));

/** Sums up. */
export function summarize(records: readonly TrainRecord[]): Summary {
  const measured = evaluations(records);
  const of = <P extends TrainRecord['phase']>(phase: P) =>
    records.filter((record): record is Extract<TrainRecord, { phase: P }> => record.phase === phase);
  const [sft, rl, evals] = [of('sft'), of('rl'), of('eval')];
  const trained: (SftRecord | RlRecord)[] = [...sft, ...rl];
  const tokens = sum(trained.map(({ tokens }) => tokens));
  const padded = sum(trained.map(({ tokens, paddingRatio }) => tokens / (1 - paddingRatio)));
  const generated = sum([...rl, ...evals].map(({ generatedTokens }) => generatedTokens));
  const seconds = (part: readonly TrainRecord[]) => sum(part.map(stepMs)) / 1000;
  const total = seconds(records);
  const sampled = (after: EvalRecord['after']) => measured.get(after)?.sampled.value ?? null;
  const greedy = (after: EvalRecord['after']) => measured.get(after)?.greedy.value ?? null;
  return {
    accuracyBefore: sampled('start'),
    accuracyAfterSft: sampled('sft'),
    accuracyAfterRl: sampled('rl'),
    greedyBefore: greedy('start'),
    greedyAfterSft: greedy('sft'),
    greedyAfterRl: greedy('rl'),
    chance: evals[0]?.chance ?? null,
    tokensPerSecond: total === 0 ? 0 : (tokens + generated) / total,
    paddingRatio: padded === 0 ? 0 : 1 - tokens / padded,
    seconds: total,
    secondsByPhase: { sft: seconds(sft), rl: seconds(rl), eval: seconds(evals) },
    sftSteps: sft.length,
    rlSteps: rl.length,
    peakBytes: Math.max(0, ...records.map(({ machine }) => machine.peakBytes)),
  };
}
