'use strict';
// The native tests and the addon under Node with address + undefined-behaviour and then with thread
// sanitizers, ranks in processes of their own likewise, and every allocation of the addon made to fail in
// turn. Ends with `N passed, N failed`.
//
//   node .ci/sanitize.cjs [address] [thread] [dist-address] [dist-thread] [malloc]     default: all
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { workFolder } = require('../scripts/build-native.cjs');

const root = path.resolve(__dirname, '..');
const node = process.execPath;
const library = (name) =>
  fs.realpathSync(execFileSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim());

// A request that no machine can meet must fail as it does without a sanitizer.
const common = 'allocator_may_return_null=1';
const SANITIZERS = {
  address: {
    // libstdc++ beside it, so that the addon's exceptions are intercepted. Node has no leaks here, and
    // a pattern for it would hide ours; vitest's bundler has, and is named in the file.
    // With gcc 12 the leak check dies on the thread-local memory of live threads unless it leaves
    // __tls_get_addr alone; it still finds what such memory points to.
    preload: ['libasan.so', 'libstdc++.so'],
    env: {
      ASAN_OPTIONS: `detect_leaks=1:intercept_tls_get_addr=0:${common}`,
      LSAN_OPTIONS: `suppressions=${path.join(__dirname, 'lsan.supp')}:print_suppressions=0`,
      UBSAN_OPTIONS: 'print_stacktrace=1',
    },
  },
  thread: {
    preload: ['libtsan.so'],
    env: { TSAN_OPTIONS: `ignore_noninstrumented_modules=1:halt_on_error=1:${common}` },
  },
};

function step(title, command, args, env = {}) {
  console.log(`--- ${title}`);
  const { status } = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: 'inherit',
  });
  return { title, ok: status === 0 };
}

function vitest(title, folders, env) {
  const args = ['node_modules/vitest/vitest.mjs', 'run', '--project=source', ...folders];
  // Everything is several times slower; the limits of the tests are for the plain build.
  return step(title, node, [...args, '--testTimeout=600000', '--typecheck.enabled=false'], env);
}

function sanitize(name) {
  const { preload, env } = SANITIZERS[name];
  const build = { VARLEN_SANITIZE: name, VARLEN_CUDA: 'OFF' };
  // The loader looks for build/Release below VARLEN_PREBUILD.
  const place = path.join(root, 'build-cmake', name);
  const script = path.join(root, 'scripts/build-native.cjs');
  const built = [
    step(`${name}: build the tests`, node, [script, '--target', 'varlen_tests'], build),
    step(`${name}: build the emulated GPU`, node, [script, '--target', 'varlen_emulated'], build),
    step(`${name}: build the addon`, node, [script, '--out', path.join(place, 'build/Release')], build),
  ];
  if (!built.every(({ ok }) => ok)) return built;
  const tests = path.join(workFolder('Release', { sanitize: name }), 'varlen_tests');
  return [
    ...built,
    // Without address space randomisation: the thread sanitizer cannot place its shadow everywhere.
    step(`${name}: native tests`, 'setarch', ['-R', tests], env),
    vitest(`${name}: the addon under Node`, ['test/native', 'test/tensor', 'test/autograd', 'test/ops'], {
      ...env,
      LD_PRELOAD: preload.map(library).join(' '),
      VARLEN_PREBUILD: place,
      VARLEN_FLAVOUR: name,
    }),
  ];
}

// Whose ranks load the second binary.
const DIST_TESTS = ['faults', 'gloo', 'init', 'launch', 'nccl'].map((name) => `test/dist/${name}.test.ts`);

/**
 * The second binary in jobs of several processes, which inherit sanitizer and binary by their environment;
 * the kernels beside it are the plain ones. A rank may be killed after its report, or be expected to fail:
 * so reports are files, and one is a failure whatever the tests say.
 *
 * Gloo is the system's library and not instrumented: of what it reads and writes itself, only its calls of
 * the C library are seen.
 */
function sanitizeDist(name) {
  const { preload, env } = SANITIZERS[name];
  const build = { VARLEN_SANITIZE: name, VARLEN_CUDA: 'OFF' };
  const script = path.join(root, 'scripts/build-native.cjs');
  const built = [
    step(`${name}: build the second binary`, node, [script, '--target', 'varlen_dist'], build),
    step(`${name}: build the kernels`, node, [path.join(root, 'scripts/ensure-built.cjs')]),
  ];
  if (!built.every(({ ok }) => ok)) return built;
  const place = path.join(root, 'build-cmake', `dist-${name}`);
  const binaries = path.join(place, 'build/Release');
  const reports = path.join(place, 'reports');
  fs.rmSync(place, { recursive: true, force: true });
  for (const folder of [binaries, reports]) fs.mkdirSync(folder, { recursive: true });
  fs.copyFileSync(path.join(root, 'build/Release/varlen.node'), path.join(binaries, 'varlen.node'));
  const sanitized = path.join(workFolder('Release', { sanitize: name }), 'varlen_dist.node');
  fs.copyFileSync(sanitized, path.join(binaries, 'varlen_dist.node'));
  const options = Object.entries(env).map(([key, value]) =>
    key === 'LSAN_OPTIONS' ? [key, value] : [key, `${value}:log_path=${reports}/report`],
  );
  const tests = vitest(`${name}: ranks in processes`, DIST_TESTS, {
    ...Object.fromEntries(options),
    LD_PRELOAD: preload.map(library).join(' '),
    VARLEN_PREBUILD: place,
    VARLEN_FLAVOUR: name,
  });
  const written = fs.readdirSync(reports);
  for (const file of written) console.log(fs.readFileSync(path.join(reports, file), 'utf8'));
  return [...built, tests, { title: `${name}: no report of any rank`, ok: written.length === 0 }];
}

const parts = {
  address: () => sanitize('address'),
  thread: () => sanitize('thread'),
  'dist-address': () => sanitizeDist('address'),
  'dist-thread': () => sanitizeDist('thread'),
  malloc: () => [vitest('every allocation fails', ['test/native/out-of-memory'], { VARLEN_TEST_FULL: '1' })],
};

const asked = process.argv.slice(2);
const results = (asked.length === 0 ? Object.keys(parts) : asked).flatMap((part) => parts[part]());
const failed = results.filter(({ ok }) => !ok);
for (const { title } of failed) console.log(`failed: ${title}`);
console.log(`${results.length - failed.length} passed, ${failed.length} failed`);
process.exit(failed.length === 0 ? 0 : 1);
