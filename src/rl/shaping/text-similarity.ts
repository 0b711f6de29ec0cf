/** How much of a text was reproduced, in [0, 1]. */
import { wrongType } from '../../check.js';

/** Refuses what is not a string. */
export function checkText(op: string, argument: string, value: unknown): asserts value is string {
  if (typeof value !== 'string') throw wrongType(op, argument, value, 'a string');
}

/**
 * `1 - edits / longer length` over characters, upper and lower case alike (Levenshtein, 1966); 1 when both
 * are empty. What Fact-R1 rewards reading text from images with.
 *
 * Throws `ERR_VARLEN_TYPE`.
 *
 * @example
 * ocrAccuracy('Stop', 'STEP'); // 0.75
 */
export function ocrAccuracy(prediction: string, reference: string): number {
  checkText('ocrAccuracy', 'prediction', prediction);
  checkText('ocrAccuracy', 'reference', reference);
  const a = [...prediction.toLowerCase()];
  const b = [...reference.toLowerCase()];
  const longer = Math.max(a.length, b.length);
  return longer === 0 ? 1 : 1 - editDistance(a, b) / longer;
}

/**
 * ROUGE-L (Lin, 2004): F1 of the longest common subsequence of words, split at white space; 0 when one of
 * them has no words. What Fact-R1 rewards captions with.
 *
 * Throws `ERR_VARLEN_TYPE`.
 *
 * @example
 * rougeL('a cat sat', 'the cat sat down'); // 4/7: 2 of 3 words, 2 of 4
 */
export function rougeL(prediction: string, reference: string): number {
  checkText('rougeL', 'prediction', prediction);
  checkText('rougeL', 'reference', reference);
  const a = words(prediction);
  const b = words(reference);
  if (a.length === 0 || b.length === 0) return 0;
  return (2 * commonSubsequence(a, b)) / (a.length + b.length);
}

function words(text: string): string[] {
  return text.split(/\s+/).filter((word) => word !== '');
}

/** Insertions, deletions and replacements that turn one into the other. */
function editDistance(a: readonly string[], b: readonly string[]): number {
  let row = Int32Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = new Int32Array(b.length + 1);
    next[0] = i;
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, replaced);
    }
    row = next;
  }
  return row[b.length];
}

/** Length of the longest common subsequence. */
function commonSubsequence(a: readonly string[], b: readonly string[]): number {
  let row = new Int32Array(b.length + 1);
  for (const word of a) {
    const next = new Int32Array(b.length + 1);
    for (let j = 1; j <= b.length; j++) {
      next[j] = word === b[j - 1] ? row[j - 1] + 1 : Math.max(row[j], next[j - 1]);
    }
    row = next;
  }
  return row[b.length];
}
