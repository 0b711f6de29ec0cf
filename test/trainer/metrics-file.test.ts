import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MetricsFile, readMetrics } from '../../src/trainer/metrics-file.js';
import type { TrainRecord } from '../../src/trainer/records.js';
import { thrown } from '../support/thrown.js';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-metrics-'));
  path = join(folder, 'metrics.jsonl');
});
afterEach(() => rmSync(folder, { recursive: true }));

const record = (step: number) => ({ phase: 'sft', step }) as TrainRecord;

test('a file holds every record as soon as it is written', () => {
  using file = new MetricsFile(path, 0);
  file.write(record(1));
  file.write(record(2));
  expect(readFileSync(path, 'utf8')).toBe('{"phase":"sft","step":1}\n{"phase":"sft","step":2}\n');
  expect(file.bytes).toBe(50);
  expect(readMetrics(path)).toEqual([record(1), record(2)]);
});

test('opened at a length it forgets what came after, even half a line', () => {
  let bytes: number;
  {
    using file = new MetricsFile(path, 0);
    file.write(record(1));
    ({ bytes } = file);
    file.write(record(2));
  }
  writeFileSync(path, `${readFileSync(path, 'utf8')}{"phase":"s`);
  using file = new MetricsFile(path, bytes);
  file.write(record(3));
  expect(readMetrics(path)).toEqual([record(1), record(3)]);
});

test('a file that cannot be opened or read, and a line that is none', () => {
  expect(thrown(() => new MetricsFile(join(folder, 'no/file'), 0))).toMatchObject({ code: 'ERR_VARLEN_IO' });
  // A file that should have been there for its beginning.
  expect(thrown(() => new MetricsFile(path, 10))).toMatchObject({ code: 'ERR_VARLEN_IO' });
  expect(thrown(() => readMetrics(path))).toMatchObject({ code: 'ERR_VARLEN_IO' });
  writeFileSync(path, '{}\noops\n');
  expect(thrown(() => readMetrics(path))).toMatchObject({ code: 'ERR_VARLEN_DATA', details: { line: 2 } });
});
