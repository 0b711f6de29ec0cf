import type { Packing } from './packing.js';
import { checkPieceCount, pieceList } from './pieces.js';

/** One long text, cut every `capacity` tokens: every bin but the last is full, sequences may be cut. */
export function wrapped(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  let tokens = 0;
  for (let i = 0; i < items.length; i++) tokens += lengths[items[i]];
  const numBins = Math.ceil(tokens / capacity);
  // Each cut adds at most one piece.
  checkPieceCount(items.length + numBins);

  const offsets = new Int32Array(numBins + 1);
  const pieces = pieceList(items.length + numBins);
  let bin = 0;
  let space = capacity;
  for (let i = 0; i < items.length; i++) {
    const item = items[i];
    for (let start = 0; start < lengths[item]; ) {
      const length = Math.min(space, lengths[item] - start);
      pieces.push(item, start, length);
      start += length;
      space -= length;
      if (space === 0) {
        offsets[++bin] = pieces.count;
        space = capacity;
      }
    }
  }
  offsets[numBins] = pieces.count;
  return pieces.into(offsets);
}
