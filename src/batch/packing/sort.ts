/**
 * The entries of `items` by falling length, equal lengths in the order given.
 *
 * A radix sort by 16 bits: O(n), one pass when no length reaches 65536, two otherwise.
 */
export function sortedByFallingLength(lengths: Int32Array, items: Int32Array): Int32Array {
  let longest = 0;
  for (let i = 0; i < items.length; i++) longest = Math.max(longest, lengths[items[i]]);
  const byLowDigit = countingPass(lengths, items, 0, Math.min(longest, 0xffff));
  return longest <= 0xffff ? byLowDigit : countingPass(lengths, byLowDigit, 16, longest >>> 16);
}

function countingPass(
  lengths: Int32Array,
  items: Int32Array,
  shift: number,
  largestDigit: number,
): Int32Array {
  const place = new Int32Array(largestDigit + 2);
  for (let i = 0; i < items.length; i++) place[(lengths[items[i]] >>> shift) & 0xffff]++;
  let sum = 0;
  for (let digit = largestDigit; digit >= 0; digit--) {
    const count = place[digit];
    place[digit] = sum;
    sum += count;
  }
  const sorted = new Int32Array(items.length);
  for (let i = 0; i < items.length; i++) {
    const item = items[i];
    sorted[place[(lengths[item] >>> shift) & 0xffff]++] = item;
  }
  return sorted;
}
