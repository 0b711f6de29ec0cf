/** Changes inputs at random: single bits up to pieces of other inputs. */

/** Marsaglia's xorshift32: a few instructions a number. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = Math.imul(seed, 0x9e3779b1) | 1;
  }

  /** Uniform in 0 .. n - 1. */
  below(n: number): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) % n;
  }
}

/** Where lengths and counts go wrong. */
const numbers = [0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 2 ** 15, 2 ** 16, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1];

/** Reused by every mutation: an input lives until the next one. */
export class Mutator {
  readonly #random: Random;
  readonly #words: readonly Uint8Array[];
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #length = 0;

  constructor(random: Random, maxLength: number, words: readonly string[]) {
    this.#random = random;
    this.#words = words.map((word) => new TextEncoder().encode(word));
    this.#bytes = new Uint8Array(maxLength + 8);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** A changed copy of `input`, valid until the next call. `other`: an input to take pieces of. */
  mutate(input: Uint8Array, other: Uint8Array): Uint8Array {
    const limit = this.#bytes.length - 8;
    this.#length = Math.min(input.length, limit);
    this.#bytes.set(input.subarray(0, this.#length));
    for (let turn = this.#random.below(4); turn >= 0; turn--) this.#change(other, limit);
    return this.#bytes.subarray(0, this.#length);
  }

  #change(other: Uint8Array, limit: number): void {
    const random = this.#random;
    const bytes = this.#bytes;
    const at = random.below(this.#length + 1);
    switch (random.below(10)) {
      case 0:
        bytes[at] ^= 1 << random.below(8);
        break;
      case 1:
        bytes[at] = random.below(256);
        break;
      case 2: // a byte of the input elsewhere
        bytes[at] = bytes[random.below(this.#length + 1)];
        break;
      case 3:
        this.#view.setInt32(Math.min(at, limit), numbers[random.below(numbers.length)], true);
        break;
      case 4:
        this.#view.setBigInt64(Math.min(at, limit), BigInt(numbers[random.below(numbers.length)]), true);
        break;
      case 5: {
        // a piece less
        const count = Math.min(1 + random.below(8), this.#length - at);
        bytes.copyWithin(at, at + count, this.#length);
        this.#length -= count;
        return;
      }
      case 6: // a piece twice
        this.#insert(at, bytes.slice(at, Math.min(at + 1 + random.below(16), this.#length)), limit);
        return;
      case 7: {
        const start = random.below(other.length + 1);
        this.#insert(at, other.subarray(start, start + 1 + random.below(32)), limit);
        return;
      }
      case 8:
        if (this.#words.length > 0) {
          this.#insert(at, this.#words[random.below(this.#words.length)], limit);
          return;
        }
        bytes[at] = random.below(256);
        break;
      default: // an end elsewhere
        this.#length = random.below(this.#length + 1);
        return;
    }
    if (at === this.#length && this.#length < limit) this.#length++;
  }

  #insert(at: number, piece: Uint8Array, limit: number): void {
    const count = Math.min(piece.length, limit - this.#length);
    this.#bytes.copyWithin(at + count, at, this.#length);
    this.#bytes.set(piece.subarray(0, count), at);
    this.#length += count;
  }
}
