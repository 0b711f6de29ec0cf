/**
 * Sums whose value does not depend on the order of the terms, nor on how ranks share them.
 *
 * A term is cut into three limbs at fixed binary places (pre-rounded summation: Demmel and Nguyen 2013).
 * The limbs of many terms add without any rounding as long as terms lie between about 2^-8 and 2^25 and
 * there are fewer than 2^20 of them, which covers `(L / C)^-alpha` for real lengths. Outside that range
 * nothing breaks: the last limb holds whatever remains, and the sum is an ordinary float64 sum again.
 */

/** Limbs per sum. */
export const LIMBS = 3;

/** Adding and subtracting `1.5 * 2^52 * q` rounds to a multiple of q; the first two limbs have these q. */
const TO_UNIT = 1.5 * 2 ** 52; // q = 1
const TO_FRACTION = 1.5 * 2 ** 26; // q = 2^-26

/** Above this a term has no fraction to cut off (and `TO_UNIT` would be too small to round it). */
const WHOLE = 2 ** 51;

/** Writes the limbs of the sum of `terms`, each >= 0, at `offset`. */
export function sumExactly(terms: Float64Array, limbs: Float64Array, offset: number): void {
  let highs = 0;
  let middles = 0;
  let lows = 0;
  for (let i = 0; i < terms.length; i++) {
    const term = terms[i];
    const high = term < WHOLE ? term + TO_UNIT - TO_UNIT : term;
    const rest = term - high;
    const middle = rest + TO_FRACTION - TO_FRACTION;
    highs += high;
    middles += middle;
    lows += rest - middle;
  }
  limbs[offset] = highs;
  limbs[offset + 1] = middles;
  limbs[offset + 2] = lows;
}

/** The value of the limbs at `offset`. */
export function sumOf(limbs: Float64Array, offset: number): number {
  return limbs[offset] + (limbs[offset + 1] + limbs[offset + 2]);
}
