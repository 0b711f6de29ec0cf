'use strict';
// The tests of every op that has CUDA kernels, with device: 'cuda', on the GPU of this machine; and those
// too large for the emulator. Builds for that GPU first. Fails, does not skip, when no GPU answers.
// Ends with `N passed, N failed`.
//
//   node .ci/test-gpu.cjs
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { CUDA_OPS } = require('./cuda-ops.cjs');

const root = path.resolve(__dirname, '..');
const build = path.join(root, 'build-cmake', 'gpu');
const report = path.join(build, 'report.json');
const env = { ...process.env, VARLEN_CUDA: 'ON', VARLEN_CUDA_ARCHS: 'local' };

function finish(passed, failed) {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

function node(args, more = {}) {
  return spawnSync(process.execPath, args, { cwd: root, env: { ...env, ...more }, stdio: 'inherit' }).status;
}

if (node(['scripts/build-native.cjs', '--out', path.join(build, 'build/Release')]) !== 0) finish(0, 1);
fs.rmSync(report, { force: true });
const tests = [
  ...CUDA_OPS.map((op) => `test/ops/${op}.test.ts`),
  ...fs
    .readdirSync(path.join(root, 'test/ops'))
    .filter((name) => name.endsWith('-cuda.test.ts'))
    .map((name) => `test/ops/${name}`),
  'test/gpu',
];
const args = ['node_modules/vitest/vitest.mjs', 'run', '--project=source', '--project=gpu', ...tests];
const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
const status = node([...args, ...reporters], { VARLEN_REQUIRE_CUDA: '1', VARLEN_PREBUILD: build });
if (!fs.existsSync(report)) finish(0, 1);
const { numPassedTests, numFailedTests } = JSON.parse(fs.readFileSync(report, 'utf8'));
finish(numPassedTests, status === 0 ? numFailedTests : Math.max(numFailedTests, 1));
