import { checkInteger } from './check.js';

/** What a {@link Pcg32} needs to go on elsewhere: plain numbers, for checkpoints. */
export interface Pcg32State {
  /** The 64 bits of the state and of the increment, as unsigned 32-bit halves. */
  readonly state: readonly [high: number, low: number];
  readonly increment: readonly [high: number, low: number];
}

/** Upper half of the product of two unsigned 32-bit numbers. */
function multiplyHigh(a: number, b: number): number {
  const aHigh = a >>> 16;
  const aLow = a & 0xffff;
  const bHigh = b >>> 16;
  const bLow = b & 0xffff;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + (aLow * bHigh + (middle & 0xffff)) / 0x10000) | 0;
}

/**
 * Random 32-bit numbers: PCG-XSH-RR with 64 bits of state (O'Neill 2014), the generator of one sequence
 * while it is sampled. The same seed and stream give the same numbers on every machine; different streams
 * of one seed do not repeat each other.
 *
 * @example
 * ```ts
 * const generator = new Pcg32(42, 54);
 * generator.next(); // 2707161783
 * ```
 */
export class Pcg32 {
  #high = 0;
  #low = 0;
  #incrementHigh: number;
  #incrementLow: number;

  /**
   * @param seed an integer from 0 to 2^53 - 1
   * @param stream which of the seed's sequences, an integer from 0 to 2^53 - 1. Default 0
   * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_TYPE`
   */
  constructor(seed: number, stream = 0) {
    checkInteger('Pcg32', 'seed', seed, 0);
    checkInteger('Pcg32', 'stream', stream, 0);
    const streamHigh = Math.floor(stream / 2 ** 32);
    this.#incrementHigh = ((streamHigh << 1) | (stream >>> 31)) >>> 0;
    this.#incrementLow = ((stream << 1) | 1) >>> 0;
    this.next();
    const low = this.#low + (seed >>> 0);
    this.#low = low >>> 0;
    this.#high = (this.#high + Math.floor(seed / 2 ** 32) + (low > 0xffffffff ? 1 : 0)) >>> 0;
    this.next();
  }

  /** A generator that goes on where `toJSON()` was called. */
  static from({ state, increment }: Pcg32State): Pcg32 {
    const generator = new Pcg32(0);
    [generator.#high, generator.#low] = state;
    [generator.#incrementHigh, generator.#incrementLow] = increment;
    return generator;
  }

  /** The next number, uniform in `[0, 2^32)`. */
  next(): number {
    const high = this.#high;
    const low = this.#low;
    // state * 6364136223846793005 + increment
    const sum = (Math.imul(low, 0x4c957f2d) >>> 0) + this.#incrementLow;
    this.#low = sum >>> 0;
    this.#high =
      (multiplyHigh(low, 0x4c957f2d) +
        Math.imul(high, 0x4c957f2d) +
        Math.imul(low, 0x5851f42d) +
        this.#incrementHigh +
        (sum > 0xffffffff ? 1 : 0)) >>>
      0;
    // ((old >> 18) ^ old) >> 27, its low half, rotated by old >> 59
    const mixedHigh = (high ^ (high >>> 18)) >>> 0;
    const mixedLow = (low ^ ((low >>> 18) | (high << 14))) >>> 0;
    const shifted = ((mixedLow >>> 27) | (mixedHigh << 5)) >>> 0;
    const rotation = high >>> 27;
    return ((shifted >>> rotation) | (shifted << (-rotation & 31))) >>> 0;
  }

  /** The state, for {@link Pcg32.from}. */
  toJSON(): Pcg32State {
    return { state: [this.#high, this.#low], increment: [this.#incrementHigh, this.#incrementLow] };
  }
}
