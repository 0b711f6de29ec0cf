import { describe, wrongType } from '../check.js';
import { argumentError } from '../errors.js';

const MAX_ID = 2 ** 31 - 1;

function badId(row: number, id: unknown): Error {
  return argumentError(
    'ERR_VARLEN_INDEX',
    'tokenIds',
    `ids[${row}]`,
    `is not a token id; got ${describe(id)}, expected an integer from 0 to ${MAX_ID}`,
    { row },
  );
}

/**
 * Token ids as the package takes them, `Int32Array`, from what tokenizers return: `number[]` or the
 * `BigInt64Array` of `transformers.js` and `onnxruntime`.
 *
 * @returns a new array; an `Int32Array` is checked and returned as it is
 * @throws `ERR_VARLEN_INDEX` (`details.row`) for an id below 0, above 2^31 - 1 or not whole; `ERR_VARLEN_TYPE`
 *
 * @example
 * ```ts
 * tokenIds([1, 15043, 3186]); // Int32Array(3) [1, 15043, 3186]
 * ```
 */
export function tokenIds(ids: Int32Array | BigInt64Array | readonly number[]): Int32Array {
  if (!Array.isArray(ids) && !(ids instanceof Int32Array) && !(ids instanceof BigInt64Array)) {
    throw wrongType('tokenIds', 'ids', ids, 'an Int32Array, BigInt64Array or array of numbers');
  }
  const result = ids instanceof Int32Array ? ids : new Int32Array(ids.length);
  for (let row = 0; row < ids.length; row++) {
    const id = Number(ids[row]);
    // typeof first: Number(null) and Number('7') are numbers too.
    if (
      !(typeof ids[row] === 'number' || typeof ids[row] === 'bigint') ||
      !Number.isInteger(id) ||
      id < 0 ||
      id > MAX_ID
    ) {
      throw badId(row, ids[row]);
    }
    if (result !== ids) result[row] = id;
  }
  return result;
}
