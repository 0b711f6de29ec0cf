import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import { scope } from '../tensor/lifetime.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link gradCheck}. */
export interface GradCheckOptions {
  /** Length of a step in each element. Default 2^-6, where the errors of float32 and of the rule meet. */
  step?: number;
  /** Random directions that are tried. Default 4. */
  directions?: number;
  /** Of the directions and of the loss's weights. Default 1. */
  seed?: number;
}

/** Random numbers in [0, 1) from a seed (Mulberry32). */
function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * How far `backward()` through `fn` is from differences of `fn`: the largest error of a directional
 * derivative, relative to the length of the gradient. A right gradient gives 1e-4 or less, a wrong sign
 * or factor about 1.
 *
 * The loss is a random weighted sum of the result; elements that are not finite (`softmaxLse` of a row
 * without keys) count for nothing. Along a direction of random signs the derivative is
 * `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h`, in double from float32 results.
 *
 * @param fn differentiable ops from `inputs` to one tensor; called several times
 * @param inputs float32 tensors; their values are read, they themselves are not tracked
 * @throws `ERR_VARLEN_DTYPE` for an input that is not float32
 *
 * @example
 * ```ts
 * const error = gradCheck((q, k, v) => varlenAttention(q, k, v, { cuSeqlens }).out, [q, k, v]);
 * expect(error).toBeLessThan(1e-3);
 * ```
 */
export function gradCheck(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  options?: GradCheckOptions,
): number {
  const op = 'gradCheck';
  const {
    step = 2 ** -6,
    directions = 4,
    seed = 1,
  } = readOptions(op, options, ['step', 'directions', 'seed']);
  for (const [i, input] of inputs.entries()) {
    if (input.dtype === 'float32') continue;
    throw argumentError(
      'ERR_VARLEN_DTYPE',
      op,
      `inputs[${i}]`,
      `has the wrong dtype; got ${input.dtype}, expected float32`,
    );
  }
  const random = uniform(seed);
  const values = inputs.map((input) => input.dataSync() as Float32Array);
  const tensors = (data: readonly Float32Array[], requiresGrad: boolean): Tensor[] =>
    data.map((array, i) =>
      Tensor.from(array, { shape: inputs[i].shape, device: inputs[i].device, requiresGrad }),
    );
  const run = (data: readonly Float32Array[]): ArrayLike<number> =>
    scope(() => fn(...tensors(data, false)).dataSync() as Float32Array);

  const weights = Float32Array.from(run(values), (x) => (Number.isFinite(x) ? 2 * random() - 1 : 0));
  const loss = (data: readonly Float32Array[]): number => {
    const result = run(data);
    return weights.reduce((sum, weight, i) => (weight === 0 ? sum : sum + weight * result[i]), 0);
  };
  const gradients = scope(() => {
    const tracked = tensors(values, true);
    const result = fn(...tracked);
    result.backward(Tensor.from(weights, { shape: result.shape, device: result.device }));
    return tracked.map(({ grad, size }) => {
      const gradient = (grad?.dataSync() as Float32Array | undefined) ?? new Float32Array(size);
      grad?.dispose();
      return gradient;
    });
  });
  const length = Math.sqrt(gradients.flatMap((g) => Array.from(g, (x) => x * x)).reduce((a, b) => a + b, 0));

  let worst = 0;
  for (let n = 0; n < directions; n++) {
    const signs = values.map((array) => Int8Array.from(array, () => (random() < 0.5 ? -1 : 1)));
    const moved = (by: number): number =>
      loss(values.map((array, i) => array.map((value, at) => value + by * signs[i][at])));
    const near = moved(step) - moved(-step);
    const far = moved(2 * step) - moved(-2 * step);
    const numeric = (8 * near - far) / (12 * step);
    const analytic = gradients
      .flatMap((gradient, i) => Array.from(gradient, (g, at) => g * signs[i][at]))
      .reduce((a, b) => a + b, 0);
    worst = Math.max(worst, Math.abs(numeric - analytic) / (length || 1));
  }
  return worst;
}
