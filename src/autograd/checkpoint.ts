import { wrongType } from '../check.js';
import { scope } from '../tensor/lifetime.js';
import { backwardFrom, keep, record, recordingOn, setRecording } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';
import { noGrad } from './no-grad.js';

/**
 * Calls `fn` and keeps nothing of what it computes but its inputs and results: backward calls it again.
 * Memory of a long chain then grows with its inputs, for one more forward pass of time.
 *
 * `fn` must compute the same the second time; parameters it uses beside `inputs` get their gradients too.
 *
 * @param fn a synchronous function from `inputs` to one tensor or an array of tensors
 * @throws `ERR_VARLEN_TYPE`
 *
 * @example
 * ```ts
 * const hidden = checkpoint((x) => block.forward(x), input);
 * ```
 */
export function checkpoint<T extends Tensor | readonly Tensor[]>(
  fn: (...inputs: Tensor[]) => T,
  ...inputs: readonly Tensor[]
): T {
  const op = 'checkpoint';
  for (const [i, input] of inputs.entries()) {
    if (!(input instanceof Tensor)) throw wrongType(op, `inputs[${i}]`, input, 'a Tensor');
  }
  const result: unknown = noGrad(() => scope(() => fn(...inputs)));
  const outputs: unknown = result instanceof Tensor ? [result] : result;
  if (!Array.isArray(outputs) || outputs.some((output) => !(output instanceof Tensor))) {
    throw wrongType(op, 'fn', result, 'a function that returns a Tensor or an array of Tensors');
  }
  if (!recordingOn()) return result as T;
  const tracked = inputs.map(({ requiresGrad }) => requiresGrad);
  const dtypes = inputs.map(({ dtype }) => dtype);
  // What `fn` merely passed on has a history of its own: the result needs another name.
  const made = (outputs as Tensor[]).map((output) =>
    output.requiresGrad || inputs.includes(output) ? output.alias() : output,
  );
  const kept = keep(inputs, made);
  record(op, inputs, made, kept, (gradients) => rerun(fn, kept, tracked, dtypes, gradients));
  return (result instanceof Tensor ? made[0] : made) as T;
}

/** Gradients of the inputs, from computing the outputs once more, this time on the tape. */
function rerun(
  fn: (...inputs: Tensor[]) => Tensor | readonly Tensor[],
  kept: readonly Tensor[],
  tracked: readonly boolean[],
  dtypes: readonly Tensor['dtype'][],
  gradients: readonly (Tensor | undefined)[],
): (Tensor | undefined)[] {
  return scope(() => {
    const leaves = kept.map((tensor, i) => tensor.alias(tracked[i]));
    const before = setRecording(true);
    let result: Tensor | readonly Tensor[];
    try {
      result = fn(...leaves);
    } finally {
      setRecording(before);
    }
    const outputs = result instanceof Tensor ? [result] : result;
    const roots = outputs.flatMap((output, i) => {
      const gradient = gradients[i];
      return gradient === undefined || !output.requiresGrad ? [] : [{ output, gradient: gradient.copy() }];
    });
    if (roots.length > 0) backwardFrom('checkpoint', roots, false);
    return leaves.map(({ grad }, i) => {
      if (grad === null) return undefined;
      if (grad.dtype === dtypes[i]) return grad;
      using wide = grad;
      return wide.copy(dtypes[i]);
    });
  });
}
