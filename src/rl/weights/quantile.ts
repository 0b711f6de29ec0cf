/** Exact quantiles over the values of all ranks, by counting. */
import type { Collective } from '../collective.js';

const BINS = 1 << 16;

/** Size of the first vector that {@link quantile} adds up. */
export const QUANTILE_BINS: number = BINS;

/** Bits of a float32 as an unsigned number of the same order. */
function orderedBits(values: ArrayLike<number>): Uint32Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = bits[i] & 0x80000000 ? ~bits[i] : bits[i] | 0x80000000;
  }
  return bits;
}

function floatOf(ordered: number): number {
  const bits = Uint32Array.of(ordered & 0x80000000 ? ordered & 0x7fffffff : ~ordered);
  return new Float32Array(bits.buffer)[0];
}

/** The bin that holds the value of the given rank, and its rank within that bin. */
function locate(counts: Float64Array, start: number, rank: number): { bin: number; rest: number } {
  let bin = 0;
  let rest = rank;
  while (rest >= counts[start + bin]) {
    rest -= counts[start + bin];
    bin += 1;
  }
  return { bin, rest };
}

/**
 * The quantile of float32 values at `level` in `[0, 1]` with linear interpolation between neighbours, over
 * all ranks; NaN when there are no values. Two counting rounds, 16 bits of the number each: no values are
 * exchanged and nothing is sorted.
 */
export function* quantile(values: ArrayLike<number>, level: number): Collective<number> {
  const bits = orderedBits(values);
  const high = new Float64Array(BINS);
  for (const word of bits) high[word >>> 16] += 1;
  const allHigh = yield high;
  let n = 0;
  for (const count of allHigh) n += count;
  const place = level * (n - 1);
  const ranks = [Math.floor(place), Math.ceil(place)];
  const found = n === 0 ? [] : ranks.map((rank) => locate(allHigh, 0, rank));
  const low = new Float64Array(2 * BINS);
  found.forEach(({ bin }, k) => {
    for (const word of bits) if (word >>> 16 === bin) low[k * BINS + (word & 0xffff)] += 1;
  });
  const allLow = yield low;
  if (n === 0) return Number.NaN;
  const [below, above] = found.map(({ bin, rest }, k) => {
    const inner = locate(allLow, k * BINS, rest);
    return floatOf(((bin << 16) | inner.bin) >>> 0);
  });
  return below + (above - below) * (place - ranks[0]);
}
