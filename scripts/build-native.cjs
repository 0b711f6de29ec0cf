'use strict';
// Builds the native binary: npm run build:native, binding.gyp and `varlen build` all end here.
//
//   node scripts/build-native.cjs [Release|Debug|--debug] [--out DIR] [--target NAME] [--release]
//
// --out      where varlen.node goes; default build/<Config>
// --target   builds varlen_tests, varlen_bench or varlen_bench_<name> instead and copies nothing
// --release  as prebuilds are: every instruction set, every GPU of the list, glibc floor (also VARLEN_RELEASE=1)
//
// VARLEN_CUDA, VARLEN_CUDA_ARCHS, VARLEN_SANITIZE and VARLEN_ALL_ISAS are handed to CMake.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.resolve(__dirname, '..');

/** The GPUs that tests compile for: one of each family of kernels. All of a release take a quarter of an hour. */
const TEST_ARCHS = '80-real;90a-real';

/** What a build needs from the system, and the packages that bring it. */
const SYSTEM_TOOLS = {
  'a C++20 compiler (g++ or clang++)': {
    debian: 'g++',
    fedora: 'gcc-c++',
    found: () => compiler() !== undefined,
  },
  'cmake 3.24 or newer': { debian: 'cmake', fedora: 'cmake', found: () => atLeast(cmakeVersion(), [3, 24]) },
  'make or ninja': { debian: 'make', fedora: 'make', found: () => runs('ninja') || runs('make') },
  'hwy/highway.h (Google Highway)': {
    debian: 'libhwy-dev',
    fedora: 'highway-devel',
    found: () => hasHeader('hwy/highway.h'),
  },
};

function runs(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function compiler() {
  return [process.env.CXX, 'c++', 'g++', 'clang++'].find((name) => name && runs(name));
}

/** True when the compiler finds `<header>`. */
function hasHeader(header) {
  const cxx = compiler();
  if (cxx === undefined) return false;
  const flags = ['-std=c++20', '-E', '-x', 'c++', '-'];
  const input = `#if !__has_include(<${header}>)\n#error\n#endif\n`;
  return spawnSync(cxx, flags, { input, stdio: ['pipe', 'ignore', 'ignore'] }).status === 0;
}

function cmakeVersion() {
  const output = spawnSync('cmake', ['--version'], { encoding: 'utf8' }).stdout ?? '';
  return /version (\d+)\.(\d+)/.exec(output)?.slice(1).map(Number) ?? [0, 0];
}

function atLeast([major, minor], [wantMajor, wantMinor]) {
  return major > wantMajor || (major === wantMajor && minor >= wantMinor);
}

/** The entries of `tools` that this system lacks: `[[what, { debian, fedora }], ...]`. */
function missingTools(tools = SYSTEM_TOOLS) {
  return Object.entries(tools).filter(([, tool]) => !tool.found());
}

/** One line for the user about `missingTools()`. */
function describeMissing(missing) {
  const packagesOf = (system) => missing.map(([, tool]) => tool[system]).join(' ');
  return (
    `missing ${missing.map(([what]) => what).join(', ')}; ` +
    `Debian, Ubuntu: apt-get install ${packagesOf('debian')}; Fedora: dnf install ${packagesOf('fedora')}`
  );
}

/** The folder in which CMake works. Not inside build/: `node-gyp rebuild` deletes that one. */
function workFolder(config, { release = false, sanitize = '' } = {}) {
  return path.join(root, 'build-cmake', release ? 'prebuilds' : sanitize, config);
}

function parseArguments(args) {
  const valueAfter = (flag) => (args.includes(flag) ? args[args.indexOf(flag) + 1] : undefined);
  const config = args.includes('--debug') || args.includes('Debug') ? 'Debug' : 'Release';
  return {
    config,
    out: path.resolve(root, valueAfter('--out') ?? path.join('build', config)),
    target: valueAfter('--target') ?? 'varlen',
    release: args.includes('--release') || process.env.VARLEN_RELEASE === '1',
  };
}

/**
 * Every option is passed at every run, and none is empty: CMake keeps the cached value of an option that
 * is left out, and cmake-js leaves out the empty ones.
 */
function cmakeOptions(release) {
  const { env } = process;
  const nvcc = release && runs(env.CUDACXX || 'nvcc');
  return {
    VARLEN_CUDA: env.VARLEN_CUDA || (nvcc ? 'ON' : 'AUTO'),
    VARLEN_CUDA_ARCHS: env.VARLEN_CUDA_ARCHS || (release ? 'release' : 'local'),
    VARLEN_SANITIZE: env.VARLEN_SANITIZE || 'OFF',
    VARLEN_ALL_ISAS: release || env.VARLEN_ALL_ISAS === '1' ? 'ON' : 'OFF',
    VARLEN_GLIBC_FLOOR_DIR: 'OFF',
    // A newer compiler's new warning must not stop a user; ours is stopped.
    CMAKE_COMPILE_WARNING_AS_ERROR: fs.existsSync(path.join(root, 'test')) ? 'ON' : 'OFF',
  };
}

function run(command, args) {
  const env = { ...process.env };
  delete env.MAKEFLAGS; // gyp's make would hand its job server down
  delete env.MAKELEVEL;
  env.CMAKE_BUILD_PARALLEL_LEVEL ??= String(os.availableParallelism());
  const { status } = spawnSync(command, args, { stdio: ['ignore', 2, 2], env });
  if (status !== 0) {
    console.error(`ERR_VARLEN_BUILD_FAILED: native build failed (exit ${status})`);
    process.exit(status || 1);
  }
}

/** Absent in an installed package: cmake-js is a development dependency. */
function cmakeJs() {
  try {
    return require.resolve('cmake-js/bin/cmake-js');
  } catch {
    return undefined;
  }
}

function readCache(work, name) {
  const cache = path.join(work, 'CMakeCache.txt');
  if (!fs.existsSync(cache)) return undefined;
  return new RegExp(`^${name}:[A-Z]+=(.*)$`, 'm').exec(fs.readFileSync(cache, 'utf8'))?.[1];
}

function configureAndBuild(work, config, target, options) {
  const generator = runs('ninja') ? 'Ninja' : 'Unix Makefiles';
  const stale = readCache(work, 'CMAKE_GENERATOR') ?? generator;
  const movedFrom = readCache(work, 'CMAKE_HOME_DIRECTORY') ?? root;
  if (stale !== generator || movedFrom !== root) fs.rmSync(work, { recursive: true, force: true });

  const driver = cmakeJs();
  if (driver === undefined) {
    const defines = Object.entries(options).map(([name, value]) => `-D${name}=${value}`);
    run('cmake', ['-S', root, '-B', work, '-G', generator, `-DCMAKE_BUILD_TYPE=${config}`, ...defines]);
    run('cmake', ['--build', work, '--target', target]);
    return;
  }
  const common = ['-d', root, '-O', work, '-B', config, '-G', generator, '--log-level', 'warn'];
  const defines = Object.entries(options).map(([name, value]) => `--CD${name}=${value}`);
  // `build` alone would configure only once and keep its options for ever.
  run(process.execPath, [driver, 'configure', ...common, ...defines]);
  run(process.execPath, [driver, 'build', ...common, '-T', target, ...defines]);
}

/** Puts a built binary into `out`. */
function install(binary, out) {
  fs.mkdirSync(out, { recursive: true });
  const destination = path.join(out, path.basename(binary));
  // A process may have the old file mapped, another may start right now: never write into it.
  const copy = `${destination}.${process.pid}`;
  fs.copyFileSync(binary, copy);
  fs.renameSync(copy, destination);
  return destination;
}

function main() {
  const started = Date.now();
  const { config, out, target, release } = parseArguments(process.argv.slice(2));
  const missing = missingTools();
  if (missing.length > 0) {
    console.error(`ERR_VARLEN_BUILD_TOOLS: ${describeMissing(missing)}`);
    process.exit(1);
  }
  const work = workFolder(config, { release, sanitize: process.env.VARLEN_SANITIZE });
  const options = cmakeOptions(release);
  configureAndBuild(work, config, target, options);
  if (target !== 'varlen') return;

  const binary = path.join(work, 'varlen.node');
  if (release && process.platform === 'linux') {
    const { makeStubs } = require('./glibc-floor.cjs');
    const stubs = path.join(root, 'build-cmake', 'glibc-floor');
    makeStubs(binary, stubs);
    configureAndBuild(work, config, target, { ...options, VARLEN_GLIBC_FLOOR_DIR: stubs });
  }
  const destination = install(binary, out);
  const gloo = readCache(work, 'VARLEN_DIST_STATE') ?? 'off';
  if (gloo === 'on') {
    configureAndBuild(work, config, 'varlen_dist', options);
    install(path.join(work, 'varlen_dist.node'), out);
  } else {
    fs.rmSync(path.join(out, 'varlen_dist.node'), { force: true });
  }
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  const cuda = readCache(work, 'VARLEN_CUDA_STATE');
  const parts = `cuda: ${cuda}; gloo: ${gloo}`;
  console.error(`varlen: built ${path.relative(root, destination)} in ${seconds} s (${parts})`);
}

module.exports = { SYSTEM_TOOLS, TEST_ARCHS, missingTools, describeMissing, hasHeader, workFolder };
if (require.main === module) main();
