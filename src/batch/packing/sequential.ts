import { type Packing, packingFromBins } from './packing.js';

/** Next fit: keeps the order and opens a new bin as soon as a sequence does not fit the current one. */
export function sequential(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  const bin = new Int32Array(items.length);
  let current = -1;
  let space = 0;
  for (let i = 0; i < items.length; i++) {
    const length = lengths[items[i]];
    if (length > space) {
      current++;
      space = capacity;
    }
    space -= length;
    bin[i] = current;
  }
  return packingFromBins(lengths, items, bin, current + 1);
}
