import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import { type VarlenError, varlenError } from '../errors.js';
import { VERSION } from './version.js';

/** What a load failure depends on beside the files. */
export interface Host {
  platform: string;
  arch: string;
  /** Version of glibc that runs this process; undefined on musl and away from Linux. */
  readonly glibc: string | undefined;
  /** Where the binary is looked for: VARLEN_PREBUILD, else the package's own folder. */
  root: string;
}

/** The package's folder: two above this file, in src/ as in lib/. Nothing else computes it. */
export const packageRoot: string = join(__dirname, '..', '..');

let native: unknown;

/**
 * The native binary, loaded at the first call. Importing the package loads nothing.
 *
 * @throws VarlenLoadError with one of six codes, each with a line on what to do
 */
export function loadNative(): unknown {
  native ??= loadBinary(thisHost());
  return native;
}

/** Hands over a binary that a bundler has placed; used by the entry point `varlen/linux-x64`. */
export function provideNative(binary: unknown): void {
  native ??= checkVersion(binary, 'the bundled binary');
}

/** @internal Finds, loads and checks the binary of `host`, without a cache. */
export function loadBinary(host: Host): unknown {
  const path = findBinary(host);
  if (path === undefined) throw noBinary(host);
  return checkVersion(openBinary(path, host), path);
}

function thisHost(): Host {
  return {
    platform: process.platform,
    arch: process.arch,
    get glibc() {
      return glibcVersion(); // costs a millisecond; only failures ask
    },
    root: process.env.VARLEN_PREBUILD || packageRoot,
  };
}

// Makes Node's diagnostic report, of which only the header is wanted; the network part is slow.
function glibcVersion(): string | undefined {
  if (process.platform !== 'linux') return undefined;
  const report = process.report as typeof process.report & { excludeNetwork?: boolean };
  const before = report.excludeNetwork;
  report.excludeNetwork = true;
  const { header } = report.getReport() as { header: { glibcVersionRuntime?: string } };
  report.excludeNetwork = before ?? false;
  return header.glibcVersionRuntime;
}

function findBinary(host: Host): string | undefined {
  try {
    const path = nodeGypBuild.resolve(host.root);
    // It looks at tags, not at names: with two binaries in one folder it may answer the other one.
    if (basename(path).startsWith('varlen.')) return path;
  } catch {
    return undefined; // its message lacks our hint; noBinary() says the same and more
  }
  const path = prebuiltPath(host);
  return existsSync(path) ? path : undefined;
}

function libcOf(host: Host): string {
  if (host.platform !== 'linux') return '';
  return host.glibc === undefined ? 'musl' : 'glibc';
}

function prebuiltPath(host: Host): string {
  const name = ['varlen', libcOf(host), 'node'].filter(Boolean).join('.');
  return join(host.root, 'prebuilds', `${host.platform}-${host.arch}`, name);
}

function noBinary(host: Host): VarlenError {
  const tried = [
    join(host.root, 'build', 'Release', 'varlen.node'),
    join(host.root, 'build', 'Debug', 'varlen.node'),
    prebuiltPath(host),
  ];
  const { platform, arch } = host;
  const libc = libcOf(host);
  const system = [`${platform}-${arch}`, libc, `Node ${process.versions.node}`].filter(Boolean).join(', ');
  const hint =
    platform === 'linux'
      ? '`npx varlen build` compiles it here'
      : '`npx varlen build` compiles it here, for the CPU only and experimentally on this platform';
  return varlenError(
    'ERR_VARLEN_NO_BINARY',
    `load: no native binary for ${system}; tried ${tried.join(', ')}; ${hint}`,
    { op: 'load', platform, arch, libc, node: process.versions.node, tried },
  );
}

function openBinary(path: string, host: Host): unknown {
  try {
    return createRequire(join(host.root, 'package.json'))(path);
  } catch (cause) {
    throw classify(cause, path, host);
  }
}

/** Why `path` does not load, as one of our errors. */
function classify(cause: unknown, path: string, host: Host): VarlenError {
  const { code, message } = cause as { code?: string; message: string };
  const details = { op: 'load', path };

  if (code === 'ERR_VARLEN_UNSUPPORTED_CPU') return varlenError(code, message, details, { cause });
  if (code === 'ERR_DLOPEN_FAILED') {
    const missing = /GLIBC_([\d.]+)' not found/.exec(message);
    if (missing) {
      const needed = missing[1];
      return varlenError(
        'ERR_VARLEN_GLIBC_TOO_OLD',
        `load: ${path} needs glibc ${needed}; got ${host.glibc}; use a newer system, or \`npx varlen build\` compiles it here`,
        { ...details, needed, found: host.glibc },
        { cause },
      );
    }
    const muslLoader = /musl|Error loading shared library|Error relocating/.test(message);
    if (host.platform === 'linux' && (host.glibc === undefined || muslLoader)) {
      return varlenError(
        'ERR_VARLEN_MUSL',
        `load: ${path} does not fit the C library of this system, one of them is musl: ${message}; use a glibc-based image (Debian, Ubuntu, Fedora)`,
        details,
        { cause },
      );
    }
  }
  return varlenError('ERR_VARLEN_LOAD', `load: ${path} does not load: ${message}`, details, { cause });
}

function checkVersion(binary: unknown, path: string): unknown {
  const found = (binary as { version?: unknown } | null)?.version;
  if (found === VERSION) return binary;
  throw varlenError(
    'ERR_VARLEN_VERSION_MISMATCH',
    `load: ${path} has the wrong version; got ${found}, expected ${VERSION}; a stale build: delete build/ or run \`npx varlen build\` again`,
    { op: 'load', path, found, expected: VERSION },
  );
}
