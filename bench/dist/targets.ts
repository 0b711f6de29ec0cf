/** What the distributed engine promises: `dist.*`, beside PyTorch's Gloo in the same run. */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { AlignmentDriver, STEP_WORDS } from '../../src/dist/align.js';
import { launch } from '../../src/dist/launch.js';
import { localGroups } from '../../src/dist/local-group.js';
import { atMost, type TargetResult } from '../batch/measure.js';
import type { Suite } from '../suites.js';

const tsx = pathToFileURL(createRequire(__filename).resolve('tsx')).href;
const ours = [process.execPath, '--import', tsx, join(__dirname, 'rank.ts')];
const python = process.env.VARLEN_BENCH_PYTHON ?? 'python3';
const torch = [python, join(__dirname, '..', 'peers', 'collectives_torch.py')];

interface Measured {
  readonly rank: number;
  readonly [name: string]: number;
}

/** Runs a job; the JSON line of each rank that printed one. */
async function job(nproc: number, command: readonly string[]): Promise<Measured[]> {
  let output = '';
  await launch({
    nproc,
    command,
    stdio: ['ignore', 'pipe', 'inherit'],
    onStart: (_, child) =>
      child.stdout?.on('data', (chunk: Buffer) => {
        output += chunk.toString();
      }),
  });
  return output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Measured);
}

/** Best of three jobs of ours and of PyTorch, by turns; undefined where PyTorch is not installed. */
async function byTurns(what: string, name: string): Promise<{ own: number; peer: number | undefined }> {
  let own = Infinity;
  let peer: number | undefined;
  for (let turn = 0; turn < 3; turn++) {
    const mine = await job(2, [...ours, what]);
    own = Math.min(own, ...mine.filter(({ rank }) => rank === 0).map((line) => line[name]));
    if (turn > 0 && peer === undefined) continue; // it has said that it is not there
    const theirs = await job(2, [...torch, what]);
    for (const line of theirs) peer = Math.min(peer ?? Infinity, line[name]);
  }
  return { own, peer };
}

/** The share of PyTorch's time; nothing where PyTorch is not installed, as its program says in a line. */
function share(
  target: number,
  line: { id: string; what: string },
  { own, peer }: { own: number; peer: number | undefined },
  unit: string,
): TargetResult[] {
  if (peer === undefined) return [];
  const times = `ours ${own.toFixed(1)} ${unit}, PyTorch's Gloo ${peer.toFixed(1)} ${unit}`;
  const comparedWith = `${times}, two processes each, by turns`;
  return [atMost(target, { ...line, comparedWith, measured: own / peer, unit: 'ratio' })];
}

async function collectives(): Promise<TargetResult[]> {
  const gather = await byTurns('gather', 'gatherUs');
  const reduce = await byTurns('reduce', 'reduceMs');
  const [alone] = await job(1, [...ours, 'gather']);
  const [aborted] = (await job(2, [...ours, 'abort'])).filter(({ rank }) => rank === 0);
  return [
    ...share(
      0.5,
      {
        id: 'dist.gather',
        what: 'all-gather of 8 bytes from JavaScript, two ranks, median, share of PyTorch',
      },
      gather,
      'us',
    ),
    ...share(
      1.1,
      { id: 'dist.reduce', what: 'all-reduce of 64 MiB of float32, two ranks, best, share of PyTorch' },
      reduce,
      'ms',
    ),
    atMost(40, {
      id: 'dist.hop',
      what: 'a collective of one rank: from JavaScript to the communication thread and back, median',
      comparedWith: 'no network at all',
      measured: alone.gatherUs,
      unit: 'us',
    }),
    atMost(50, {
      id: 'dist.abort',
      what: "from one rank's abort() to the rejection on its peer, median of 5",
      comparedWith: 'the deadline of the collective',
      measured: aborted.abortMs,
      unit: 'ms',
    }),
  ];
}

async function connect(): Promise<TargetResult[]> {
  const ends = await job(16, [...ours, 'connect']);
  return [
    atMost(500, {
      id: 'dist.connect',
      what: 'init() of 16 processes that begin together, the slowest: meeting, addresses, 120 connections',
      comparedWith: `the fastest: ${Math.min(...ends.map(({ connectMs }) => connectMs)).toFixed(0)} ms`,
      measured: Math.max(...ends.map(({ connectMs }) => connectMs)),
      unit: 'ms',
    }),
  ];
}

/** Processor time of the two gathers of a round: what alignment takes from a step. */
async function alignment(): Promise<TargetResult[]> {
  const rounds = 200;
  const steps = 8;
  const header = {
    configHash: 1,
    round: 0,
    exhausted: false,
    abort: false,
    drain: false,
    nonJoin: false,
    samples: 64,
    steps,
    maxSteps: 1 << 20,
    carryAge: 0,
  };
  const drivers = localGroups(4).map((group) => new AlignmentDriver(group, 60_000));
  const before = process.cpuUsage();
  for (let round = 0; round < rounds; round++) {
    await Promise.all(
      drivers.map(async (driver) => {
        await driver.exchangeHeaders(header);
        await driver.exchangeSteps(new Float64Array(STEP_WORDS * steps), round);
      }),
    );
  }
  const { user, system } = process.cpuUsage(before);
  return [
    atMost(0.01, {
      id: 'dist.alignment',
      what: 'processor time of the two gathers of a round of 8 steps, per rank and step',
      comparedWith: 'a step of 100 ms',
      measured: (user + system) / 1000 / rounds / drivers.length / steps / 100,
      unit: 'ratio',
    }),
  ];
}

/** What the distributed engine promises. */
export const distSuites: readonly Suite[] = [
  { ids: ['dist.gather', 'dist.reduce', 'dist.hop', 'dist.abort'], run: collectives },
  { ids: ['dist.connect'], run: connect },
  { ids: ['dist.alignment'], run: alignment },
];
