import { readOptions } from '../check.js';
import { checkTensor } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { refuseTracked } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of {@link sampling}. */
export interface SamplingOptions {
  /** Logits are divided by it; 0 takes the likeliest word. Default 1. */
  temperature?: number;
  /** Keeps this many of the likeliest words; 0 keeps all. Default 0. */
  topK?: number;
  /** Keeps the fewest likeliest words that hold this share of what top-k kept. Default 1: all. */
  topP?: number;
  /** Keeps words with at least this share of the likeliest word's probability. Default 0: all. */
  minP?: number;
  /** Default: the device's own. */
  stream?: Stream;
}

/** Result of {@link sampling}, one entry per row; disposing it disposes all four. */
export interface SamplingResult extends Disposable {
  /** `[numSeqs]` int32. */
  readonly tokens: Tensor;
  /** `[numSeqs]` float32, natural log of the token's probability under the distribution drawn from. */
  readonly logprobs: Tensor;
  /** The same under the logits as they are: temperature 1, all words. */
  readonly policyLogprobs: Tensor;
  /** Natural log of the mass that the filters kept: `logprobs + keptLogMass` is without the filters. */
  readonly keptLogMass: Tensor;
}

const OP = 'sampling';

/**
 * Draws one token per row of logits. A row's result depends on its logits and its random bits alone,
 * never on its neighbours. Filters apply in the order temperature, top-k, top-p, min-p, as in the
 * Hugging Face generation library; equal words are ordered by index.
 *
 * @param logits `[numSeqs, vocabSize]`, float32, float16 or bfloat16; `-Infinity` forbids a word
 * @param random `[numSeqs]`, 32 random bits each, e.g. of one `Pcg32` per sequence
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_RANGE` (also when the op runs, for a row of NaN,
 *   `+Infinity` or nothing but `-Infinity`), `ERR_VARLEN_NO_BACKWARD`, `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_TYPE`,
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_DISPOSED`
 *
 * @example
 * ```ts
 * const generators = prompts.map((_, i) => new Pcg32(seed, i));
 * const random = Int32Array.from(generators, (generator) => generator.next());
 * using drawn = sampling(logits, random, { temperature: 0.7, topP: 0.95 });
 * const tokens = await drawn.tokens.data();
 * ```
 */
export function sampling(
  logits: Tensor,
  random: Int32Array | Tensor,
  options?: SamplingOptions,
): SamplingResult {
  checkTensor(OP, 'logits', logits);
  const given = readOptions<SamplingOptions>(OP, options, ['temperature', 'topK', 'topP', 'minP', 'stream']);
  const { temperature = 1, topK = 0, topP = 1, minP = 0, stream } = given;
  refuseTracked(OP, [logits]);
  const outputs = {
    tokens: undefined,
    logprobs: undefined,
    policyLogprobs: undefined,
    keptLogMass: undefined,
  };
  const values = { logits, random, temperature, topK, topP, minP, ...outputs };
  const made = run(OP, values, logits.device, stream);
  const [tokens, logprobs, policyLogprobs, keptLogMass] = made as Tensor[];
  return {
    tokens,
    logprobs,
    policyLogprobs,
    keptLogMass,
    [Symbol.dispose]() {
      for (const tensor of [tokens, logprobs, policyLogprobs, keptLogMass]) tensor.dispose();
    },
  };
}
