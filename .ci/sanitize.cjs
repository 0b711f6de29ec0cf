'use strict';
// Builds the native tests and the addon with address + undefined-behaviour and then with thread
// sanitizers, and runs the C++ tests and the native folders of the suite under each.
const { execFileSync, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { workFolder } = require('../scripts/build-native.cjs');

const root = path.resolve(__dirname, '..');
const library = (name) =>
  fs.realpathSync(execFileSync('g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim());

// Node's own allocations at exit are not ours: only leaks whose stack names the addon count.
const suppressions = path.join(__dirname, 'lsan.supp');
const SANITIZERS = {
  address: {
    // libstdc++ before the addon's exceptions, so that they are intercepted
    preload: ['libasan.so', 'libstdc++.so'],
    env: {
      ASAN_OPTIONS: 'detect_leaks=1',
      LSAN_OPTIONS: `suppressions=${suppressions}`,
      UBSAN_OPTIONS: 'print_stacktrace=1',
    },
  },
  thread: {
    preload: ['libtsan.so'],
    env: { TSAN_OPTIONS: 'ignore_noninstrumented_modules=1:halt_on_error=1' },
  },
};

function step(title, command, args, env) {
  console.log(`--- ${title}`);
  const { status } = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: 'inherit',
  });
  return { title, ok: status === 0 };
}

function sanitize(name) {
  const { preload, env } = SANITIZERS[name];
  const build = { VARLEN_SANITIZE: name, VARLEN_CUDA: 'OFF' };
  // node-gyp-build looks for build/Release below VARLEN_PREBUILD.
  const place = path.join(root, 'build-cmake', name);
  const script = path.join(root, 'scripts/build-native.cjs');
  const node = process.execPath;
  const built = [
    step(`${name}: build the tests`, node, [script, '--target', 'varlen_tests'], build),
    step(`${name}: build the addon`, node, [script, '--out', path.join(place, 'build/Release')], build),
  ];
  if (!built.every(({ ok }) => ok)) return built;
  return [
    ...built,
    step(
      `${name}: native tests`,
      path.join(workFolder('Release', { sanitize: name }), 'varlen_tests'),
      [],
      env,
    ),
    step(
      `${name}: the addon under Node`,
      node,
      ['node_modules/vitest/vitest.mjs', 'run', '--project=source', 'test/native', 'test/tensor', 'test/ops'],
      { ...env, LD_PRELOAD: preload.map(library).join(' '), VARLEN_PREBUILD: place },
    ),
  ];
}

const results = Object.keys(SANITIZERS).flatMap(sanitize);
const failed = results.filter(({ ok }) => !ok);
for (const { title } of failed) console.log(`failed: ${title}`);
console.log(`${results.length - failed.length} passed, ${failed.length} failed`);
process.exit(failed.length === 0 ? 0 : 1);
