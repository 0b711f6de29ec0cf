import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';

declare module 'vitest' {
  interface ProvidedContext {
    /** The packed package, built as a release is. */
    tarball: string;
  }
}

/**
 * Builds the prebuilt binary and the JavaScript, and packs them once for all files of this folder. As a
 * release is but for one thing: its GPUs are two instead of all, which would take a quarter of an hour.
 */
export default function setup(project: TestProject): () => void {
  const root = project.vitest.config.root;
  const builds = createRequire(join(root, 'package.json'))('./scripts/build-native.cjs');
  const env = { VARLEN_CUDA_ARCHS: builds.TEST_ARCHS, ...process.env };
  const run = (...args: string[]) =>
    execFileSync('npm', args, { cwd: root, encoding: 'utf8', stdio: 'pipe', env });
  run('run', 'build:ts');
  run('run', 'build:prebuilds');
  const folder = mkdtempSync(join(tmpdir(), 'varlen-pack-'));
  const [pack] = JSON.parse(run('pack', '--json', '--pack-destination', folder));
  project.provide('tarball', join(folder, pack.filename));
  return () => rmSync(folder, { recursive: true, force: true });
}
