import { bestFitDecreasing } from './bfd.js';
import type { Packing } from './packing.js';
import { checkPieceCount } from './pieces.js';

/** Best fit decreasing over pieces: a sequence above `capacity` is first cut into full pieces and a rest. */
export function bestFitDecreasingSplit(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  let count = 0;
  for (let i = 0; i < items.length; i++) count += Math.ceil(lengths[items[i]] / capacity);
  checkPieceCount(count);

  const pieceItems = new Int32Array(count);
  const pieceStarts = new Int32Array(count);
  const pieceLengths = new Int32Array(count);
  let p = 0;
  for (let i = 0; i < items.length; i++) {
    const length = lengths[items[i]];
    for (let start = 0; start < length; start += capacity) {
      pieceItems[p] = items[i];
      pieceStarts[p] = start;
      pieceLengths[p++] = Math.min(capacity, length - start);
    }
  }

  const pieces = new Int32Array(count);
  for (let i = 0; i < count; i++) pieces[i] = i;
  const packing = bestFitDecreasing(pieceLengths, pieces, capacity);
  const { items: cutItems, starts } = packing;
  for (let i = 0; i < count; i++) {
    const piece = cutItems[i];
    cutItems[i] = pieceItems[piece];
    starts[i] = pieceStarts[piece];
  }
  return packing;
}
