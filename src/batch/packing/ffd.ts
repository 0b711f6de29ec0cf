import { firstFit } from './ff.js';
import type { Packing } from './packing.js';
import { sortedByFallingLength } from './sort.js';

/** First fit decreasing: first fit, longest first. At most 11/9 of the optimum + 6/9 bins (Dósa, 2007). */
export function firstFitDecreasing(lengths: Int32Array, items: Int32Array, capacity: number): Packing {
  return firstFit(lengths, sortedByFallingLength(lengths, items), capacity);
}
