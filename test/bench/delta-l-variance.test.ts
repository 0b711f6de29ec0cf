import { describe, expect, test } from 'vitest';
import { acceptance, runExperiment } from '../../bench/delta-l-variance/experiment.js';
import { experimentPage } from '../../bench/delta-l-variance/page.js';
import { rules, unbiasedRules } from '../../bench/delta-l-variance/rules.js';
import { exactGradient, type PolicyTask, policyTasks } from '../../bench/delta-l-variance/softmax-policy.js';
import { noises, syntheticRow } from '../../bench/delta-l-variance/synthetic.js';
import { centralDifferences } from '../rl/preference/central-differences.js';

const experiment = runExperiment({ batches: 3000, policyBatches: 600, seed: 7 });
const [iid] = experiment.synthetic;

describe('the experiment, in small', () => {
  // 3000 batches know a deviation to 1.3 %, so theory gets 5 % here and 2 % in the full run.
  test.each(experiment.checks.filter(({ id }) => !id.endsWith('theory')))(
    '$id holds',
    ({ measured, target }) => {
      expect(measured).toBeLessThanOrEqual(target);
    },
  );

  test.each(experiment.checks.filter(({ id }) => id.endsWith('theory')))('$id is near', ({ measured }) => {
    expect(measured).toBeLessThan(0.05);
  });

  // rl-objectives section 15, from 20,000 batches: mean / target and CV of every rule, in the order of `rules`.
  const published: readonly (readonly (readonly [mean: number, cv: number])[])[] = [
    [
      [10.49, 0.644],
      [3.15, 1.157],
      [0.998, 1.161],
      [1, 0.725],
      [1, 0.648],
      [1.001, 0.63],
      [1.001, 0.63],
    ],
    [
      [10.55, 2.545],
      [3.2, 4.822],
      [1.023, 4.864],
      [1.01, 3.049],
      [1.006, 2.7],
      [1.004, 2.592],
      [1.005, 2.586],
    ],
    [
      [10.57, 1.056],
      [3.25, 4.136],
      [1.016, 4.318],
      [1.008, 1.991],
      [1.006, 1.391],
      [1.004, 1.082],
      [1, 0.916],
    ],
    [
      [12.51, 0.557],
      [3.16, 1.139],
      [0.997, 1.14],
      [1.11, 0.648],
      [1.155, 0.562],
      [1.189, 0.533],
      [1.189, 0.533],
    ],
  ];
  /** Batches here and there: a mean over n of them is known to deviation / sqrt(n). */
  const sampling = Math.sqrt(1 / experiment.options.batches + 1 / 20_000);

  test.each(noises.map(({ name }, row) => ({ name, row })))(
    'repeats the table of the specification within three standard errors: $name',
    ({ row }) => {
      for (const [i, rule] of rules.entries()) {
        const [mean, cv] = published[row][i];
        const result = experiment.synthetic[row].results[rule];
        const rounding = mean > 2 ? 5e-3 : 5e-4;
        expect(Math.abs(result.mean - mean), `mean of ${rule}`).toBeLessThan(
          3 * sampling * cv * mean + rounding,
        );
        // Of a deviation over a mean: the deviation's own error, and the mean's.
        const error = Math.sqrt(0.5 + cv ** 2) * sampling * cv;
        expect(Math.abs(result.cv - cv), `CV of ${rule}`).toBeLessThan(3 * error + 5e-4);
      }
    },
  );

  test('repeats the expected sizes of the specification as answers become twice and four times as long', () => {
    const sizes = { grpo: [15.03, 7.48, 3.75], tokenMean: [8.67, 4.33, 2.17] } as const;
    for (const [step, { sizes: got }] of experiment.growth.entries()) {
      // Some hundred batches of 32 lengths whose sizes vary by about 0.9 of their mean.
      for (const rule of ['grpo', 'tokenMean'] as const) {
        expect(Math.abs(got[rule] / sizes[rule][step] - 1), rule).toBeLessThan(0.03);
      }
      for (const rule of unbiasedRules) expect(got[rule], rule).toBeCloseTo(1, 6);
    }
  });

  test('GRPO and token-mean shrink as answers grow; the others do not', () => {
    const [once, , fourTimes] = experiment.growth;
    expect(once.sizes.grpo / fourTimes.sizes.grpo).toBeCloseTo(4, 6);
    expect(once.sizes.tokenMean / fourTimes.sizes.tokenMean).toBeCloseTo(4, 6);
    for (const rule of unbiasedRules) expect(fourTimes.sizes[rule]).toBeCloseTo(1, 6);
  });

  test('knows the correlation: inverse-variance beats Delta-L where tokens go together', () => {
    const { results } = experiment.synthetic[2];
    for (const rule of rules) {
      expect(results.inverseVariance.cv).toBeLessThanOrEqual(results[rule].cv);
    }
    expect(results.inverseVariance.cv).toBeLessThan(0.95 * results.deltaL100.cv);
  });

  test('is the same for the same seed', () => {
    expect(syntheticRow(noises[0], 50, 3)).toEqual(syntheticRow(noises[0], 50, 3));
    expect(syntheticRow(noises[0], 50, 3)).not.toEqual(syntheticRow(noises[0], 50, 4));
  });

  test('a rule that is biased, or noisier than another, fails its check', () => {
    const skewed = { ...iid.results, drGrpo: { ...iid.results.drGrpo, mean: 1.2 } };
    const [bias] = acceptance('x', [{ kappa: 0, results: skewed }], skewed);
    expect(bias.ok).toBe(false);
    const noisy = { ...iid.results, deltaL100: { ...iid.results.deltaL100, cv: 2 } };
    expect(acceptance('x', [iid], noisy)[1].ok).toBe(false);
    const off = { ...iid.results, grpo: { ...iid.results.grpo, theory: 0 } };
    expect(acceptance('x', [{ kappa: 0, results: off }], off)[2].ok).toBe(false);
  });

  test('writes a page that needs no network', () => {
    const html = experimentPage(experiment);
    expect(html.match(/<svg/g)).toHaveLength(5);
    expect(html).not.toMatch(/\b(src|href)=/);
    expect(html).not.toContain('NaN');
  });
});

describe('the exact gradient of the softmax policy', () => {
  const tiny = (next?: Int32Array): PolicyTask => ({
    name: 'tiny',
    numContexts: 2,
    numActions: 2,
    logits: Float64Array.of(0.3, -0.2, 0.9, 0.1),
    rewards: Float64Array.of(1, 0.25, 0.5, 0),
    stopping: [0.5, 0.2],
    longest: 3,
    kappa: 0.3,
    ...(next && { next }),
  });

  /** Sum over every answer there is, of its chance times its expected reward. */
  function bruteForce(task: PolicyTask): number {
    const { logits, rewards, stopping, longest, kappa, next } = task;
    const p = (row: number, a: number) =>
      Math.exp(logits[row + a]) / (Math.exp(logits[row]) + Math.exp(logits[row + 1]));
    const walk = (context: number, length: number, hazard: number): number => {
      let value = 0;
      for (const a of [0, 1]) {
        const place = 2 * context + a;
        const z = (2 * Math.log2(length)) / Math.log2(longest) - 1;
        const share = (1 - kappa * z) / (1 + kappa);
        const ending = share * rewards[place] + (1 - share) * 0.5;
        const stop = length === longest ? 1 : hazard;
        let going = 0;
        if (stop < 1) {
          const contexts = next === undefined ? [0, 1] : [next[place]];
          for (const to of contexts) going += walk(to, length + 1, hazard) / contexts.length;
        }
        value += p(2 * context, a) * (stop * ending + (1 - stop) * going);
      }
      return value;
    };
    const starts = stopping.flatMap((hazard) => [walk(0, 1, hazard), walk(1, 1, hazard)]);
    return starts.reduce((a, b) => a + b, 0) / starts.length;
  }

  test.each([
    ['contexts drawn anew', undefined],
    ['contexts moved by actions', Int32Array.of(1, 0, 1, 0)],
  ])('equals the sum over all answers, and its central differences: %s', (_, next) => {
    const task = tiny(next);
    const { value, gradient } = exactGradient(task);
    expect(value).toBeCloseTo(bruteForce(task), 14);
    const wanted = centralDifferences(task.logits, (logits) => bruteForce({ ...task, logits }));
    for (const [i, slope] of wanted.entries()) expect(gradient[i]).toBeCloseTo(slope, 9);
  });

  test('sums to 0 in every context', () => {
    for (const task of policyTasks(2)) {
      const { gradient } = exactGradient(task);
      for (let row = 0; row < gradient.length; row += task.numActions) {
        const sum = gradient.subarray(row, row + task.numActions).reduce((a, b) => a + b, 0);
        expect(Math.abs(sum)).toBeLessThan(1e-15);
      }
    }
  });
});
