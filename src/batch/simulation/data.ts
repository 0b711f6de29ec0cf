/** Synthetic sequence lengths with the statistics of published data sets. */
import { SeededRandom } from '../../seeded-random.js';

/** A distribution of lengths: a mixture of log-normals, each given by mean and coefficient of variation. */
export interface LengthDistribution {
  readonly parts: readonly { readonly share: number; readonly mean: number; readonly cv: number }[];
  /** Longer lengths are cut to this, in tokens. */
  readonly cap: number;
}

/** One log-normal. */
export function logNormal(mean: number, cv: number, cap: number): LengthDistribution {
  return { parts: [{ share: 1, mean, cv }], cap };
}

/**
 * The four data sets of the published runs. Coefficients of variation are published; the means of the
 * first three are **assumed** (1200, 500, 1800 tokens). MM-Mix is a mixture with the published mean of
 * 678 tokens: 42 % with sigma 0.35, 58 % with sigma 0.45 (`cv = sqrt(exp(sigma^2) - 1)`).
 */
export const publishedData: Readonly<
  Record<'UltraChat' | 'LLaVA' | 'ShareGPT4o' | 'MM-Mix', LengthDistribution>
> = {
  UltraChat: logNormal(1200, 0.48, 4096),
  LLaVA: logNormal(500, 0.29, 2048),
  ShareGPT4o: logNormal(1800, 1, 16384),
  'MM-Mix': {
    parts: [
      { share: 0.42, mean: 190, cv: Math.sqrt(Math.exp(0.35 ** 2) - 1) },
      { share: 0.58, mean: 1040, cv: Math.sqrt(Math.exp(0.45 ** 2) - 1) },
    ],
    cap: 16384,
  },
};

/** `count` lengths in tokens, each in `1..cap`; the seed decides them. */
export function drawLengths(distribution: LengthDistribution, count: number, seed: number): Int32Array {
  const random = new SeededRandom(seed, 1);
  return Int32Array.from({ length: count }, () => {
    const part = chosenPart(distribution, random.uniform());
    const variance = Math.log(1 + part.cv ** 2);
    const logMean = Math.log(part.mean) - variance / 2;
    const length = Math.round(Math.exp(logMean + Math.sqrt(variance) * random.normal()));
    return Math.max(1, Math.min(distribution.cap, length));
  });
}

function chosenPart({ parts }: LengthDistribution, choice: number): LengthDistribution['parts'][number] {
  let passed = 0;
  for (const part of parts) {
    passed += part.share;
    if (choice < passed) return part;
  }
  return parts[parts.length - 1];
}
