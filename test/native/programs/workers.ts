/** The addon in several environments of one process. The first argument picks the scene. */
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { Stream, Tensor, varlenAttention } from '../../../src/index.js';

const [, file, scene] = process.argv;
const rejections: unknown[] = [];
process.on('unhandledRejection', (reason) => rejections.push(reason));

function attend(tokens: number, stream?: Stream) {
  const q = Tensor.from(new Float32Array(tokens * 2 * 16).fill(0.5), { shape: [tokens, 2, 16] });
  const cuSeqlens = Int32Array.of(0, tokens);
  const result = varlenAttention(q, q, q, { cuSeqlens, ...(stream === undefined ? {} : { stream }) });
  q.dispose();
  return result;
}

async function checkOp(): Promise<void> {
  using result = attend(64);
  const out = (await result.out.data()) as Float32Array;
  if (!out.every((value) => Math.abs(value - 0.5) < 1e-5)) throw new Error('the op is wrong');
}

/** Jobs in all states: queued, running, on two streams, waiting for one another; reads in flight. */
function startJobs(): void {
  const side = new Stream('cpu');
  for (let i = 0; i < 10; i++) {
    const here = attend(300);
    const there = attend(300, side);
    void here.out.data();
    void there.out.data();
    void there.out.to('bfloat16').data();
    void side.record().done();
  }
}

/** A worker that knows from its start whether it has ended. */
function start(data: string): Worker {
  const worker = new Worker(file, { workerData: data });
  ended.set(worker, new Promise((resolve) => worker.once('exit', resolve)));
  return worker;
}
const ended = new WeakMap<Worker, Promise<number>>();
const exit = async (worker: Worker): Promise<number> => (await ended.get(worker)) as number;
const message = (worker: Worker): Promise<unknown> =>
  new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });

const scenes: Record<string, () => Promise<void>> = {
  async 'main and four workers'() {
    const workers = Array.from({ length: 4 }, () => start('op'));
    await Promise.all([checkOp(), ...workers.map(message)]);
    await Promise.all(workers.map(exit));
    await checkOp();
  },
  async 'terminate eighty workers'() {
    for (let round = 0; round < 10; round++) {
      const workers = Array.from({ length: 8 }, () => start('jobs'));
      await Promise.all(
        workers.map(async (worker, i) => {
          await message(worker);
          await new Promise((resolve) => setTimeout(resolve, i));
          await worker.terminate();
        }),
      );
    }
    await checkOp();
  },
  async 'main never loads the addon'() {
    for (let round = 0; round < 10; round++) {
      const worker = start(round % 2 === 0 ? 'copy' : 'op');
      await message(worker);
      await exit(worker);
    }
    // The pool's threads are asleep in code that the last environment must not have unloaded.
    await new Promise((resolve) => setTimeout(resolve, 50));
  },
  async 'a hundred workers load and end'() {
    for (let round = 0; round < 20; round++) {
      const workers = Array.from({ length: 5 }, (_, i) => start(i % 2 === 0 ? 'load' : 'op'));
      await Promise.all(
        workers.map(async (worker, i) => {
          await message(worker);
          if (i === 0) await worker.terminate();
          else await exit(worker);
        }),
      );
    }
  },
  async 'a worker exits in mid-op'() {
    for (let i = 0; i < 10; i++) {
      const code = await exit(start('exit'));
      if (code !== 7) throw new Error(`exit code ${code}`);
    }
    await checkOp();
  },
  async 'settlements nobody hears'() {
    const worker = start('flood');
    await message(worker);
    await worker.terminate();
    await checkOp();
  },
};

async function inWorker(what: string): Promise<void> {
  if (what === 'load') Tensor.from(Float32Array.of(1)).dispose();
  if (what === 'op') await checkOp();
  if (what === 'copy')
    await Tensor.empty([1 << 20], { dtype: 'float32' })
      .to('int32')
      .data();
  if (what === 'jobs') startJobs();
  if (what === 'exit') {
    startJobs();
    process.exit(7);
  }
  if (what === 'flood') {
    // Reads that are all done before the event loop gets to any of them.
    const t = Tensor.from(Uint8Array.of(1));
    for (let i = 0; i < 150_000; i++) void t.data();
    t.dataSync();
    parentPort?.postMessage('ready');
    for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000);
  }
  parentPort?.postMessage('ready');
}

async function main(): Promise<void> {
  if (!isMainThread) return inWorker(workerData as string);
  await scenes[scene]();
  await new Promise((resolve) => setTimeout(resolve, 20));
  if (rejections.length > 0) throw new Error(`${rejections.length} unhandled rejections: ${rejections[0]}`);
  console.log('fine');
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
