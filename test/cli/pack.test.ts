import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runVarlen } from './run-varlen.js';

let folder: string;
const file = (name: string, text: string) => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-pack-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('one line per bin on stdout, figures on stderr', async () => {
  const { code, stdout, stderr } = await runVarlen([
    'pack',
    file('plain.txt', '3\n4\n\n1\n'),
    '--capacity',
    '4',
  ]);
  expect({ code, stdout }).toEqual({ code: 0, stdout: '1\n0 2\n' });
  expect(stderr).toMatch(/bins\s+2/);
  expect(stderr).toMatch(/fill\s+100\.000 %/);
});

test('JSON lines of many shapes, cut sequences with their place, one JSON document', async () => {
  const path = file('mixed.jsonl', '{"input_ids":[1,2,3,4,5]}\n[6,7]\n4\n{"length":1}\n');
  const { code, stdout } = await runVarlen([
    'pack',
    path,
    '--capacity',
    '4',
    '--algo',
    'bfd-split',
    '--json',
  ]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    algo: 'bfd-split',
    sequences: 4,
    tokens: 12,
    packedTokens: 12,
    bins: [['0:0+4'], ['2'], ['1', '0:4+1', '3']],
    cutSequences: 1,
    fill: 1,
  });
});

test('a page with plots needs nothing from elsewhere', async () => {
  const html = join(folder, 'pack.html');
  const path = file('page.txt', '5\n9\n2\n8\n');
  const { code } = await runVarlen(['pack', path, '--capacity', '10', '--html', html]);
  const page = readFileSync(html, 'utf8');
  expect(code).toBe(0);
  expect(page.match(/<svg/g)).toHaveLength(2);
  expect(page).not.toMatch(/(src|href)=|@import|url\(/);
});

describe('called wrongly', () => {
  test.each([
    [['pack'], /needs one file; got 0/],
    [['pack', 'a', 'b', '--capacity', '4'], /needs one file; got 2/],
    [['pack', 'a'], /--capacity is missing/],
    [['pack', 'a', '--capacity', '0'], /--capacity must be an integer of at least 1; got '0'/],
    [['pack', 'a', '--capacity', 'many'], /got 'many'/],
    [['pack', 'a', '--capacity', '4', '--algo', 'best'], /--algo must be one of bfd, ffd/],
    [['pack', 'a', '--capacity', '4', '--colour'], /Unknown option '--colour'/],
  ])('%j ends with 2, the reason and the usage', async (argv, reason) => {
    const { code, stdout, stderr } = await runVarlen(argv);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(reason);
    expect(stderr).toContain('varlen pack <file> --capacity N');
  });

  test.each([
    ['1\nlong\n', /ERR_VARLEN_DATA: pack: .*bad.txt:2 is neither a number nor JSON; got "long"/],
    ['1\n{"text":"a"}\n', /:2 has no length; expected a field length, inputIds/],
    ['-3\n', /:1 holds no length; got -3/],
    ['{"length":"7"}\n', /:1 holds no length; got "7"/],
    ['1e400\n', /:1 holds no length; got Infinity/],
    ['3\n9\n', /ERR_VARLEN_RANGE: pack: lengths\[1\] does not fit a bin; got 9, expected at most 4/],
  ])('a file with %j ends with 1 and the place', async (text, reason) => {
    const { code, stdout, stderr } = await runVarlen(['pack', file('bad.txt', text), '--capacity', '4']);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(reason);
  });

  test('a file that is not there, or cannot be written, is a typed error', async () => {
    const missing = await runVarlen(['pack', join(folder, 'none'), '--capacity', '4']);
    expect(missing.code).toBe(1);
    expect(missing.stderr).toMatch(/ERR_VARLEN_IO: pack: .*none cannot be read: ENOENT/);
    const path = file('fine.txt', '1\n');
    const unwritable = await runVarlen([
      'pack',
      path,
      '--capacity',
      '4',
      '--html',
      join(folder, 'no', 'page'),
    ]);
    expect(unwritable.code).toBe(1);
    expect(unwritable.stderr).toMatch(/ERR_VARLEN_IO: pack: .*page cannot be written/);
  });
});
