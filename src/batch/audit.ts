/** Proof of "every sample exactly once" in constant memory: order-independent sums of 128-bit hashes. */
import { hash64 } from '../seeded-random.js';
import type { SampleId } from './sample.js';

const MASK_128 = (1n << 128n) - 1n;

/** 128-bit hash of an id; `1`, `'1'` and `1n` differ. */
function hashId(id: SampleId): bigint {
  const bytes = Buffer.from(`${typeof id}:${id}`);
  const words: number[] = [bytes.length];
  for (let i = 0; i < bytes.length; i += 4) {
    words.push(bytes.readUIntLE(i, Math.min(4, bytes.length - i)));
  }
  const [a, b] = hash64(1, ...words);
  const [c, d] = hash64(2, ...words);
  return (BigInt(a) << 96n) | (BigInt(b) << 64n) | (BigInt(c) << 32n) | BigInt(d);
}

/** The sum modulo 2^128 of the hashes of all ids added; equal sums mean equal multisets. */
export class AuditSum {
  #sum: bigint;

  constructor(hex = '0') {
    this.#sum = BigInt(`0x${hex}`);
  }

  add(id: SampleId): void {
    this.#sum = (this.#sum + hashId(id)) & MASK_128;
  }

  toString(): string {
    return this.#sum.toString(16);
  }
}
