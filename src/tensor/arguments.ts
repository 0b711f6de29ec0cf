import { wrongType } from '../check.js';
import { isTracked, record } from './tape.js';
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

/** The tape's own name for a tensor that backward reads: the caller may dispose theirs. */
type Kept<T extends readonly (Tensor | undefined)[]> = { readonly [K in keyof T]: T[K] };

/**
 * Records a call when an input is tracked. `kept` are the tensors that `backward` reads; it gets names of
 * its own for them, which live until the node is freed. When recording fails, the outputs are disposed.
 */
export function recordCall<const T extends readonly (Tensor | undefined)[]>(
  op: string,
  inputs: readonly (Tensor | undefined)[],
  outputs: readonly Tensor[],
  kept: T,
  backward: (gradients: readonly (Tensor | undefined)[], kept: Kept<T>) => readonly (Tensor | undefined)[],
): void {
  if (!isTracked(inputs)) return;
  const names: Tensor[] = [];
  try {
    const own = kept.map((tensor) => {
      if (tensor === undefined) return undefined;
      const name = tensor.alias().outlive();
      names.push(name);
      return name;
    });
    record(op, inputs, outputs, names, (gradients) => backward(gradients, own as unknown as Kept<T>));
  } catch (error) {
    for (const tensor of [...names, ...outputs]) tensor.dispose();
    throw error;
  }
}
