import { readOptions } from '../check.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { shareGradient } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link rmsNorm} and {@link addRmsNorm}. */
export interface RmsNormOptions {
  /** Added to the mean of squares. Default 1e-6. */
  eps?: number;
  /** 1 where the model stores `weight - 1`, as Gemma does. Default 0. */
  weightOffset?: 0 | 1;
  /** Default: the device's own. */
  stream?: Stream;
}

/** Result of {@link addRmsNorm}; disposing it disposes both. */
export interface AddRmsNormResult extends Disposable {
  /** The normalised sum, `[..., hidden]`. */
  readonly out: Tensor;
  /** `x + residual`, `[..., hidden]`: the residual stream from here on. */
  readonly sum: Tensor;
}

const OP = 'rmsNorm';

function normalize(
  x: Tensor,
  residual: Tensor | undefined,
  weight: Tensor,
  options: RmsNormOptions | undefined,
): { out: Tensor; sum: Tensor | undefined } {
  const given = readOptions<RmsNormOptions>(OP, options, ['eps', 'weightOffset', 'stream']);
  const { eps = 1e-6, weightOffset = 0, stream } = given;
  const values = { x, residual, weight, eps, weightOffset, out: undefined, scale: undefined, sum: undefined };
  const made = run(OP, values, x.device, stream);
  const out = made[0]!;
  const scale = made[1]!;
  const sum = made[2];
  const isSum = sum !== undefined;
  const outputs = sum === undefined ? [out] : [out, sum];
  recordCall(OP, [x, residual, weight], outputs, [sum ?? x, weight, scale], (gradients, kept) => {
    const [h, w, s] = kept;
    const [dOut, dSum] = gradients;
    // A loss of the sum alone: its gradient passes through.
    if (dOut === undefined) {
      const [first, second] = shareGradient(dSum!);
      return [first, second, undefined];
    }
    const backward = {
      dOut,
      dSum,
      sum: h,
      weight: w,
      scale: s,
      weightOffset,
      dx: undefined,
      dWeight: undefined,
    };
    const [dx, dWeight] = run('rmsNormBackward', backward, h.device, undefined);
    if (!isSum) return [dx, undefined, dWeight];
    const [first, second] = shareGradient(dx!);
    dx!.dispose();
    return [first, second, dWeight];
  });
  scale.dispose();
  return { out, sum };
}

/**
 * Root-mean-square normalisation of the last dimension: `x / sqrt(mean(x^2) + eps) * (weight + weightOffset)`
 * (Zhang and Sennrich 2019), in float32.
 *
 * @param x `[..., hidden]`, float32, float16 or bfloat16
 * @param weight `[hidden]`, dtype of x
 * @returns `[..., hidden]`, dtype of x
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_TYPE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * using x = Tensor.from(Float32Array.of(3, 4), { shape: [1, 2] });
 * using weight = Tensor.from(Float32Array.of(1, 1));
 * using y = rmsNorm(x, weight); // [[0.85, 1.13]]
 * ```
 */
export function rmsNorm(x: Tensor, weight: Tensor, options?: RmsNormOptions): Tensor {
  checkTensor(OP, 'x', x);
  checkTensor(OP, 'weight', weight);
  return normalize(x, undefined, weight, options).out;
}

/**
 * {@link rmsNorm} of `x + residual`, and the sum itself, in one pass over memory.
 *
 * @param x `[..., hidden]`, what a layer adds to the residual stream
 * @param residual the stream, shape and dtype of x
 * @param weight `[hidden]`
 * @throws as {@link rmsNorm}
 *
 * @example
 * ```ts
 * const { out, sum } = addRmsNorm(attentionOut, stream, weight, { eps: 1e-5 });
 * ```
 */
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  options?: RmsNormOptions,
): AddRmsNormResult {
  checkTensor(OP, 'x', x);
  checkTensor(OP, 'residual', residual);
  checkTensor(OP, 'weight', weight);
  const { out, sum } = normalize(x, residual, weight, options);
  return {
    out,
    sum: sum!,
    [Symbol.dispose]() {
      out.dispose();
      sum!.dispose();
    },
  };
}
