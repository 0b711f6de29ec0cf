import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, test } from 'vitest';
import { readTargets } from '../../bench/targets.js';

const root = join(import.meta.dirname, '..', '..');
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
const source = (path: string): string => readFileSync(join(root, path), 'utf8');

function bench(...argv: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', tsx, join(root, 'bench/run.ts'), ...argv],
    {
      encoding: 'utf8',
    },
  );
  return { status, stdout, stderr };
}

describe('bench/targets.json', () => {
  const targets = readTargets();

  test('every id is there once', () => {
    const ids = targets.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test('every native case and every peer exists, under the name the program prints', () => {
    const programs: Record<string, string> = {
      'varlen-attention': source('native/ops/varlen-attention/bench.cc'),
      gemm: source('native/core/gemm_bench.cc'),
      'policy-loss': source('native/ops/policy-loss/bench.cc'),
      'policy-loss-from-hidden': source('native/ops/policy-loss-from-hidden/bench.cc'),
    };
    for (const { id, measure } of targets) {
      if (measure.kind === 'script') continue;
      expect(programs[measure.ours.program], id).toContain(`"${measure.ours.case}"`);
      if (measure.kind === 'ratio')
        expect(programs[measure.theirs.program], id).toContain(`"${measure.theirs.case}"`);
      if (measure.kind !== 'peer') continue;
      const path = `bench/peers/${measure.theirs.peer}`;
      expect(existsSync(join(root, path)), path).toBe(true);
      expect(source(path), id).toContain(`"${measure.theirs.case}"`);
    }
  });

  test('what the first release must reach is no more than the goal', () => {
    for (const { id, target, floor = target, better } of targets) {
      if (better === 'lower') expect(floor, id).toBeGreaterThanOrEqual(target);
      else expect(floor, id).toBeLessThanOrEqual(target);
    }
  });
});

describe('npm run bench', () => {
  test('--targets --only --json prints one object with exactly the promised fields', () => {
    const { stdout, stderr } = bench('--targets', '--only', 'core.call.native', '--json', '--quick');
    expect(stderr).toBe('');
    const lines = stdout.trim().split('\n');
    expect(lines).toHaveLength(1);
    const outcome = JSON.parse(lines[0]) as Record<string, unknown>;
    expect(Object.keys(outcome)).toEqual(['id', 'what', 'comparedWith', 'measured', 'target', 'unit', 'ok']);
    expect(outcome).toMatchObject({
      id: 'core.call.native',
      measured: expect.any(Number),
      target: 0.5,
      unit: 'us',
    });
    expect(outcome.ok).toBe((outcome.measured as number) <= 0.5);
  });

  test('--only takes the beginning of several ids', () => {
    const { stdout } = bench('--targets', '--only', 'core.call', '--json', '--quick');
    const ids = stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { id: string }).id);
    expect(ids).toEqual(['core.call.native', 'core.call.roundTrip']);
  });

  test.each([
    ['an unknown bench', ['frobnicate'], /no bench 'frobnicate'/],
    ['an unknown target', ['--targets', '--only', 'core.calls'], /no target 'core.calls'/],
    ['an unknown flag', ['--jsno'], /Unknown option '--jsno'/],
  ])('%s ends with 2 and usage', (_, argv, message) => {
    const { status, stdout, stderr } = bench(...argv);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(message);
    expect(stderr).toContain('npm run bench');
  });

  test('a measurement that cannot be made is null, not ok, and says why', () => {
    const { stdout, stderr } = spawnSync(
      process.execPath,
      [
        '--import',
        tsx,
        '-e',
        `
        const { runPeer, NotMeasured } = require(${JSON.stringify(join(root, 'bench/programs.ts'))});
        try { runPeer('gemm_torch.py', 'square-2048', 1, true); } catch (error) {
          console.log(error instanceof NotMeasured, error.message);
        }`,
      ],
      { encoding: 'utf8', env: { ...process.env, VARLEN_BENCH_PYTHON: '/nonexistent/python' } },
    );
    expect(stderr).toBe('');
    expect(stdout).toMatch(/^true \/nonexistent\/python .*gemm_torch\.py 1 0\.2 failed: .*ENOENT/);
  });
});
