/** Draws without replacement, in proportion to exp(score), by adding noise and taking the best. */
import { checkInteger, readOptions } from '../../check.js';
import { argumentError } from '../../errors.js';
import { SeededRandom } from '../../seeded-random.js';
import { checkFloats, checkNumber, rangeError } from '../check-arrays.js';

/** Options of {@link gumbelTopK}. */
export interface GumbelOptions {
  /** Equal seeds draw alike. An integer. */
  seed: number;
  /** Which draw of that seed: a step, a row. Draws do not depend on each other. Default 0. */
  draw?: number;
  /** Of the scores; high temperatures draw evenly. Default 1. */
  temperature?: number;
}

/**
 * `k` different indices, drawn in proportion to `exp(score / temperature)` without replacement (Kool et al.,
 * 2019), in the order of the draw. A score of `-Infinity` is never drawn.
 *
 * Throws `ERR_VARLEN_DTYPE`, `ERR_VARLEN_RANGE` (also: fewer than `k` scores above `-Infinity`),
 * `ERR_VARLEN_OPTION` and `ERR_VARLEN_NON_FINITE`.
 *
 * @param scores `[n]`
 *
 * @example
 * gumbelTopK(Float64Array.of(0, -Infinity, 0), 2, { seed: 1 }); // 0 and 2, in either order
 */
export function gumbelTopK(
  scores: Float32Array | Float64Array,
  k: number,
  options: GumbelOptions,
): Int32Array {
  const op = 'gumbelTopK';
  const { seed, draw = 0, temperature = 1 } = readOptions(op, options, ['seed', 'draw', 'temperature']);
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'draw', draw, 0);
  checkNumber(op, 'temperature', temperature, { above: 0 });
  checkFloats(op, 'scores', scores);
  checkInteger(op, 'k', k, 0);
  return drawTopK(op, scores, k, temperature, new SeededRandom(seed, draw, GUMBEL_STREAM));
}

/** {@link gumbelTopK} with a generator of the caller's, which moves on by one number per score. */
export function drawTopK(
  op: string,
  scores: Float32Array | Float64Array,
  k: number,
  temperature: number,
  random: SeededRandom,
): Int32Array {
  const keys = Float64Array.from(scores, (score, i) => {
    if (Number.isNaN(score) || score === Infinity) {
      const problem = `is no score; got ${score}, expected a finite number or -Infinity`;
      throw argumentError('ERR_VARLEN_NON_FINITE', op, `scores[${i}]`, problem);
    }
    // Half a step off zero: both logarithms stay finite.
    const uniform = (random.uint32() + 0.5) / 2 ** 32;
    return score / temperature - Math.log(-Math.log(uniform));
  });
  const drawable = Int32Array.from(keys.keys()).filter((i) => scores[i] > -Infinity);
  if (drawable.length < k) throw rangeError(op, 'k', k, `at most the ${drawable.length} that can be drawn`);
  return drawable.sort((a, b) => keys[b] - keys[a] || a - b).slice(0, k);
}

/** Keeps these draws apart from other uses of the same seed. */
const GUMBEL_STREAM = 0x47_554d;
