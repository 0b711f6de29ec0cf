import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tensor, tokenIds } from 'varlen';

/** The texts of this folder as attention inputs: what a tokenizer and the layers below would provide. */

export const [numHeads, numKvHeads, headDim] = [2, 1, 64];

const names = readdirSync(__dirname).filter((name) => name.endsWith('.txt'));
/** One token per byte. */
export const documents: Int32Array[] = names.map((name) =>
  tokenIds([...readFileSync(join(__dirname, name))]),
);

/** A query, a key, a value and a gradient for every byte: numbers between -1 and 1 from a seed. */
const tables = [numHeads, numKvHeads, numKvHeads, numHeads].map((heads, seed) => {
  let state = seed; // a linear congruential generator (Numerical Recipes)
  const values = Float32Array.from({ length: 256 * heads * headDim }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
  return { heads, width: heads * headDim, values };
});

/** Sequences end to end, each in a slot of its own length or, padded, of `slot` rows. */
export function embed(name: string, sequences: readonly Int32Array[], slot?: number) {
  const cuSeqlens = new Int32Array(sequences.length + 1);
  for (const [i, { length }] of sequences.entries()) cuSeqlens[i + 1] = cuSeqlens[i] + (slot ?? length);
  const rows = cuSeqlens[sequences.length];
  const [q, k, v, dOut] = tables.map(({ width, values }) => {
    const array = new Float32Array(rows * width); // padding stays zero
    for (const [i, ids] of sequences.entries()) {
      for (const [j, id] of ids.entries()) {
        array.set(values.subarray(id * width, (id + 1) * width), (cuSeqlens[i] + j) * width);
      }
    }
    return array;
  });
  return { name, tokens: sequences.reduce((n, { length }) => n + length, 0), rows, cuSeqlens, q, k, v, dOut };
}

/** What `embed` returns; `keyEnd` where sequences share a beginning. */
export type Batch = ReturnType<typeof embed> & { keyEnd?: Int32Array };

/** q, k, v and dOut as tensors. */
export function upload({ q, k, v, dOut, rows }: Batch): [q: Tensor, k: Tensor, v: Tensor, dOut: Tensor] {
  const tensor = (data: Float32Array, i: number) =>
    Tensor.from(data, { shape: [rows, tables[i].heads, headDim], device: 'cpu' });
  return [tensor(q, 0), tensor(k, 1), tensor(v, 2), tensor(dOut, 3)];
}
