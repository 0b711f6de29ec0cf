/**
 * Random numbers that depend on named integers only, never on how many were drawn before.
 *
 * Ranks that shuffle alike must not share a running generator: once two of them shuffle lists of
 * different length, every later draw differs. Each use makes its own generator from (seed, epoch,
 * round, ...) and throws it away.
 */

const TWO_32 = 2 ** 32;

/** MurmurHash3's finalizer: every input bit flips each output bit with probability near 1/2. */
function mix32(value: number): number {
  let x = value;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A 64-bit hash of integers as `[low, high]`, both unsigned 32-bit. */
export function hash64(...parts: readonly number[]): [number, number] {
  let low = 0x9e3779b9;
  let high = 0x7f4a7c15;
  for (const part of parts) {
    for (const word of [part >>> 0, Math.floor(part / TWO_32) >>> 0]) {
      low = mix32(low ^ word);
      high = mix32((Math.imul(high, 0x01000193) ^ word) + low);
    }
  }
  return [mix32(low + high), mix32(high ^ (low >>> 7))];
}

/** A 64-bit hash of a long array, as 16 hex digits. */
export function digestWords(words: Int32Array): string {
  let low = 0x9e3779b9;
  let high = words.length;
  for (const word of words) {
    low = mix32(low ^ word);
    high = mix32((Math.imul(high, 0x01000193) ^ word) + low);
  }
  return low.toString(16).padStart(8, '0') + high.toString(16).padStart(8, '0');
}

/** A small fast generator (sfc32), seeded from integers by {@link hash64}. */
export class SeededRandom {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  constructor(...parts: readonly number[]) {
    const [low, high] = hash64(...parts);
    this.#a = low | 0;
    this.#b = high | 0;
    this.#c = mix32(low ^ high) | 0;
    for (let warmUp = 0; warmUp < 12; warmUp++) this.uint32();
  }

  /** Uniform in `[0, 2^32)`. */
  uint32(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** Uniform in `[0, 1)`. */
  uniform(): number {
    return this.uint32() / TWO_32;
  }

  /** Uniform in `0..n-1`. The bias is below `n / 2^32`. */
  below(n: number): number {
    return Math.floor((this.uint32() * n) / TWO_32);
  }

  /** Standard normal (Box-Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
}

/** A permutation of `0..n-1` that is a function of `n` and `parts` only (Fisher-Yates). */
export function seededPermutation(n: number, ...parts: readonly number[]): Int32Array {
  const permutation = Int32Array.from({ length: n }, (_, i) => i);
  const random = new SeededRandom(...parts);
  for (let i = n - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const held = permutation[i];
    permutation[i] = permutation[j];
    permutation[j] = held;
  }
  return permutation;
}
