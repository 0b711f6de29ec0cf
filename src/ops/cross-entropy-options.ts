import { argumentError } from '../errors.js';
import { checkTensor } from '../tensor/arguments.js';
import type { Stream } from '../tensor/stream.js';
import type { Tensor } from '../tensor/tensor.js';

/** What `crossEntropy` and `crossEntropyFromHidden` share: options, outputs, and their native form. */

/** Options of a weighted cross entropy. With z the logits, `lse = log(sum(exp(z)))`, y the target. */
export interface CrossEntropyOptions {
  /** 1 where the token counts, `[totalTokens]` uint8. Default: everywhere. Other rows are never read. */
  lossMask?: Tensor | undefined;
  /** Weights of the tokens, `[totalTokens]` float32, none negative; 0 leaves a token out. Default: ones. */
  weights?: Tensor | undefined;
  /** `'weight-sum'` divides by the sum of the weights that count, `'none'` by nothing. Default `'weight-sum'`. */
  normalize?: 'none' | 'weight-sum';
  /** Multiplies the loss: with `normalize: 'none'`, the batcher's `lossScale` or 1 / the step's tokens. Default 1. */
  scale?: number;
  /** Share of the uniform distribution in the target, 0 to 1. Default 0. */
  labelSmoothing?: number;
  /** Coefficient of `lse ** 2`, which keeps the logits' scale (PaLM). Default 0. */
  zLoss?: number;
  /** Logits are divided by it. Default 1. */
  temperature?: number;
  /** Logits become `softcap * tanh(logit / softcap)` first; 0 is off, the default. */
  softcap?: number;
  /** Logits are multiplied by it before anything else. Default 1. */
  logitScale?: number;
  /** Default: the device's own. */
  stream?: Stream;
}

export const CROSS_ENTROPY_KEYS = [
  'lossMask',
  'weights',
  'normalize',
  'scale',
  'labelSmoothing',
  'zLoss',
  'temperature',
  'softcap',
  'logitScale',
  'stream',
] as const;

/** Result of a cross entropy; disposing it disposes all. Every tensor can be differentiated. */
export interface CrossEntropyResult extends Disposable {
  /** `[]` float32. */
  readonly loss: Tensor;
  /** The loss of each token before its weight, `[totalTokens]` float32; like the next two 0 where it does not count. */
  readonly perToken: Tensor;
  /** Log-probability of each target, natural log, `[totalTokens]` float32. */
  readonly logprobs: Tensor;
  /** Entropy of each distribution, `[totalTokens]` float32. */
  readonly entropies: Tensor;
}

/** The options by their native names. */
export interface NativeCrossEntropyOptions {
  readonly lossMask: Tensor | undefined;
  readonly weights: Tensor | undefined;
  readonly temperature: number;
  readonly softcap: number;
  readonly logitScale: number;
  readonly labelSmoothing: number;
  readonly zLoss: number;
  readonly scale: number;
  readonly normalize: boolean;
}

const NORMALIZE = { none: false, 'weight-sum': true };

/** Fills in defaults. Numbers are checked by the native side. */
export function nativeCrossEntropyOptions(op: string, given: CrossEntropyOptions): NativeCrossEntropyOptions {
  const { lossMask, weights, normalize = 'weight-sum', scale = 1, labelSmoothing = 0, zLoss = 0 } = given;
  const { temperature = 1, softcap = 0, logitScale = 1 } = given;
  if (lossMask !== undefined) checkTensor(op, 'lossMask', lossMask);
  if (weights !== undefined) checkTensor(op, 'weights', weights);
  if (!Object.hasOwn(NORMALIZE, normalize)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'normalize',
      `is unknown; got '${String(normalize)}', expected 'none' or 'weight-sum'`,
    );
  }
  return {
    lossMask,
    weights,
    temperature,
    softcap,
    logitScale,
    labelSmoothing,
    zLoss,
    scale,
    normalize: NORMALIZE[normalize],
  };
}

/** The native outputs, which the call allocates. */
export const CROSS_ENTROPY_OUTPUTS = {
  loss: undefined,
  perToken: undefined,
  logprobs: undefined,
  entropies: undefined,
  lse: undefined,
} as const;

/** What a caller gets of the native outputs `[loss, perToken, logprobs, entropies]`. */
export function crossEntropyResult(made: readonly (Tensor | undefined)[]): CrossEntropyResult {
  const [loss, perToken, logprobs, entropies] = made as Tensor[];
  return {
    loss,
    perToken,
    logprobs,
    entropies,
    [Symbol.dispose]() {
      for (const tensor of [loss, perToken, logprobs, entropies]) tensor.dispose();
    },
  };
}
