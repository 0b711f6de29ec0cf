/** Native targets: fuzz/native/<name>.cc and the sources it needs, built by clang with its libFuzzer. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(__dirname, '..');
const core = ['memory', 'status', 'storage', 'tensor', 'workspace'];

/** Sources of each target below native/. */
const sources: Readonly<Record<string, readonly string[]>> = {
  'prefill-plan': ['ops/sparse-prefill/pattern.cc', 'ops/sparse-prefill/head.cc'],
  'prefill-select': ['ops/sparse-prefill/select.cc'],
};

export const nativeTargets: readonly string[] = Object.keys(sources);

/** The clang++ that has libFuzzer; undefined when none has. */
function clang(): string | undefined {
  const names = [process.env.VARLEN_FUZZ_CXX, 'clang++', 'clang++-19', 'clang++-16', 'clang++-14'];
  const folder = mkdtempSync(join(tmpdir(), 'varlen-fuzz-'));
  try {
    return names.find((name) => {
      if (name === undefined || name === '') return false;
      const program =
        'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }';
      const args = ['-fsanitize=fuzzer,address', '-x', 'c++', '-', '-o', join(folder, 'probe')];
      return spawnSync(name, args, { input: program, stdio: ['pipe', 'ignore', 'ignore'] }).status === 0;
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Builds the target and runs it; the exit status. */
export function runNative(name: string, seconds: number, seed: number): number {
  const compiler = clang();
  if (compiler === undefined) {
    const packages = 'Debian, Ubuntu: apt-get install clang libclang-rt-14-dev';
    console.error(
      `ERR_VARLEN_BUILD_TOOLS: missing clang++ with libFuzzer; ${packages}, or set VARLEN_FUZZ_CXX`,
    );
    return 1;
  }
  const folder = join(root, 'build-cmake', 'fuzz');
  mkdirSync(folder, { recursive: true });
  const program = join(folder, name);
  const files = [join(root, 'fuzz', 'native', `${name}.cc`)]
    .concat(sources[name].map((file) => join(root, 'native', file)))
    .concat(core.map((file) => join(root, 'native', 'core', `${file}.cc`)));
  const flags = ['-std=c++20', '-O1', '-g', '-fno-omit-frame-pointer', '-fsanitize=fuzzer,address,undefined'];
  const strict = ['-fno-sanitize-recover=all', '-ffunction-sections', '-Wl,--gc-sections', '-pthread'];
  const args = [...flags, ...strict, '-I', join(root, 'native'), ...files, '-o', program];
  const { status } = spawnSync(compiler, args, { stdio: 'inherit' });
  if (status !== 0) return status ?? 1;
  const faults = join(root, 'fuzz', 'faults', name);
  const found = join(folder, `${name}-corpus`);
  for (const made of [faults, found]) mkdirSync(made, { recursive: true });
  const options = [
    `-max_total_time=${seconds}`,
    `-seed=${seed}`,
    '-max_len=2048',
    '-timeout=20',
    '-print_final_stats=1',
    '-verbosity=0',
    `-artifact_prefix=${faults}/`,
  ];
  const corpus = join(root, 'fuzz', 'corpus', name);
  return spawnSync(program, [...options, found, corpus], { stdio: 'inherit' }).status ?? 1;
}
