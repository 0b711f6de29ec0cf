import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { jsonlTask, readJsonl } from '../../../src/trainer/tasks/jsonl.js';
import { rejected } from '../../support/thrown.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-jsonl-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function file(...lines: (string | Uint8Array | object)[]): string {
  const path = join(folder, 'data.jsonl');
  const bytes = lines.map((line) =>
    line instanceof Uint8Array ? line : Buffer.from(typeof line === 'string' ? line : JSON.stringify(line)),
  );
  writeFileSync(path, Buffer.concat(bytes.flatMap((line) => [line, Buffer.from('\n')])));
  return path;
}

const good = { prompt: '1+1', answer: '2' };

test('reads lines, passes over empty ones, and knows their numbers', async () => {
  const path = file(good, '', ' \t\r', { prompt: 'é', response: 'ü 🙂' });
  const { problems, skipped } = await readJsonl(path);
  expect(skipped).toBe(0);
  expect(problems).toMatchObject([
    { line: 1, prompt: '1+1', answer: '2' },
    { line: 4, prompt: 'é', response: 'ü 🙂' },
  ]);
});

test('a last line without its newline counts, and so does one that two reads share', async () => {
  const path = join(folder, 'long.jsonl');
  // The file is read in pieces of 64 KiB.
  const long = JSON.stringify({ prompt: 'x'.repeat(100_000), answer: 'y' });
  writeFileSync(path, `${long}\r\n${JSON.stringify(good)}`);
  const { problems } = await readJsonl(path);
  expect(problems.map(({ prompt }) => prompt.length)).toEqual([100_000, 3]);
});

describe('a bad line', () => {
  const bad: [string, string | Uint8Array | object, string][] = [
    ['broken JSON', '{"prompt": ', 'is not JSON'],
    ['an array', '[1]', 'is not a JSON object'],
    ['null', 'null', 'is not a JSON object'],
    ['no prompt', { response: 'x' }, 'has no prompt'],
    ['an empty prompt', { prompt: '', response: 'x' }, 'has no prompt'],
    ['a number for a prompt', { prompt: 1, response: 'x' }, 'has no prompt'],
    ['a number for a response', { prompt: 'a', response: 1 }, 'has a bad "response"'],
    ['an empty answer', { prompt: 'a', answer: ' ' }, 'has a bad "answer"'],
    ['a prompt alone', { prompt: 'a' }, 'has neither "response" nor "answer"'],
    ['bytes that are no UTF-8', Uint8Array.of(0x22, 0xff, 0x22), 'is not UTF-8'],
  ];

  test.each(bad)('%s is an error with file and line', async (_, line, what) => {
    const path = file(good, line, good);
    expect(await rejected(readJsonl(path))).toMatchObject({
      code: 'ERR_VARLEN_DATA',
      message: expect.stringContaining(`${path}:2 ${what}`),
      details: { path, line: 2 },
    });
  });

  test('is left out and counted on request', async () => {
    const path = file(good, ...bad.map(([, line]) => line), good);
    expect(await readJsonl(path, { skipBadLines: true })).toMatchObject({
      problems: [{ line: 1 }, { line: bad.length + 2 }],
      skipped: bad.length,
    });
  });
});

test('a file that cannot be read, and one that holds nothing', async () => {
  expect(await rejected(readJsonl(join(folder, 'none.jsonl')))).toMatchObject({ code: 'ERR_VARLEN_IO' });
  expect(await rejected(readJsonl(file('', '')))).toMatchObject({ code: 'ERR_VARLEN_DATA' });
  expect(await rejected(readJsonl(file('oops'), { skipBadLines: true }))).toMatchObject({
    code: 'ERR_VARLEN_DATA',
  });
});

test('the task reads every training prompt once per pass and keeps what it holds out apart', async () => {
  const path = file(...Array.from({ length: 100 }, (_, i) => ({ prompt: `p${i}`, answer: `a${i}` })));
  const task = await jsonlTask(path);
  const heldOut = new Set(Array.from({ length: 200 }, (_, i) => task.problem('held-out', i).prompt));
  const size = 100 - heldOut.size;
  expect(size).toBeGreaterThan(70);
  const pass = (k: number) =>
    Array.from({ length: size }, (_, i) => task.problem('train', k * size + i).prompt);
  expect(new Set(pass(0)).size).toBe(size);
  expect(pass(1)).not.toEqual(pass(0));
  expect(pass(1).sort()).toEqual(pass(0).sort());
  expect(pass(0).some((prompt) => heldOut.has(prompt))).toBe(false);
});

test('the reward is an exact match of the final answer', async () => {
  const task = await jsonlTask(file({ prompt: 'p', answer: ' 42 ' }));
  const problem = task.problem('train', 0);
  expect(task.hasResponses).toBe(false);
  expect(task.verify(problem, 'so <answer> 42 </answer>')).toMatchObject({ reward: 1, formatReward: 1 });
  expect(task.verify(problem, '42\n')).toMatchObject({ reward: 1, formatReward: 0 });
  expect(task.verify(problem, '420')).toMatchObject({ reward: 0 });
  expect(task.verify(problem, `${' '.repeat(1 << 20)}42`)).toMatchObject({ reward: 0 });
  expect(task.verify(problem, undefined as never)).toMatchObject({ reward: 0 });
});

test('a file of which some lines can only be learnt and others only be judged is refused', async () => {
  const path = file({ prompt: 'a', response: 'b' }, { prompt: 'c', answer: 'd' });
  expect(await rejected(jsonlTask(path))).toMatchObject({ code: 'ERR_VARLEN_DATA', details: { line: 1 } });
});
