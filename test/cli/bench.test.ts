import { expect, test } from 'vitest';
import { runVarlen } from './run-varlen.js';

test('bench --json prints one document: a line per measurement, each beside a comparison', {
  timeout: 300_000,
}, async () => {
  const { code, stdout, stderr } = await runVarlen(['bench', '--quick', '--json', '--device', 'cpu']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const lines = JSON.parse(stdout) as Record<string, unknown>[];
  expect(lines.length).toBeGreaterThanOrEqual(6);
  for (const line of lines) {
    expect(line).toMatchObject({
      op: expect.stringMatching(/^varlenAttention/),
      device: 'cpu',
      comparedWith: expect.any(String),
    });
    expect(line.ratio).toBeGreaterThan(0);
    expect(line.p10Us).toBeLessThanOrEqual(line.p90Us as number);
  }
});

test('a named bench runs alone and prints a table for people', async () => {
  const { code, stdout, stderr } = await runVarlen(['bench', 'call-overhead', '--quick', '--device', 'cpu']);
  expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
  expect(stderr).toMatch(/enqueue.*round trip/s);
  expect(stderr).not.toContain('Backward');
});

test('a device that is not there is a typed error', async () => {
  const { code, stderr } = await runVarlen(['bench', '--device', 'tpu']);
  expect(code).toBe(1);
  expect(stderr).toContain('ERR_VARLEN_OPTION');
});

test('an interrupt ends a bench with 130', { timeout: 60_000 }, async () => {
  // Unhandled, the signal would end the process without an exit code.
  const { code, stdout } = await runVarlen(['bench', '--json', '--device', 'cpu'], {}, 4000);
  expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
});
