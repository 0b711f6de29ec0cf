/**
 * Bias and variance of ways of weighting answers of different length: tables on stdout, or one JSON document
 * with `--json`; `--html FILE` writes a page with plots. Exit code 1 when a check does not hold.
 *
 *     npx tsx bench/delta-l-variance/run.ts --html delta-l.html
 */
import { EXIT, helpText, printJson, readFlags, say, type Usage, UsageError } from '../../src/cli/command.js';
import { integerFlag } from '../../src/cli/flag-values.js';
import { writeTextFile } from '../../src/cli/pack.js';
import { experimentDefaults, runExperiment } from './experiment.js';
import { describeExperiment, experimentPage } from './page.js';

const usage: Usage = {
  synopsis: 'npx tsx bench/delta-l-variance/run.ts [flags]',
  summary: 'Measures bias and variance of GRPO, token-mean, Dr. GRPO, ΔL and inverse-variance weights.',
  flags: [
    ['--batches N', `of the synthetic experiment; default ${experimentDefaults.batches}`],
    ['--policy-batches N', `of each task of the softmax policy; default ${experimentDefaults.policyBatches}`],
    ['--seed N', `default ${experimentDefaults.seed}`],
    ['--html FILE', 'write a page with plots'],
    ['--json', 'one JSON document on stdout'],
  ],
};

function main(argv: readonly string[]): number {
  const text = { type: 'string' } as const;
  const flag = { type: 'boolean', default: false } as const;
  const { values } = readFlags(usage, argv, {
    batches: text,
    'policy-batches': text,
    seed: text,
    html: text,
    json: flag,
    help: { ...flag, short: 'h' },
  });
  if (values.help) {
    process.stdout.write(helpText(usage));
    return EXIT.ok;
  }
  const { batches, policyBatches, seed } = experimentDefaults;
  const experiment = runExperiment({
    batches: integerFlag(usage, 'batches', values.batches ?? String(batches), 2),
    policyBatches: integerFlag(usage, 'policy-batches', values['policy-batches'] ?? String(policyBatches), 2),
    seed: integerFlag(usage, 'seed', values.seed ?? String(seed), 0),
  });
  if (values.html !== undefined) writeTextFile('deltaLVariance', values.html, experimentPage(experiment));
  if (values.json) printJson(experiment);
  else process.stdout.write(`${describeExperiment(experiment)}\n`);
  if (values.html !== undefined) say(`plots: ${values.html}`);
  return experiment.checks.every(({ ok }) => ok) ? EXIT.ok : EXIT.failed;
}

try {
  process.exitCode = main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n\n${helpText(error.usage)}`);
  process.exitCode = EXIT.usage;
}
