import { checkBoolean, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';

/** What one AdamW step reads and updates, list by list in the same order. */
export interface AdamwTensors {
  /** Updated. All float32, or all 16-bit with `masters`. */
  readonly parameters: readonly Tensor[];
  /** float32, the parameters' sizes. */
  readonly gradients: readonly Tensor[];
  /** First moments, float32, updated; zeros before the first step. */
  readonly expAvg: readonly Tensor[];
  /** Second moments, likewise. */
  readonly expAvgSq: readonly Tensor[];
  /** float32 copies of 16-bit parameters, updated; the parameters become their rounding. */
  readonly masters?: readonly Tensor[];
}

/** Numbers of one AdamW step. */
export interface AdamwOptions {
  /** Number of this step, from 1. */
  step: number;
  /** Learning rate. Default 1e-3. */
  lr?: number;
  /** Decay rates of the moments, each in `[0, 1)`. Default `[0.9, 0.999]`. */
  betas?: readonly [number, number];
  /** Default 1e-8. */
  eps?: number;
  /** Decoupled: the parameter shrinks by `lr * weightDecay`. Default 0. */
  weightDecay?: number;
  /**
   * Adds eps before the second moment is corrected for its bias, and decays after the step, as the
   * Hugging Face and Fira references do. Default false: as PyTorch does it.
   */
  epsBeforeCorrection?: boolean;
  /** `[1]` float32, from `gradClip`: when it is not finite, nothing is updated. */
  gradientNorm?: Tensor;
  /** Default: the device's own. */
  stream?: Stream;
}

const OP = 'adamw';

/**
 * One step of AdamW (Loshchilov and Hutter 2019) on many tensors at once, in place, in float32.
 * A recorded graph that kept a parameter sees its new values: call `backward()` first.
 *
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE` (tensors that
 *   share memory), `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * adamw({ parameters: [w], gradients: [w.grad!], expAvg: [m], expAvgSq: [v] }, { step: 1, lr: 3e-4 });
 * ```
 */
export function adamw(tensors: AdamwTensors, options: AdamwOptions): void {
  const { parameters, gradients, expAvg, expAvgSq, masters = [] } = tensors;
  const given = readOptions<AdamwOptions>(OP, options, [
    'step',
    'lr',
    'betas',
    'eps',
    'weightDecay',
    'epsBeforeCorrection',
    'gradientNorm',
    'stream',
  ]);
  const { step, lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0, stream } = given;
  const { epsBeforeCorrection = false, gradientNorm } = given;
  checkBoolean(OP, 'epsBeforeCorrection', epsBeforeCorrection);
  if (!Array.isArray(betas) || betas.length !== 2) {
    throw wrongType(OP, 'betas', betas, 'a pair of numbers');
  }
  if (!Array.isArray(gradients)) throw wrongType(OP, 'gradients', gradients, 'an array of Tensors');
  const [beta1, beta2] = betas;
  const device = gradients[0] instanceof Tensor ? gradients[0].device : undefined;
  if (device === undefined) {
    if (gradients.length > 0) throw wrongType(OP, 'gradients[0]', gradients[0], 'a Tensor');
    if (parameters.length === 0) return;
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      OP,
      'parameters',
      `must have one tensor per gradient; got ${parameters.length}, expected 0`,
    );
  }
  run(
    OP,
    {
      gradients,
      gradientNorm,
      parameters,
      masters,
      expAvg,
      expAvgSq,
      step,
      lr,
      beta1,
      beta2,
      eps,
      weightDecay,
      epsBeforeCorrection,
    },
    device,
    stream,
    { beta1: 'betas', beta2: 'betas' },
  );
}
