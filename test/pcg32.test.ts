import { expect, test } from 'vitest';
import { Pcg32 } from '../src/index.js';
import { expectRefused, wrong } from './support/ops.js';

test('Pcg32 gives the numbers of the reference implementation', () => {
  const generator = new Pcg32(42, 54); // pcg32-demo of the PCG library
  const want = [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e];
  expect(want.map(() => generator.next())).toEqual(want);
});

test('Pcg32 agrees with its recurrence in 64 bits, for large seeds and streams', () => {
  const mask = (1n << 64n) - 1n;
  for (const [seed, stream] of [
    [0, 0],
    [2 ** 32 - 1, 2 ** 31],
    [2 ** 53 - 1, 2 ** 53 - 1],
    [123456789012345, 2 ** 32],
  ]) {
    const increment = ((BigInt(stream) << 1n) | 1n) & mask;
    const advance = (state: bigint): bigint => (state * 6364136223846793005n + increment) & mask;
    let state = advance((advance(0n) + BigInt(seed)) & mask);
    const generator = new Pcg32(seed, stream);
    for (let i = 0; i < 1000; i++) {
      const shifted = Number((((state >> 18n) ^ state) >> 27n) & 0xffffffffn);
      const rotation = Number(state >> 59n);
      state = advance(state);
      expect(generator.next()).toBe(((shifted >>> rotation) | (shifted << (-rotation & 31))) >>> 0);
    }
  }
});

test('Pcg32 goes on from its state, through JSON', () => {
  const generator = new Pcg32(1, 2);
  generator.next();
  const copy = Pcg32.from(JSON.parse(JSON.stringify(generator)));
  for (let i = 0; i < 10; i++) expect(copy.next()).toBe(generator.next());
});

test('Pcg32 refuses seeds that are no integers', () => {
  expectRefused(() => new Pcg32(-1), 'ERR_VARLEN_RANGE', 'seed', 'Pcg32');
  expectRefused(() => new Pcg32(1, 0.5), 'ERR_VARLEN_RANGE', 'stream', 'Pcg32');
  expectRefused(() => new Pcg32(wrong('1')), 'ERR_VARLEN_TYPE', 'seed', 'Pcg32');
});
