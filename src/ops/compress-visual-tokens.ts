import { checkInteger, describe, isArrayOf, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor, recordCall } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { refuseTracked } from '../tensor/tape.js';
import { Tensor } from '../tensor/tensor.js';

/** Options of {@link compressVisualTokens}. */
export type CompressVisualTokensOptions = {
  /** Where the tokens of each image start, `[numImages + 1]`; the last entry is `numTokens`. */
  readonly imageOffsets: Int32Array;
  /** What similarity is measured on, `[numTokens, metricDim]`. Default: the features. */
  readonly metric?: Tensor;
  /** 1 for a token that is never merged into another and keeps its features, `[numTokens]`. */
  readonly protected?: Uint8Array;
  /** Tokens that an image keeps at least, as far as it has them. Default 1. */
  readonly minTokens?: number;
  /** A kept token becomes the mean of its members, or keeps its own features. Default `'merge'`. */
  readonly action?: 'merge' | 'prune';
  /** Tokens of a frame, where an image is a video: `cell` counts inside it. Default: no frames. */
  readonly frameTokens?: number;
  /** Default: the device's own. */
  readonly stream?: Stream;
} & (
  | {
      /** Rounds of merging the most similar pairs, to a number of tokens. */
      readonly mode: 'bipartite';
      /** Share of each image's tokens to end with, in (0, 1]; or `targetTokens`. */
      readonly keepRatio?: number;
      /** Tokens of each image to end with; smaller images stay whole. */
      readonly targetTokens?: number;
      /** A token that was merged counts once for each it holds, or once. Default `'size'`. */
      readonly weighting?: 'size' | 'uniform';
    }
  | {
      /** One pass that merges what is similar enough. */
      readonly mode: 'threshold';
      /** Cosine from which on a token joins another, 0 to 1. Default 0.95. */
      readonly threshold?: number;
      /** Least and largest share of each image's tokens to end with. Default `[0, 1]`. */
      readonly keepRatio?: readonly [min: number, max: number];
    }
);

/** Result of {@link compressVisualTokens}; disposing it disposes all tensors. */
export interface CompressedTokens extends Disposable {
  /** `[numRows, hidden]`, dtype of the features. */
  readonly features: Tensor;
  /** Token that each row was, ascending, `[numRows]` int32: its position ids are the row's. */
  readonly keepIdx: Tensor;
  /** Row that each token went to, `[numTokens]` int32. */
  readonly assign: Tensor;
  /** Tokens in each row, `[numRows]` float32. `log(size)` added to the scores of its key keeps its share. */
  readonly size: Tensor;
  /** Place of each row's token in its frame, or image, `[numRows]` int32: the `cell` of a `cell-grid`. */
  readonly cell: Tensor;
  /** Where the rows of each image start, `[numImages + 1]` int32. */
  readonly imageOffsets: Tensor;
}

const OP = 'compressVisualTokens';
const OP_BACKWARD = 'compressVisualTokensBackward';
const SHARED = [
  'mode',
  'imageOffsets',
  'metric',
  'protected',
  'minTokens',
  'action',
  'frameTokens',
  'stream',
  'keepRatio',
];

function outOfRange(argument: string, value: unknown, expected: string): never {
  throw argumentError(
    'ERR_VARLEN_RANGE',
    OP,
    argument,
    `is out of range; got ${describe(value)}, expected ${expected}`,
  );
}

function oneOf<T extends string>(argument: string, value: T, allowed: readonly T[]): void {
  if (allowed.includes(value)) return;
  throw argumentError(
    'ERR_VARLEN_OPTION',
    OP,
    argument,
    `is unknown; got ${describe(value)}, expected ${allowed.join(' or ')}`,
  );
}

/** Tokens that an image of `tokens` ends with, at least and at most. */
type Bounds = (tokens: number) => readonly [min: number, max: number];

function readBounds(given: CompressVisualTokensOptions): Bounds {
  if (given.mode === 'threshold') {
    const { keepRatio = [0, 1] as const } = given;
    if (!Array.isArray(keepRatio)) throw wrongType(OP, 'keepRatio', keepRatio, '[min, max]');
    const [min, max] = keepRatio as readonly [number, number];
    const numbers = typeof min === 'number' && typeof max === 'number';
    if (!(numbers && min >= 0 && max <= 1 && max > 0 && min <= max)) {
      outOfRange('keepRatio', keepRatio, '[min, max] inside 0..1');
    }
    return (tokens) => [Math.round(min * tokens), Math.round(max * tokens)];
  }
  const { keepRatio, targetTokens } = given;
  if ((keepRatio === undefined) === (targetTokens === undefined)) {
    throw argumentError(
      keepRatio === undefined ? 'ERR_VARLEN_MISSING_INPUT' : 'ERR_VARLEN_INCOMPATIBLE',
      OP,
      'keepRatio',
      `says how many tokens stay, or targetTokens; got ${keepRatio === undefined ? 'neither' : 'both'}, expected one`,
    );
  }
  if (targetTokens !== undefined) {
    checkInteger(OP, 'targetTokens', targetTokens, 1);
    return (tokens) => [Math.min(tokens, targetTokens), Math.min(tokens, targetTokens)];
  }
  if (typeof keepRatio !== 'number' || !(keepRatio > 0 && keepRatio <= 1)) {
    outOfRange('keepRatio', keepRatio, 'in (0, 1]');
  }
  return (tokens) => [Math.round(keepRatio * tokens), Math.round(keepRatio * tokens)];
}

/** What the native op is told of each image. */
function readTargets(
  given: CompressVisualTokensOptions,
  bounds: Bounds,
  minTokens: number,
): { targets: Int32Array; minimums: Int32Array } {
  const { imageOffsets } = given;
  const numImages = Math.max(0, imageOffsets.length - 1);
  const [targets, minimums] = [new Int32Array(numImages), new Int32Array(numImages)];
  const exact = given.mode === 'bipartite' && given.targetTokens !== undefined;
  for (let i = 0; i < numImages; i++) {
    const tokens = Math.max(0, imageOffsets[i + 1] - imageOffsets[i]); // order is checked natively
    const [min, max] = bounds(tokens);
    const marked =
      given.protected?.subarray(imageOffsets[i], imageOffsets[i + 1]).reduce((n, p) => n + (p ? 1 : 0), 0) ??
      0;
    const least = Math.min(tokens, Math.max(min, minTokens));
    // A share gives way to protected tokens; a number of tokens that was asked for does not.
    targets[i] = exact ? max : Math.min(tokens, Math.max(max, least, marked));
    minimums[i] = Math.min(least, targets[i]);
  }
  return { targets, minimums };
}

/**
 * Fewer visual tokens for the language model: similar ones of an image become one. `'bipartite'` merges the most
 * similar pairs in rounds until a number of tokens is left (ToMe, arXiv 2210.09461); `'threshold'` goes through
 * an image once. No attention weights are needed, images never mix, and rows keep the order and the positions of
 * the tokens they were (`keepIdx`): never number them anew. Rules: native/ops/compress-visual-tokens.
 *
 * `'bipartite'` gives as many rows as were asked for. `'threshold'` finds out: rows from the last entry of the
 * result's `imageOffsets` on are zero, to be cut off with `slice` once it was read.
 *
 * The call is recorded for tracked features: which tokens merge is a constant to backward, and a token's gradient
 * is its row's times its weight in the row's mean. `metric` only chooses, and gets no gradient.
 *
 * @param features `[numTokens, hidden]`, float32, float16 or bfloat16
 * @throws `ERR_VARLEN_RANGE` for a ratio, threshold or number of tokens outside its limits, or below the number of
 *   protected tokens; `ERR_VARLEN_CU_SEQLENS`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_OPTION`,
 *   `ERR_VARLEN_TYPE`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_INCOMPATIBLE`; `ERR_VARLEN_NO_BACKWARD` for a `metric`
 *   that requires a gradient
 *
 * @example
 * ```ts
 * using features = Tensor.from(Float32Array.of(1, 0, 0.98, 0.2, 0, 1, 0.1, 0.99), { shape: [4, 2] });
 * const imageOffsets = Int32Array.of(0, 4);
 * using few = compressVisualTokens(features, { mode: 'bipartite', keepRatio: 0.5, imageOffsets });
 * console.log(await few.keepIdx.data(), await few.size.data()); // [1, 3], [2, 2]
 * ```
 */
export function compressVisualTokens(
  features: Tensor,
  options: CompressVisualTokensOptions,
): CompressedTokens {
  checkTensor(OP, 'features', features);
  const mode = options?.mode;
  const own = mode === 'threshold' ? ['threshold'] : ['targetTokens', 'weighting'];
  const given = readOptions<CompressVisualTokensOptions>(OP, options, [...SHARED, ...own] as never);
  oneOf('mode', mode, ['bipartite', 'threshold']);
  const { imageOffsets, metric, minTokens = 1, action = 'merge', frameTokens = 0, stream } = given;
  if (!isArrayOf(Int32Array, imageOffsets))
    throw wrongType(OP, 'imageOffsets', imageOffsets, 'an Int32Array');
  if (given.protected !== undefined && !isArrayOf(Uint8Array, given.protected)) {
    throw wrongType(OP, 'protected', given.protected, 'a Uint8Array');
  }
  if (metric !== undefined) checkTensor(OP, 'metric', metric);
  refuseTracked(OP, [metric]);
  checkInteger(OP, 'minTokens', minTokens, 0);
  checkInteger(OP, 'frameTokens', frameTokens, 0);
  oneOf('action', action, ['merge', 'prune']);
  const weighting = (given.mode === 'bipartite' ? given.weighting : undefined) ?? 'size';
  oneOf('weighting', weighting, ['size', 'uniform']);
  const threshold = given.mode === 'threshold' ? (given.threshold ?? 0.95) : -1;
  if (mode === 'threshold' && !(typeof threshold === 'number' && threshold >= 0 && threshold <= 1)) {
    outOfRange('threshold', threshold, '0..1');
  }
  const { targets, minimums } = readTargets(given, readBounds(given), minTokens);
  const numRows = targets.reduce((sum, target) => sum + target, 0);
  const out = Tensor.empty([numRows, features.shape[1] ?? 0], {
    dtype: features.dtype,
    device: features.device,
  });
  const values = {
    features,
    metric,
    imageOffsets,
    targets,
    minimums,
    protected: given.protected && Int32Array.from(given.protected),
    threshold,
    frameTokens,
    uniform: weighting === 'uniform',
    prune: action === 'prune',
    out,
  };
  try {
    const [, keepIdx, assign, size, cell, offsets, weight] = run(OP, values, features.device, stream);
    recordCall(OP, [features], [out], [assign!, weight!], ([dOut], [rows, weights]) => {
      const on = stream === undefined || stream.disposed ? undefined : stream;
      return run(OP_BACKWARD, { dOut, assign: rows, weight: weights }, rows.device, on);
    });
    weight!.dispose();
    const tensors = {
      features: out,
      keepIdx: keepIdx!,
      assign: assign!,
      size: size!,
      cell: cell!,
      imageOffsets: offsets!,
    };
    return {
      ...tensors,
      [Symbol.dispose]() {
        for (const tensor of Object.values(tensors)) tensor.dispose();
      },
    };
  } catch (error) {
    out.dispose();
    throw error;
  }
}
