import { execFileSync } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { timeCalls, timeNativeCalls, timeRoundTrips } from '../../src/cli/bench/call-overhead.js';
import { Device, Tensor, varlenAttention } from '../../src/index.js';

/** What the package costs beside its work: calls, loading, and the event loop while every thread computes. */

const device = Device.cpu();

/** A call from TypeScript until it returns: the best of some rounds, each the median over its batches. */
async function call(quick: boolean): Promise<number> {
  const rounds: number[] = [];
  for (let round = 0; round < (quick ? 3 : 9); round++) rounds.push((await timeCalls(device, 400)).medianUs);
  return Math.min(...rounds);
}

async function roundTrip(quick: boolean): Promise<number> {
  const rounds: number[] = [];
  for (let round = 0; round < (quick ? 3 : 9); round++)
    rounds.push((await timeRoundTrips(device, 800)).medianUs);
  return Math.min(...rounds);
}

async function nativeCall(quick: boolean): Promise<number> {
  const rounds = Array.from({ length: quick ? 3 : 9 }, () => timeNativeCalls(400).medianUs);
  return Math.min(...rounds);
}

/** Milliseconds of a new process that loads the package, over one that loads nothing; the best of each. */
async function coldStart(quick: boolean): Promise<number> {
  const lib = join(__dirname, '..', '..', 'lib', 'index.js');
  const time = (script: string): number => {
    const start = performance.now();
    execFileSync(process.execPath, ['-e', script]);
    return performance.now() - start;
  };
  const best = { bare: Infinity, loaded: Infinity };
  for (let run = 0; run < (quick ? 8 : 30); run++) {
    best.bare = Math.min(best.bare, time('0'));
    best.loaded = Math.min(best.loaded, time(`require(${JSON.stringify(lib)}).deviceInfo()`));
  }
  return best.loaded - best.bare;
}

/** Calls `watch` while every thread of the pool computes. */
async function underLoad<T>(watch: () => Promise<T>): Promise<T> {
  const shape = [4096, 2, 64];
  const inputs = [1, 2, 3].map(() =>
    Tensor.from(new Float32Array(4096 * 2 * 64).fill(0.1), { shape, device }),
  );
  const [q, k, v] = inputs;
  let busy = true;
  const load = (async () => {
    while (busy) {
      using result = varlenAttention(q, k, v, { cuSeqlens: Int32Array.of(0, 4096) });
      await result.out.data();
    }
  })();
  try {
    return await watch();
  } finally {
    busy = false;
    await load;
    for (const tensor of inputs) tensor.dispose();
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function delayP99(ms: number): Promise<number> {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  await pause(ms);
  histogram.disable();
  return histogram.percentile(99) / 1e6;
}

async function loopDelay(quick: boolean): Promise<number> {
  const ms = quick ? 1000 : 5000;
  const idle = await delayP99(ms);
  return (await underLoad(() => delayP99(ms))) - idle;
}

async function fsStat(quick: boolean): Promise<number> {
  return underLoad(async () => {
    let worst = 0;
    for (const end = performance.now() + (quick ? 1000 : 5000); performance.now() < end; ) {
      const start = performance.now();
      await stat(__filename);
      worst = Math.max(worst, performance.now() - start);
      await pause(5);
    }
    return worst;
  });
}

/** Measurements by the names that bench/targets.json gives them. */
export const SCRIPTS: Readonly<Record<string, (quick: boolean) => Promise<number>>> = {
  call,
  nativeCall,
  roundTrip,
  coldStart,
  loopDelay,
  fsStat,
};
