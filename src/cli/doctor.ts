import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import type { CudaUnavailableCode, DeviceInfo } from '../tensor/index.js';
import { colored, EXIT, printJson, readFlags, say, type Usage, UsageError } from './command.js';
import { packageVersion } from './package.js';
import type { Finding } from './probe.js';

export const usage: Usage = {
  synopsis: 'varlen doctor [--json] [--require cuda]',
  summary:
    'Checks this machine: platform, binary, CPU, CUDA, and one small op per device against a float64 reference.\nExit code 0: all good; 3: all good, but no CUDA; 1: a check failed.',
  flags: [
    ['--json', 'one JSON document on stdout'],
    ['--require cuda', 'a machine without CUDA fails'],
  ],
};

/** One line of the report. */
interface Check {
  readonly name: string;
  readonly status: 'ok' | 'off' | 'failed';
  readonly detail: string;
  /** What to do about it. */
  readonly fix?: string;
}

interface Report {
  readonly ok: boolean;
  readonly exitCode: number;
  readonly version: string;
  readonly platform: {
    readonly os: string;
    readonly arch: string;
    readonly node: string;
    readonly libc: string;
  };
  readonly binary: { readonly path: string; readonly sha256: string; readonly version: string } | null;
  readonly cpu: DeviceInfo['cpu'] | null;
  readonly threads: number | null;
  readonly cuda: (DeviceInfo['cuda'] & { readonly fix?: string }) | null;
  readonly checks: readonly Check[];
}

const CUDA_FIXES: Readonly<Record<CudaUnavailableCode, string>> = {
  NOT_BUILT: 'with a CUDA toolkit (12.0 or newer) installed: npx varlen build --cuda on',
  DISABLED: 'unset VARLEN_DISABLE_CUDA',
  NO_DRIVER:
    'install an NVIDIA driver (580 or newer); in a container, start it with the GPU flag of the container runtime',
  DRIVER_TOO_OLD:
    'update the NVIDIA driver to 580 or newer, or with a CUDA 12 toolkit: npx varlen build --cuda on',
  NO_DEVICE: 'check that CUDA_VISIBLE_DEVICES is not empty and that nvidia-smi lists a GPU',
  ARCH_UNSUPPORTED: 'a GPU of compute capability 8.0 or newer is needed',
  INIT_FAILED: 'check that nvidia-smi works, and see the reason above',
};

/** A probe that has not ended by then hangs. */
const PROBE_TIMEOUT_MS = 60_000;

interface Probe {
  readonly findings: readonly Finding[];
  /** How the child ended, when that was not by itself. */
  readonly crash: string | undefined;
}

/** Runs the probe in a child process, which may crash. */
function runProbe(signal: AbortSignal | undefined): Promise<Probe> {
  const script = join(__dirname, `probe${extname(__filename)}`);
  const child = spawn(process.execPath, [...process.execArgv, script], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: PROBE_TIMEOUT_MS,
    killSignal: 'SIGKILL',
    signal,
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, killedBy) => {
      const findings = stdout
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Finding);
      const last = stderr.trim().split('\n').slice(-3).join(' | ');
      const how = killedBy === null ? `exit code ${code}` : `signal ${killedBy}`;
      const crash =
        code === 0 ? undefined : `the process that loads the binary ended with ${how}${last && `: ${last}`}`;
      resolve({ findings, crash });
    });
  });
}

function libc(): string {
  if (process.platform !== 'linux') return '';
  const { header } = process.report.getReport() as unknown as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime === undefined ? 'musl' : `glibc ${header.glibcVersionRuntime}`;
}

function checksOf({ findings, crash }: Probe): Check[] {
  const checks: Check[] = [];
  for (const finding of findings) {
    switch (finding.stage) {
      case 'loaded':
        checks.push({
          name: 'binary',
          status: 'ok',
          detail: `${finding.binary} loads, version ${finding.info.version}`,
        });
        break;
      case 'device': {
        const wrong = finding.errors.filter(({ error, limit }) => !(error <= limit));
        const worst = Math.max(...finding.errors.map(({ error }) => error)).toExponential(1);
        const named = wrong.map(
          ({ result, error, limit }) => `${result} is off by ${error.toExponential(1)}, limit ${limit}`,
        );
        checks.push({
          name: finding.device,
          status: wrong.length === 0 ? 'ok' : 'failed',
          detail:
            wrong.length === 0
              ? `attention forward and backward agree with float64 (largest relative error ${worst})`
              : `attention disagrees with float64: ${named.join('; ')}`,
        });
        break;
      }
      case 'failed':
        checks.push({
          name: finding.device ?? 'binary',
          status: 'failed',
          detail: `${finding.code}: ${finding.message}`,
        });
        break;
    }
  }
  if (crash !== undefined) {
    checks.push({
      name: findings.length === 0 ? 'binary' : 'op',
      status: 'failed',
      detail: crash,
      fix: 'npx varlen build compiles the binary for this machine; VARLEN_CPU_ISA=baseline rules out the instruction set',
    });
  }
  return checks;
}

/** The CUDA line: off is a fact, and a failure only where CUDA is required. */
function cudaCheck(cuda: DeviceInfo['cuda'], required: boolean): Check {
  if (cuda.available) {
    const names = cuda.devices.map(({ name }) => name).join(', ');
    return {
      name: 'cuda',
      status: 'ok',
      detail: `${names}; driver ${cuda.driverVersion}, runtime ${cuda.runtimeVersion}`,
    };
  }
  return {
    name: 'cuda',
    status: required ? 'failed' : 'off',
    detail: `${cuda.code}: ${cuda.reason}`,
    fix: CUDA_FIXES[cuda.code],
  };
}

async function diagnose(requireCuda: boolean, signal: AbortSignal | undefined): Promise<Report> {
  const probe = await runProbe(signal);
  const checks = checksOf(probe);
  const loaded = probe.findings.find((finding) => finding.stage === 'loaded');
  const info = loaded?.info;
  if (info !== undefined) checks.splice(1, 0, cudaCheck(info.cuda, requireCuda));
  const failed = checks.some(({ status }) => status === 'failed');
  const exitCode = failed ? EXIT.failed : info?.cuda.available ? EXIT.ok : EXIT.cpuOnly;
  const path = loaded?.binary;
  return {
    ok: !failed,
    exitCode,
    version: packageVersion(),
    platform: { os: process.platform, arch: process.arch, node: process.versions.node, libc: libc() },
    binary:
      path === undefined || info === undefined
        ? null
        : {
            path,
            sha256: createHash('sha256').update(readFileSync(path)).digest('hex'),
            version: info.version,
          },
    cpu: info?.cpu ?? null,
    threads: info?.threads ?? null,
    cuda:
      info === undefined
        ? null
        : { ...info.cuda, ...(info.cuda.available ? {} : { fix: CUDA_FIXES[info.cuda.code] }) },
    checks,
  };
}

const MARKS = {
  ok: colored('green', 'ok    '),
  off: colored('yellow', 'off   '),
  failed: colored('red', 'FAILED'),
};

function describe({ platform, version, cpu, threads, checks, exitCode }: Report): string {
  const { os, arch, node, libc: c } = platform;
  const lines = [`varlen ${version} on ${[`${os}-${arch}`, c, `Node ${node}`].filter(Boolean).join(', ')}`];
  if (cpu !== null) lines.push(`${cpu.model}, ${cpu.isa}, ${threads} of ${cpu.cores} cores`);
  if (cpu?.isaNote !== undefined) lines.push(cpu.isaNote);
  for (const { name, status, detail, fix } of checks) {
    lines.push(`${MARKS[status]}  ${name.padEnd(6)}  ${detail}`);
    if (fix !== undefined) lines.push(`${' '.repeat(16)}fix: ${fix}`);
  }
  const verdict =
    { [EXIT.ok]: 'all good', [EXIT.cpuOnly]: 'all good, on the CPU only' }[exitCode] ?? 'a check failed';
  return [...lines, verdict].join('\n');
}

/** `varlen doctor`: examines this machine and says what to do about what is wrong. */
export async function main(argv: readonly string[], signal?: AbortSignal): Promise<number> {
  const { values } = readFlags(usage, argv, { json: { type: 'boolean' }, require: { type: 'string' } });
  if (values.require !== undefined && values.require !== 'cuda') {
    throw new UsageError(`--require takes 'cuda'; got '${values.require}'`, usage);
  }
  const report = await diagnose(values.require === 'cuda', signal);
  if (values.json) printJson(report);
  else say(describe(report));
  return report.exitCode;
}
