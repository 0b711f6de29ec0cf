import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, test } from 'vitest';
import { policyLoss, scope, Tensor } from '../src/index.js';
import * as rl from '../src/rl/index.js';

const root = join(import.meta.dirname, '..');
const guide = readFileSync(join(root, 'docs/guide/losses.md'), 'utf8');
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
const { presets } = rl;

describe('the examples of the guide to losses', () => {
  const blocks = [...guide.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code);

  test.each(blocks)('block %# prints what its comments say', { timeout: 60_000 }, (code) => {
    const wanted = [...code.matchAll(/console\.log\(.*\); \/\/ (.*)$/gm)].map(([, text]) => text);
    expect(wanted.length).toBeGreaterThan(0);
    expect(code.match(/console\.log/g)).toHaveLength(wanted.length);
    const scratch = mkdtempSync(join(tmpdir(), 'varlen-guide-'));
    try {
      const path = join(scratch, 'example.ts');
      writeFileSync(path, code);
      const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', tsx, path], {
        env: { ...process.env, TSX_TSCONFIG_PATH: join(root, 'examples/tsconfig.json') },
        encoding: 'utf8',
      });
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
      expect(stdout.trimEnd().split('\n')).toEqual(wanted);
    } finally {
      rmSync(scratch, { recursive: true });
    }
  });
});

describe('the table of recipes', () => {
  const rows = guide
    .split('\n')
    .filter((line) => /^\| .* \| `.*presets\./.test(line))
    .map((line) => line.split('|').map((cell) => cell.trim()))
    .map(([, recipe, code, level, clip, aggregation, advantage]) => ({
      recipe,
      code: code.slice(1, -1),
      cells: [level, clip, aggregation, advantage].map((cell) => cell.split(/[ ,]/)[0]),
    }));

  test.each(rows)('$recipe is the point that its code makes', ({ code, cells }) => {
    const make = new Function('presets', `return (${code});`) as (given: typeof presets) => rl.Recipe;
    const { config, aggregation, advantages } = make(presets);
    expect([config.ratio.level, config.clip.kind, aggregation.mode, advantages.estimator]).toEqual(cells);
    // Planning checks the aggregation.
    const input = { lengths: Int32Array.of(1, 2), groupIds: Int32Array.of(0, 0) };
    expect(rl.planAggregation(input, { aggregation }).seqScale).toHaveLength(2);
  });

  // Two prompts with two answers each, of 2 + 3 + 1 + 2 tokens.
  const cuSeqlens = Int32Array.of(0, 2, 5, 6, 8);
  const groupIds = Int32Array.of(7, 7, 8, 8);
  const rewards = Float32Array.of(1, 0, 0.5, 1);
  const perToken = (value: number): Float32Array =>
    Float32Array.from({ length: 8 }, (_, t) => value - t / 50);
  /** What estimators read besides rewards and groups. */
  const more: Partial<Record<rl.AdvantageEstimator, object>> = {
    gae: { values: perToken(0.5) },
    remax: { greedyRewards: Float32Array.of(0.5, 0.5, 1, 1) },
    gdpo: { rewards: undefined, rewardComponents: [rewards, Float32Array.of(0, 1, 1, 0)] },
  };

  test.each(rows)('$recipe runs as it stands: advantages, plan, loss, gradient', ({ code }) => {
    const make = new Function('presets', `return (${code});`) as (given: typeof presets) => rl.Recipe;
    const { config, aggregation, advantages: options } = make(presets);
    const input = { rewards, groupIds, cuSeqlens, ...more[options.estimator] };
    const grouped = ['gae', 'remax', 'reinforce', 'reinforce-pp'].includes(options.estimator)
      ? { ...input, groupIds: undefined }
      : input;
    const { advantages } = rl.estimateAdvantages(
      Object.fromEntries(Object.entries(grouped).filter(([, value]) => value !== undefined)),
      options,
    );
    const plan = rl.planAggregation({ lengths: rl.activeLengths({ cuSeqlens }), groupIds }, { aggregation });
    scope(() => {
      const tensor = (values: Float32Array): Tensor => Tensor.from(values, { device: 'cpu' });
      const logprobs = Tensor.from(perToken(-0.9), { device: 'cpu', requiresGrad: true });
      const out = policyLoss(
        {
          cuSeqlens,
          logprobs,
          advantages,
          ...(config.ratio.level === 'none' ? {} : { oldLogprobs: tensor(perToken(-1)) }),
          ...(config.kl === undefined ? {} : { refLogprobs: tensor(perToken(-1.1)) }),
        },
        plan,
        config,
      );
      out.loss.backward();
      expect(Number.isFinite(out.loss.dataSync()[0])).toBe(true);
      using gradient = logprobs.grad!;
      expect((gradient.dataSync() as Float32Array).some((slope) => slope !== 0)).toBe(true);
    });
  });

  test('names every preset', () => {
    for (const name of Object.keys(presets)) expect(guide).toContain(`presets.${name}(`);
  });
});

test('every function in the tables exists', () => {
  const names = [...guide.matchAll(/^\| (`[\w, `]+`) \|/gm)].flatMap(([, cell]) => cell.match(/\w+/g)!);
  expect(names.length).toBeGreaterThan(20);
  for (const name of names) expect(rl).toHaveProperty(name);
});
