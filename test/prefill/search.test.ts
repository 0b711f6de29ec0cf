import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  type HeadPattern,
  loadPatternConfig,
  searchPatterns,
  synthHead,
  writePatternConfig,
} from '../../src/prefill/index.js';
import { Tensor } from '../../src/tensor/index.js';
import { runVarlen } from '../cli/run-varlen.js';
import { rejected } from '../support/thrown.js';

const folder = mkdtempSync(join(tmpdir(), 'varlen-plan-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const capture = (kind: 'grid' | 'slash') => {
  const head = synthHead({ frames: 40, frameTokens: 49, kind, seed: 3 });
  const make = (data: Float32Array) =>
    Tensor.from(data, { shape: [head.tokens, 1, head.headDim], device: 'cpu' });
  return { q: make(head.q), k: make(head.k), v: make(head.v), modality: head.modality };
};

const grid = (vline: boolean, slash: boolean): HeadPattern => ({
  kind: 'grid',
  stride: 'frame',
  phase: 'search',
  hline: false,
  vline,
  slash,
});
const local: HeadPattern = { kind: 'a-shape', sink: 4, local: 100 };

describe('searchPatterns', () => {
  test.each([
    ['grid', grid(true, false)],
    ['slash', grid(false, true)],
  ] as const)('finds the pattern that a %s head was made with', async (kind, expected) => {
    const { heads, layer } = await searchPatterns(capture(kind), {
      candidates: [local, grid(true, false), grid(false, true)],
      budget: { kind: 'a-shape', sink: 64, local: 256 },
      minRecall: 0,
    });
    expect(heads[0].pattern).toEqual(expected);
    expect(layer.heads[0]).toEqual(expected);
    expect(heads[0].tried.length).toBe(3);
  });

  test('brings candidates to the cost of the budget', async () => {
    const { heads } = await searchPatterns(capture('grid'), {
      candidates: [local],
      budget: { kind: 'a-shape', sink: 64, local: 500 },
      objective: 'recall',
      minRecall: 0,
    });
    const [{ pattern, cost }] = heads[0].tried;
    expect(pattern).toMatchObject({ kind: 'a-shape', sink: 4 });
    expect((pattern as { local: number }).local).toBeGreaterThan(450);
    expect(cost).toBeGreaterThan(0.3);
  });

  test('a head that keeps too little at four times the budget is dense', async () => {
    const { heads } = await searchPatterns(capture('grid'), {
      candidates: [local],
      budget: { kind: 'a-shape', sink: 4, local: 100 },
      minRecall: 0.999,
    });
    expect(heads[0]).toMatchObject({ pattern: { kind: 'dense' }, recall: 1, cost: 1 });
  });

  const mixture = (boundary: 'query' | 'pair', frames = 48, textLength = 150) => {
    const head = synthHead({
      frames,
      frameTokens: 49,
      kind: 'slash',
      seed: 3,
      textEvery: 6,
      textLength,
      boundary,
    });
    const make = (data: Float32Array) =>
      Tensor.from(data, { shape: [head.tokens, 1, head.headDim], device: 'cpu' });
    return { q: make(head.q), k: make(head.k), v: make(head.v), modality: head.modality };
  };
  const verticals: HeadPattern = {
    kind: 'vertical-slash',
    select: { topk: { vertical: 28, slash: 150 } },
    forceVertical: 4,
    forceSlash: 16,
  };
  const budget: HeadPattern = { kind: 'a-shape', sink: 32, local: 500 };

  test('a pattern per query modality wins where each looks for keys of its own', async () => {
    const { heads, layer } = await searchPatterns(mixture('query'), {
      candidates: [local, verticals],
      budget,
      minRecall: 0,
      objective: 'recall',
    });
    const [{ pattern, tried }] = heads;
    expect(tried.map((one) => one.pattern.kind)).toEqual([
      'a-shape',
      'vertical-slash',
      'q-boundary',
      '2d-boundary',
    ]);
    expect(tried[2].score).toBeLessThan(Math.min(tried[0].score, tried[1].score));
    expect(pattern.kind).toMatch(/boundary/);
    expect((tried[2].pattern as { by: Record<string, HeadPattern> }).by).toMatchObject({
      text: { kind: 'vertical-slash' },
      vision: { kind: 'vertical-slash' },
    });
    // It comes back from a configuration.
    const config = writePatternConfig({ model: 'mine', headDim: 64, lastQ: 64, layers: [layer] });
    expect(loadPatternConfig(config).layers[0].heads[0]).toEqual(pattern);
  });

  test('pairs of modalities are searched one by one and composed at the budget', async () => {
    const { heads } = await searchPatterns(mixture('pair', 60, 200), {
      candidates: [local, verticals],
      budget: { kind: 'a-shape', sink: 32, local: 900 },
      minRecall: 0,
    });
    const composed = heads[0].tried[3];
    expect(Object.keys((composed.pattern as { by: object }).by).sort()).toEqual([
      'text>text',
      'text>vision',
      'vision>text',
      'vision>vision',
    ]);
    for (const { cost, recall, score } of heads[0].tried) {
      expect(cost).toBeGreaterThan(0);
      expect(recall).toBeGreaterThan(0);
      expect(score).toBeGreaterThan(0);
    }
    const [, { cost: plain }] = heads[0].tried;
    expect(Math.abs(composed.cost / plain - 1)).toBeLessThan(0.1);
    // On its way there a candidate that was too dear gave up slashes.
    expect((composed.pattern as { by: Record<string, object> }).by['vision>vision']).toMatchObject({
      select: { topk: { slash: 50 } },
    });
  });

  test('boundaries can be left out, and need two modalities', async () => {
    const options = { candidates: [local], budget, minRecall: 0, boundaries: false };
    const { heads } = await searchPatterns(mixture('query', 24, 70), options);
    expect(heads[0].tried.length).toBe(1);
    const alone = { ...capture('grid'), modality: { ids: new Uint8Array(2024) } };
    expect(await rejected(searchPatterns(alone, { ...options, boundaries: true }))).toMatchObject({
      code: 'ERR_VARLEN_MODALITY',
    });
  });

  test.each(['output-l2', 'output-count', 'recall'] as const)(
    'the objective %s falls as the budget grows',
    async (objective) => {
      const scores: number[] = [];
      for (const size of [60, 400]) {
        const { heads } = await searchPatterns(capture('slash'), {
          candidates: [local],
          budget: { kind: 'a-shape', sink: 4, local: size },
          minRecall: 0,
          objective,
        });
        scores.push(heads[0].score);
      }
      expect(scores[1]).toBeLessThan(scores[0]);
    },
  );

  test('can be aborted, and names what is wrong', async () => {
    const signal = AbortSignal.abort(new Error('enough'));
    await expect(searchPatterns(capture('grid'), { signal })).rejects.toThrow('enough');
    expect(await rejected(searchPatterns({} as never))).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
    expect(await rejected(searchPatterns(capture('grid'), { objective: 'speed' as never }))).toMatchObject({
      code: 'ERR_VARLEN_OPTION',
    });
  });
});

describe('varlen plan', () => {
  test('searches a synthetic head, writes a configuration and draws its mask', async () => {
    const [out, svg] = [join(folder, 'found.json'), join(folder, 'masks')];
    const flags = [
      '--synthetic',
      'grid',
      '--frames',
      '20',
      '--budget',
      '200',
      '--out',
      out,
      '--svg',
      svg,
      '--json',
    ];
    const { code, stdout } = await runVarlen(['plan', ...flags]);
    expect(code).toBe(0);
    const [row] = JSON.parse(stdout);
    expect(row.recall).toBeGreaterThan(0.8);
    expect(loadPatternConfig(readFileSync(out, 'utf8')).layers[0].heads[0]).toEqual(row.pattern);
    const picture = readFileSync(join(svg, 'head-0.svg'), 'utf8');
    expect(picture).toMatch(/^<svg[^>]*>\n<title>head 0: /);
    expect(picture.match(/<rect/g)!.length).toBeGreaterThan(20);
  }, 60_000);

  test('applies a configuration', async () => {
    const config = join(folder, 'published.json');
    writeFileSync(config, '[{"0":["stream_llm",16,64,1]}]');
    const { code, stdout } = await runVarlen(['plan', '--frames', '10', '--config', config]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^head +pattern +recall +computed +issued\n/);
    expect(stdout).toContain('{"kind":"a-shape","sink":16,"local":64}');
  }, 60_000);

  test('a file that is not there is an error of ours', async () => {
    const { code, stderr } = await runVarlen([
      'plan',
      '--frames',
      '10',
      '--config',
      join(folder, 'none.json'),
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain('ERR_VARLEN_IO');
  });

  test.each([
    [['--synthetic', 'round'], /--synthetic must be one of grid, slash, mixed/],
    [['--budget', '0'], /--budget/],
    [['--captured', 'x', '--frames', '3'], /cannot be combined with --captured/],
    [['--nonsense'], /Unknown option '--nonsense'/],
  ])('called wrongly: %j ends with 2', async (argv, reason) => {
    const { code, stderr } = await runVarlen(['plan', ...argv]);
    expect(code).toBe(2);
    expect(stderr).toMatch(reason);
  });
});
