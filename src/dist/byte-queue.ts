/** Bytes that arrived in pieces, taken out in other pieces. */
export class ByteQueue {
  readonly #chunks: Uint8Array[] = [];
  #length = 0;
  /** Bytes of the first chunk that were taken. */
  #taken = 0;

  get length(): number {
    return this.#length;
  }

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /** The next `count` bytes, of which there must be as many. They stay as they are when more arrive. */
  take(count: number): Uint8Array {
    const first = this.#chunks[0];
    this.#length -= count;
    if (count < first.length - this.#taken) {
      const piece = first.subarray(this.#taken, this.#taken + count);
      this.#taken += count;
      // A copy (a Buffer's slice is none): a small piece must not hold a large chunk.
      return new Uint8Array(piece);
    }
    const result = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      const chunk = this.#chunks[0];
      const part = chunk.subarray(this.#taken, this.#taken + count - filled);
      result.set(part, filled);
      filled += part.length;
      this.#taken += part.length;
      if (this.#taken === chunk.length) {
        this.#chunks.shift();
        this.#taken = 0;
      }
    }
    return result;
  }
}
