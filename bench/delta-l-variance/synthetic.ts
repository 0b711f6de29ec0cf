/**
 * The synthetic experiment: answers of random length whose gradients are numbers, `mu (1 - kappa z(L))` plus
 * noise of variance `v(L) / 64`.
 */
import { planAggregation, type VarianceLaw } from '../../src/rl/index.js';
import { varianceOf } from '../../src/rl/plan/variance-law.js';
import { SeededRandom } from '../../src/seeded-random.js';
import { aggregations, Moments, perRule, type Rule, type RuleResult, rules } from './rules.js';

/** Answers per batch. */
export const GROUP = 32;
/** Each length is as likely as any other. */
const LENGTHS = [64, 128, 256, 512, 1024, 2048];
/** Longest answer: `M`. */
const NORM = 2048;
const MU = 0.5;
const NOISE_DIVISOR = 64;

/** One setting: how tokens are correlated, and how much less long answers say. */
export interface Noise {
  readonly name: string;
  readonly law: Exclude<VarianceLaw, { kind: 'custom' }>;
  /** The expected gradient of the shortest answer is `1 + kappa` times the mean one, of the longest `1 - kappa`. */
  readonly kappa: number;
}

/** The four settings of the table. */
export const noises: readonly Noise[] = [
  { name: 'iid, κ 0', law: { kind: 'iid' }, kappa: 0 },
  { name: 'AR(1) .9, κ 0', law: { kind: 'ar1', rho: 0.9 }, kappa: 0 },
  { name: 'equicorrelated .01, κ 0', law: { kind: 'compound-symmetry', rho: 0.01 }, kappa: 0 },
  { name: 'iid, κ .3', law: { kind: 'iid' }, kappa: 0.3 },
];

/** Results of one setting. */
export interface SyntheticRow {
  readonly noise: string;
  readonly kappa: number;
  readonly results: Readonly<Record<Rule, RuleResult>>;
}

/** `log2` of a length, moved and scaled so that the shortest is at -1 and the longest at 1. */
export function centredLog(length: number, shortest: number, longest: number): number {
  return (2 * Math.log2(length / shortest)) / Math.log2(longest / shortest) - 1;
}

/** `batches` batches of one setting, the same lengths and gradients for all rules. */
export function syntheticRow({ name, law, kappa }: Noise, batches: number, seed: number): SyntheticRow {
  const random = new SeededRandom(seed, SYNTHETIC_STREAM);
  const modes = aggregations(NORM, law);
  const tally = perRule(() => ({ estimate: new Moments(), expected: new Moments(), noise: new Moments() }));
  const lengths = new Int32Array(GROUP);
  const expected = new Float64Array(GROUP);
  const variance = new Float64Array(GROUP);
  const gradients = new Float64Array(GROUP);
  for (let batch = 0; batch < batches; batch++) {
    for (let i = 0; i < GROUP; i++) {
      lengths[i] = LENGTHS[random.below(LENGTHS.length)];
      expected[i] = MU * (1 - kappa * centredLog(lengths[i], LENGTHS[0], NORM));
      variance[i] = varianceOf(law, lengths[i]) / NOISE_DIVISOR;
      gradients[i] = expected[i] + Math.sqrt(variance[i]) * random.normal();
    }
    for (const rule of rules) {
      const { seqScale } = planAggregation({ lengths }, { aggregation: modes[rule] });
      let [estimate, mean, noise] = [0, 0, 0];
      for (let i = 0; i < GROUP; i++) {
        estimate += seqScale[i] * gradients[i];
        mean += seqScale[i] * expected[i];
        noise += seqScale[i] ** 2 * variance[i];
      }
      tally[rule].estimate.add(estimate);
      tally[rule].expected.add(mean);
      tally[rule].noise.add(noise);
    }
  }
  const target = MU / NORM;
  const results = perRule((rule): RuleResult => {
    const { estimate, expected: given, noise } = tally[rule];
    const deviation = Math.sqrt(estimate.variance);
    return {
      mean: estimate.mean / target,
      standardError: deviation / Math.sqrt(batches) / target,
      cv: deviation / Math.abs(estimate.mean),
      spread: deviation / target,
      // Variance given the lengths, averaged, plus that of the mean given the lengths (0 without bias).
      theory: Math.sqrt(noise.mean + given.variance) / target,
    };
  });
  return { noise: name, kappa, results };
}

/** Expected size of the estimate as answers grow. */
export interface GrowthRow {
  /** Factor on the lengths 64, 128, 256, 512. */
  readonly factor: number;
  /** Over the target. */
  readonly sizes: Readonly<Record<Rule, number>>;
}

/** How the size of the update changes when all answers become twice and four times as long. */
export function growthRow(factor: number, batches: number, seed: number): GrowthRow {
  const random = new SeededRandom(seed, GROWTH_STREAM);
  const modes = aggregations(NORM, { kind: 'iid' });
  const sizes = perRule(() => new Moments());
  for (let batch = 0; batch < batches; batch++) {
    const lengths = Int32Array.from({ length: GROUP }, () => factor * LENGTHS[random.below(4)]);
    for (const rule of rules) {
      const { seqScale } = planAggregation({ lengths }, { aggregation: modes[rule] });
      sizes[rule].add(NORM * seqScale.reduce((sum, scale) => sum + scale, 0));
    }
  }
  return { factor, sizes: perRule((rule) => sizes[rule].mean) };
}

const SYNTHETIC_STREAM = 1;
const GROWTH_STREAM = 2;
