import { varlenAttention } from '../../ops/index.js';
import { type Device, deviceInfo, Stream, setNumThreads, Tensor } from '../../tensor/index.js';
import { type BenchLine, type BenchOptions, round, summarize, type Times } from './measure.js';

/** What a call costs beside its work: one sequence of 4 tokens, one head of 8. */

/** Calls before the stream is waited for: far below the queue's cap, where a call would wait. */
const BATCH = 64;

function tinyInputs(device: Device): Tensor[] {
  return [1, 2, 3].map(() => Tensor.from(new Float32Array(32).fill(0.1), { shape: [4, 1, 8], device }));
}

/** Time of one call until it returns, over batches with an empty queue before each. */
export async function timeCalls(device: Device, batches: number, signal?: AbortSignal): Promise<Times> {
  const stream = Stream.of(device);
  const [q, k, v] = tinyInputs(device);
  const cuSeqlens = Int32Array.of(0, 4);
  const times: number[] = [];
  for (let batch = 0; batch < batches; batch++) {
    signal?.throwIfAborted();
    const results: ReturnType<typeof varlenAttention>[] = [];
    const start = performance.now();
    for (let i = 0; i < BATCH; i++) results.push(varlenAttention(q, k, v, { cuSeqlens, causal: true }));
    times.push((1000 * (performance.now() - start)) / BATCH);
    await stream.synchronize();
    for (const result of results) result[Symbol.dispose]();
  }
  for (const tensor of [q, k, v]) tensor.dispose();
  return summarize(times.slice(batches >> 2)); // the first quarter compiles
}

/** Time from a call to its numbers in JavaScript. */
export async function timeRoundTrips(device: Device, runs: number, signal?: AbortSignal): Promise<Times> {
  const [q, k, v] = tinyInputs(device);
  const cuSeqlens = Int32Array.of(0, 4);
  const times: number[] = [];
  for (let run = 0; run < runs; run++) {
    signal?.throwIfAborted();
    const start = performance.now();
    using result = varlenAttention(q, k, v, { cuSeqlens, causal: true });
    await result.out.data();
    times.push(1000 * (performance.now() - start));
  }
  for (const tensor of [q, k, v]) tensor.dispose();
  return summarize(times.slice(runs >> 2));
}

/** Time of the plainest native call there is. */
export function timeNativeCalls(batches: number): Times {
  const { threads } = deviceInfo();
  const times: number[] = [];
  for (let batch = 0; batch < batches; batch++) {
    const start = performance.now();
    for (let i = 0; i < BATCH; i++) setNumThreads(threads);
    times.push((1000 * (performance.now() - start)) / BATCH);
  }
  return summarize(times.slice(batches >> 2));
}

/** The bench `call-overhead`. */
export async function* benchCallOverhead({ device, quick, signal }: BenchOptions): AsyncGenerator<BenchLine> {
  const native = timeNativeCalls(quick ? 200 : 2000);
  const lines: [string, Times][] = [
    ['enqueue', await timeCalls(device, quick ? 200 : 2000, signal)],
    ['round trip', await timeRoundTrips(device, quick ? 400 : 4000, signal)],
  ];
  for (const [impl, times] of lines) {
    yield {
      op: 'varlenAttention',
      impl,
      device: String(device),
      dtype: 'float32',
      shape: '1 sequence of 4, 1x8',
      ...times,
      gbps: null,
      tflops: null,
      rooflineFraction: null,
      comparedWith: `setNumThreads(), one native call, ${native.medianUs} us`,
      ratio: round(native.medianUs / times.medianUs),
    };
  }
}
