import { describe, expect, test } from 'vitest';
import { synthHead } from '../../src/prefill/index.js';
import {
  grid,
  measure,
  mixedPattern,
  recovered,
  retention,
  search,
  searched,
  textPattern,
  videoRecall,
  vs,
} from './synthetic-cases.js';

// Specification section 17. Its numbers come from another random generator: compared to 0.02.

// Recall of what keeps not all that was planted hangs on the eight random frequencies of the band, and on the codes:
// the reference's 0.518 for a-shape(16, 256) lies in 0.28..0.53, what eight seeds give here, and as many of a version
// in numpy. Those rows are compared by their density, and by falling far behind.
describe.each([
  ['grid', { lines: 0.992, both: 0.992, vsLines: 0.994, vs: 0.998 }],
  ['mixed', { lines: undefined, both: 0.979, vsLines: 0.906, vs: 0.952 }],
] as const)('the reference table: %s head', (kind, expected) => {
  const head = synthHead({ frames: 160, frameTokens: 49, kind, phase: 5, seed: 0 });

  test.each([
    ['grid of column lines', { ...grid, vline: true }, expected.lines, 0.074],
    ['grid of both', { ...grid, vline: true, slash: true }, expected.both, 0.093],
  ] as const)('%s', async (_name, pattern, recall, density) => {
    const got = await measure(head, pattern);
    if (recall !== undefined) expect(Math.abs(got.recall - recall)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.density - density)).toBeLessThanOrEqual(0.005);
    // The certificate looks at 256 rows, the float64 version at 48 others.
    expect(Math.abs(got.recall - got.sampledRecall)).toBeLessThan(0.1);
  });

  test.each([
    ['a-shape(16, 256)', { kind: 'a-shape', sink: 16, local: 256 }, 0.054],
    ['a-shape(128, 1024)', { kind: 'a-shape', sink: 128, local: 1024 }, 0.23],
    ['grid of slashes', { ...grid, slash: true }, 0.074],
    [
      'blocks by mean-pool, a tenth of them',
      { kind: 'block-sparse', block: [64, 64], score: 'mean-pool', select: { blocks: 7 } },
      0.087,
    ],
  ] as const)('%s', async (_name, pattern, density) => {
    const got = await measure(head, pattern);
    expect(got.recall).toBeLessThan(expected.both - 0.15);
    expect(Math.abs(got.density - density)).toBeLessThanOrEqual(0.005);
    expect(Math.abs(got.recall - got.sampledRecall)).toBeLessThan(0.1);
  });

  test('vertical-slash(500, 700): its lines and what is computed', async () => {
    const got = await measure(head, vs);
    expect(Math.abs(got.linesRecall - expected.vsLines)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.linesDensity - 0.144)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.recall - expected.vs)).toBeLessThanOrEqual(0.02);
    expect(Math.abs(got.density - 0.379)).toBeLessThanOrEqual(0.02);
  });
});

describe('stride and phase are recovered on at least 19 of 20 seeds (P13)', () => {
  test.each([
    ['column lines', 'grid', 'columns'],
    ['column lines', 'mixed', 'columns'],
    ['slashes', 'slash', 'slashes'],
    ['slashes', 'mixed', 'slashes'],
  ] as const)(
    '%s of %s heads',
    async (_name, kind, lines) => {
      expect(await recovered(kind, lines)).toBeGreaterThanOrEqual(19);
    },
    120_000,
  );

  test('a head without lines falls back to verticals and slashes', async () => {
    const head = synthHead({ frames: 84, frameTokens: 49, kind: 'slash', seed: 3 });
    expect((await searched(head, { ...search, vline: true, slash: false })).kind).toBe('vertical-slash');
  });
});

describe('needles are found again', () => {
  test('in video: at least 97.7 %', async () => {
    expect(await retention(0, 0, textPattern)).toBeGreaterThanOrEqual(0.977);
  }, 120_000);

  test('in a mix with a quarter of text: at least 91.3 %', async () => {
    expect(await retention(10, 163, mixedPattern)).toBeGreaterThanOrEqual(0.913);
  }, 120_000);
});

test.each(['grid', 'mixed'] as const)(
  'recall of a %s video reaches 0.95 at no more than a tenth of the tiles',
  async (kind) => {
    const { recall, tileDensity } = await videoRecall(kind);
    expect(recall).toBeGreaterThanOrEqual(0.95);
    expect(tileDensity).toBeLessThanOrEqual(0.1);
  },
);
