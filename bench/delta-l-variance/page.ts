/** The experiment as text and as a page. */
import { table } from '../../src/cli/command.js';
import { barPlot, escapeHtml, htmlTable, legend, linePlot, page } from '../../src/cli/svg.js';
import type { Experiment } from './experiment.js';
import { type Rule, type RuleResult, ruleNames, rules, unbiasedRules } from './rules.js';

/** What is assumed, and what the numbers do not show. */
const NOTES: readonly string[] = [
  'mean: mean of the estimates over the target, the exact gradient divided by M; 1 is unbiased. CV: standard deviation over the size of the mean.',
  'Estimates of all rules come from the same batches of 32 answers, so their errors go together.',
  'Unbiased holds only while the expected gradient of an answer does not depend on its length: with κ .3 long answers say less, Dr. GRPO stays at 1 and ΔL does not.',
  'ΔL 1 has the least variance only while the variance grows in proportion to the length: with equicorrelated tokens the law that knows it does better.',
  'ΔL 1 is GRPO times (harmonic mean length / M): inside one batch both have the same direction. What differs is the size from batch to batch and as answers grow.',
];

function cell({ mean, cv }: RuleResult): string {
  return `${mean.toFixed(3)} / ${cv.toFixed(3)}`;
}

function resultRows(
  head: string,
  rows: readonly { readonly name: string; readonly results: Readonly<Record<Rule, RuleResult>> }[],
): string[][] {
  return [
    [head, ...rules.map((rule) => ruleNames[rule])],
    ...rows.map(({ name, results }) => [name, ...rules.map((rule) => cell(results[rule]))]),
  ];
}

/** The tables: the synthetic settings, growing answers, the softmax policy, the checks. */
function tables({ synthetic, growth, policy, checks }: Experiment): string[][][] {
  return [
    resultRows(
      'noise (mean / CV)',
      synthetic.map(({ noise, results }) => ({ name: noise, results })),
    ),
    [
      ['lengths times', ...rules.map((rule) => ruleNames[rule])],
      ...growth.map(({ factor, sizes }) => [String(factor), ...rules.map((rule) => sizes[rule].toFixed(3))]),
    ],
    resultRows(
      'softmax policy (mean / CV)',
      policy.map(({ task, results }) => ({ name: task, results })),
    ),
    [
      ['check', 'measured', 'at most', 'unit', ''],
      ...checks.map(({ id, measured, target, unit, ok }) => [
        id,
        measured.toPrecision(3),
        String(target),
        unit,
        ok ? 'ok' : 'short',
      ]),
    ],
  ];
}

/** The tables for a terminal. */
export function describeExperiment(experiment: Experiment): string {
  return tables(experiment).map(table).join('\n\n');
}

/** A page that needs no network. */
export function experimentPage(experiment: Experiment): string {
  const { options, synthetic, growth, policy } = experiment;
  const [syntheticTable, growthTable, policyTable, checkTable] = tables(experiment).map(htmlTable);
  // One colour per rule, in every plot; line plots give their series the colours from 1.
  const series = rules.map((rule, i) => ({ rule, color: i + 1, name: ruleNames[rule] }));
  const unbiased = series.filter(({ rule }) => unbiasedRules.includes(rule));
  const bars = (
    rows: readonly { readonly name: string; readonly results: Readonly<Record<Rule, RuleResult>> }[],
    shown: typeof series,
    value: (result: RuleResult) => number,
    yLabel: string,
    mark?: number,
  ): string =>
    barPlot({
      labels: rows.map(({ name }) => name),
      series: shown.map((s) => ({ ...s, values: rows.map(({ results }) => value(results[s.rule])) })),
      ...(mark !== undefined && { marks: rows.map(() => mark) }),
      yLabel,
    });
  const settings = synthetic.map(({ noise: name, results }) => ({ name, results }));
  const tasks = policy.map(({ task: name, results }) => ({ name, results }));
  const body = [
    '<h1>Weights by length: bias and variance</h1>',
    `<p class="note">${options.batches} synthetic batches per setting and ${options.policyBatches} batches per policy task, 32 answers each, seed ${options.seed}.</p>`,
    '<h2>Noise of the estimate: synthetic gradients</h2>',
    bars(settings, series, ({ cv }) => cv, 'standard deviation / mean'),
    legend(series),
    '<h2>Size of the estimate: synthetic gradients</h2>',
    bars(settings, unbiased, ({ mean }) => mean, 'mean / target', 1),
    legend(unbiased),
    '<p class="note">Dashed: unbiased. GRPO and token-mean aim at another size; see the table.</p>',
    syntheticTable,
    '<h2>When all answers grow</h2>',
    linePlot({
      series: series.slice(0, 4).map(({ rule, name }) => ({
        name,
        points: growth.map(({ factor, sizes }) => [factor, sizes[rule]] as const),
      })),
      xLabel: 'factor on all lengths (64 to 512 tokens)',
      yLabel: 'size / target',
    }),
    legend(series.slice(0, 4)),
    '<p class="note">The lines of Dr. GRPO and of all ΔL lie on each other at 1.</p>',
    growthTable,
    '<h2>A softmax policy with its real gradients</h2>',
    '<p class="note">64 contexts, 16 actions, answers of 1 to 256 tokens that stop at random; the exact gradient is enumerated. The CV is that of the whole vector of 1024 slopes.</p>',
    bars(tasks, series, ({ cv }) => cv, 'standard deviation / mean'),
    legend(series),
    bars(tasks, unbiased, ({ mean }) => mean, 'mean / target', 1),
    legend(unbiased),
    policyTable,
    '<h2>Checks</h2>',
    checkTable,
    '<h2>Notes</h2>',
    `<ul>${NOTES.map((line) => `<li>${escapeHtml(line)}</li>`).join('')}</ul>`,
  ];
  return page('Weights by length: bias and variance', body.join('\n'));
}
