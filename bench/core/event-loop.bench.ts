/**
 * What the event loop feels of a saturated pool: `npx tsx bench/core/event-loop.bench.ts`.
 *
 * Busy and idle slices alternate in one run, so that other load of the machine hits both alike; what is
 * reported is the busy value beside the idle one, or their difference. One JSON object a line.
 */
import { stat } from 'node:fs/promises';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Stream, scope, Tensor, varlenAttention } from '../../src/index.js';

interface Slice {
  /** Worst `fs.stat` in milliseconds: it needs libuv's pool, which is not ours. */
  readonly statMs: number;
  /** 99th percentile of the time between two turns of a 1 ms timer, in milliseconds. */
  readonly delayP99Ms: number;
}

const SLICE_MS = 400;
const SLICES = 8;

/** Watches the event loop for a while. */
async function watch(): Promise<Slice> {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let statMs = 0;
  const end = performance.now() + SLICE_MS;
  while (performance.now() < end) {
    const started = performance.now();
    await stat(__filename);
    statMs = Math.max(statMs, performance.now() - started);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  delay.disable();
  return { statMs, delayP99Ms: delay.percentile(99) / 1e6 };
}

/** Keeps all threads of the pool busy on two streams until `done` is called. */
function saturate(): { done(): Promise<void> } {
  const side = new Stream('cpu');
  const tokens = 1024;
  const q = Tensor.from(new Float32Array(tokens * 4 * 64).fill(0.1), { shape: [tokens, 4, 64] });
  const cuSeqlens = Int32Array.of(0, tokens);
  let running = true;
  const feed = async (stream: Stream): Promise<void> => {
    while (running) {
      // Two ahead, so that the stream never waits for this loop.
      const marks = [0, 1].map(() => {
        scope(() => void varlenAttention(q, q, q, { cuSeqlens, stream }));
        return stream.record();
      });
      await marks[0].done();
    }
    await stream.synchronize();
  };
  const feeds = [feed(side), feed(Stream.of('cpu'))];
  return {
    async done() {
      running = false;
      await Promise.all(feeds);
      q.dispose();
      side.dispose();
    },
  };
}

/** The longest that a 1 ms timer takes while `count` reads are pending behind a busy stream. */
async function timerWithPending(count: number): Promise<number> {
  const work = Tensor.empty([1 << 22], { dtype: 'float32' });
  const small = Tensor.from(Float32Array.of(1));
  scope(() => {
    for (let i = 0; i < 4; i++) work.to('int32').to('float32');
  });
  const reads = Array.from({ length: count }, () => small.data());
  let worst = 0;
  let settled = false;
  const all = Promise.all(reads).then(() => {
    settled = true;
  });
  while (!settled) {
    const started = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 1));
    worst = Math.max(worst, performance.now() - started);
    if (count === 0) break;
  }
  await all;
  await Stream.of('cpu').synchronize();
  work.dispose();
  small.dispose();
  return worst;
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1];

function report(id: string, what: string, comparedWith: string, measured: number, target: number): void {
  const line = { id, what, comparedWith, measured: Number(measured.toFixed(3)), target, unit: 'ms' };
  console.log(JSON.stringify({ ...line, ok: measured <= target }));
}

async function main(): Promise<void> {
  const idle: Slice[] = [];
  const busy: Slice[] = [];
  for (let i = 0; i < SLICES; i++) {
    idle.push(await watch());
    const load = saturate();
    busy.push(await watch());
    await load.done();
  }
  const worst = (slices: Slice[]): number => Math.max(...slices.map(({ statMs }) => statMs));
  const p99 = (slices: Slice[]): number => median(slices.map(({ delayP99Ms }) => delayP99Ms));
  const idleStat = worst(idle).toFixed(1);
  report('core.event-loop.stat', 'worst fs.stat, pool saturated', `idle: ${idleStat} ms`, worst(busy), 100);
  report(
    'core.event-loop.delay-p99',
    'delay that a saturated pool adds to the event loop, p99',
    `idle p99: ${p99(idle).toFixed(2)} ms, busy p99: ${p99(busy).toFixed(2)} ms`,
    p99(busy) - p99(idle),
    5,
  );

  const bare: number[] = [];
  const pending: number[] = [];
  for (let i = 0; i < 15; i++) {
    bare.push(await timerWithPending(1));
    pending.push(await timerWithPending(1000));
  }
  report(
    'core.event-loop.pending-1000',
    'delay that 1000 pending reads add to a 1 ms timer (median of 15 worst turns)',
    `one pending read: ${median(bare).toFixed(2)} ms, 1000: ${median(pending).toFixed(2)} ms`,
    median(pending) - median(bare),
    2,
  );
}

void main();
