import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { deviceInfo } from '../../src/tensor/index.js';
import { emulatedBuild } from '../support/flavour.js';
import { runVarlen } from './run-varlen.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-doctor-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const { cuda } = deviceInfo();

interface Report {
  ok: boolean;
  exitCode: number;
  binary: { path: string; sha256: string } | null;
  cuda: { available: boolean; code?: string; fix?: string } | null;
  checks: { name: string; status: string; detail: string; fix?: string }[];
}

async function diagnose(
  argv: string[] = [],
  env: Record<string, string> = {},
): Promise<Report & { code: number | null }> {
  const { code, stdout } = await runVarlen(['doctor', '--json', ...argv], env);
  return { ...(JSON.parse(stdout) as Report), code };
}

test('a sound machine passes: 0 with CUDA, 3 without, and every device agrees with float64', async () => {
  const report = await diagnose();
  expect(report).toMatchObject({ ok: true, code: cuda.available ? 0 : 3, exitCode: cuda.available ? 0 : 3 });
  expect(report.binary).toMatchObject({
    path: expect.stringMatching(/varlen\..*node$/),
    sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
  });
  expect(report.checks.find(({ name }) => name === 'cpu')).toMatchObject({ status: 'ok' });
});

test('CUDA switched off is said with its reason and what to do', async () => {
  const report = await diagnose([], { VARLEN_DISABLE_CUDA: '1' });
  expect(report.code).toBe(3);
  const expected = cuda.available || cuda.code !== 'NOT_BUILT' ? 'DISABLED' : 'NOT_BUILT';
  expect(report.cuda).toMatchObject({
    available: false,
    code: expected,
    fix: expect.stringMatching(/VARLEN_DISABLE_CUDA|varlen build/),
  });
});

test('a GPU that works passes, and agrees with float64', async () => {
  const report = await diagnose(['--require', 'cuda'], { VARLEN_PREBUILD: emulatedBuild });
  expect(report).toMatchObject({ ok: true, code: 0, cuda: { available: true } });
  expect(report.checks.filter(({ status }) => status !== 'ok')).toEqual([]);
});

test('--require cuda makes a machine without CUDA fail', async () => {
  const report = await diagnose(['--require', 'cuda'], { VARLEN_DISABLE_CUDA: '1' });
  expect(report).toMatchObject({ ok: false, code: 1, exitCode: 1 });
  expect(report.checks.find(({ name }) => name === 'cuda')).toMatchObject({
    status: 'failed',
    fix: expect.any(String),
  });
});

test('a missing binary is a failed check, not a crash', async () => {
  const report = await diagnose([], { VARLEN_PREBUILD: folder });
  expect(report).toMatchObject({ ok: false, code: 1, binary: null, cuda: null });
  expect(report.checks).toMatchObject([
    { name: 'binary', status: 'failed', detail: expect.stringMatching(/^ERR_VARLEN_NO_BINARY/) },
  ]);
});

test('a binary that crashes while it loads is reported, not suffered', async () => {
  const release = join(folder, 'crash', 'build', 'Release');
  mkdirSync(release, { recursive: true });
  const source = 'static void __attribute__((constructor)) die(void) { __builtin_trap(); }';
  execFileSync('cc', ['-shared', '-fPIC', '-o', join(release, 'varlen.node'), '-x', 'c', '-'], {
    input: source,
  });
  const report = await diagnose([], { VARLEN_PREBUILD: join(folder, 'crash') });
  expect(report).toMatchObject({ ok: false, code: 1, binary: null });
  expect(report.checks[0]).toMatchObject({
    name: 'binary',
    status: 'failed',
    detail: expect.stringMatching(/signal SIGILL|signal SIGTRAP/),
  });
});
