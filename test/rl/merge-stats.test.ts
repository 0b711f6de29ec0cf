import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type PolicyLossSums, SUM_NAMES, statsOf } from '../../src/ops/policy-loss-stats.js';
import { mergeStats, type PolicyLossStats } from '../../src/rl/index.js';

/** Statistics of one token per entry, each its own sequence, all fields derived from a few numbers. */
function statsOfTokens(
  tokens: readonly { ratio: number; advantage: number; weight: number }[],
): PolicyLossStats {
  const sums = Object.fromEntries(
    [...SUM_NAMES, 'zeroStdGroups'].map((name) => [name, 0]),
  ) as unknown as PolicyLossSums;
  for (const name of ['lengthMin', 'ratioMin', 'advMin'] as const) sums[name] = Infinity;
  for (const name of ['lengthMax', 'ratioMax', 'advMax', 'rolloutWeightMax'] as const) sums[name] = -Infinity;
  for (const { ratio, advantage, weight } of tokens) {
    sums.pgLoss -= advantage * ratio;
    sums.activeTokens += 1;
    sums.activeSeqs += 1;
    sums.inverseLengthSum += 1;
    sums.lengthMin = 1;
    sums.lengthMax = 1;
    sums.clippedHigh += ratio > 1.2 ? 1 : 0;
    sums.logRatioSum += Math.log(ratio);
    sums.ratioSum += ratio;
    sums.ratioSquareSum += ratio * ratio;
    sums.ratioMin = Math.min(sums.ratioMin, ratio);
    sums.ratioMax = Math.max(sums.ratioMax, ratio);
    sums.advSum += advantage;
    sums.advSquareSum += advantage * advantage;
    sums.advMin = Math.min(sums.advMin, advantage);
    sums.advMax = Math.max(sums.advMax, advantage);
    sums.rolloutWeightSum += weight;
    sums.rolloutWeightMax = Math.max(sums.rolloutWeightMax, weight);
  }
  return statsOf(sums);
}

/** Multiples of 1/8 add without rounding, so that equality can be exact. */
const eighths = (min: number, max: number): fc.Arbitrary<number> =>
  fc.integer({ min: min * 8, max: max * 8 }).map((n) => n / 8);
const tokens = fc.array(
  fc.record({ ratio: eighths(1, 4), advantage: eighths(-4, 4), weight: eighths(0, 2) }),
  { maxLength: 20 },
);

test('merged parts are the statistics of the whole, empty parts included', () => {
  fc.assert(
    fc.property(tokens, fc.array(fc.nat(20), { maxLength: 4 }), (all, cuts) => {
      const at = [0, ...cuts.filter((cut) => cut <= all.length).sort((a, b) => a - b), all.length];
      const parts = at.slice(1).map((end, i) => statsOfTokens(all.slice(at[i], end)));
      const merged = parts.reduce((a, b) => mergeStats(a, b));
      const whole = statsOfTokens(all);
      for (const key of Object.keys(whole) as (keyof PolicyLossStats)[]) {
        if (typeof whole[key] !== 'number') continue;
        expect(merged[key], key).toBeCloseTo(whole[key], 12);
      }
      expect(merged.ratioMax).toBe(whole.ratioMax);
      expect(merged.advMin).toBe(whole.advMin);
      expect(merged.activeTokens).toBe(all.length);
    }),
  );
});

test('the order of merging does not matter', () => {
  fc.assert(
    fc.property(tokens, tokens, tokens, (a, b, c) => {
      const [x, y, z] = [a, b, c].map(statsOfTokens);
      const left = mergeStats(mergeStats(x, y), z);
      const right = mergeStats(z, mergeStats(y, x));
      expect(right.essFraction).toBeCloseTo(left.essFraction, 12);
      expect(right.clipFracHigh).toBe(left.clipFracHigh);
      expect(right.advStd).toBeCloseTo(left.advStd, 7);
    }),
  );
});
