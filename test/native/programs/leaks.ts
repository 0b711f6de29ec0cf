/** Many calls, in rounds; prints how far memory grew in the round in which it grew least. Needs --expose-gc. The first argument picks the kind of call. */
import { Stream, Tensor, varlenAttention } from '../../../src/index.js';
import { failing } from '../../support/failing.js';

const cuSeqlens = Int32Array.of(0, 2);
const source = new Float32Array(2 * 8);

function call(): void {
  using q = Tensor.from(source, { shape: [2, 1, 8] });
  using result = varlenAttention(q, q, q, { cuSeqlens });
  using _view = result.out.view([16]);
}

async function rejectedRead(): Promise<void> {
  using out = failing();
  await out.data().then(
    () => {
      throw new Error('it did not fail');
    },
    () => {},
  );
}

function refused(): void {
  using q = Tensor.from(source, { shape: [2, 1, 8] });
  try {
    varlenAttention(q, q, q, { cuSeqlens: Int32Array.of(0, 3) });
  } catch {
    return;
  }
  throw new Error('it was not refused');
}

function trained(): void {
  using x = Tensor.from(source, { shape: [2, 1, 8], requiresGrad: true });
  using g = Tensor.from(source, { shape: [2, 1, 8] });
  using result = varlenAttention(x, x, x, { cuSeqlens });
  result.out.backward(g);
}

async function streamed(): Promise<void> {
  using side = new Stream('cpu');
  using q = Tensor.from(source, { stream: side });
  using _t = q.to('bfloat16', { stream: Stream.of('cpu') });
  await side.record().done();
}

const kinds: Record<string, () => unknown> = { call, rejectedRead, refused, trained, streamed };

async function repeat(fn: () => unknown, times: number): Promise<void> {
  for (let i = 0; i < times; i++) {
    const result = fn();
    if (result instanceof Promise) await result;
    if (i % 1000 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  await Stream.of('cpu').synchronize();
}

async function settle(): Promise<NodeJS.MemoryUsage> {
  for (let i = 0; i < 4; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return process.memoryUsage();
}

/** A leak grows in every round; the allocator's and the collector's own moods do not. */
const ROUNDS = 3;

async function main(): Promise<void> {
  const [, , kind, times, warmUp] = process.argv;
  await repeat(kinds[kind], Number(warmUp));
  const least = { rss: Number.POSITIVE_INFINITY, heap: Number.POSITIVE_INFINITY };
  for (let round = 0; round < ROUNDS; round++) {
    const before = await settle();
    await repeat(kinds[kind], Number(times));
    const after = await settle();
    least.rss = Math.min(least.rss, after.rss - before.rss);
    least.heap = Math.min(least.heap, after.heapUsed - before.heapUsed);
  }
  console.log(JSON.stringify(least));
}

void main();
