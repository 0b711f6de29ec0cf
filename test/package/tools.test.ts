import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { packageRoot } from '../../src/native/load.js';
import { Consumer } from './consumer.js';

const binary = `prebuilds/${process.platform}-${process.arch}/varlen.glibc.node`;
const bin = (name: string) => join(packageRoot, 'node_modules/.bin', name);

function run(program: string, args: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(program, args, { cwd: packageRoot, encoding: 'utf8' });
  return { status, output: stdout + stderr };
}

describe('the packed package', () => {
  test('satisfies publint --strict', () => {
    const { status, output } = run(bin('publint'), ['--strict', inject('tarball')]);
    expect(status, output).toBe(0);
  });

  test('resolves alike from every kind of TypeScript project (attw)', () => {
    const folder = mkdtempSync(join(tmpdir(), 'varlen-attw-'));
    const copy = join(folder, basename(inject('tarball'))); // attw may delete what it read
    copyFileSync(inject('tarball'), copy);
    // node10 cannot read "exports"; every supported Node does.
    const { status, output } = run(bin('attw'), [copy, '--profile', 'node16', '--format', 'ascii']);
    rmSync(folder, { recursive: true });
    expect(status, output).toBe(0);
  });

  test('holds the expected files, within the byte budgets, and names no folder of this machine', () => {
    const { status, output } = run(process.execPath, ['scripts/check-pack.cjs']);
    expect(status, output).toBe(0);
  });

  test('declares no install script and no platform', () => {
    const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
    for (const name of ['preinstall', 'install', 'postinstall', 'prepare', 'prebuild']) {
      expect(manifest.scripts).not.toHaveProperty(name);
    }
    expect(manifest.gypfile).toBe(false);
    for (const field of ['os', 'cpu', 'libc', 'type']) expect(manifest).not.toHaveProperty(field);
    expect(Object.keys(manifest.dependencies).sort()).toEqual([
      'node-addon-api',
      'node-api-headers',
      'node-gyp-build',
    ]);
  });
});

describe('the prebuilt binary', () => {
  test('loads from glibc 2.28 on and needs only the C library', () => {
    const { status, output } = run(process.execPath, ['scripts/glibc-floor.cjs', binary]);
    expect(status, output).toBe(0);
    expect(output).toMatch(/^glibc 2\.(1\d|2[0-8]);/);
  });

  test('exports nothing but what Node asks for', () => {
    const exported = execFileSync('objdump', ['-T', join(packageRoot, binary)], { encoding: 'utf8' })
      .split('\n')
      .filter((line) => /\sg\s+DF\s+\.text\s/.test(line))
      .map((line) => line.trim().split(/\s+/).at(-1));
    expect(exported.sort()).toEqual(['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
  });
});

describe('a bundle of esbuild', () => {
  const source = `import { Tensor } from 'varlen'; console.log(Tensor.from(Float32Array.of(1, 2)).shape.join());`;
  let consumer: Consumer;
  const bundle = (out: string, ...flags: string[]) => {
    const args = ['entry.mjs', '--bundle', '--platform=node', `--outfile=${out}`, ...flags];
    execFileSync(bin('esbuild'), args, { cwd: consumer.folder, stdio: 'pipe' });
    return consumer.run('node', [out]);
  };
  beforeAll(() => {
    consumer = new Consumer({
      'entry.mjs': source,
      'literal.mjs': `import 'varlen/linux-x64'; ${source}`,
    });
    consumer.install();
  });
  afterAll(() => rmSync(consumer.folder, { recursive: true, force: true }));

  test('works with the package external', () => {
    expect(bundle('external.mjs', '--format=esm', '--external:varlen').stdout).toBe('2\n');
  });

  test('fails with the package inlined as ESM, as the guide says', () => {
    const { status, output } = bundle('inlined.mjs', '--format=esm');
    expect(status).not.toBe(0);
    expect(output).toContain('Dynamic require of');
  });

  test.runIf(process.arch === 'x64')('carries the binary along through varlen/linux-x64', () => {
    const args = [
      'literal.mjs',
      '--bundle',
      '--platform=node',
      '--loader:.node=copy',
      '--outdir=bundled',
      '--format=cjs',
    ];
    execFileSync(bin('esbuild'), args, { cwd: consumer.folder, stdio: 'pipe' });
    rmSync(consumer.installed, { recursive: true });
    expect(consumer.run('node', ['bundled/literal.js']).output).toBe('2\n');
  });
});
