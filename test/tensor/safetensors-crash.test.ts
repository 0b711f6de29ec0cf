import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildSync } from 'esbuild';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readSafetensors, writeSafetensors } from '../../src/tensor/index.js';

const points = process.env.VARLEN_TEST_FULL === '1' ? 10_000 : 200;
const root = join(import.meta.dirname, '..', '..');

let folder: string;
let program: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-crash-'));
  program = join(folder, 'save.cjs');
  // Bundled: the sources start in a tenth of the time that compiling them at every start would take.
  buildSync({
    stdin: {
      contents: `
        import { writeSafetensors } from './src/tensor/safetensors-file.js';
        const [path, first] = process.argv.slice(2);
        async function save() {
          for (let generation = Number(first); ; generation++) {
            const data = new Float32Array(20_000).fill(generation);
            await writeSafetensors(path, { weight: { data, shape: [data.length] } }, { generation: String(generation) });
            process.stdout.write(generation + '\\n');
          }
        }
        void save();`,
      resolveDir: root,
      loader: 'ts',
    },
    bundle: true,
    platform: 'node',
    target: 'node20',
    outfile: program,
    logLevel: 'error',
  });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Kills a process that saves without pause, `delayMs` after its first save; the last save it reported. */
async function killWhileSaving(path: string, first: number, delayMs: number): Promise<number> {
  const child: ChildProcess = spawn(process.execPath, [program, path, String(first)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  await once(child.stdout!, 'data');
  setTimeout(() => child.kill('SIGKILL'), delayMs);
  await once(child, 'close');
  const complete = said.slice(0, said.lastIndexOf('\n')).split('\n');
  return Number(complete[complete.length - 1]);
}

test(`kill -9 at ${points} moments of a save leaves the old file or the new one, never a broken one`, {
  timeout: 3_600_000,
}, async () => {
  const path = join(folder, 'state.safetensors');
  await writeSafetensors(
    path,
    { weight: { data: new Float32Array(20_000), shape: [20_000] } },
    { generation: '0' },
  );
  let last = 0;
  for (let point = 0; point < points; point++) {
    // A save takes some milliseconds: the delays walk through several of them in fractions.
    const reported = await killWhileSaving(path, last + 1, (point * 0.37) % 12);
    const { tensors, metadata } = await readSafetensors(path);
    const generation = Number(metadata.generation);
    // The one reported last, or the next, which may have taken the name before it could be reported.
    expect([reported, reported + 1]).toContain(generation);
    expect(tensors.weight.data.every((x) => x === generation)).toBe(true);
    last = generation;
  }
});
