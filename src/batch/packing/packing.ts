import { argumentError } from '../../errors.js';

/**
 * Sequences laid into bins: `offsets` cuts the flat list of pieces into bins.
 *
 * A piece is `lengths[p]` tokens of sequence `items[p]`, from token `starts[p]` on. Algorithms that
 * never cut have one piece per sequence, with `starts[p] = 0`.
 */
export interface Packing {
  /** `[numBins + 1]`: the pieces of bin `b` are `offsets[b]` up to `offsets[b + 1]`. */
  readonly offsets: Int32Array;
  /** `[numPieces]`: index of the sequence. */
  readonly items: Int32Array;
  /** `[numPieces]`: first token of the piece within its sequence. */
  readonly starts: Int32Array;
  /** `[numPieces]`: tokens of the piece, at least 1. */
  readonly lengths: Int32Array;
}

/** One bin after the other as plain arrays of sequence indices. */
export function binsOf(packing: Packing): number[][] {
  const { offsets, items } = packing;
  const bins: number[][] = new Array(offsets.length - 1);
  for (let b = 0; b < bins.length; b++) {
    // Filled by hand: Array.from walks the iterator protocol and takes three times as long.
    const bin: number[] = new Array(offsets[b + 1] - offsets[b]);
    for (let i = 0; i < bin.length; i++) bin[i] = items[offsets[b] + i];
    bins[b] = bin;
  }
  return bins;
}

/** Tokens over the tokens that the bins could hold: 1 is a perfect packing; 1 for no bins at all. */
export function fillOf(packing: Packing, capacity: number): number {
  const bins = packing.offsets.length - 1;
  if (bins === 0) return 1;
  let tokens = 0;
  for (let p = 0; p < packing.lengths.length; p++) tokens += packing.lengths[p];
  return tokens / (bins * capacity);
}

/** Whole sequences grouped by a bin number each: `bin[i]` for the i-th entry of `items`. */
export function packingFromBins(
  lengths: Int32Array,
  items: Int32Array,
  bin: Int32Array,
  numBins: number,
): Packing {
  const offsets = new Int32Array(numBins + 1);
  for (let i = 0; i < bin.length; i++) offsets[bin[i] + 1]++;
  for (let b = 0; b < numBins; b++) offsets[b + 1] += offsets[b];

  const next = offsets.slice(0, numBins);
  const sorted = new Int32Array(items.length);
  const sortedLengths = new Int32Array(items.length);
  for (let i = 0; i < items.length; i++) {
    const place = next[bin[i]]++;
    sorted[place] = items[i];
    sortedLengths[place] = lengths[items[i]];
  }
  return { offsets, items: sorted, starts: new Int32Array(items.length), lengths: sortedLengths };
}

/** Indices of the sequences that hold at least one token, in their order: empty ones are never packed. */
export function nonEmpty(lengths: Int32Array): Int32Array {
  let count = 0;
  const items = new Int32Array(lengths.length);
  for (let i = 0; i < lengths.length; i++) if (lengths[i] > 0) items[count++] = i;
  return items.subarray(0, count);
}

const maxInt32 = 2 ** 31 - 1;

/** The lengths as an `Int32Array`, each checked to be an integer in `[0, 2^31)`. */
export function readLengths(op: string, lengths: ArrayLike<number>): Int32Array {
  const copy = new Int32Array(lengths.length);
  for (let i = 0; i < copy.length; i++) {
    const length = lengths[i];
    copy[i] = length;
    // int32 conversion is the identity exactly on the integers of its range; NaN differs from itself.
    if (copy[i] !== length || length < 0) {
      throw argumentError(
        'ERR_VARLEN_RANGE',
        op,
        `lengths[${i}]`,
        `must be a number of tokens; got ${String(length)}, expected an integer in [0, ${maxInt32}]`,
        { index: i },
      );
    }
  }
  return copy;
}

/** Throws unless `value` is an integer of at least `minimum` that fits in 32 bits. */
export function checkInteger(op: string, argument: string, value: number, minimum: number): void {
  if (!Number.isInteger(value) || value < minimum || value > maxInt32) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      argument,
      `is out of range; got ${String(value)}, expected an integer in [${minimum}, ${maxInt32}]`,
    );
  }
}
