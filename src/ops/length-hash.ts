/** MurmurHash3's finalizer: every input bit flips each output bit with probability near 1/2. */
function mix32(value: number): number {
  let x = value;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * A 64-bit fingerprint of active-token counts in their order, as 16 hex digits: what says that a plan and
 * a batch belong together. native/core/loss/length_hash.h computes the same one from the batch's mask.
 */
export function lengthHash(lengths: ArrayLike<number>): string {
  let low = 0x9e3779b9;
  let high = lengths.length;
  for (let i = 0; i < lengths.length; i++) {
    low = mix32(low ^ lengths[i]);
    high = mix32((Math.imul(high, 0x01000193) ^ lengths[i]) + low);
  }
  return low.toString(16).padStart(8, '0') + high.toString(16).padStart(8, '0');
}
