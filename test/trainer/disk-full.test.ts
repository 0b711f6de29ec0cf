import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { knightsAndKnaves } from '../../src/trainer/tasks/knights-and-knaves.js';
import { train } from '../../src/trainer/train.js';
import { rejected } from '../support/thrown.js';
import { parityTask, tinyRecipe, withoutMachine } from './recipes.js';

/** The disk has room for so many more writes. */
const disk = vi.hoisted(() => ({ writes: Infinity }));

vi.mock('node:fs/promises', async (importOriginal) => {
  const real = await importOriginal<typeof import('node:fs/promises')>();
  const filling = (file: FileHandle): FileHandle =>
    new Proxy(file, {
      get(target, name: keyof FileHandle) {
        const member = target[name];
        if (typeof member !== 'function') return member;
        return (...args: unknown[]) => {
          if (name === 'write' && disk.writes-- <= 0) {
            return Promise.reject(
              Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' }),
            );
          }
          return (member as (...a: unknown[]) => unknown).apply(target, args);
        };
      },
    });
  return {
    ...real,
    open: async (...args: Parameters<typeof real.open>) => filling(await real.open(...args)),
  };
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-disk-'));
  disk.writes = Infinity;
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test('a disk that fills up while a checkpoint is written leaves the old one, from which the run goes on', async () => {
  const task = () => parityTask(knightsAndKnaves({ seed: 5 }));
  const options = (out: string) => ({
    task: task(),
    recipe: tinyRecipe,
    out: join(folder, out),
    device: 'cpu' as const,
  });
  const whole = await train(options('whole'));
  let kept: Buffer | undefined;
  const checkpoint = join(folder, 'full', 'checkpoint.safetensors');
  const failing = train({
    ...options('full'),
    onRecord(record) {
      if (record.phase !== 'sft' || record.step !== 4) return;
      // Three steps are saved; the fourth finds room for half of itself.
      kept = readFileSync(checkpoint);
      disk.writes = 10;
    },
  });
  expect(await rejected(failing)).toMatchObject({
    code: 'ERR_VARLEN_IO',
    details: { code: 'ENOSPC', path: checkpoint },
  });
  expect(readFileSync(checkpoint).equals(kept!)).toBe(true);
  expect(readdirSync(join(folder, 'full')).sort()).toEqual(['checkpoint.safetensors', 'metrics.jsonl']);
  disk.writes = Infinity;
  const resumed = await train({ ...options('full'), resume: true });
  expect(withoutMachine(resumed.records)).toEqual(withoutMachine(whole.records));
});
