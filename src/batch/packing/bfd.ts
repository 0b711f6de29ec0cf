import { bucketQueue } from './bucket-queue.js';
import { type Packing, packingFromBins } from './packing.js';
import { sortedByFallingLength } from './sort.js';

/**
 * Best fit decreasing: longest first, each into the open bin with the least sufficient free space;
 * among bins with that space the one that has had it longest; else a new bin.
 *
 * O(n) after the O(n) sort: bins wait in lists by free space, and the least sufficient space is found
 * in one tree of bits. Needs at most 11/9 of the optimal number of bins + 1 (Johnson, 1973).
 */
export function bestFitDecreasing(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  const order = sortedByFallingLength(lengths, items);
  const bin = new Int32Array(order.length);
  const open = bucketQueue(capacity, order.length);
  let numBins = 0;
  for (let i = 0; i < order.length; ) {
    const length = lengths[order[i]];
    let space = open.atLeast(length);
    const b = space < 0 ? numBins++ : open.shift(space);
    if (space < 0) space = capacity;
    // No space lies between `length` and the one just taken, so a next sequence of the same length
    // goes to the same bin while there is room: that saves its trip through the queue.
    do {
      bin[i++] = b;
      space -= length;
    } while (space >= length && i < order.length && lengths[order[i]] === length);
    open.push(space, b);
  }
  return packingFromBins(lengths, order, bin, numBins);
}
