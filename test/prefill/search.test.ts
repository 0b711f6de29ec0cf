import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type HeadPattern, loadPatternConfig, searchPatterns, synthHead } from '../../src/prefill/index.js';
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
