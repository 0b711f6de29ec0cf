import { describe, isDetached, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';

/** Small host functions around a prefill: biases that even out attention over images, and a hand-over. */

function checkNumber(op: string, argument: string, value: unknown, min: number): void {
  if (typeof value === 'number' && value >= min && value < Infinity) return;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    op,
    argument,
    `is out of range; got ${describe(value)}, expected a finite number >= ${min}`,
  );
}

/** Options of {@link segmentBias}. */
export interface SegmentBiasOptions {
  /** 0 changes nothing, 1 evens the masses out. Default 0.5. */
  readonly strength?: number;
  /** Largest bias, either way. Default 4. */
  readonly maxBias?: number;
}

/**
 * Biases to add to the scores of each image's keys so that no image draws most of the attention:
 * `-strength * ln(mass / mean mass)`, clamped. Give them to `sparsePrefill` as `keyBias`, one per key.
 *
 * @param masses attention mass of each image, `[numImages]`; an image without mass gets no bias
 * @throws `ERR_VARLEN_RANGE` for a negative or infinite number, `ERR_VARLEN_OPTION`
 *
 * @example
 * ```ts
 * segmentBias([0.5, 0.2, 0.1]); // Float64Array [-0.3143, 0.1438, 0.4904]
 * ```
 */
export function segmentBias(masses: ArrayLike<number>, options?: SegmentBiasOptions): Float64Array {
  const op = 'segmentBias';
  const { strength = 0.5, maxBias = 4 } = readOptions(op, options, ['strength', 'maxBias']);
  checkNumber(op, 'strength', strength, 0);
  checkNumber(op, 'maxBias', maxBias, 0);
  const readable = ArrayBuffer.isView(masses) && !isDetached(masses);
  if (!Array.isArray(masses) && !readable) {
    throw wrongType(op, 'masses', masses, 'an array of numbers');
  }
  const list = Float64Array.from(masses, (mass, i) => {
    checkNumber(op, `masses[${i}]`, mass, 0);
    return mass;
  });
  const mean = list.reduce((sum, mass) => sum + mass, 0) / list.length;
  return list.map((mass) =>
    mass > 0 ? Math.max(-maxBias, Math.min(maxBias, -strength * Math.log(mass / mean))) : 0,
  );
}

/**
 * A `keyBias` for `sparsePrefill` from the biases that `rebalanceAttention` found on calibration prompts: the
 * mean over rows of each head and segment, spread over the keys of another prompt. Keys in no segment get 0.
 *
 * @param biases `segmentBias` of one or more calls, `[numHeads, rows, numSegments]`
 * @param segments segment of each key, `[totalTokensK]`; -1: none
 * @returns `[numHeads, totalTokensK]`, row by row
 * @throws `ERR_VARLEN_SHAPE` for calls of different heads or segments, or for none; `ERR_VARLEN_INDEX` for a
 *   segment that they do not have
 *
 * @example
 * ```ts
 * const table = { data: (await segmentBias.data()) as Float32Array, shape: segmentBias.shape };
 * const keyBias = Tensor.from(segmentKeyBias([table], segments), { shape: [numHeads, segments.length] });
 * ```
 */
export function segmentKeyBias(
  biases: readonly { readonly data: Float32Array; readonly shape: readonly number[] }[],
  segments: Int32Array,
): Float32Array {
  const op = 'segmentKeyBias';
  const [numHeads, , numSegments] = biases[0]?.shape ?? [];
  const mean = new Float64Array((numHeads ?? 0) * (numSegments ?? 0));
  let rows = 0;
  for (const [i, { data, shape }] of biases.entries()) {
    if (shape.length !== 3 || shape[0] !== numHeads || shape[2] !== numSegments) {
      throw argumentError(
        'ERR_VARLEN_SHAPE',
        op,
        `biases[${i}]`,
        `has another shape; got [${shape}], expected [${numHeads}, rows, ${numSegments}]`,
      );
    }
    rows += shape[1];
    for (let at = 0; at < data.length; at++) {
      const head = Math.floor(at / (shape[1] * numSegments));
      mean[head * numSegments + (at % numSegments)] += data[at];
    }
  }
  if (rows === 0) {
    throw argumentError('ERR_VARLEN_SHAPE', op, 'biases', 'have no rows; expected at least one');
  }
  const keys = new Float32Array(numHeads * segments.length);
  for (let head = 0; head < numHeads; head++) {
    for (const [j, g] of segments.entries()) {
      if (g < -1 || g >= numSegments) {
        throw argumentError(
          'ERR_VARLEN_INDEX',
          op,
          `segments[${j}]`,
          `is out of range; got ${g}, expected -1..${numSegments - 1}`,
        );
      }
      if (g >= 0) keys[head * segments.length + j] = mean[head * numSegments + g] / rows;
    }
  }
  return keys;
}

/** Times of {@link minCloudTokens}, all in one unit. */
export interface HandoverTimes {
  /** Until the device has prefilled the prompt. */
  readonly devicePrefill: number;
  /** Until the cloud's first token. */
  readonly cloudFirstToken: number;
  /** Between tokens, as the reader sees them. */
  readonly tokenSpacing: number;
  /** The device's work to catch up with one token of the cloud. */
  readonly catchUp: number;
}

/**
 * Tokens that the cloud must write before the device can go on without a gap: the smallest k with
 * `devicePrefill + k catchUp <= cloudFirstToken + k tokenSpacing`; `Infinity` when the device never catches up.
 *
 * @throws `ERR_VARLEN_RANGE` for a negative or infinite time, `ERR_VARLEN_OPTION`
 *
 * @example
 * ```ts
 * minCloudTokens({ devicePrefill: 6, cloudFirstToken: 0.8, tokenSpacing: 0.05, catchUp: 0.002 }); // 109
 * ```
 */
export function minCloudTokens(times: HandoverTimes): number {
  const op = 'minCloudTokens';
  const names = ['devicePrefill', 'cloudFirstToken', 'tokenSpacing', 'catchUp'] as const;
  const known = readOptions(op, times, names);
  for (const name of names) checkNumber(op, name, known[name], 0);
  const { devicePrefill, cloudFirstToken, tokenSpacing, catchUp } = known;
  if (devicePrefill <= cloudFirstToken) return 0;
  if (tokenSpacing <= catchUp) return Infinity;
  return Math.ceil((devicePrefill - cloudFirstToken) / (tokenSpacing - catchUp));
}
