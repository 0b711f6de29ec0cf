'use strict';
// The tests of every op that has CUDA kernels, with device: 'cuda', on the GPU of this machine; those of the
// device runtime, and those too large for the emulator; then a part of them under every tool of
// compute-sanitizer, where that is on PATH. Builds for that GPU first. Fails, does not skip, when no GPU
// answers. Ends with `N passed, N failed`.
//
//   node .ci/test-gpu.cjs [--emulated] [--only OP,OP...]
//
// --emulated  a rehearsal without a GPU: the same list on the emulated one, the large tests made small
// --only      of the ops' tests only those named
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { workFolder } = require('../scripts/build-native.cjs');
const { CUDA_OPS } = require('./cuda-ops.cjs');
const { readCounts, reporters } = require('./vitest-report.cjs');

const root = path.resolve(__dirname, '..');
const { values: options } = parseArgs({
  options: { emulated: { type: 'boolean', default: false }, only: { type: 'string' } },
});

/** A GPU's build has a folder of its own; the loader looks for build/Release below it. */
const gpuBuild = path.join(root, 'build-cmake', 'gpu');
const prebuild = options.emulated ? path.join(workFolder('Release'), 'emulated') : gpuBuild;
const report = path.join(root, 'build-cmake', `test-gpu-${process.pid}.json`);
const env = {
  ...process.env,
  VARLEN_REQUIRE_CUDA: '1',
  VARLEN_PREBUILD: prebuild,
  ...(options.emulated ? { VARLEN_GPU_TESTS: 'small' } : {}),
};

const SANITIZERS = ['memcheck', 'racecheck', 'synccheck', 'initcheck'];
/** What compute-sanitizer ends with when it found something. */
const FOUND = '86';

const results = [];

function finish() {
  const sum = (key) => results.reduce((total, result) => total + result[key], 0);
  console.log(`${sum('passed')} passed, ${sum('failed')} failed`);
  process.exit(sum('failed') === 0 ? 0 : 1);
}

/** Stops here, because nothing that follows could run. */
function giveUp(reason) {
  console.error(`test:gpu: ${reason}`);
  results.push({ passed: 0, failed: 1 });
  finish();
}

function answers(command, args) {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}

function build() {
  const args = ['scripts/build-native.cjs'];
  if (options.emulated) args.push('--target', 'varlen_emulated');
  else args.push('--out', path.join(gpuBuild, 'build/Release'));
  const cuda = options.emulated ? {} : { VARLEN_CUDA: 'ON', VARLEN_CUDA_ARCHS: 'local' };
  const { status } = spawnSync(process.execPath, args, {
    cwd: root,
    env: { ...process.env, ...cuda },
    stdio: 'inherit',
  });
  return status === 0;
}

/** Files of test/ops whose tests take the device from VARLEN_REQUIRE_CUDA, or name it. */
function opTests() {
  const only = options.only?.split(',');
  const wanted = (op) => only === undefined || only.includes(op);
  const own = fs
    .readdirSync(path.join(root, 'test/ops'))
    .filter((name) => name.endsWith('-cuda.test.ts') && wanted(name.replace('-cuda.test.ts', '')));
  const names = [...CUDA_OPS.filter(wanted).map((op) => `${op}.test.ts`), ...own];
  return names.map((name) => `test/ops/${name}`);
}

function vitest(title, tests, { before = [], more = {} } = {}) {
  console.log(`\n--- ${title}`);
  fs.rmSync(report, { force: true });
  // A GPU is quick, the emulator and a sanitizer are not.
  const args = [
    'run',
    '--project=source',
    '--project=gpu',
    '--testTimeout=600000',
    '--typecheck.enabled=false',
  ];
  const node = [process.execPath, path.join(root, 'node_modules/vitest/vitest.mjs')];
  const [command, ...rest] = [...before, ...node, ...args, ...reporters(report), ...tests];
  const { status } = spawnSync(command, rest, { cwd: root, env: { ...env, ...more }, stdio: 'inherit' });
  return readCounts(report, status);
}

/** One case of every property, and all the examples: every kernel runs, none for long. */
function sanitize(tool, tests) {
  const before = [
    'compute-sanitizer',
    '--tool',
    tool,
    '--target-processes',
    'all',
    '--error-exitcode',
    FOUND,
  ];
  return vitest(`compute-sanitizer --tool ${tool}`, tests, { before, more: { VARLEN_TEST_RUNS: '1' } });
}

if (!options.emulated) {
  if (!answers('nvidia-smi', ['-L']))
    giveUp('no NVIDIA GPU answers here (nvidia-smi -L); nothing was built or run');
  if (!answers(process.env.CUDACXX || 'nvcc', ['--version']))
    giveUp('nvcc is not on PATH; the kernels cannot be built');
}
if (!build()) giveUp('the build failed');
const ops = opTests();
if (ops.length === 0) giveUp(`--only ${options.only} names no op that runs on a GPU`);
results.push(vitest('ops', ops));
results.push(vitest('device runtime and large tests', ['test/gpu']));
if (options.emulated) {
  console.log('\nnot run here: compute-sanitizer, which has nothing to look at without a GPU');
} else if (answers('compute-sanitizer', ['--version'])) {
  for (const tool of SANITIZERS) results.push(sanitize(tool, [...ops, 'test/gpu/runtime.test.ts']));
} else {
  console.log('\nnot run here: compute-sanitizer is not on PATH');
}
finish();
