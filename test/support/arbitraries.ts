import fc from 'fast-check';

/** Random packs, offsets and trees, small enough to shrink to something a person can read. */

/** Values that stand on the borders of registers and blocks, beside ordinary small ones. */
const length: fc.Arbitrary<number> = fc.oneof(
  { weight: 4, arbitrary: fc.nat(12) },
  { weight: 2, arbitrary: fc.constantFrom(0, 1) },
  { weight: 1, arbitrary: fc.constantFrom(15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 130) },
);

/** Lengths of the sequences of a pack in tokens; empty packs and empty sequences included. */
const lengths: fc.Arbitrary<number[]> = fc.array(length, { maxLength: 6 });

/** Prefix sums of lengths, `[numSeqs + 1]`. */
export function cuSeqlensOf(lengths: readonly number[]): Int32Array {
  const cuSeqlens = new Int32Array(lengths.length + 1);
  for (const [b, length] of lengths.entries()) cuSeqlens[b + 1] = cuSeqlens[b] + length;
  return cuSeqlens;
}

/** Valid `cuSeqlens` of a pack. */
export const cuSeqlens: fc.Arbitrary<Int32Array> = lengths.map(cuSeqlensOf);

/**
 * Offsets with something wrong, for a tensor of `totalTokens` rows: the start, the order, the end, or
 * no entry at all.
 */
export function badCuSeqlens(totalTokens: number): fc.Arbitrary<Int32Array> {
  const extremes = fc.constantFrom(-1, totalTokens + 1, 2 ** 31 - 1, -(2 ** 31));
  const entries = fc.array(fc.oneof(fc.nat(totalTokens), extremes), { maxLength: 6 });
  return entries
    .map((values) => Int32Array.from(values))
    .filter((cu) => {
      const rises = cu.every((value, b) => b === 0 || value >= cu[b - 1]);
      return !(cu.length > 0 && cu[0] === 0 && rises && cu[cu.length - 1] <= totalTokens);
    });
}

/**
 * `keyEnd` of one sequence: a random forest of `length` nodes in depth-first order. A node either ends
 * with its parent, as the tokens of one answer do, or opens a subtree of its own.
 */
function tree(length: number): fc.Arbitrary<Int32Array> {
  return fc.array(fc.nat(), { minLength: length, maxLength: length }).map((choices) => {
    const keyEnd = new Int32Array(length);
    const open: number[] = [];
    for (const [j, choice] of choices.entries()) {
      while (open.length > 0 && open[open.length - 1] <= j) open.pop();
      const limit = open[open.length - 1] ?? length;
      keyEnd[j] = choice % 4 === 0 ? j + 1 + (Math.floor(choice / 4) % (limit - j)) : limit;
      open.push(keyEnd[j]);
    }
    return keyEnd;
  });
}

/** Trees of all sequences of a pack, one after the other. */
export function trees(lengths: readonly number[]): fc.Arbitrary<Int32Array> {
  return fc
    .tuple(...lengths.map(tree))
    .map((parts) => Int32Array.from(parts.flatMap((part) => Array.from(part))));
}

/** A packed attention call without its contents. */
export interface PackShape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly lengthsQ: readonly number[];
  readonly lengthsK: readonly number[];
  /** Rows that belong to no sequence. */
  readonly tailQ: number;
  readonly tailK: number;
  /** Of the contents. */
  readonly seed: number;
}

const heads = fc
  .tuple(fc.constantFrom(1, 2, 3), fc.constantFrom(1, 2))
  .map(([group, numKvHeads]) => ({ numHeads: group * numKvHeads, numKvHeads }));

/** Packs whose queries and keys have lengths of their own. */
export const packs: fc.Arbitrary<PackShape> = fc
  .record({
    heads,
    headDim: fc.constantFrom(1, 2, 3, 5, 8, 16, 17, 33),
    pairs: fc.array(fc.tuple(length, length), { maxLength: 5 }),
    tailQ: fc.nat(3),
    tailK: fc.nat(3),
    seed: fc.noShrink(fc.nat(2 ** 31 - 1)),
  })
  .map(({ heads, pairs, ...rest }) => ({
    ...heads,
    ...rest,
    lengthsQ: pairs.map(([q]) => q),
    lengthsK: pairs.map(([, k]) => k),
  }));

/** Self-attention: queries and keys lie alike. */
export const selfPacks: fc.Arbitrary<PackShape> = packs.map((pack) => ({
  ...pack,
  lengthsK: pack.lengthsQ,
  tailK: pack.tailQ,
}));

/** What may be asked of attention on any pack, tree masks aside. */
export interface MaskAndScore {
  causal?: boolean;
  windowSize?: readonly [number, number];
  softcap?: number;
  softmaxScale?: number;
  alibi?: 'perHead' | 'perSequence';
}

const side = fc.oneof(fc.constant(-1), fc.nat(20));

/** Masks and score options, each alone and together. */
export const masksAndScores: fc.Arbitrary<MaskAndScore> = fc.record(
  {
    causal: fc.boolean(),
    windowSize: fc.tuple(side, side),
    softcap: fc.constantFrom(0, 0.5, 3),
    softmaxScale: fc.constantFrom(-0.3, 0, 0.1, 1),
    alibi: fc.constantFrom('perHead' as const, 'perSequence' as const),
  },
  { requiredKeys: [] },
);
