import { bucketQueue } from './bucket-queue.js';
import { type Packing, packingFromBins } from './packing.js';

/**
 * Greedy knapsack: fill one bin at a time with the longest remaining sequence that still fits; among
 * equal lengths the earliest.
 */
export function greedyKnapsack(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  const remaining = bucketQueue(capacity, lengths.length);
  for (let i = 0; i < items.length; i++) remaining.push(lengths[items[i]], items[i]);

  const order = new Int32Array(items.length);
  const bin = new Int32Array(items.length);
  let numBins = 0;
  let space = capacity;
  for (let i = 0; i < order.length; i++) {
    let length = remaining.atMost(space);
    if (length < 0) {
      numBins++;
      space = capacity;
      length = remaining.atMost(space);
    }
    order[i] = remaining.shift(length);
    bin[i] = numBins;
    space -= length;
  }
  return packingFromBins(lengths, order, bin, order.length === 0 ? 0 : numBins + 1);
}
