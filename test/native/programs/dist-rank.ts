/** One rank of a job, in a process of its own; test/support/rank-processes.ts starts it. */
import { spawn } from 'node:child_process';
import { openSync, readdirSync, readlinkSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { DynamicBatcher } from '../../../src/batch/batcher.js';
import { init } from '../../../src/dist/init.js';
import type { CollectiveArray, ProcessGroup, ReduceOp } from '../../../src/dist/process-group.js';
import { fileLimit } from '../../../src/native/dist-binding.js';

/** Tells the test something. */
function say(event: string, more: object = {}): void {
  process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);
}

function describe(error: unknown): object {
  const { name, code, message, details, cause } = error as Error & { code?: string; details?: object };
  return { name, code, message, details, cause: (cause as Error | undefined)?.message };
}

const types = [Uint8Array, Int32Array, Float32Array, Float64Array, BigInt64Array] as const;

function arrayOf(
  Type: (typeof types)[number],
  length: number,
  value: (i: number) => number,
): CollectiveArray {
  return Type === BigInt64Array
    ? BigInt64Array.from({ length }, (_, i) => BigInt(value(i)))
    : (Type as typeof Float64Array).from({ length }, (_, i) => value(i));
}

/** Lengths within a frame, just above it, and of several segments of the ring. */
const lengths = [0, 1, 100, 1000, 40_000];

/** Values that no type rounds and whose sums over four ranks fit into a byte. */
const elementOf = (rank: number, i: number) => 1 + ((7 * rank + i) % 13) + 2 * rank;

/** Every collective, against results computed here. */
async function collectives(group: ProcessGroup): Promise<number> {
  const { rank, size } = group;
  let checks = 0;
  const equal = (what: string, got: CollectiveArray, want: (i: number) => number) => {
    for (let i = 0; i < got.length; i++) {
      if (Number(got[i]) !== want(i)) throw new Error(`${what}[${i}] is ${got[i]}, expected ${want(i)}`);
    }
    checks++;
  };
  const over = (i: number) => Array.from({ length: size }, (_, r) => elementOf(r, i));
  const reductions: Record<ReduceOp, (values: number[]) => number> = {
    sum: (values) => values.reduce((a, b) => a + b),
    avg: (values) => values.reduce((a, b) => a + b) / values.length,
    min: (values) => Math.min(...values),
    max: (values) => Math.max(...values),
  };
  for (const Type of types) {
    for (const length of lengths) {
      for (const op of ['sum', 'avg', 'min', 'max'] as const) {
        const integer = Type !== Float32Array && Type !== Float64Array;
        const buffer = arrayOf(Type, length, (i) => elementOf(rank, i));
        await group.allReduce(buffer, op);
        equal(`${op} of ${Type.name}`, buffer, (i) => {
          const exact = reductions[op](over(i));
          return integer ? Math.trunc(exact) : exact;
        });
      }
      const input = arrayOf(Type, length, (i) => elementOf(rank, i));
      const output = arrayOf(Type, length * size, () => 0);
      await group.allGather(input, output as typeof input);
      equal(`allGather of ${Type.name}`, output, (i) => elementOf(Math.floor(i / length), i % length));
      for (let root = 0; root < size; root++) {
        const buffer = arrayOf(Type, length, (i) => elementOf(rank, i));
        await group.broadcast(buffer, root);
        equal(`broadcast of ${Type.name}`, buffer, (i) => elementOf(root, i));
      }
    }
  }
  for (const length of [0, 3, 5000]) {
    const bytes = new Uint8Array(length * rank).map((_, i) => elementOf(rank, i));
    const all = await group.allGatherV(bytes);
    all.forEach((got, r) => {
      if (got.length !== length * r) throw new Error(`allGatherV: rank ${r} sent ${got.length} bytes`);
      equal('allGatherV', got, (i) => elementOf(r, i));
    });
  }
  await group.barrier();
  // Averages of integers are exact even where the sum leaves the type.
  const large = new Int32Array(1000).fill(2_000_000_000);
  await group.allReduce(large, 'avg');
  equal('avg of large Int32Array', large, () => 2_000_000_000);
  const huge = new BigInt64Array(1000).fill(2n ** 62n);
  await group.allReduce(huge, 'avg');
  if (huge.some((value) => value !== 2n ** 62n)) throw new Error('avg of large BigInt64Array');
  const nan = new Float32Array(1000).fill(rank === 1 ? Number.NaN : rank);
  await group.allReduce(nan, 'min');
  equal(
    'min with NaN',
    nan.map((x) => (Number.isNaN(x) ? 1 : 0)),
    () => 1,
  );
  return checks;
}

/** Calls in flight at once settle in call order, in groups of their own thread without deadlock. */
async function concurrency(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  const order: number[] = [];
  await Promise.all(
    [0, 1, 2, 3].map(async (i) => {
      const length = i % 2 === 0 ? 1 : 5000;
      const [sum] = await group.allReduce(new Int32Array(length).fill(i), 'sum');
      if (sum !== size * i) throw new Error(`call ${i}: ${sum}`);
      order.push(i);
    }),
  );
  if (order.join() !== '0,1,2,3') throw new Error(`order ${order}`);
  const [first, second] = [
    await group.subgroup([3, 1]),
    await group.subgroup(Array.from({ length: size }, (_, r) => r)),
  ];
  if (rank % 2 === 1) {
    const gathered = await first.allGather(Int32Array.of(rank), new Int32Array(2));
    if (gathered.join() !== '3,1') throw new Error(`subgroup ${gathered}`);
  } else if (first.state !== 'closed' || first.rank !== -1) {
    throw new Error('an outsider is inside');
  }
  // Two groups in opposite orders on two kinds of ranks.
  const calls = [() => group.barrier(), () => second.allReduce(new Float32Array(3000), 'sum')];
  if (rank % 2 === 1) calls.reverse();
  await Promise.all(calls.map((call) => call()));
  await first.close();
  await second.close();
}

/** Reduces 4 MiB over and over until something goes wrong; then the rank is still well. */
async function reduceUntilFailure(group: ProcessGroup): Promise<void> {
  const buffer = new Float32Array(2 ** 20);
  for (let turn = 0; ; turn++) {
    try {
      await group.allReduce(buffer, 'sum');
    } catch (error) {
      say('rejected', { at: Date.now(), turn, ...describe(error) });
      break;
    }
    if (turn === 0) say('running');
  }
  const again = performance.now();
  await group.barrier().catch((error) => say('again', { ms: performance.now() - again, ...describe(error) }));
}

/** Threads and sockets of this process. */
function resources(): { threads: number; sockets: number } {
  const targets = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return ''; // that of the list itself
    }
  });
  const sockets = targets.filter((target) => target.startsWith('socket:')).length;
  return { threads: readdirSync('/proc/self/task').length, sockets };
}

/** Broadcasts from rank 0 one message that travels for long, over and over until something goes wrong. */
async function largeMessage(group: ProcessGroup): Promise<void> {
  await group.barrier();
  const before = resources();
  const inner = await group.subgroup([0, 1]);
  const buffer = new Uint8Array(2 ** 28);
  say('running');
  try {
    for (;;) await inner.broadcast(buffer, 0);
  } catch (error) {
    say('rejected', { at: Date.now(), ...describe(error) });
  }
  await inner.close();
  // The outer group lives on, the inner one leaves nothing.
  let after = resources();
  for (let turn = 0; turn < 100 && after.threads > before.threads; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    after = resources();
  }
  say('resources', { before, after });
}

/** What `run` rejects with, or the word that it resolved. */
async function outcome(run: () => Promise<unknown>): Promise<object | string> {
  try {
    await run();
    return 'resolved';
  } catch (error) {
    return describe(error);
  }
}

/** Faults that leave the processes alive, each in a group of its own. */
async function softFaults(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  const all = Array.from({ length: size }, (_, r) => r);
  const odd = rank === size - 1;
  const large = (length = 5000) => new Float32Array(length);
  const mismatches: [string, (g: ProcessGroup) => Promise<unknown>][] = [
    ['op', (g) => (odd ? g.barrier() : g.allReduce(large(), 'sum'))],
    ['length', (g) => g.allReduce(large(odd ? 4000 : 5000), 'sum')],
    ['small and large', (g) => g.allReduce(large(odd ? 2 : 5000), 'sum')],
    ['dtype', (g) => g.allReduce(odd ? new Int32Array(5000) : large(), 'sum')],
    ['root', (g) => g.broadcast(large(), odd ? 1 : 0)],
    ['tag', (g) => g.barrier({ tag: odd ? 'x' : 'y' })],
  ];
  for (const [what, run] of mismatches) {
    const inner = await group.subgroup(all);
    say(`mismatch: ${what}`, { outcome: await outcome(() => run(inner)), state: inner.state });
    await inner.close();
  }

  // One rank brings a bad argument and goes on: nobody has lost count.
  const patient = await group.subgroup(all);
  if (odd) say('bad argument', { outcome: await outcome(() => patient.allReduce([1] as never, 'sum')) });
  const [sum] = await patient.allReduce(Int32Array.of(1), 'sum');
  say('after bad argument', { sum });
  // One rank never comes: it is named.
  const late = odd ? 'away' : await outcome(() => patient.barrier({ timeoutMs: 1000 }));
  say('late', { outcome: late });
  await group.barrier();
  if (odd) say('late rank', { outcome: await outcome(() => patient.barrier()) });
  await patient.close();

  const signalled = await group.subgroup(all);
  if (odd) {
    const reason = new Error('changed my mind');
    const before = await outcome(() => signalled.barrier({ signal: AbortSignal.abort(reason) }));
    say('signal before', { outcome: before });
  }
  await signalled.barrier(); // no number was lost
  const controller = new AbortController();
  if (odd) setTimeout(() => controller.abort(new Error('enough')), 100);
  const during = odd
    ? [signalled.allReduce(large(), 'sum', { signal: controller.signal }), signalled.barrier()]
    : rank === 0
      ? [] // does not call: the others wait
      : [signalled.allReduce(large(), 'sum')];
  say('signal during', { outcomes: await Promise.all(during.map((call) => outcome(() => call))) });
  await group.barrier();
  say('after signal', { outcome: await outcome(() => signalled.barrier()) });
  await signalled.close();

  const aborted = await group.subgroup(all);
  const started = performance.now();
  if (odd) {
    setTimeout(() => {
      aborted.abort(new Error('out of data'));
      void aborted.close(); // at once: the peers must hear of the abort all the same
    }, 100);
  }
  const waiting = rank === 0 ? 'away' : await outcome(() => aborted.allGatherV(new Uint8Array(9000)));
  say('abort', { outcome: waiting, ms: performance.now() - started - 100 });
  await group.barrier();
  await aborted.close();

  const refusing = await group.subgroup(all);
  const tooLong = await outcome(() =>
    refusing.allGatherV(new Uint8Array(odd ? 9000 : 10), rank === 0 ? { maxBytes: 100 } : {}),
  );
  say('too long', { outcome: tooLong });
  await group.barrier();
  await refusing.close();
}

/** Ends this process in the middle of a collective of which it is part. */
async function endBy(group: ProcessGroup, how: string): Promise<void> {
  await group.barrier();
  if (group.rank !== group.size - 1) return reduceUntilFailure(group);
  void group.allReduce(new Float32Array(2 ** 20), 'sum').catch(() => {});
  if (how === 'exit') process.exit(7);
  if (how === 'main ends') return new Promise(() => {}); // an idle rank
  setTimeout(() => {
    throw new Error('a bug of the user');
  });
  await new Promise(() => {});
}

/** The batcher over shards of very different sizes: what this rank was given. */
async function batches(group: ProcessGroup): Promise<void> {
  const sizes = [37, 5, 0, 18];
  const samples = Array.from({ length: sizes[group.rank] }, (_, i) => ({
    id: `${group.rank}/${i}`,
    inputIds: new Int32Array(1 + ((7 * i + 3 * group.rank) % 50)),
  }));
  for (const align of ['split', 'defer'] as const) {
    const batcher = new DynamicBatcher(samples, {
      budget: { packedTokens: 100 },
      window: 8,
      seed: 5,
      align,
      group,
    });
    const ids: unknown[] = [];
    const globalTokens: number[] = [];
    let idle = 0;
    for await (const { ids: own, info } of batcher) {
      ids.push(...own);
      globalTokens.push(info.globalTokens);
      if (info.idle) idle++;
    }
    say(`batches: ${align}`, { ids, idle, globalTokens });
  }
}

/** The same collectives by PyTorch's Gloo, in the same job, from the same store: equal results. */
async function besideTorch(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  const length = 3000;
  const input = Float32Array.from({ length }, (_, i) => ((i * (rank + 3)) % 101) / 8);
  const own: Record<string, Float32Array> = {};
  for (const op of ['sum', 'avg', 'min', 'max'] as const) own[op] = await group.allReduce(input.slice(), op);
  own.gather = await group.allGather(input, new Float32Array(length * size));
  own.broadcast = await group.broadcast(input.slice(), 1);
  const child = spawn('python3', ['-c', torchProgram], { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.end(Buffer.from(input.buffer));
  const chunks: Buffer[] = [];
  for await (const chunk of child.stdout) chunks.push(chunk as Buffer);
  const answer = Buffer.concat(chunks);
  const theirs = new Float32Array(new Uint8Array(answer).buffer);
  let at = 0;
  for (const [what, ours] of Object.entries(own)) {
    const other = theirs.subarray(at, at + ours.length);
    at += ours.length;
    // Eighths of small integers: no order of additions rounds.
    const odd = ours.findIndex((x, i) => x !== other[i]);
    if (odd >= 0) throw new Error(`${what}[${odd}]: ours ${ours[odd]}, PyTorch's ${other[odd]}`);
  }
  if (at !== theirs.length) throw new Error(`PyTorch sent ${theirs.length} values, expected ${at}`);
  say('equal', { values: at });
}

// Reads one array, writes the results one after another: sum, average, minimum, maximum, gather, broadcast.
const torchProgram = `
import sys, torch, torch.distributed as dist
torch.set_num_threads(1)
x = torch.frombuffer(bytearray(sys.stdin.buffer.read()), dtype=torch.float32)
dist.init_process_group('gloo')
n, out = dist.get_world_size(), sys.stdout.buffer
for op in (dist.ReduceOp.SUM, None, dist.ReduceOp.MIN, dist.ReduceOp.MAX):
    y = x.clone()
    dist.all_reduce(y, op=op or dist.ReduceOp.SUM)
    out.write((y if op else y / n).numpy().tobytes())
all = [torch.empty_like(x) for _ in range(n)]
dist.all_gather(all, x)
out.write(torch.cat(all).numpy().tobytes())
dist.broadcast(x, 1)
out.write(x.numpy().tobytes())
out.flush()
dist.destroy_process_group()
`;

/** A rank in a worker that is terminated, or whose process ends, in the middle of a collective. */
async function endWorker(group: ProcessGroup): Promise<void> {
  await group.barrier();
  const pending = group.allReduce(new Float32Array(2 ** 20), 'sum');
  say('waiting');
  await pending;
}

const scripts: Record<string, (group: ProcessGroup) => Promise<void>> = {
  reduce: reduceUntilFailure,
  'large message': largeMessage,
  batches,
  /** Comes to the second collective after its peer has gone. */
  async slow(group) {
    await group.barrier();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await reduceUntilFailure(group);
  },
  torch: besideTorch,
  hello: (group) => group.barrier(),
  /** Rank 1 fails at the first start only. */
  async 'fail once'(group) {
    await group.barrier();
    if (group.rank === 1 && process.env.TORCHELASTIC_RESTART_COUNT === '0') process.exit(3);
    await group.barrier();
  },
  /** Rank 1 fails; the others do not listen to SIGTERM. */
  async deaf(group) {
    process.on('SIGTERM', () => say('deaf'));
    await group.barrier();
    if (group.rank === 1) process.kill(process.pid, 'SIGKILL');
    await new Promise(() => setInterval(() => {}, 1000));
  },
  'wait in a collective': endWorker,
  /** The rank's process lives on with its group closed. */
  async 'close early'(group) {
    await group.barrier();
    if (group.rank === 0) await group.close();
    else
      say('rejected', {
        at: Date.now(),
        ...((await outcome(() => group.allReduce(new Float32Array(5000), 'sum'))) as object),
      });
  },
  'soft faults': softFaults,
  exit: (group) => endBy(group, 'exit'),
  throw: (group) => endBy(group, 'throw'),
  /** Two reductions, the second one when the test says so by a signal. */
  async patience(group) {
    await group.allReduce(new Float32Array(5000), 'sum');
    say('first');
    await new Promise<void>((resolve) => {
      const timer = setInterval(() => {}, 1000);
      process.once('SIGUSR2', () => {
        clearInterval(timer);
        resolve();
      });
    });
    const [sum] = await group.allReduce(new Float32Array(5000).fill(1), 'sum');
    say('second', { sum });
    await reduceUntilFailure(group);
  },
  async collectives(group) {
    say('checked', { checks: await collectives(group) });
    await concurrency(group);
  },
};

/** Opens files until the system refuses; the binary is loaded by then. */
function useAllDescriptors(): void {
  fileLimit();
  try {
    for (;;) openSync('/dev/null', 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EMFILE') throw error;
  }
}

/** One schedule of test/dist/soak.ts. */
interface Schedule {
  readonly k: number;
  readonly rank: number;
  readonly size: number;
  readonly port: number;
  readonly fault: string;
  /** Milliseconds after which this rank does what `fault` says. */
  readonly afterMs: number;
  readonly timeoutMs: number;
  readonly collectiveTimeoutMs: number;
}

/** Takes part in one job after the other, as long as none of them ends this process. */
async function soak(): Promise<void> {
  say('starting');
  for await (const line of createInterface({ input: process.stdin })) {
    const { k, rank, size, port, fault, afterMs, timeoutMs, collectiveTimeoutMs } = JSON.parse(
      line,
    ) as Schedule;
    process.env.TORCHELASTIC_RUN_ID = `soak-${k}`;
    const store = { host: '127.0.0.1', port, serve: false };
    let end: object = { resolved: true };
    let timer: NodeJS.Timeout | undefined;
    if (fault === 'exit') timer = setTimeout(() => process.exit(5), afterMs);
    try {
      const group = await init({ rank, size, store, timeoutMs, collectiveTimeoutMs });
      say('running', { k });
      try {
        if (fault === 'abort') timer = setTimeout(() => group.abort(new Error('soak')), afterMs);
        const small = new Float64Array(3);
        const large = new Float32Array(50_000);
        for (let turn = 0; fault !== 'none' || turn < 5; turn++) {
          await group.allReduce(turn % 2 ? large.fill(1) : small.fill(1), 'sum');
          if ((turn % 2 ? large[9] : small[2]) !== size) throw new Error('a wrong sum');
          await group.allGatherV(new Uint8Array(100 * rank + turn));
          await group.broadcast(large, turn % size);
        }
      } finally {
        await group.close();
      }
    } catch (error) {
      end = describe(error);
    }
    clearTimeout(timer);
    say('end', { k, at: Date.now(), ...end });
  }
}

async function main(): Promise<void> {
  if (process.argv[2] === 'soak') return soak();
  const [script, optionsText = '{}', place = 'main'] = isMainThread ? process.argv.slice(2) : workerData;
  if (place === 'worker' && isMainThread) {
    const worker = new Worker(__filename, { workerData: [script, optionsText] });
    await new Promise<void>((resolve) => process.once('SIGUSR2', () => resolve()));
    say('terminated', { code: await worker.terminate() });
    return;
  }
  say('starting');
  if (script === 'never') return new Promise(() => setInterval(() => {}, 1000));
  if (script === 'no descriptors') useAllDescriptors();
  const started = performance.now();
  const group = await init(JSON.parse(optionsText));
  say('ready', {
    rank: group.rank,
    size: group.size,
    backend: group.backend,
    ms: performance.now() - started,
  });
  await scripts[script](group);
  await group.close();
  say('done', { state: group.state });
}

main().catch((error) => {
  say('failed', describe(error));
  process.exitCode = 1;
});
