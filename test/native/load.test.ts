import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { VarlenLoadError } from '../../src/errors.js';
import { type Host, loadBinary, loadNative, packageRoot } from '../../src/native/load.js';
import { VERSION } from '../../src/native/version.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-load-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A package folder of its own for one test, with the given files in it. */
function hostWith(files: Record<string, (path: string) => void> = {}, over: Partial<Host> = {}): Host {
  const root = mkdtempSync(join(folder, 'root-'));
  for (const [name, write] of Object.entries(files)) {
    const path = join(root, name);
    mkdirSync(dirname(path), { recursive: true });
    write(path);
  }
  return { platform: 'linux', arch: process.arch, glibc: '2.36', root, ...over };
}

function cc(args: string[], source?: string): void {
  // A preloaded sanitizer would report the compiler's leaks.
  const env = { ...process.env, LD_PRELOAD: '' };
  execFileSync('cc', [...args, ...(source === undefined ? [] : ['-x', 'c', '-'])], {
    input: source ?? '',
    env,
  });
}

const headers = createRequire(import.meta.url)('node-api-headers').include_dir as string;
const fakeAddon = join(import.meta.dirname, 'fake-addon.c');
const addon =
  (...defines: string[]) =>
  (path: string) =>
    cc(['-shared', '-fPIC', `-I${headers}`, ...defines, '-o', path, fakeAddon]);
const addonOf = (version: string) => addon(`-DVERSION="${version}"`);

function failure(host: Host): VarlenLoadError {
  try {
    loadBinary(host);
  } catch (error) {
    expect(error).toBeInstanceOf(VarlenLoadError);
    return error as VarlenLoadError;
  }
  throw new Error('the load succeeded');
}

const prebuilt = `prebuilds/${process.platform}-${process.arch}`;

describe('a binary that is there', () => {
  test('is loaded from build/Release before prebuilds', () => {
    const host = hostWith({
      'build/Release/varlen.node': addonOf(VERSION),
      [`${prebuilt}/varlen.glibc.node`]: addonOf('0.0.0'),
    });
    expect(loadBinary(host)).toEqual({ version: VERSION });
  });

  test('is loaded from prebuilds', () => {
    const host = hostWith({ [`${prebuilt}/varlen.glibc.node`]: addonOf(VERSION) });
    expect(loadBinary(host)).toEqual({ version: VERSION });
  });

  test.each([
    ['varlen.glibc.node', 'varlen_dist.glibc.node'],
    ['varlen_dist.glibc.node', 'varlen.glibc.node'],
  ])('is told from varlen_dist in the same folder (%s written first)', (first, second) => {
    const write = (name: string) => (name.startsWith('varlen.') ? addonOf(VERSION) : addonOf('dist'));
    const host = hostWith({
      [`${prebuilt}/${first}`]: write(first),
      [`${prebuilt}/${second}`]: write(second),
    });
    expect(loadBinary(host)).toEqual({ version: VERSION });
  });

  test('of this package loads once and carries the version of package.json', () => {
    const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
    expect(VERSION).toBe(version);
    expect(loadNative()).toBe(loadNative());
    expect(loadNative()).toMatchObject({ version });
  });
});

describe('ERR_VARLEN_NO_BINARY', () => {
  test('names platform, libc, Node version, every path tried and the way out', () => {
    const host = hostWith({}, { arch: 'arm64' });
    const { code, message, details } = failure(host);
    expect(code).toBe('ERR_VARLEN_NO_BINARY');
    expect(message).toContain(`linux-arm64, glibc, Node ${process.versions.node}`);
    for (const path of details.tried as string[]) expect(message).toContain(path);
    expect(details.tried).toContain(join(host.root, 'prebuilds/linux-arm64/varlen.glibc.node'));
    expect(message).toContain('`npx varlen build` compiles it here');
  });

  test('calls a source build experimental away from Linux', () => {
    expect(failure(hostWith({}, { platform: 'darwin', glibc: undefined })).message).toContain(
      'experimentally on this platform',
    );
  });

  test('is thrown when only varlen_dist is there', () => {
    const host = hostWith({ [`${prebuilt}/varlen_dist.glibc.node`]: addonOf(VERSION) });
    expect(failure(host).code).toBe('ERR_VARLEN_NO_BINARY');
  });
});

test('a file that is no library is ERR_VARLEN_LOAD with the loader’s own reason as cause', () => {
  const host = hostWith({ 'build/Release/varlen.node': (path) => writeFileSync(path, 'not ELF') });
  const error = failure(host);
  expect(error.code).toBe('ERR_VARLEN_LOAD');
  expect(error.details.path).toBe(join(host.root, 'build/Release/varlen.node'));
  expect((error.cause as Error).message).toMatch(/file too short|invalid ELF header/);
  expect(error.message).toContain((error.cause as Error).message);
});

/** A library that needs `symbol` of `soname` in `version`, which no system has. */
function needing(soname: string, version: string) {
  return (path: string) => {
    const stub = join(dirname(path), soname);
    const map = join(dirname(path), 'stub.map');
    writeFileSync(map, `${version} { global: made_up; };`);
    cc(
      ['-shared', '-fPIC', '-nostdlib', `-Wl,-soname,${soname}`, `-Wl,--version-script,${map}`, '-o', stub],
      'void made_up(void) {}',
    );
    cc(
      ['-shared', '-fPIC', '-o', path, '-Wl,--no-as-needed', stub],
      'void made_up(void); void f(void) { made_up(); }',
    );
    rmSync(stub);
  };
}

test('a binary that needs a newer glibc is ERR_VARLEN_GLIBC_TOO_OLD with both versions', () => {
  const error = failure(hostWith({ 'build/Release/varlen.node': needing('libm.so.6', 'GLIBC_9.99') }));
  expect(error.code).toBe('ERR_VARLEN_GLIBC_TOO_OLD');
  expect(error.message).toMatch(/needs glibc 9\.99; got 2\.36/);
  expect(error.details).toMatchObject({ needed: '9.99', found: '2.36' });
});

describe('ERR_VARLEN_MUSL', () => {
  test('is a binary of musl on glibc', () => {
    const error = failure(
      hostWith({ 'build/Release/varlen.node': needing('libc.musl-x86_64.so.1', 'MUSL_1') }),
    );
    expect(error.code).toBe('ERR_VARLEN_MUSL');
    expect(error.message).toContain('use a glibc-based image');
  });

  test('is any binary that does not load where the report names no glibc', () => {
    const write = (path: string) => writeFileSync(path, 'not ELF');
    expect(failure(hostWith({ 'build/Release/varlen.node': write }, { glibc: undefined })).code).toBe(
      'ERR_VARLEN_MUSL',
    );
  });
});

test('a CPU below the baseline is ERR_VARLEN_UNSUPPORTED_CPU with the feature that the binary names', () => {
  const error = failure(hostWith({ 'build/Release/varlen.node': addon('-DREFUSE') }));
  expect(error.code).toBe('ERR_VARLEN_UNSUPPORTED_CPU');
  expect(error.message).toContain('SSE4.2');
});

test('a binary of another version is ERR_VARLEN_VERSION_MISMATCH and names the stale build', () => {
  const error = failure(hostWith({ 'build/Release/varlen.node': addonOf('0.0.1') }));
  expect(error.code).toBe('ERR_VARLEN_VERSION_MISMATCH');
  expect(error.message).toContain(`got 0.0.1, expected ${VERSION}`);
  expect(error.message).toContain('delete build/');
});
