/**
 * First-in-first-out lists under integer keys, with "smallest key at or above" and "largest key at or below".
 *
 * The packers ask both questions of free space and of lengths. Which keys hold something is a tree of
 * 32-bit words, 32 keys to a word and 32 words to a word of the level above, so a question costs one
 * word per level: two for a capacity of 1024, four for a million tokens.
 */
export interface BucketQueue {
  /** Appends `id` to the list of `key`. */
  push(key: number, id: number): void;
  /** Removes and returns the oldest id under `key`, which must hold one. */
  shift(key: number): number;
  /** The smallest key in use that is `>= key`, or -1. */
  atLeast(key: number): number;
  /** The largest key in use that is `<= key`, or -1. */
  atMost(key: number): number;
}

// Above this the per-key arrays (8 bytes a key) would outweigh the sequences themselves.
const denseKeyLimit = 1 << 22;

/** An empty queue for keys `0..maxKey` and ids `0..numIds - 1`. */
export function bucketQueue(maxKey: number, numIds: number): BucketQueue {
  return maxKey < denseKeyLimit ? new DenseBuckets(maxKey, numIds) : new SparseBuckets(numIds);
}

const none = -1;

class DenseBuckets implements BucketQueue {
  readonly #oldest: Int32Array;
  readonly #newest: Int32Array;
  readonly #next: Int32Array;
  /** `levels[0]` has one bit per key, each level above one bit per word below. */
  readonly #levels: Int32Array[] = [];

  constructor(maxKey: number, numIds: number) {
    this.#oldest = new Int32Array(maxKey + 1).fill(none);
    this.#newest = new Int32Array(maxKey + 1);
    this.#next = new Int32Array(numIds);
    let words = maxKey + 1;
    do {
      words = (words + 31) >>> 5;
      this.#levels.push(new Int32Array(words));
    } while (words > 1);
  }

  push(key: number, id: number): void {
    this.#next[id] = none;
    if (this.#oldest[key] === none) {
      this.#oldest[key] = id;
      let bit = key;
      for (const level of this.#levels) {
        const word = bit >>> 5;
        const before = level[word];
        level[word] = before | (1 << (bit & 31));
        if (before !== 0) break;
        bit = word;
      }
    } else {
      this.#next[this.#newest[key]] = id;
    }
    this.#newest[key] = id;
  }

  shift(key: number): number {
    const id = this.#oldest[key];
    const next = this.#next[id];
    this.#oldest[key] = next;
    if (next === none) {
      let bit = key;
      for (const level of this.#levels) {
        const word = bit >>> 5;
        const after = level[word] & ~(1 << (bit & 31));
        level[word] = after;
        if (after !== 0) break;
        bit = word;
      }
    }
    return id;
  }

  atLeast(key: number): number {
    const levels = this.#levels;
    let from = key;
    for (let depth = 0; depth < levels.length; depth++) {
      const level = levels[depth];
      const word = from >>> 5;
      if (word >= level.length) return none;
      const bits = level[word] & (-1 << (from & 31));
      if (bits !== 0) return descendLow(levels, depth, (word << 5) | lowestBit(bits));
      // The next word; a shift by 32 would be a shift by 0, so step to it on the level above.
      from = word + 1;
    }
    return none;
  }

  atMost(key: number): number {
    const levels = this.#levels;
    let from = Math.min(key, this.#oldest.length - 1);
    for (let depth = 0; depth < levels.length && from >= 0; depth++) {
      const word = from >>> 5;
      const bits = levels[depth][word] & (-1 >>> (31 - (from & 31)));
      if (bits !== 0) return descendHigh(levels, depth, (word << 5) | (31 - Math.clz32(bits)));
      from = word - 1;
    }
    return none;
  }
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}

function descendLow(levels: readonly Int32Array[], depth: number, position: number): number {
  let at = position;
  for (let below = depth - 1; below >= 0; below--) at = (at << 5) | lowestBit(levels[below][at]);
  return at;
}

function descendHigh(levels: readonly Int32Array[], depth: number, position: number): number {
  let at = position;
  for (let below = depth - 1; below >= 0; below--) at = (at << 5) | (31 - Math.clz32(levels[below][at]));
  return at;
}

/** The same for keys up to 2^31 - 1: words live in a hash map, and only while they are not zero. */
class SparseBuckets implements BucketQueue {
  // 7 levels of 5 bits cover 31-bit keys.
  readonly #levels: Map<number, number>[] = Array.from({ length: 7 }, () => new Map());
  readonly #oldest = new Map<number, number>();
  readonly #newest = new Map<number, number>();
  readonly #next: Int32Array;

  constructor(numIds: number) {
    this.#next = new Int32Array(numIds);
  }

  push(key: number, id: number): void {
    this.#next[id] = none;
    if (this.#oldest.has(key)) {
      this.#next[this.#newest.get(key) as number] = id;
    } else {
      this.#oldest.set(key, id);
      let bit = key;
      for (const level of this.#levels) {
        const word = bit >>> 5;
        const before = level.get(word) ?? 0;
        level.set(word, before | (1 << (bit & 31)));
        if (before !== 0) break;
        bit = word;
      }
    }
    this.#newest.set(key, id);
  }

  shift(key: number): number {
    const id = this.#oldest.get(key) as number;
    const next = this.#next[id];
    if (next !== none) {
      this.#oldest.set(key, next);
      return id;
    }
    this.#oldest.delete(key);
    this.#newest.delete(key);
    let bit = key;
    for (const level of this.#levels) {
      const word = bit >>> 5;
      const after = (level.get(word) as number) & ~(1 << (bit & 31));
      if (after !== 0) {
        level.set(word, after);
        break;
      }
      level.delete(word);
      bit = word;
    }
    return id;
  }

  atLeast(key: number): number {
    let from = key;
    for (let depth = 0; depth < this.#levels.length; depth++) {
      const word = from >>> 5;
      const bits = (this.#levels[depth].get(word) ?? 0) & (-1 << (from & 31));
      if (bits !== 0) {
        let at = (word << 5) | lowestBit(bits);
        for (let below = depth - 1; below >= 0; below--)
          at = (at << 5) | lowestBit(this.#levels[below].get(at) as number);
        return at;
      }
      from = word + 1;
    }
    return none;
  }

  atMost(key: number): number {
    let from = key;
    for (let depth = 0; depth < this.#levels.length && from >= 0; depth++) {
      const word = from >>> 5;
      const bits = (this.#levels[depth].get(word) ?? 0) & (-1 >>> (31 - (from & 31)));
      if (bits !== 0) {
        let at = (word << 5) | (31 - Math.clz32(bits));
        for (let below = depth - 1; below >= 0; below--)
          at = (at << 5) | (31 - Math.clz32(this.#levels[below].get(at) as number));
        return at;
      }
      from = word - 1;
    }
    return none;
  }
}
