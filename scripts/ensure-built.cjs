'use strict';
// Makes `npm ci && npm run demo` and `npm ci && npm test` work on a fresh machine: installs missing
// system packages where it may, then runs only the build steps whose sources are newer than their output.
//
//   node scripts/ensure-built.cjs [--tests]     --tests: also what the tests need (doctest, python3)
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { SYSTEM_TOOLS, TEST_ARCHS, missingTools, describeMissing, hasHeader } = require('./build-native.cjs');

const root = path.resolve(__dirname, '..');

const TEST_TOOLS = {
  'doctest/doctest.h': {
    debian: 'doctest-dev',
    fedora: 'doctest-devel',
    found: () => hasHeader('doctest/doctest.h'),
  },
  'gloo/allreduce.h': {
    debian: 'libgloo-dev',
    fedora: 'gloo-devel',
    found: () => hasHeader('gloo/allreduce.h'),
  },
  'spin (model checker)': {
    debian: 'spin',
    fedora: 'spin',
    found: () => spawnSync('spin', ['-V'], { stdio: 'ignore' }).status === 0,
  },
  python3: {
    debian: 'python3',
    fedora: 'python3',
    found: () => spawnSync('python3', ['--version'], { stdio: 'ignore' }).status === 0,
  },
};

function succeeds(command, args) {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}

/** How apt-get can be called here: as root, with password-less sudo, or not at all. */
function aptGet() {
  if (!fs.existsSync('/etc/debian_version') || !succeeds('apt-get', ['--version'])) return undefined;
  if (process.getuid?.() === 0) return ['apt-get'];
  return succeeds('sudo', ['-n', 'true']) ? ['sudo', '-n', 'apt-get'] : undefined;
}

/** Installs what is missing from `tools`, or exits naming it. */
function ensureTools(tools) {
  const missing = missingTools(tools);
  if (missing.length === 0) return;
  const apt = aptGet();
  if (apt !== undefined) {
    const packages = missing.map(([, tool]) => tool.debian);
    console.error(`varlen: installing missing system packages: ${packages.join(' ')}`);
    const [command, ...prefix] = apt;
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    const call = (...args) => spawnSync(command, [...prefix, ...args], { stdio: ['ignore', 2, 2], env });
    const install = ['install', '-y', '--no-install-recommends', ...packages];
    if (call(...install).status !== 0) {
      call('update'); // a fresh image has no package lists
      call(...install);
    }
  }
  const still = missingTools(tools);
  if (still.length === 0) return;
  console.error(`ERR_VARLEN_BUILD_TOOLS: ${describeMissing(still)}`);
  process.exit(1);
}

/** Newest change below `name`, in ms; a folder counts too, so that a deleted file is seen. */
function newest(name) {
  const file = path.join(root, name);
  if (!fs.existsSync(file)) return 0;
  const stat = fs.statSync(file);
  if (!stat.isDirectory()) return stat.mtimeMs;
  return Math.max(stat.mtimeMs, ...fs.readdirSync(file).map((entry) => newest(path.join(name, entry))));
}

function isStale(output, sources) {
  const built = path.join(root, output);
  return !fs.existsSync(built) || Math.max(...sources.map(newest)) > fs.statSync(built).mtimeMs;
}

function runStep(command, args, env = {}) {
  const all = { ...process.env, ...env };
  const { status } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2], env: all });
  if (status !== 0) process.exit(status || 1);
}

function main() {
  const tests = process.argv.includes('--tests');
  ensureTools({ ...SYSTEM_TOOLS, ...(tests ? TEST_TOOLS : {}) });
  if (isStale('lib/index.js', ['src', 'tsconfig.json'])) {
    console.error('varlen: compiling src to lib');
    fs.rmSync(path.join(root, 'lib'), { recursive: true, force: true }); // a renamed file leaves no ghost
    runStep(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', '.']);
    runStep(process.execPath, ['scripts/build-index.cjs']);
  }
  if (isStale('build/Release/varlen.node', ['native', 'CMakeLists.txt', 'package.json', 'scripts'])) {
    // Tests take what a release is made of, so that it is compiled once for all of them.
    const archs = process.env.VARLEN_CUDA_ARCHS ?? TEST_ARCHS;
    if (tests)
      runStep(process.execPath, ['scripts/build-native.cjs', '--release'], { VARLEN_CUDA_ARCHS: archs });
    else runStep(process.execPath, ['scripts/build-native.cjs']);
  }
}

main();
