/** Rotary frequencies and the ways models stretch them to longer contexts. */

/** How the frequencies of a model were stretched, with the field names of the papers and of Hugging Face. */
export type RopeScaling =
  /** Positions divided by `factor` (Chen et al. 2023). */
  | { readonly kind: 'linear'; readonly factor: number }
  /** Llama 3.1: low frequencies divided, high ones kept, those between blended. */
  | {
      readonly kind: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    }
  /** YaRN (Peng et al. 2023): frequencies blended by how often they turn, attention scaled. */
  | {
      readonly kind: 'yarn';
      readonly factor: number;
      readonly originalMaxPositionEmbeddings: number;
      /** Turns over the original context above which a frequency is kept. Default 32. */
      readonly betaFast?: number;
      /** Turns below which it is divided. Default 1. */
      readonly betaSlow?: number;
      /** What cosines and sines are multiplied by. Default `0.1 ln(factor) + 1`. */
      readonly attentionFactor?: number;
      /** Numerator and denominator of the attention factor, as DeepSeek sets them. */
      readonly mscale?: number;
      readonly mscaleAllDim?: number;
      /** Round the ends of the blend to whole dimensions. Default true. */
      readonly truncate?: boolean;
    };

/** Frequencies in radians per token, `[headDim / 2]`, and the factor of cosines and sines. */
export interface RotaryFrequencies {
  readonly frequencies: Float64Array;
  readonly factor: number;
}

/** `base ** (-2i / headDim)`. */
function plainFrequencies(headDim: number, theta: number): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
}

type Llama3 = Extract<RopeScaling, { kind: 'llama3' }>;

/** The piecewise rule of the Llama 3.1 release. */
function llama3(plain: Float64Array, scaling: Llama3): Float64Array {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings: context } = scaling;
  return plain.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength < context / highFreqFactor) return frequency;
    if (wavelength > context / lowFreqFactor) return frequency / factor;
    const smooth = (context / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    return ((1 - smooth) * frequency) / factor + smooth * frequency;
  });
}

type Yarn = Extract<RopeScaling, { kind: 'yarn' }>;

/** YaRN's attention temperature for a stretch of `factor`. */
function mscaleOf(factor: number, mscale = 1): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
}

function yarn(plain: Float64Array, theta: number, scaling: Yarn): RotaryFrequencies {
  const {
    factor,
    originalMaxPositionEmbeddings: context,
    betaFast = 32,
    betaSlow = 1,
    truncate = true,
  } = scaling;
  const { mscale, mscaleAllDim } = scaling;
  const headDim = 2 * plain.length;
  // The dimension whose frequency makes `turns` full turns over the original context.
  const dimensionOf = (turns: number): number =>
    (headDim * Math.log(context / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [dimensionOf(betaFast), dimensionOf(betaSlow)];
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const high = Math.min(truncate ? Math.ceil(slow) : slow, headDim - 1);
  const width = high === low ? 0.001 : high - low;
  const frequencies = plain.map((frequency, i) => {
    const divided = Math.min(1, Math.max(0, (i - low) / width));
    return (frequency / factor) * divided + frequency * (1 - divided);
  });
  const natural =
    mscale && mscaleAllDim ? mscaleOf(factor, mscale) / mscaleOf(factor, mscaleAllDim) : mscaleOf(factor);
  return { frequencies, factor: scaling.attentionFactor ?? natural };
}

/**
 * Frequencies of rotary embeddings of `headDim` dimensions, in float64.
 *
 * @param theta base of the frequencies
 * @param scaling default: none
 *
 * @example
 * ```ts
 * const { frequencies } = rotaryFrequencies(64, 10_000);
 * ```
 */
export function rotaryFrequencies(headDim: number, theta: number, scaling?: RopeScaling): RotaryFrequencies {
  const plain = plainFrequencies(headDim, theta);
  switch (scaling?.kind) {
    case undefined:
      return { frequencies: plain, factor: 1 };
    case 'linear':
      return { frequencies: plain.map((frequency) => frequency / scaling.factor), factor: 1 };
    case 'llama3':
      return { frequencies: llama3(plain, scaling), factor: 1 };
    case 'yarn':
      return yarn(plain, theta, scaling);
  }
}
