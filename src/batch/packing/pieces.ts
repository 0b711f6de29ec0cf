import { argumentError } from '../../errors.js';
import type { Packing } from './packing.js';

/** Throws when a packing would hold more pieces than 32-bit offsets can count. */
export function checkPieceCount(count: number): void {
  if (count < 2 ** 31) return;
  throw argumentError(
    'ERR_VARLEN_OVERFLOW',
    'pack',
    'lengths',
    `make too many pieces; got up to ${count}, expected fewer than 2^31`,
  );
}

/** Pieces gathered one by one, in bin order. */
export interface PieceList {
  readonly count: number;
  push(item: number, start: number, length: number): void;
  into(offsets: Int32Array): Packing;
}

/** An empty list with room for `most` pieces. */
export function pieceList(most: number): PieceList {
  const items = new Int32Array(most);
  const starts = new Int32Array(most);
  const lengths = new Int32Array(most);
  let count = 0;
  return {
    get count() {
      return count;
    },
    push(item, start, length) {
      items[count] = item;
      starts[count] = start;
      lengths[count++] = length;
    },
    into(offsets) {
      return {
        offsets,
        items: items.subarray(0, count),
        starts: starts.subarray(0, count),
        lengths: lengths.subarray(0, count),
      };
    },
  };
}
