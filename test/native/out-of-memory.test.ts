import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { sanitized } from '../support/flavour.js';
import { run } from '../support/program.js';

// A sanitizer brings its own allocator, which the preloaded library would take from it.

const folder = mkdtempSync(join(tmpdir(), 'varlen-fail-malloc-'));
const library = join(folder, 'fail-malloc.node');
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeAll(() => {
  const headers = createRequire(import.meta.url)('node-api-headers').include_dir as string;
  const source = join(import.meta.dirname, 'fail-malloc.c');
  execFileSync('cc', ['-shared', '-fPIC', '-O1', '-Wall', `-I${headers}`, '-o', library, source]);
});

const play = (args: readonly string[]) =>
  run('out-of-memory', [library, ...args], { env: { LD_PRELOAD: library }, timeoutMs: 100_000 });

const scenes = [
  ['from', 1],
  ['from, converting', 5],
  ['empty', 1],
  ['view', 1],
  ['convert', 5],
  ['data', 3],
  ['dataSync', 2],
  ['forward', 10],
  ['forward with every array', 15],
  ['forward with a tree', 10],
  ['forward with offsets on the device', 10],
  ['backward', 20],
  ['the tape', 20],
  ['a new stream', 20],
  ['an error in words', 3],
] as const;

describe.runIf(!sanitized)(
  'when the native side’s allocations fail, one by one and then all from one on',
  () => {
    test.each(scenes)(
      '%s gives ERR_VARLEN_OUT_OF_MEMORY, the next call works, and nothing leaks',
      { timeout: 120_000 },
      async (scene, atLeast) => {
        const { status, signal, stdout, stderr } = await play([scene]);
        expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' });
        const { points, errors } = JSON.parse(stdout) as { points: number; errors: number };
        expect(points).toBeGreaterThanOrEqual(2 * atLeast);
        // The rest was made up for: fewer helper threads, an exception from the emergency pool.
        expect(errors).toBeGreaterThanOrEqual(0.8 * points);
      },
    );
  },
);

const full = process.env.VARLEN_TEST_FULL === '1' && !sanitized;

describe.runIf(full)('when an allocation fails in a process that has just begun', () => {
  test.each(['from', 'data', 'forward', 'backward', 'a new stream'])(
    '%s gives ERR_VARLEN_OUT_OF_MEMORY at every point, and the next call works',
    { timeout: 600_000 },
    async (scene) => {
      for (let n = 0; ; n++) {
        const { status, signal, stdout, stderr } = await play([scene, String(n)]);
        expect({ n, status, signal, stderr }).toEqual({ n, status: 0, signal: null, stderr: '' });
        if (!(JSON.parse(stdout) as { more: boolean }).more) break;
      }
    },
  );
});
