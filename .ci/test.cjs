'use strict';
// Runs the tests and ends with one line, `N passed, N failed`, over all of them.
//
//   node .ci/test.cjs [native|full]    native: only the C++ tests; full: the whole grid (VARLEN_TEST_FULL=1), 10^6 random cases a suite
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { workFolder } = require('../scripts/build-native.cjs');
const { CUDA_OPS } = require('./cuda-ops.cjs');

const root = path.resolve(__dirname, '..');
const [mode = 'all'] = process.argv.slice(2);
const report = path.join(os.tmpdir(), `varlen-test-${process.pid}.json`);
const baseEnv = {
  ...process.env,
  ...(mode === 'full' ? { VARLEN_TEST_FULL: '1', VARLEN_TEST_RUNS: '1000000' } : {}),
};

function heading(text) {
  console.log(`\n--- ${text}`);
}

/** The C++ tests of core and of every op, in one program. */
function native(title, env = {}) {
  heading(title);
  const program = path.join(workFolder('Release'), 'varlen_tests');
  const { status, stdout, stderr, signal } = spawnSync(program, ['--no-colors'], {
    cwd: root,
    env: { ...baseEnv, ...env },
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  process.stdout.write(stdout + stderr);
  const counts = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed/.exec(stdout);
  if (counts === null) {
    console.log(`${program} ended without a summary (${signal ?? `exit ${status}`})`);
    return { passed: 0, failed: 1 };
  }
  const [passed, failed] = counts.slice(1).map(Number);
  return { passed, failed: status === 0 ? failed : Math.max(failed, 1) };
}

function vitest(title, args = [], env = {}) {
  heading(title);
  fs.rmSync(report, { force: true });
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const { status } = spawnSync(
    process.execPath,
    [path.join(root, 'node_modules/vitest/vitest.mjs'), 'run', ...args, ...reporters],
    { cwd: root, env: { ...baseEnv, ...env }, stdio: 'inherit' },
  );
  if (!fs.existsSync(report)) return { passed: 0, failed: 1 };
  const { numPassedTests, numFailedTests } = JSON.parse(fs.readFileSync(report, 'utf8'));
  fs.rmSync(report);
  // A file that does not load, or an unhandled rejection, fails the run without a failed test.
  return { passed: numPassedTests, failed: status === 0 ? numFailedTests : Math.max(numFailedTests, 1) };
}

/** The Spin models of the alignment protocol: what fits in about a minute, or all of them. */
function models() {
  heading('protocol models');
  const args = ['test/model/run.cjs', ...(mode === 'full' ? [] : ['--quick'])];
  const { stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' });
  process.stdout.write(stdout + stderr);
  const counts = /(\d+) passed, (\d+) failed/.exec(stdout);
  return counts === null
    ? { passed: 0, failed: 1 }
    : { passed: Number(counts[1]), failed: Number(counts[2]) };
}

function hasNvcc() {
  return spawnSync(process.env.CUDACXX || 'nvcc', ['--version'], { stdio: 'ignore' }).status === 0;
}

/** The C++ tests, and the binary with an emulated GPU that the tests of `device: 'cuda'` load. */
function buildNativeTests() {
  heading('building the native tests');
  // With nvcc every CUDA kernel is compiled too, for both families, and linked with what is tested.
  const cuda = hasNvcc() ? { VARLEN_CUDA: 'ON', VARLEN_CUDA_ARCHS: '80-real;90a-real' } : {};
  const targets = ['varlen_tests', 'varlen_emulated'];
  return targets.every((target) => {
    const args = ['scripts/build-native.cjs', '--target', target];
    const env = { ...cuda, ...process.env };
    return spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env }).status === 0;
  });
}

/** Registers and spills of the kernels that were just built. */
function registers() {
  heading('registers of the CUDA kernels');
  const { status } = spawnSync(process.execPath, ['.ci/check-registers.cjs'], {
    cwd: root,
    stdio: 'inherit',
  });
  return status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

/** The tests of every op that has CUDA kernels again, with `device: 'cuda'` on the emulated GPU. */
function emulatedGpu() {
  const tests = CUDA_OPS.map((op) => `test/ops/${op}.test.ts`);
  const env = { VARLEN_REQUIRE_CUDA: '1', VARLEN_PREBUILD: path.join(workFolder('Release'), 'emulated') };
  // The emulator is thousands of times slower than what it stands for.
  const args = ['--project=source', '--testTimeout=600000', '--typecheck.enabled=false', ...tests];
  return vitest('ops on the emulated GPU', args, env);
}

function main() {
  const results = [];
  if (buildNativeTests()) {
    if (hasNvcc()) results.push(registers());
    results.push(native('native tests'));
    // The whole grid is walked on every instruction set already.
    const baseline = { VARLEN_CPU_ISA: 'baseline', VARLEN_TEST_FULL: '0' };
    results.push(native('native tests, baseline instruction set', baseline));
  } else {
    results.push({ passed: 0, failed: 1 });
  }
  if (mode !== 'native') {
    results.push(models());
    results.push(vitest('TypeScript tests', ['--project=source', '--project=package']));
    results.push(emulatedGpu());
    // Threads share one process: they load the addon into several environments of it. What gives orders
    // to the emulated GPU needs a process, and so a GPU, of its own.
    const shared = fs
      .readdirSync(path.join(root, 'test/ops'))
      .filter((file) => /(?<!-cuda|-hopper)\.test\.ts$/.test(file));
    const again = [
      '--project=source',
      '--pool=threads',
      'test/native',
      ...shared.map((file) => `test/ops/${file}`),
    ];
    results.push(vitest('native folders again: threads, baseline', again, { VARLEN_CPU_ISA: 'baseline' }));
  }
  const sum = (key) => results.reduce((total, result) => total + result[key], 0);
  const full = mode === 'full' ? '' : ', the full grid (npm run test:full)';
  console.log(`\nnot run here: sanitizers and malloc injection (npm run test:sanitize)${full}`);
  console.log(`${sum('passed')} passed, ${sum('failed')} failed`);
  process.exit(sum('failed') === 0 ? 0 : 1);
}

main();
