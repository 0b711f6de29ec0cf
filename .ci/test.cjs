'use strict';
// Runs the tests and ends with one line, `N passed, N failed`, over all of them.
//
//   node .ci/test.cjs [native|full]    native: only the C++ tests; full: the whole grid (VARLEN_TEST_FULL=1), 10^6 random cases a suite
const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { TEST_ARCHS, workFolder } = require('../scripts/build-native.cjs');
const { CUDA_OPS } = require('./cuda-ops.cjs');
const { readCounts, reporters } = require('./vitest-report.cjs');

const root = path.resolve(__dirname, '..');
// The native code is tested as it is released, on every instruction set, and compiled once for its own
// tests and for the package's. With nvcc for two families of GPUs; a release is for all.
const folder = workFolder('Release', { release: true });
const [mode = 'all'] = process.argv.slice(2);
const baseEnv = {
  VARLEN_CUDA_ARCHS: TEST_ARCHS,
  ...process.env,
  VARLEN_FLAVOUR: 'prebuilds',
  ...(mode === 'full' ? { VARLEN_TEST_FULL: '1', VARLEN_TEST_RUNS: '1000000' } : {}),
};

function heading(text) {
  console.log(`\n--- ${text}`);
}

/**
 * Runs a program; prints its output below `title`: when it has ended, so that several may run at once, or
 * `live`.
 */
function run(title, program, args, { env = {}, live = false } = {}) {
  if (live) heading(title);
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      cwd: root,
      env: { ...baseEnv, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const chunks = [];
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk) => {
        chunks.push(chunk);
        if (live) process.stdout.write(chunk);
      });
    }
    child.on('close', (status, signal) => {
      const output = Buffer.concat(chunks).toString();
      if (!live) {
        heading(title);
        process.stdout.write(output);
      }
      resolve({ status, signal, output });
    });
  });
}

/** C++ tests of core and of the ops, all in one program: those that `filter` leaves. */
async function native(title, filter, env = {}) {
  const program = path.join(folder, 'varlen_tests');
  const { status, signal, output } = await run(title, program, ['--no-colors', filter], { env });
  const counts = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed/.exec(output);
  if (counts === null) {
    console.log(`${program} ended without a summary (${signal ?? `exit ${status}`})`);
    return { passed: 0, failed: 1 };
  }
  const [passed, failed] = counts.slice(1).map(Number);
  return { passed, failed: status === 0 ? failed : Math.max(failed, 1) };
}

/** The C++ tests; those that the CPU's instruction set concerns for the baseline too. */
async function nativeTests() {
  const inEmulator = '*core/simt/*,*-sm80.cc,*-sm90a.cc,*-f32.cc';
  const onCpu = async () => {
    const best = await native('native tests', `-sfe=${inEmulator}`);
    // The whole grid is walked on every instruction set already.
    const env = { VARLEN_CPU_ISA: 'baseline', VARLEN_TEST_FULL: '0' };
    return [best, await native('native tests, baseline instruction set', `-sfe=${inEmulator}`, env)];
  };
  const results = await Promise.all([native('kernels in the emulator', `-sf=${inEmulator}`), onCpu()]);
  return results.flat();
}

async function vitest(title, args, { env = {}, live = false } = {}) {
  const report = path.join(os.tmpdir(), `varlen-test-${process.pid}-${title.replace(/\W+/g, '-')}.json`);
  const program = path.join(root, 'node_modules/vitest/vitest.mjs');
  const { status } = await run(title, process.execPath, [program, 'run', ...args, ...reporters(report)], {
    env,
    live,
  });
  return readCounts(report, status);
}

/** The Spin models of the alignment protocol: what fits in about a minute, or all of them. */
async function models() {
  const args = ['test/model/run.cjs', ...(mode === 'full' ? [] : ['--quick'])];
  const { output } = await run('protocol models', process.execPath, args);
  const counts = /(\d+) passed, (\d+) failed/.exec(output);
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
  return ['varlen_tests', 'varlen_emulated'].every((target) => {
    const args = ['scripts/build-native.cjs', '--release', '--target', target];
    return spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env: baseEnv }).status === 0;
  });
}

/** Registers and spills of the kernels that were just built. */
function registers() {
  heading('registers of the CUDA kernels');
  const { status } = spawnSync(process.execPath, ['.ci/check-registers.cjs'], {
    cwd: root,
    stdio: 'inherit',
    env: baseEnv,
  });
  return status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

/** The tests of every op that has CUDA kernels again, with `device: 'cuda'` on the emulated GPU. */
function emulatedGpu() {
  const tests = CUDA_OPS.map((op) => `test/ops/${op}.test.ts`);
  const env = { VARLEN_REQUIRE_CUDA: '1', VARLEN_PREBUILD: path.join(folder, 'emulated') };
  // The emulator is thousands of times slower than what it stands for.
  const args = ['--project=source', '--testTimeout=600000', '--typecheck.enabled=false', ...tests];
  return vitest('ops on the emulated GPU', args, { env });
}

/** Threads share one process: they load the addon into several environments of it. */
function inThreads() {
  // What gives orders to the emulated GPU needs a process, and so a GPU, of its own.
  const ops = fs
    .readdirSync(path.join(root, 'test/ops'))
    .filter((file) => /(?<!-cuda|-hopper)\.test\.ts$/.test(file))
    .map((file) => `test/ops/${file}`);
  // One after the other: what memoryStats() counts is the process's.
  const pool = ['--pool=threads', '--maxWorkers=1', '--typecheck.enabled=false'];
  const args = ['--project=source', ...pool, 'test/native', ...ops];
  return vitest('native folders again: threads, baseline', args, {
    env: { VARLEN_CPU_ISA: 'baseline' },
  });
}

async function main() {
  const results = [];
  if (!buildNativeTests()) {
    results.push({ passed: 0, failed: 1 });
  } else {
    if (hasNvcc()) results.push(registers());
    results.push(...(await nativeTests()));
  }
  if (mode !== 'native') {
    // Alone: some of them watch the clock.
    results.push(await vitest('TypeScript tests', ['--project=source', '--project=package'], { live: true }));
    const others = [models().then(async (of) => [of, await inThreads()]), emulatedGpu()];
    results.push(...(await Promise.all(others)).flat());
  }
  const sum = (key) => results.reduce((total, result) => total + result[key], 0);
  const full = mode === 'full' ? '' : ', the full grid (npm run test:full)';
  console.log(`\nnot run here: sanitizers and malloc injection (npm run test:sanitize)${full}`);
  console.log(`${sum('passed')} passed, ${sum('failed')} failed`);
  process.exit(sum('failed') === 0 ? 0 : 1);
}

void main();
