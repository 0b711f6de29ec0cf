import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runVarlen } from './run-varlen.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-simulate-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('the published settings: one JSON document, all checks met, and a page', async () => {
  const html = join(folder, 'page.html');
  const { code, stdout, stderr } = await runVarlen(['simulate', '--json', '--check', '--html', html]);
  expect(code).toBe(0);
  const report = JSON.parse(stdout);
  expect(report.compute).toHaveLength(6);
  expect(report.pipeline).toHaveLength(5);
  expect(report.checks.every(({ ok }: { ok: boolean }) => ok)).toBe(true);
  expect(stderr).toContain('assumed: Mean lengths of UltraChat, LLaVA and ShareGPT4o are assumed');
  const page = readFileSync(html, 'utf8');
  expect(page.match(/<svg/g)).toHaveLength(3);
  expect(page).not.toMatch(/(src|href)=|@import|url\(/);
}, 60_000);

test('a setting of one own: tables on stdout, the pipeline only when asked', async () => {
  const flags = ['--samples', '512', '--ranks', '4', '--window', '64', '--cv', '0.8'];
  const plain = await runVarlen(['simulate', '--dist', 'lognormal', ...flags]);
  expect(plain.code).toBe(0);
  expect(plain.stdout).toMatch(/^data\s+ranks\s+F\s+hfg/);
  expect(plain.stdout).not.toContain('rho');
  const loaded = await runVarlen(['simulate', '--dist', 'lognormal', ...flags, '--rho', '0,0.5', '--json']);
  const { pipeline, compute } = JSON.parse(loaded.stdout);
  expect(pipeline[0].points.map(({ rho }: { rho: number }) => rho)).toEqual([0, 0.5]);
  expect(compute[0].results.packed.samples).toBe(512);
});

test('lengths from a file', async () => {
  const path = join(folder, 'lengths.txt');
  writeFileSync(
    path,
    Array.from({ length: 300 }, (_, i) => 1 + ((i * 37) % 500))
      .join('\n')
      .concat('\n0\n'),
  );
  const { code, stdout, stderr } = await runVarlen(['simulate', '--lengths', path, '--json']);
  expect(code).toBe(0);
  expect(JSON.parse(stdout).compute[0].results.strict.samples).toBe(300);
  expect(stderr).toContain('1 empty samples are skipped');
});

test('a check that is not met ends with 1 under --check', async () => {
  // Without a quadratic term and with a tiny budget the published gains cannot appear.
  const { code } = await runVarlen(['simulate', '--budget', '700', '--samples', '1024', '--check', '--json']);
  expect(code).toBe(1);
});

describe('called wrongly', () => {
  test.each([
    [['--bogus'], /Unknown option '--bogus'/],
    [['--ranks', '8'], /--ranks needs --dist or --lengths/],
    [['--dist', 'gauss'], /--dist must be one of lognormal, UltraChat/],
    [['--dist', 'LLaVA', '--mean', '9'], /--mean needs --dist lognormal/],
    [
      ['--dist', 'lognormal', '--cv', '-1'],
      /--cv must be a number of at least 0; got '-1'|Option '--cv' argument is ambiguous/,
    ],
    [['--dist', 'lognormal', '--rho', '0,x'], /--rho must be a number of at least 0; got 'x'/],
    [['--dist', 'lognormal', '--prep', 'random'], /--prep must be one of const, length/],
    [
      ['--dist', 'lognormal', '--samples', '4', '--ranks', '8'],
      /--ranks must not exceed the 4 non-empty samples/,
    ],
    [['--lengths', 'x', '--dist', 'LLaVA'], /--dist cannot be combined with --lengths/],
    [['--dist', 'LLaVA', '--field', 'n'], /--field needs --lengths/],
    [['more'], /unexpected word 'more'/],
  ])('%j ends with 2, the reason and the usage', async (argv, reason) => {
    const { code, stdout, stderr } = await runVarlen(['simulate', ...argv]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(reason);
    expect(stderr).toContain('varlen simulate [--dist NAME');
  });
});
