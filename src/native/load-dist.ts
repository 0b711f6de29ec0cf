/** Finds and loads the second binary, `varlen_dist`. Nothing but a Gloo process group asks for it. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { type VarlenError, varlenError } from '../errors.js';
import { packageRoot } from './load.js';
import { VERSION } from './version.js';

/** Folders and names under which the binary may lie, the first one wins. */
export function distCandidates(root: string): string[] {
  const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  return [
    join(root, 'build', 'Release', 'varlen_dist.node'),
    join(root, 'build', 'Debug', 'varlen_dist.node'),
    join(folder, 'varlen_dist.glibc.node'),
  ];
}

/**
 * Loads `varlen_dist` of the package in `root`.
 *
 * @throws `ERR_VARLEN_DIST_UNAVAILABLE` with every path tried, or with the loader's own reason
 */
export function loadDist(root: string = process.env.VARLEN_PREBUILD || packageRoot): unknown {
  const tried = distCandidates(root);
  const path = tried.find(existsSync);
  if (path === undefined) {
    throw unavailable(
      `there is no binary varlen_dist; tried ${tried.join(', ')}; \`npx varlen build\` compiles it where Gloo is installed (Debian, Ubuntu: apt-get install libgloo-dev)`,
      { tried },
    );
  }
  let binary: unknown;
  try {
    binary = createRequire(join(root, 'package.json'))(path);
  } catch (cause) {
    throw unavailable(`${path} does not load: ${(cause as Error).message}`, { path }, cause);
  }
  const found = (binary as { version?: unknown } | null)?.version;
  if (found === VERSION) return binary;
  const problem = `${path} has the wrong version; got ${found}, expected ${VERSION}; a stale build: run \`npx varlen build\` again`;
  throw unavailable(problem, { path, found, expected: VERSION });
}

function unavailable(problem: string, details: object, cause?: unknown): VarlenError {
  const options = cause === undefined ? undefined : { cause };
  const message = `gloo: ${problem}; the kernels are not affected, and localGroups and sharedGroupHandles need no library`;
  return varlenError('ERR_VARLEN_DIST_UNAVAILABLE', message, { op: 'init', ...details }, options);
}
