import type { Stream } from '../../src/tensor/index.js';

/** What the benches of prefill time with, and on. */

/** The same numbers on every run: even, with the variance of a normal distribution. */
export function random(size: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: size }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * 1.73;
  });
}

/** Seconds until `work` is done, by the clock: for work so short that threads waiting for it would count. */
export async function wallSeconds(stream: Stream, work: () => void): Promise<number> {
  const before = performance.now();
  work();
  await stream.synchronize();
  return (performance.now() - before) / 1e3;
}

/** Processor seconds of `work`, all threads together. */
export async function processorSeconds(stream: Stream, work: () => void): Promise<number> {
  const before = process.cpuUsage();
  work();
  await stream.synchronize();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}
