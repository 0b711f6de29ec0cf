/** How often answers put their doubts into words (epistemic verbalisation). A statistic, not a reward. */
import { checkArray } from '../check-arrays.js';
import { activeLengths, type TokenLayout } from '../plan/lengths.js';

/** Counts of {@link uncertaintyMarkers}. Lengths are active tokens. */
export interface UncertaintyCounts {
  /** `[numSeqs]`, markers among the active tokens of each answer. */
  readonly counts: Int32Array;
  /** `[numSeqs]`, markers per 1000 active tokens; 0 for an answer without any. */
  readonly perThousand: Float64Array;
  /** Markers per answer, over answers with active tokens; 0 without any. */
  readonly meanCount: number;
  /** Markers per 1000 active tokens of the whole batch; 0 without any. */
  readonly totalPerThousand: number;
}

/**
 * Counts tokens that mark uncertainty ("wait", "maybe", "perhaps", ...) in packed answers.
 *
 * Reasoning models that are distilled from a teacher with a rich context lose these words (from about 182
 * to 9 per answer in one report): watch the rate beside the answer length.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE` and `ERR_VARLEN_CU_SEQLENS`.
 *
 * @param inputIds `[totalTokens]`
 * @param markerIds token ids of the markers: every spelling that the tokenizer has, with and without a space
 *
 * @example
 * const layout = { cuSeqlens: Int32Array.of(0, 4) };
 * uncertaintyMarkers(Int32Array.of(5, 9, 9, 2), layout, Int32Array.of(9)).perThousand; // [500]
 */
export function uncertaintyMarkers(
  inputIds: Int32Array,
  layout: TokenLayout,
  markerIds: Int32Array,
): UncertaintyCounts {
  const op = 'uncertaintyMarkers';
  checkArray(op, 'markerIds', markerIds, 'Int32Array');
  const lengths = activeLengths(layout);
  const { cuSeqlens, lossMask } = layout;
  checkArray(op, 'inputIds', inputIds, 'Int32Array', cuSeqlens[cuSeqlens.length - 1]);
  const markers = new Set(markerIds);

  const counts = new Int32Array(lengths.length);
  let [total, tokens, answers] = [0, 0, 0];
  lengths.forEach((length, i) => {
    for (let t = cuSeqlens[i]; t < cuSeqlens[i + 1]; t++) {
      if (lossMask !== undefined && lossMask[t] === 0) continue;
      if (markers.has(inputIds[t])) counts[i] += 1;
    }
    total += counts[i];
    tokens += length;
    if (length > 0) answers += 1;
  });
  return Object.freeze({
    counts,
    perThousand: Float64Array.from(counts, (count, i) => perThousand(count, lengths[i])),
    meanCount: answers === 0 ? 0 : total / answers,
    totalPerThousand: perThousand(total, tokens),
  });
}

function perThousand(count: number, tokens: number): number {
  return tokens === 0 ? 0 : (1000 * count) / tokens;
}
