import { describe, expect, test } from 'vitest';
import { groupCost, simulateCompute } from '../../../src/batch/simulation/compute.js';
import { drawLengths, logNormal, publishedData } from '../../../src/batch/simulation/data.js';
import { batchGranularTime, sampleGranularTime } from '../../../src/batch/simulation/pipeline.js';
import {
  bucketedMaxToken,
  globalMaxToken,
  lengthGrouped,
  onlineReference,
  packedOnline,
  type Setting,
  standard,
  strictPadded,
} from '../../../src/batch/simulation/schedules.js';
import {
  acceptance,
  computeTable,
  pipelineTable,
  settingOf,
  tableDefaults,
} from '../../../src/batch/simulation/tables.js';

const compute = computeTable();
const pipeline = pipelineTable();

describe('published figures', () => {
  test.each(acceptance(compute, pipeline))('$what is $wanted', ({ measured, ok }) => {
    expect(ok, `measured ${measured}`).toBe(true);
  });

  test('a check that is not met says so', () => {
    const slow = compute.map((row) => ({ ...row, ratios: { ...row.ratios, odb: row.ratios.odb / 1.3 } }));
    expect(acceptance(slow, pipeline).filter(({ ok }) => !ok).length).toBeGreaterThanOrEqual(6);
  });

  test.each([
    ['UltraChat', 8, { hfg: 1.66, gmt: 1.89, bmt: 1.75, odb: 1.84, strict: 1.89, packed: 1.95 }],
    ['LLaVA', 8, { hfg: 1.3, gmt: 1.87, bmt: 1.61, odb: 1.81, strict: 1.84, packed: 1.89 }],
    ['ShareGPT4o', 8, { hfg: 2.43, gmt: 2.37, bmt: 2.26, odb: 2.62, strict: 2.62, packed: 2.79 }],
    ['UltraChat', 16, { hfg: 1.4, gmt: 3.12, bmt: 2.88, odb: 3.04, strict: 3.1, packed: 3.23 }],
    ['ShareGPT4o', 16, { hfg: 2.21, gmt: 3.17, bmt: 3.05, odb: 3.61, strict: 3.63, packed: 3.88 }],
    ['MM-Mix', 16, { hfg: 1.43, gmt: 4.82, bmt: 4.04, odb: 4.64, strict: 4.69, packed: 4.99 }],
  ] as const)('%s on %i ranks repeats the table of the specification', (data, ranks, wanted) => {
    const row = compute.find((r) => r.data === data && r.ranks === ranks)!;
    for (const [method, ratio] of Object.entries(wanted)) {
      // The oracles shuffle batches of very unequal cost: on ShareGPT4o their ratio moves by 15 % with the seed.
      const band = data === 'ShareGPT4o' && (method === 'gmt' || method === 'bmt') ? 0.15 : 0.05;
      expect(Math.abs(row.ratios[method as keyof typeof wanted] / ratio - 1)).toBeLessThan(band);
    }
  });

  test('padding of the ODB rule is that of the specification', () => {
    const padding = compute.map(({ results }) => Number((100 * results.odb.padding).toFixed(1)));
    [0.9, 1.6, 0.9].forEach((wanted, i) => {
      expect(Math.abs(padding[i] - wanted)).toBeLessThanOrEqual(0.2);
    });
    // MM-Mix, a mixture, stays at 2.5 % for the ODB rule and ours alike.
    for (const { results } of compute.slice(0, 5)) {
      expect(results.packed.padding).toBe(0);
      expect(results.strict.padding).toBeLessThanOrEqual(0.025);
    }
  });

  test('stragglers of packed mode stay within the limits for 8 ranks', () => {
    for (const [data, limit] of [
      ['UltraChat', 0.035],
      ['LLaVA', 0.02],
      ['ShareGPT4o', 0.085],
      ['MM-Mix', 0.035],
    ] as const) {
      const setting = settingOf(publishedData[data], 8, tableDefaults);
      const { straggler } = simulateCompute(setting, packedOnline(setting).flat(), 'packed', 0);
      expect(straggler).toBeLessThanOrEqual(limit);
    }
  });
});

test('drawn lengths have the mean and variation that were asked for', () => {
  const lengths = drawLengths(logNormal(1000, 0.5, 1_000_000), 100_000, 3);
  const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
  const variance = lengths.reduce((sum, length) => sum + (length - mean) ** 2, 0) / lengths.length;
  // Standard error of the mean: 500 / sqrt(100,000) = 1.6.
  expect(Math.abs(mean - 1000)).toBeLessThan(8);
  expect(Math.abs(Math.sqrt(variance) / mean - 0.5)).toBeLessThan(0.01);
  const mixture = drawLengths(publishedData['MM-Mix'], 100_000, 3);
  const mixed = mixture.reduce((sum, length) => sum + length, 0) / mixture.length;
  expect(Math.abs(mixed - 678)).toBeLessThan(12);
});

describe('schedules', () => {
  const setting = settingOf(logNormal(700, 0.8, 8192), 4, { ...tableDefaults, samples: 1001, window: 64 });

  test.each([
    ['standard', standard],
    ['length-grouped', lengthGrouped],
    ['global oracle', globalMaxToken],
    ['bucketed oracle', bucketedMaxToken],
    ['ODB rule', (s: Setting) => onlineReference(s).flat()],
    ['padded', (s: Setting) => strictPadded(s).flat()],
    ['packed', (s: Setting) => packedOnline(s).flat()],
  ])('%s trains every sample once, with one group per rank in each step', (name, schedule) => {
    const steps = schedule(setting);
    for (const step of steps) expect(step).toHaveLength(4);
    const seen = steps.flat(2).sort((a, b) => a - b);
    // 1001 samples on 4 ranks: the reference loses samples when windows differ in size, as it does in life.
    if (name === 'ODB rule') expect(seen).toEqual([...new Set(seen)]);
    else expect(seen).toEqual(Array.from({ length: 1001 }, (_, i) => i));
    for (const group of steps.flat()) {
      if (group.length < 2) continue;
      const longest = Math.max(...group.map((i) => setting.lengths[i]));
      const tokens = group.reduce((sum, i) => sum + setting.lengths[i], 0);
      expect(name === 'packed' ? tokens : group.length * longest).toBeLessThanOrEqual(setting.budget);
    }
  });
});

describe('models small enough for a pencil', () => {
  const lengths = Int32Array.of(100, 200, 300, 400);
  const base: Setting = { lengths, ranks: 2, budget: 1000, window: 2, q: 0.01, seed: 1 };
  // Step 1: ranks hold [0, 1] and [2]; step 2: [3] and nothing.
  const schedule = [
    [[0, 1], [2]],
    [[3], []],
  ];

  test('a padded group costs count * longest, a packed one the sum', () => {
    expect(groupCost(lengths, [0, 1], 'padded', 0.01)).toBe(2 * (200 + 0.01 * 200 ** 2));
    expect(groupCost(lengths, [0, 1], 'packed', 0.01)).toBe(300 + 0.01 * (100 ** 2 + 200 ** 2));
    expect(groupCost(lengths, [], 'padded', 0.01)).toBe(0);
  });

  test('a step takes its fixed cost and the slowest rank', () => {
    // Padded costs: 1200 and 1200; 2000 and 0.
    expect(simulateCompute(base, schedule, 'padded', 50)).toEqual({
      samples: 4,
      steps: 2,
      time: 50 + 1200 + 50 + 2000,
      padding: 1 - 1000 / 1100,
      straggler: 3200 / 2200 - 1,
      idle: 1,
    });
  });

  test('a batch-granular loader waits for whole batches in order', () => {
    const prepare = Float64Array.of(1000, 1000, 5000, 1000);
    const options = { workers: 1, prefetch: 1, inFlight: 8, prepare, fixed: 0 };
    // Step 1 starts when rank 1's batch is ready, at 5000; only then the single worker may begin the
    // next batch, ready at 6000; step 1 ends at 6200, step 2 at 8200.
    expect(batchGranularTime(base, schedule, 'padded', options)).toBe(5000 + 1200 + 2000);
    // A batch that takes longer than the step before it is waited for.
    const slow = { ...options, prepare: Float64Array.of(0, 0, 0, 3000) };
    expect(batchGranularTime(base, schedule, 'padded', slow)).toBe(3000 + 2000);
  });

  test('a sample-granular loader uses all workers on one window', () => {
    const prepare = Float64Array.of(1000, 1000, 5000, 1000);
    const options = { workers: 2, prefetch: 1, inFlight: 8, prepare, fixed: 0 };
    // One round of two steps. Rank 0: three samples of 1000 on two workers, full at 2000. Rank 1: 5000.
    expect(sampleGranularTime(base, [schedule], 'padded', options)).toBe(5000 + 1200 + 2000);
    // Two rounds, room for two samples: sample 3 of rank 0 may start when step 1 starts, at 5000.
    const narrow = { ...options, inFlight: 2 };
    expect(sampleGranularTime(base, [[schedule[0]], [schedule[1]]], 'padded', narrow)).toBe(6200 + 2000);
  });
});
