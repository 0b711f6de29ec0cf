import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { deviceInfo, Stream } from '../../src/index.js';
import { packageRoot } from '../../src/native/load.js';
import { CASES, type GpuCase } from './cases.js';
import { checkKernels } from './check.js';

/** What bench/gpu/run.sh starts once the package is built for the GPU of this machine. */

const USAGE = 'bash bench/gpu/run.sh [--quick] [--only NAME]';
/** The whole call stays under ten minutes, building included. */
const SECONDS = 240;

interface Timing {
  readonly op: string;
  readonly case: string;
  /** Of one call on the GPU, between events: the median and the fastest of the slices. */
  readonly medianUs: number;
  readonly bestUs: number;
  /** Of the call itself on the JavaScript thread, while the GPU is busy with the ones before. */
  readonly enqueueUs: number;
  readonly calls: number;
  readonly tflops?: number;
  readonly gbps?: number;
}

const three = (value: number): number => Number(value.toPrecision(4));

/** Slices of calls between two events, until the time is up. */
async function time({ name, op, flops, bytes, prepare }: GpuCase, seconds: number): Promise<Timing> {
  const { run, dispose } = prepare('cuda');
  const stream = Stream.of('cuda');
  const slice = async (calls: number): Promise<[gpuUs: number, enqueueUs: number]> => {
    const start = stream.record();
    const called = process.hrtime.bigint();
    for (let i = 0; i < calls; i++) run();
    const enqueued = Number(process.hrtime.bigint() - called) / 1000;
    const end = stream.record();
    return [((await end.elapsedMs(start)) * 1000) / calls, enqueued / calls];
  };
  await slice(2); // warm
  const [once] = await slice(3);
  const calls = Math.max(3, Math.min(200, Math.round(20_000 / once)));
  const gpu: number[] = [];
  const host: number[] = [];
  const end = performance.now() + seconds * 1000;
  while (gpu.length < 5 || performance.now() < end) {
    const [gpuUs, enqueueUs] = await slice(calls);
    gpu.push(gpuUs);
    host.push(enqueueUs);
  }
  dispose();
  gpu.sort((a, b) => a - b);
  host.sort((a, b) => a - b);
  const medianUs = gpu[gpu.length >> 1];
  return {
    op,
    case: name,
    medianUs: three(medianUs),
    bestUs: three(gpu[0]),
    enqueueUs: three(host[host.length >> 1]),
    calls: calls * gpu.length,
    ...(flops === undefined ? {} : { tflops: three(flops / medianUs / 1e6) }),
    ...(bytes === undefined ? {} : { gbps: three(bytes / medianUs / 1e3) }),
  };
}

/** PyTorch's times of the same shapes and the device's own copy and matmul rates, or why there are none. */
function peers(only: string | undefined, seconds: number): { lines: object[]; missing?: string } {
  const python = process.env.VARLEN_BENCH_PYTHON ?? 'python3';
  const script = join(packageRoot, 'bench/peers/attention_torch_gpu.py');
  const { status, stdout, stderr } = spawnSync(python, [script, String(seconds), only ?? ''], {
    encoding: 'utf8',
    timeout: seconds * 1000 + 30_000,
  });
  const lines = (stdout ?? '').split('\n').filter((line) => line.startsWith('{'));
  const missing = status === 0 && lines.length > 0 ? undefined : (stderr ?? '').trim().split('\n').at(-1);
  return { lines: lines.map((line) => JSON.parse(line)), ...(missing ? { missing } : {}) };
}

function output(command: string, ...args: string[]): string {
  try {
    return execFileSync(command, args, { cwd: packageRoot, encoding: 'utf8' }).trim();
  } catch {
    return '';
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean' }, only: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
  });
  if (values.help) return void console.error(USAGE);
  const { cuda } = deviceInfo();
  if (!cuda.available) throw new Error(`no GPU can be used: ${cuda.code}: ${cuda.reason}`);
  const [{ name, computeCapability, multiprocessors, memoryBytes }] = cuda.devices;

  console.error(`checking on ${name}`);
  const checks = await checkKernels(values.only);
  for (const { op, case: at, error, bound } of checks) {
    console.error(`  ${op} ${at}: error ${error.toExponential(2)}, bound ${bound.toExponential(2)}`);
  }
  if (checks.some(({ error, bound }) => !(error <= bound)))
    throw new Error('a kernel is wrong: nothing is timed');

  const chosen = CASES.filter(({ op, name: at }) => `${op} ${at}`.includes(values.only ?? ''));
  const timings: Timing[] = [];
  const started = performance.now();
  const leftOut: string[] = [];
  for (const one of values.quick ? chosen.slice(0, 3) : chosen) {
    if (performance.now() - started > SECONDS * 1000) {
      leftOut.push(`${one.op} ${one.name}`);
      continue;
    }
    const timing = await time(one, values.quick ? 0.2 : 2);
    console.error(`  ${timing.op} ${timing.case}: ${timing.medianUs} us`, timing.tflops ?? timing.gbps);
    timings.push(timing);
  }
  const torch = peers(values.only, values.quick ? 20 : 150);

  const report = {
    device: { name, computeCapability, multiprocessors, memoryBytes },
    driver: output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader').split('\n')[0],
    cuda: { runtime: cuda.runtimeVersion, driver: cuda.driverVersion },
    commit: output('git', 'rev-parse', 'HEAD'),
    command: `bash bench/gpu/run.sh ${process.argv.slice(2).join(' ')}`.trim(),
    date: new Date().toISOString(),
    checks,
    timings,
    torch: torch.lines,
    ...(torch.missing === undefined ? {} : { torchMissing: torch.missing }),
    ...(leftOut.length === 0 ? {} : { leftOut }),
  };
  if (name.startsWith('emulated')) {
    console.log(JSON.stringify(report, null, 2));
    console.error('an emulated GPU has no speed: nothing was stored');
    return;
  }
  const folder = join(packageRoot, 'bench/results', name.replace(/[^A-Za-z0-9]+/g, '-'));
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${report.date.slice(0, 10)}.json`);
  writeFileSync(file, `${JSON.stringify(report, null, 2)}\n`);
  console.log(file);
}

void main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
