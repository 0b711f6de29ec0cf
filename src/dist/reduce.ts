/** Elementwise reductions over the ranks, in rank order: two runs give the same bits. */
import type { CollectiveArray, ReduceOp } from './process-group.js';

/** The reductions; the index is the number in a call's signature. */
export const reduceOps: readonly ReduceOp[] = ['sum', 'avg', 'min', 'max'];

/**
 * Writes the reduction of all ranks' `payloads` (raw bytes of arrays like `target`) into `target`.
 *
 * Sums of floats are formed in float64 and rounded once; integer sums wrap as their type does; the
 * average of integers is rounded towards zero. NaN wins over every number in `min` and `max`.
 */
export function reduceInto(target: CollectiveArray, payloads: readonly Uint8Array[], op: ReduceOp): void {
  if (target instanceof BigInt64Array) {
    reduceBigInts(
      target,
      payloads.map((bytes) => new BigInt64Array(aligned(bytes))),
      op,
    );
    return;
  }
  const Type = target.constructor as new (buffer: ArrayBuffer) => Float64Array;
  const inputs = payloads.map((bytes) => new Type(aligned(bytes)));
  for (let i = 0; i < target.length; i++) {
    let value = inputs[0][i];
    for (let rank = 1; rank < inputs.length; rank++) {
      const next = inputs[rank][i];
      if (op === 'min') value = Math.min(value, next);
      else if (op === 'max') value = Math.max(value, next);
      else value += next;
    }
    target[i] = op === 'avg' ? value / inputs.length : value;
  }
}

function reduceBigInts(target: BigInt64Array, inputs: readonly BigInt64Array[], op: ReduceOp): void {
  for (let i = 0; i < target.length; i++) {
    let value = inputs[0][i];
    for (let rank = 1; rank < inputs.length; rank++) {
      const next = inputs[rank][i];
      if (op === 'sum' || op === 'avg') value += next;
      else if ((op === 'min') === next < value) value = next;
    }
    target[i] = op === 'avg' ? value / BigInt(inputs.length) : value;
  }
}

/** A copy at offset 0, where any element type may start. */
function aligned(bytes: Uint8Array): ArrayBuffer {
  return bytes.slice().buffer as ArrayBuffer;
}
