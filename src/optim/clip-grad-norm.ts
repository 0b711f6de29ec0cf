import { gradClip } from '../ops/grad-clip.js';
import { Tensor } from '../tensor/tensor.js';

/**
 * The norm of the gradients of these parameters together; they are scaled in place to `maxNorm` when it
 * is larger. Parameters without a gradient count for nothing.
 *
 * @param parameters tensors, or pairs of name and tensor as `model.parameters()` yields
 * @param maxNorm `Infinity` only measures
 * @returns `[1]` float32, the norm before the scaling, for `optimizer.step({ gradientNorm })`
 * @throws as `gradClip`
 *
 * @example
 * ```ts
 * using norm = clipGradNorm(model.parameters(), 1);
 * ```
 */
export function clipGradNorm(
  parameters: Iterable<Tensor | readonly [name: string, tensor: Tensor]>,
  maxNorm: number,
): Tensor {
  const gradients: Tensor[] = [];
  for (const entry of parameters) {
    const { grad } = entry instanceof Tensor ? entry : entry[1];
    if (grad !== null && !grad.disposed) gradients.push(grad);
  }
  return gradClip(gradients, { maxNorm });
}
