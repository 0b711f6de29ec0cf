/** One rank of the benches of bench/dist/targets.ts: prints one JSON line of what it measured. */
import { init } from '../../src/dist/init.js';
import type { ProcessGroup } from '../../src/dist/process-group.js';
import { StoreClient } from '../../src/dist/store-client.js';

/** The value below which a share `q` of the times lies. */
function quantile(times: readonly number[], q: number): number {
  const sorted = [...times].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

/** Median time of one all-gather of 8 bytes, in microseconds. */
async function gatherUs(group: ProcessGroup, calls: number): Promise<number> {
  const input = Float64Array.of(group.rank);
  const output = new Float64Array(group.size);
  const times: number[] = [];
  for (let i = 0; i < calls; i++) {
    const started = performance.now();
    await group.allGather(input, output);
    times.push(1000 * (performance.now() - started));
  }
  return quantile(times, 0.5);
}

/** Best time of an all-reduce of 64 MiB of float32, in milliseconds. */
async function reduceMs(group: ProcessGroup): Promise<number> {
  const buffer = new Float32Array(2 ** 24).fill(1);
  const times: number[] = [];
  for (let i = 0; i < 6; i++) {
    await group.barrier();
    const started = performance.now();
    await group.allReduce(buffer, 'sum');
    times.push(performance.now() - started);
  }
  return Math.min(...times);
}

/** Time from a peer's abort to the rejection here, in milliseconds: both read the clock of the machine. */
async function abortMs(group: ProcessGroup): Promise<number> {
  const times: number[] = [];
  for (let turn = 0; turn < 5; turn++) {
    const inner = await group.subgroup([0, 1]);
    const clock = new Float64Array(1);
    if (group.rank === 1) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      clock[0] = Date.now();
      inner.abort();
      await group.broadcast(clock, 1);
    } else {
      await inner.barrier().catch(() => {});
      const rejected = Date.now();
      await group.broadcast(clock, 1);
      times.push(rejected - clock[0]);
    }
    await inner.close();
  }
  return quantile(times, 0.5);
}

/** Resolves when every rank of the job has come here: how long programs take to start is not measured. */
async function beginTogether(): Promise<void> {
  const { MASTER_ADDR: host = '127.0.0.1', MASTER_PORT = '0', WORLD_SIZE } = process.env;
  const store = await StoreClient.connect({ host, port: Number(MASTER_PORT) }, 60_000);
  if ((await store.add('/bench/came', 1)) === Number(WORLD_SIZE)) await store.set('/bench/all', '1');
  await store.get('/bench/all', 60_000);
  store.close();
}

async function main(): Promise<void> {
  const what = process.argv[2];
  await beginTogether();
  const started = performance.now();
  const group = await init({ backend: 'gloo', timeoutMs: 120_000 });
  const connectMs = performance.now() - started;
  let measured: object = { connectMs };
  if (what === 'gather') {
    await gatherUs(group, 200);
    measured = { gatherUs: await gatherUs(group, 2000) };
  } else if (what === 'reduce') {
    measured = { reduceMs: await reduceMs(group) };
  } else if (what === 'abort') {
    measured = { abortMs: await abortMs(group) };
  }
  process.stdout.write(`${JSON.stringify({ rank: group.rank, ...measured })}\n`);
  await group.close();
}

void main();
