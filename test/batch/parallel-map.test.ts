import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { DynamicBatcher } from '../../src/batch/batcher.js';
import { parallelMap } from '../../src/batch/parallel-map.js';
import { arraySource } from '../support/array-source.js';
import { rejected, thrown } from '../support/thrown.js';

const later = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const numbers = (n: number) => Array.from({ length: n }, (_, i) => i);
const fixture = { module: join(__dirname, 'fixtures/double.cjs'), name: 'double' };

async function all<T>(source: { open(epoch: number): AsyncIterable<T> | Iterable<T> }): Promise<T[]> {
  const values: T[] = [];
  for await (const value of source.open(0)) values.push(value);
  return values;
}

describe('parallelMap', () => {
  test('keeps the source order while later samples finish first', async () => {
    const finished: number[] = [];
    const mapped = parallelMap(numbers(20), async (i) => {
      await later(20 - i);
      finished.push(i);
      return 10 * i;
    });
    expect(await all(mapped)).toEqual(numbers(20).map((i) => 10 * i));
    expect(finished).not.toEqual(numbers(20));
  });

  test('hands results on as they finish when order is not wanted', async () => {
    const mapped = parallelMap(
      [30, 0, 15],
      async (ms) => {
        await later(ms);
        return ms;
      },
      { ordered: false },
    );
    expect(await all(mapped)).toEqual([0, 15, 30]);
  });

  test('never has more samples in flight than it may', async () => {
    let running = 0;
    let most = 0;
    let pulled = 0;
    let taken = 0;
    let mostAhead = 0;
    function* source() {
      for (const i of numbers(50)) {
        pulled++;
        mostAhead = Math.max(mostAhead, pulled - taken);
        yield i;
      }
    }
    const mapped = parallelMap(
      source(),
      async (i) => {
        most = Math.max(most, ++running);
        await later(1);
        running--;
        return i;
      },
      { inFlight: 4 },
    );
    for await (const _ of mapped.open(0) as AsyncIterable<number>) {
      taken++;
      await later(1);
    }
    expect(taken).toBe(50);
    expect(most).toBe(4);
    expect(mostAhead).toBeLessThanOrEqual(5);
  });

  test('ends with the error of the function after the samples before it', async () => {
    const seen: number[] = [];
    const mapped = parallelMap(numbers(9), (i) => {
      if (i === 4) throw new RangeError('four');
      return i;
    });
    const failed = await rejected(
      (async () => {
        for await (const i of mapped.open(0) as AsyncIterable<number>) seen.push(i);
      })(),
    );
    expect(failed).toBeInstanceOf(RangeError);
    expect(seen).toEqual([0, 1, 2, 3]);
  });

  test('ends with the error of the source, and tells the source when nobody reads on', async () => {
    let returned = 0;
    const source = {
      [Symbol.asyncIterator]: () => ({
        i: 0,
        async next() {
          if (this.i === 3) throw new Error('broken pipe');
          return { done: false, value: this.i++ };
        },
        async return() {
          returned++;
          return { done: true as const, value: undefined };
        },
      }),
    };
    expect(await rejected(all(parallelMap(source, (i: number) => i)))).toMatchObject({
      message: 'broken pipe',
    });
    for await (const _ of parallelMap(source, (i: number) => i, { inFlight: 1 }).open(
      0,
    ) as AsyncIterable<number>)
      break;
    expect(returned).toBe(1);
  });

  test('runs a module on worker threads, in order', async () => {
    const results = await all(
      parallelMap<number, { value: number; threadId: number }>(numbers(12), fixture, { workers: 2 }),
    );
    expect(results.map(({ value }) => value)).toEqual(numbers(12).map((i) => 2 * i));
    const threads = new Set(results.map(({ threadId }) => threadId));
    expect(threads.size).toBe(2);
    expect(threads.has(0)).toBe(false);
  });

  test('passes on an error thrown in a worker, and the loss of a worker', async () => {
    expect(await rejected(all(parallelMap([1, 13], fixture, { workers: 1 })))).toMatchObject({
      message: 'unlucky 13',
    });
    expect(await rejected(all(parallelMap([99, 1], fixture, { workers: 2 })))).toMatchObject({
      message: 'a worker thread of parallelMap exited with code 3',
    });
    const missing = { module: join(__dirname, 'fixtures/double.cjs'), name: 'triple' };
    expect(await rejected(all(parallelMap([1], missing, { workers: 1 })))).toMatchObject({
      message: expect.stringContaining('exports no function triple'),
    });
  });

  test('lets a batcher over an ordered map resume exactly', async () => {
    const make = () => {
      const mapped = parallelMap(arraySource(numbers(40)), async (i: number) => {
        await later(i % 3);
        return { id: i, inputIds: new Int32Array(1 + ((7 * i) % 11)) };
      });
      return new DynamicBatcher(mapped, { budget: { packedTokens: 24 }, window: 8 });
    };
    const whole: unknown[] = [];
    for await (const { ids } of make()) whole.push(ids);
    const first = make();
    const iterator = first[Symbol.asyncIterator]();
    for (let i = 0; i < 5; i++) expect((await iterator.next()).value?.ids).toEqual(whole[i]);
    const saved = JSON.parse(JSON.stringify(first.state()));
    await iterator.return?.();
    const second = make();
    second.restore(saved);
    const rest: unknown[] = [];
    for await (const { ids } of second) rest.push(ids);
    expect(rest).toEqual(whole.slice(5));
  });

  test.each([
    ['inFlight 0', () => parallelMap([1], (i) => i, { inFlight: 0 }), 'ERR_VARLEN_RANGE'],
    ['half a worker', () => parallelMap([1], fixture, { workers: 0.5 }), 'ERR_VARLEN_RANGE'],
    ['workers for a function', () => parallelMap([1], (i) => i, { workers: 2 }), 'ERR_VARLEN_INCOMPATIBLE'],
    ['no function', () => parallelMap([1], null as never), 'ERR_VARLEN_TYPE'],
    ['a word for ordered', () => parallelMap([1], (i) => i, { ordered: 'yes' as never }), 'ERR_VARLEN_TYPE'],
    ['a number for a source', () => parallelMap(7 as never, (i) => i), 'ERR_VARLEN_TYPE'],
  ])('refuses %s', (_, call, code) => {
    expect(thrown(call)).toMatchObject({ code });
  });
});
