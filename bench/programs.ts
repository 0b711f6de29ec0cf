import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';

/** The programs that measure outside of Node: our native benches, and the peers they are compared with. */

/** A line that every one of them prints per measurement. */
export interface Rate {
  readonly op: string;
  readonly case: string;
  readonly threads: number;
  readonly impl?: string;
  readonly gflops: number;
  /** GFLOP/s of the FMA loop that ran by turns with it; native benches only. */
  readonly peak?: number;
  readonly ratio?: number;
}

/** Why a measurement could not be made: a peer is not installed, a program does not run. */
export class NotMeasured extends Error {}

const root = join(__dirname, '..');
const built = new Set<string>();
const PYTHON = process.env.VARLEN_BENCH_PYTHON || 'python3';

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): Rate[] {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    env,
    maxBuffer: 1 << 26,
  });
  if (error !== undefined || status !== 0) {
    const why = error?.message ?? stderr.trim().split('\n').pop();
    throw new NotMeasured(`${command} ${args.join(' ')} failed: ${why}`);
  }
  const lines = stdout.split('\n').filter((line) => line.startsWith('{'));
  if (lines.length === 0) throw new NotMeasured(stderr.trim() || `${command} printed nothing`);
  return lines.map((line) => {
    const rate = JSON.parse(line) as Rate & { gbps?: number };
    // Ops that move memory are rated in gigabytes, beside a copy instead of the FMA loop.
    return rate.gbps === undefined ? rate : { ...rate, gflops: rate.gbps };
  });
}

/** Runs a case of a native bench, built first if need be. */
export function runNative(program: string, name: string, threads: number, quick: boolean): Rate[] {
  const target = `varlen_bench_${program}`;
  if (!built.has(target)) {
    const build = ['scripts/build-native.cjs', '--target', target];
    const { status } = spawnSync(process.execPath, build, {
      cwd: root,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    if (status !== 0) throw new NotMeasured(`${target} does not build`);
    built.add(target);
  }
  // The gemm bench measures one thread and two by itself; the other takes the number.
  const chosen = program === 'gemm' ? [] : ['--threads', String(threads)];
  const args = ['--case', name, ...chosen, ...(quick ? ['--quick'] : [])];
  const env = { ...process.env, VARLEN_NUM_THREADS: String(Math.max(threads, 2)) };
  if (threads > availableParallelism())
    throw new NotMeasured(`this machine has fewer than ${threads} threads`);
  return run(join(root, 'build-cmake', 'Release', target), args, env);
}

/** Peers that measure the case they are told; the others print their few at once. */
export function takesCase(peer: string): boolean {
  return peer.startsWith('attention') || peer.startsWith('policy_loss');
}

/** Runs a peer: a Python script, or a C++ program that is compiled first. */
export function runPeer(peer: string, name: string, threads: number, quick: boolean): Rate[] {
  const source = join(root, 'bench', 'peers', peer);
  const args = [String(threads), quick ? '0.2' : '1'];
  const env = { ...process.env, OMP_NUM_THREADS: String(threads) };
  if (peer.endsWith('.py')) {
    return run(PYTHON, [source, ...args, ...(takesCase(peer) ? [name] : [])], env);
  }
  const program = join(root, 'build-cmake', peer.replace(/\.cc$/, ''));
  if (!built.has(program)) {
    const { status } = spawnSync('c++', ['-O2', source, '-lopenblas', '-o', program], { stdio: 'ignore' });
    if (status !== 0 || !existsSync(program))
      throw new NotMeasured(`${peer}: OpenBLAS is not installed (Debian: libopenblas-dev), skipped`);
    built.add(program);
  }
  return run(program, args, env);
}
