import { checkBoolean, checkInteger, readOptions, wrongType } from '../check.js';
import { checkTensor, keptArray, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { isTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link rope}. */
export interface RopeOptions {
  /** Rotate the pairs `(2i, 2i + 1)` instead of `(i, i + rotaryDim / 2)`. Default false. */
  interleaved?: boolean;
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'rope';

/**
 * The table that {@link rope} reads: cosines, then sines of `position * frequencies[i]`, computed in
 * float64 and kept in float32.
 *
 * @param frequencies radians per token of each pair, `[rotaryDim / 2]`
 * @param positions rows of the table
 * @param factor multiplies cosines and sines (YaRN's attention factor). Default 1
 * @returns `[positions, rotaryDim]`, row-major
 * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE`
 *
 * @example
 * ```ts
 * const frequencies = Float64Array.from({ length: 32 }, (_, i) => 10000 ** (-i / 32));
 * using table = Tensor.from(ropeTable(frequencies, 2048), { shape: [2048, 64] });
 * ```
 */
export function ropeTable(frequencies: Float64Array, positions: number, factor = 1): Float32Array {
  if (!(frequencies instanceof Float64Array)) {
    throw wrongType('ropeTable', 'frequencies', frequencies, 'a Float64Array');
  }
  checkInteger('ropeTable', 'positions', positions, 0);
  if (typeof factor !== 'number') throw wrongType('ropeTable', 'factor', factor, 'a number');
  const half = frequencies.length;
  const table = new Float32Array(positions * 2 * half);
  for (let position = 0; position < positions; position++) {
    const row = position * 2 * half;
    for (let i = 0; i < half; i++) {
      const angle = position * frequencies[i];
      table[row + i] = factor * Math.cos(angle);
      table[row + half + i] = factor * Math.sin(angle);
    }
  }
  return table;
}

/**
 * Rotary position embedding (Su et al. 2021) of every head by its token's position. Dimensions past
 * the table's columns pass through.
 *
 * @param x `[totalTokens, numHeads, headDim]`, float32, float16 or bfloat16
 * @param table `[maxPositions, rotaryDim]` float32, from {@link ropeTable}; `rotaryDim <= headDim`, even
 * @param positionIds `[totalTokens]`, each in `[0, maxPositions)`; in a tensor they are checked when the op runs
 * @returns the shape and dtype of x
 * @throws `ERR_VARLEN_INDEX`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using rotated = rope(q, table, Int32Array.of(0, 1, 2, 0, 1)); // two sequences, of 3 and 2 tokens
 * ```
 */
export function rope(
  x: Tensor,
  table: Tensor,
  positionIds: Int32Array | Tensor,
  options?: RopeOptions,
): Tensor {
  checkTensor(OP, 'x', x);
  checkTensor(OP, 'table', table);
  const { interleaved = false, stream } = readOptions<RopeOptions>(OP, options, ['interleaved', 'stream']);
  checkBoolean(OP, 'interleaved', interleaved);
  const [made] = run(OP, { x, table, positionIds, interleaved, out: undefined }, x.device, stream);
  const out = made!;
  if (isTracked([x])) {
    const array = keptArray(positionIds);
    const idTensor = array instanceof Tensor ? array : undefined;
    recordCall(OP, [x], [out], [table, idTensor], ([dOut], [turns, ids]) => {
      const values = { dOut, table: turns, positionIds: ids ?? array, interleaved, dx: undefined };
      return run('ropeBackward', values, turns.device, undefined);
    });
  }
  return out;
}
