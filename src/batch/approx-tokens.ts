/**
 * Token sums of aligned steps as the reference implementation estimates them: only the sums of the
 * groups before alignment are known, so a step's sum is its share by size of the group it is taken
 * to come from.
 *
 * `estimate_i = floor(alignedSizes[i] * groupTokens[j] / groupSizes[j])`, `j = min(i, groups - 1)`.
 */
export function approxTokens(
  alignedSizes: readonly number[],
  groupSizes: readonly number[],
  groupTokens: readonly number[],
): number[] {
  return alignedSizes.map((size, i) => {
    const j = Math.min(i, groupSizes.length - 1);
    return Math.floor((size * groupTokens[j]) / groupSizes[j]);
  });
}
