/** The whole experiment: its numbers, and what they must show. */
import { atMost, type TargetResult } from '../batch/measure.js';
import { type Rule, type RuleResult, ruleNames, unbiasedRules } from './rules.js';
import { type PolicyRow, policyRow, policyTasks } from './softmax-policy.js';
import { type GrowthRow, growthRow, noises, type SyntheticRow, syntheticRow } from './synthetic.js';

/** How much to measure. */
export interface ExperimentOptions {
  /** Batches per setting of the synthetic experiment. */
  readonly batches: number;
  /** Batches per task of the softmax policy. */
  readonly policyBatches: number;
  readonly seed: number;
}

/** What `npm run bench -- --targets` and the command run by default. */
export const experimentDefaults: ExperimentOptions = { batches: 20_000, policyBatches: 4000, seed: 1 };

/** Everything the experiment says; the JSON document. */
export interface Experiment {
  readonly options: ExperimentOptions;
  readonly synthetic: readonly SyntheticRow[];
  readonly growth: readonly GrowthRow[];
  readonly policy: readonly PolicyRow[];
  readonly checks: readonly TargetResult[];
}

/** Runs all of it. */
export function runExperiment(options: ExperimentOptions): Experiment {
  const { batches, policyBatches, seed } = options;
  const synthetic = noises.map((noise) => syntheticRow(noise, batches, seed));
  const growth = [1, 2, 4].map((factor) => growthRow(factor, Math.ceil(batches / 10), seed));
  const policy = policyTasks(seed).map((task) => policyRow(task, policyBatches, seed));
  const checks = [...syntheticChecks(synthetic), ...policyChecks(policy)];
  return { options, synthetic, growth, policy, checks };
}

/** What the settings of the synthetic experiment promise. */
export function syntheticChecks(rows: readonly SyntheticRow[]): TargetResult[] {
  return acceptance('loss.deltaL', rows, rows[0].results);
}

/** What the tasks promise in which contexts are drawn anew, the first two: theory knows those. */
export function policyChecks(rows: readonly PolicyRow[]): TargetResult[] {
  return acceptance('loss.deltaL.policy', rows.slice(0, 2), rows[0].results);
}

/** Rules that are not merely another name of Delta-L 1 where noise is uncorrelated. */
const otherUnbiased: readonly Rule[] = unbiasedRules.filter(
  (rule) => rule !== 'deltaL100' && rule !== 'inverseVariance',
);

type Row = { readonly kappa: number; readonly results: Readonly<Record<Rule, RuleResult>> };

/** The three promises over some rows, of which `plain` has uncorrelated noise and no bias. */
export function acceptance(
  id: string,
  rows: readonly Row[],
  plain: Readonly<Record<Rule, RuleResult>>,
): TargetResult[] {
  const errors = rows
    .filter(({ kappa }) => kappa === 0)
    .flatMap(({ results }) =>
      unbiasedRules.map((rule) => Math.abs(results[rule].mean - 1) / results[rule].standardError),
    );
  const best = Math.min(...otherUnbiased.map((rule) => plain[rule].cv));
  const misses = rows.flatMap(({ results }) =>
    Object.values(results).map(({ spread, theory }) => Math.abs(spread / theory! - 1)),
  );
  return [
    atMost(3, {
      id: `${id}.unbiased`,
      what: 'largest |mean / target - 1| of Dr. GRPO, ΔL and inverse-variance where all lengths say the same',
      comparedWith: 'the exact gradient over M',
      measured: Math.max(...errors),
      unit: 'standard errors',
    }),
    atMost(1, {
      id: `${id}.variance`,
      what: `CV of ${ruleNames.deltaL100} at uncorrelated noise`,
      comparedWith: `the lowest of ${otherUnbiased.map((rule) => ruleNames[rule]).join(', ')}`,
      measured: plain.deltaL100.cv / best,
      unit: 'ratio',
    }),
    atMost(0.02, {
      id: `${id}.theory`,
      what: 'largest |deviation / theory - 1| over all settings and rules',
      comparedWith: 'sqrt(mean of sum x^2 v, plus the variance of the mean given the lengths)',
      measured: Math.max(...misses),
      unit: 'ratio',
    }),
  ];
}
