import { describe, expect, test } from 'vitest';
import { run } from '../support/program.js';

describe('several environments in one process', () => {
  test.each([
    'main and four workers',
    'terminate eighty workers',
    'main never loads the addon',
    'a hundred workers load and end',
    'a worker exits in mid-op',
    'settlements nobody hears',
  ])('%s', { timeout: 240_000 }, async (scene) => {
    const { status, signal, stdout, stderr } = await run('workers', [scene], { timeoutMs: 220_000 });
    expect({ status, signal, stdout, stderr }).toEqual({
      status: 0,
      signal: null,
      stdout: 'fine\n',
      stderr: '',
    });
  });
});

// process.exit() leaves V8's heap as it is, which a leak check would report.
const env = { ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:detect_leaks=0` };

describe('a process', () => {
  test.each([
    ['exit in mid-op', 3, ''],
    ['exit soon after', 3, ''],
    ['an uncaught exception in mid-op', 1, ''],
    ['idle with unread work', 0, ''],
    ['idle after reading', 0, ''],
    ['reading keeps the process alive', 0, 'read\n'],
    ['an event keeps the process alive', 0, 'read\n'],
  ])('%s ends with status %i', async (ending, status, stdout) => {
    expect(await run('exit', [ending], { env, timeoutMs: 25_000 })).toMatchObject({
      status,
      signal: null,
      stdout,
    });
  });
});
