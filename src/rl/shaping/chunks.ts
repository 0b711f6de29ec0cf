/** Rewards and labels of parts of an answer (StepWiser), and how they reach the tokens. */
import { readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkFloats, checkNumber, checkWord, rangeError } from '../check-arrays.js';
import { checkOffsets } from '../offsets.js';

/**
 * Share of successful tries, `successes / tries`: of Monte-Carlo continuations from the end of a chunk, or
 * of a solver's attempts at a problem.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE` and `ERR_VARLEN_RANGE`.
 *
 * @param successes `[n]`, `0 .. tries`
 * @param tries `[n]`, each at least 1
 *
 * @example
 * successShares(Int32Array.of(1, 4), Int32Array.of(4, 4)); // [0.25, 1]
 */
export function successShares(successes: Int32Array, tries: Int32Array): Float64Array {
  const op = 'successShares';
  checkArray(op, 'successes', successes, 'Int32Array');
  checkArray(op, 'tries', tries, 'Int32Array', successes.length);
  return Float64Array.from(successes, (count, i) => shareAt(op, i, count, tries[i]));
}

/** One share, checked. */
export function shareAt(op: string, i: number, successes: number, tries: number): number {
  if (tries < 1) throw rangeError(op, `tries[${i}]`, tries, 'an integer >= 1');
  if (successes < 0 || successes > tries) {
    throw rangeError(op, `successes[${i}]`, successes, `an integer between 0 and ${tries}`);
  }
  return successes / tries;
}

/**
 * When a chunk is good. `Q` is the success share at its end, `P` that at the end of the chunk before it.
 *
 * `absolute`: `Q >= threshold` (default 0.5). `relative-difference`: `Q - P >= tau`. `relative-ratio`:
 * `Q >= tau * P`. The thresholds of the publication could not be verified, so `tau` has no default.
 */
export type ChunkRule =
  | { readonly kind: 'absolute'; readonly threshold?: number }
  | { readonly kind: 'relative-difference' | 'relative-ratio'; readonly tau: number };

/** Success shares of the chunks of a batch. */
export interface ChunkShares {
  /** `[numChunks]`, `Q` at the end of each chunk, chunks of one answer in order. */
  readonly shares: Float32Array | Float64Array;
  /** `[numSeqs + 1]`, which chunks belong to which answer: `cuChunks[i] .. cuChunks[i + 1] - 1`. */
  readonly cuChunks: Int32Array;
  /** `[numSeqs]`, success share from the bare prompt: `P` of the first chunk. Needed by the relative rules. */
  readonly promptShares?: Float32Array | Float64Array;
}

/**
 * Labels of chunks, `[numChunks]`: 1 = good.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`,
 * `ERR_VARLEN_CU_SEQLENS` and `ERR_VARLEN_MISSING_INPUT`.
 *
 * @example
 * const chunks = { shares: Float64Array.of(0.5, 0.25), cuChunks: Int32Array.of(0, 2), promptShares: Float64Array.of(0.25) };
 * chunkLabels(chunks, { kind: 'relative-difference', tau: 0.1 }); // [1, 0]
 */
export function chunkLabels(chunks: ChunkShares, rule: ChunkRule): Uint8Array {
  const op = 'chunkLabels';
  const { shares, cuChunks, promptShares } = chunks;
  checkFloats(op, 'shares', shares);
  checkOffsets(op, 'cuChunks', cuChunks, shares.length);
  checkShares(op, 'shares', shares);
  const good = readRule(op, rule);
  if (rule.kind === 'absolute') return Uint8Array.from(shares, (share) => (good(share, 0) ? 1 : 0));

  if (promptShares === undefined) {
    const problem = `are needed by the rule '${rule.kind}'; got none, expected one share per answer`;
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'promptShares', problem);
  }
  checkFloats(op, 'promptShares', promptShares, cuChunks.length - 1);
  checkShares(op, 'promptShares', promptShares);
  const labels = new Uint8Array(shares.length);
  promptShares.forEach((promptShare, i) => {
    let before = promptShare;
    for (let c = cuChunks[i]; c < cuChunks[i + 1]; c++) {
      labels[c] = good(shares[c], before) ? 1 : 0;
      before = shares[c];
    }
  });
  return labels;
}

function checkShares(op: string, argument: string, shares: Float32Array | Float64Array): void {
  for (let i = 0; i < shares.length; i++) {
    checkNumber(op, `${argument}[${i}]`, shares[i], { min: 0, max: 1 });
  }
}

function readRule(op: string, rule: ChunkRule): (share: number, before: number) => boolean {
  checkWord(op, 'rule.kind', rule.kind, ['absolute', 'relative-difference', 'relative-ratio']);
  switch (rule.kind) {
    case 'absolute': {
      const { threshold = 0.5 } = readOptions(op, rule, ['kind', 'threshold']);
      checkNumber(op, 'rule.threshold', threshold, { min: 0, max: 1 });
      return (share) => share >= threshold;
    }
    case 'relative-difference': {
      const { tau } = readOptions(op, rule, ['kind', 'tau']);
      checkNumber(op, 'rule.tau', tau, { min: -1, max: 1 });
      return (share, before) => share - before >= tau;
    }
    case 'relative-ratio': {
      const { tau } = readOptions(op, rule, ['kind', 'tau']);
      checkNumber(op, 'rule.tau', tau, { min: 0 });
      return (share, before) => share >= tau * before;
    }
  }
}

/**
 * One value per token from one value per chunk, `[totalTokens]`: chunk-level advantages as a policy loss
 * takes them.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` and `ERR_VARLEN_CU_SEQLENS`.
 *
 * @param values `[numChunks]`, finite
 * @param chunkOffsets `[numChunks + 1]`, tokens: starts 0, never falls, ends at `totalTokens`
 *
 * @example
 * expandChunks(Float32Array.of(0.5, -1), Int32Array.of(0, 2, 3)); // [0.5, 0.5, -1]
 */
export function expandChunks(values: Float32Array | Float64Array, chunkOffsets: Int32Array): Float32Array {
  const op = 'expandChunks';
  checkFloats(op, 'values', values);
  checkOffsets(op, 'chunkOffsets', chunkOffsets);
  checkArray(op, 'chunkOffsets', chunkOffsets, 'Int32Array', values.length + 1);
  const tokens = new Float32Array(chunkOffsets[values.length]);
  values.forEach((value, c) => {
    checkNumber(op, `values[${c}]`, value);
    tokens.fill(value, chunkOffsets[c], chunkOffsets[c + 1]);
  });
  return tokens;
}
