import { wrongType } from '../check.js';
import { isTracked, keep, record } from './tape.js';
import { Tensor } from './tensor.js';

/** What the ops in TypeScript share: checks of their arguments, and the way they leave a node on the tape. */

/** Refuses what is no tensor. */
export function checkTensor(op: string, argument: string, value: unknown): asserts value is Tensor {
  if (!(value instanceof Tensor)) throw wrongType(op, argument, value, 'a Tensor');
}

/** An array of the caller's, safe from later changes; a tensor as it is. */
export function keptArray<T extends Int32Array | Float32Array>(array: T | Tensor): T | Tensor {
  return array instanceof Tensor ? array : (array.slice() as T);
}

/** Zeros of the shape, dtype and device of a tensor. */
export function zerosLike({ shape, dtype, size, device }: Tensor): Tensor {
  return Tensor.from(new Float32Array(size), { shape, dtype, device });
}

/**
 * Records a call when an input is tracked. `tensors` are those that `backward` reads; it gets names of its
 * own for them.
 */
export function recordCall<const T extends readonly (Tensor | undefined)[]>(
  op: string,
  inputs: readonly (Tensor | undefined)[],
  outputs: readonly Tensor[],
  tensors: T,
  backward: (
    gradients: readonly (Tensor | undefined)[],
    kept: { readonly [K in keyof T]: T[K] },
  ) => readonly (Tensor | undefined)[],
): void {
  if (!isTracked(inputs)) return;
  const kept = keep(tensors, outputs);
  const saved = kept.filter((tensor) => tensor !== undefined);
  record(op, inputs, outputs, saved, (gradients) => backward(gradients, kept));
}
