import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { readSafetensors, Tensor, toSafetensors, writeSafetensors } from '../../src/tensor/index.js';
import { rejected } from '../support/thrown.js';

/** Makes the system fail: `fault.at` is the call that fails, counted over all calls of one test. */
const fault = vi.hoisted(() => ({ at: -1, calls: 0, code: 'EIO', shortBy: 0 }));

vi.mock('node:fs/promises', async (importOriginal) => {
  const real = await importOriginal<typeof import('node:fs/promises')>();
  const step = (): void => {
    if (fault.calls++ !== fault.at) return;
    throw Object.assign(new Error(`${fault.code}: injected`), { code: fault.code });
  };
  const FAILING = new Set(['read', 'write', 'stat', 'datasync', 'sync']);
  const watch = (file: FileHandle): FileHandle =>
    new Proxy(file, {
      get(target, name: keyof FileHandle) {
        const member = target[name];
        if (typeof member !== 'function') return member;
        return async (...args: unknown[]) => {
          if (FAILING.has(name as string)) step();
          // A system may always read or write less than it was asked to.
          if (fault.shortBy > 0 && (name === 'read' || name === 'write')) {
            args[2] = Math.max(1, Math.min(args[2] as number, fault.shortBy));
          }
          return (member as (...a: unknown[]) => unknown).apply(target, args);
        };
      },
    });
  return {
    ...real,
    open: async (...args: Parameters<typeof real.open>) => {
      step();
      return watch(await real.open(...args));
    },
    rename: async (from: string, to: string) => {
      step();
      return real.rename(from, to);
    },
  };
});

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-safetensors-'));
  path = join(folder, 'model.safetensors');
  Object.assign(fault, { at: -1, calls: 0, code: 'EIO', shortBy: 0 });
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const one = { w: { data: Float32Array.of(1, 2, 3), shape: [3] }, b: { data: Uint8Array.of(1), shape: [1] } };
const two = { w: { data: Float32Array.of(4, 5, 6), shape: [3] }, b: { data: Uint8Array.of(2), shape: [1] } };

describe('writeSafetensors and readSafetensors', () => {
  test('a file has the bytes of toSafetensors, mode 0600, and leaves nothing else behind', async () => {
    await writeSafetensors(path, one, { step: '1' });
    expect(new Uint8Array(readFileSync(path))).toEqual(toSafetensors(one, { step: '1' }));
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['model.safetensors']);
  });

  test('tensors go to the file without blocking and come back', async () => {
    using w = Tensor.from(
      Float32Array.from({ length: 700_000 }, (_, i) => i),
      { shape: [700, 1000], device: 'cpu' },
    );
    await writeSafetensors(path, new Map([['w', w]]));
    const { tensors } = await readSafetensors(path);
    expect(tensors.w.shape).toEqual([700, 1000]);
    expect(tensors.w.data).toEqual(w.dataSync());
  });

  test('`names` reads only those tensors', async () => {
    await writeSafetensors(path, one);
    expect(Object.keys((await readSafetensors(path, { names: ['b'] })).tensors)).toEqual(['b']);
  });

  test('a second save replaces the first', async () => {
    await writeSafetensors(path, one);
    await writeSafetensors(path, two);
    expect((await readSafetensors(path)).tensors.w.data).toEqual(two.w.data);
  });

  test('damaged data are refused', async () => {
    const bytes = toSafetensors(one);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(path, bytes);
    expect(await rejected(readSafetensors(path))).toMatchObject({ code: 'ERR_VARLEN_SAFETENSORS' });
    expect((await readSafetensors(path, { verify: false })).tensors.w.data).toEqual(one.w.data);
  });

  test('a file cut at any byte is refused', async () => {
    const bytes = toSafetensors({ b: { data: Uint8Array.of(1), shape: [1] } });
    for (let length = 0; length < bytes.length; length++) {
      writeFileSync(path, bytes.subarray(0, length));
      expect(await rejected(readSafetensors(path)), `cut to ${length}`).toMatchObject({
        code: 'ERR_VARLEN_SAFETENSORS',
      });
    }
  });

  test.each([
    ['reading a file that is not there', () => readSafetensors(path), 'ENOENT'],
    ['reading a folder', () => readSafetensors(folder), 'EISDIR'],
    [
      'writing into a folder that is not there',
      () => writeSafetensors(join(folder, 'no', 'x'), one),
      'ENOENT',
    ],
    ['writing over a folder', () => writeSafetensors(folder, one), 'EISDIR'],
  ])('%s is an I/O error with the system’s error as its cause', async (_, work, code) => {
    expect(await rejected(work())).toMatchObject({
      code: 'ERR_VARLEN_IO',
      details: { code },
      cause: { code },
    });
    expect(readdirSync(folder)).toEqual([]);
  });

  test.each([
    ['readSafetensors', () => readSafetensors(5 as never)],
    ['writeSafetensors', () => writeSafetensors(5 as never, one)],
  ])('%s refuses a path that is no string', async (_, work) => {
    expect(await rejected(work())).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
  });

  test('a bad tensor is refused before the file system is touched', async () => {
    expect(await rejected(writeSafetensors(path, { a: 5 } as never))).toMatchObject({
      code: 'ERR_VARLEN_TYPE',
    });
    expect(fault.calls).toBe(0);
  });

  test('a tensor that fails while it is written leaves the old file and no other', async () => {
    await writeSafetensors(path, one);
    const gone = Tensor.from(Float32Array.of(1), { device: 'cpu' });
    const saving = writeSafetensors(path, { gone });
    gone.dispose();
    expect(await rejected(saving)).toMatchObject({ code: 'ERR_VARLEN_DISPOSED' });
    expect((await readSafetensors(path)).tensors.w.data).toEqual(one.w.data);
    expect(readdirSync(folder)).toEqual(['model.safetensors']);
  });
});

describe('when the system fails', () => {
  test.each(['EIO', 'ENOSPC', 'EMFILE'])(
    '%s at any step of a save is an I/O error; the file is the old one or the new one',
    async (code) => {
      await writeSafetensors(path, one);
      fault.calls = 0;
      await writeSafetensors(path, one);
      const steps = fault.calls;
      expect(steps).toBeGreaterThan(10);
      for (let at = 0; at < steps; at++) {
        await writeSafetensors(path, one);
        Object.assign(fault, { at, calls: 0, code });
        expect(await rejected(writeSafetensors(path, two)), `step ${at}`).toMatchObject({
          code: 'ERR_VARLEN_IO',
          cause: { code },
        });
        fault.at = -1;
        // Only the flush of the folder comes after the rename.
        const { data } = (await readSafetensors(path)).tensors.w;
        const renamed = at >= steps - 2;
        expect({ at, data }).toEqual({ at, data: renamed ? two.w.data : one.w.data });
        expect(readdirSync(folder)).toEqual(['model.safetensors']);
      }
    },
  );

  test('an error at any step of a load is an I/O error', async () => {
    await writeSafetensors(path, one);
    fault.calls = 0;
    await readSafetensors(path);
    const steps = fault.calls;
    for (let at = 0; at < steps; at++) {
      Object.assign(fault, { at, calls: 0 });
      expect(await rejected(readSafetensors(path)), `step ${at}`).toMatchObject({ code: 'ERR_VARLEN_IO' });
    }
    fault.at = -1;
    expect((await readSafetensors(path)).tensors.w.data).toEqual(one.w.data);
  });

  test.each([1, 7])(
    'reads and writes of at most %i bytes at a time still make a whole file',
    async (shortBy) => {
      fault.shortBy = shortBy;
      await writeSafetensors(path, two);
      expect((await readSafetensors(path)).tensors.w.data).toEqual(two.w.data);
      fault.shortBy = 0;
      expect(new Uint8Array(readFileSync(path))).toEqual(toSafetensors(two));
      expect(existsSync(path)).toBe(true);
    },
  );
});
