import { seededPermutation } from '../../seeded-random.js';
import { type Packing, packingFromBins } from './packing.js';

/**
 * First fit: each sequence, in the order of `items`, into the oldest bin that has room; else a new bin.
 *
 * O(n log bins): a tree over the bins holds the largest free space of each half.
 */
export function firstFit(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  const bin = new Int32Array(items.length);
  let leaves = 1024;
  let space = new Int32Array(2 * leaves);
  let numBins = 0;
  for (let i = 0; i < items.length; i++) {
    const length = lengths[items[i]];
    let node = 1;
    if (space[node] >= length) {
      while (node < leaves) {
        node *= 2;
        if (space[node] < length) node++;
      }
      bin[i] = node - leaves;
      space[node] -= length;
    } else {
      if (numBins === leaves) {
        space = doubled(space);
        leaves *= 2;
      }
      bin[i] = numBins;
      node = leaves + numBins++;
      space[node] = capacity - length;
    }
    for (node >>= 1; node >= 1; node >>= 1) {
      const larger = Math.max(space[2 * node], space[2 * node + 1]);
      if (space[node] === larger) break;
      space[node] = larger;
    }
  }
  return packingFromBins(lengths, items, bin, numBins);
}

/** First fit in a random order: the seed decides it. */
export function firstFitShuffled(
  lengths: Int32Array,
  items: Int32Array,
  capacity: number,
  seed: number,
): Packing {
  const order = seededPermutation(items.length, seed).map((i) => items[i]);
  return firstFit(lengths, order, capacity);
}

/** The same tree with room for twice the leaves: the old one becomes the left half. */
function doubled(space: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(2 * space.length);
  for (let row = 1; row < space.length; row *= 2) larger.set(space.subarray(row, 2 * row), 2 * row);
  larger[1] = larger[2];
  return larger;
}
