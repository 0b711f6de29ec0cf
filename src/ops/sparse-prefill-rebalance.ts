import { describe, isArrayOf, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { Tensor } from '../tensor/tensor.js';
import { type AttentionState, checkPlan, type RunnablePlan, recordPrefill } from './sparse-prefill.js';

/** Options of {@link rebalanceAttention}. */
export interface RebalanceOptions {
  /** Segment (image) of each key, `[totalTokensK]`, counted through the whole pack; -1: none. */
  readonly segments: Int32Array;
  /**
   * How the mass of a row's visible segments is to be split: evenly, by their numbers of keys, or by given
   * weights, `[numSegments]`, at most 255. Default `'uniform'`.
   */
  readonly shares?: 'uniform' | 'size' | Float32Array;
  /** 0 changes nothing, 1 gives exactly the shares. Default 0.5. */
  readonly strength?: number;
  /** Largest bias of a segment's scores, either way, before the masses are made to add up. Default 4. */
  readonly maxBias?: number;
  /** Default: the device's own. */
  readonly stream?: Stream;
}

/** Result of {@link rebalanceAttention}; disposing it disposes all three tensors. */
export interface RebalancedState extends AttentionState, Disposable {
  /** What was added to the scores of each segment, `[numHeads, totalTokensQ, numSegments]` float32. */
  readonly segmentBias: Tensor;
}

const OP = 'rebalanceAttention';
/** kMaxSegments of native/ops/sparse-prefill/sparse-prefill.h. */
const MAX_SEGMENTS = 255;

/** Weights of all segments, and how many there are. */
function readShares(shares: RebalanceOptions['shares'], segments: Int32Array): Float32Array {
  const named = segments.reduce((most, g) => Math.max(most, g + 1), 1);
  const count = Math.min(named, MAX_SEGMENTS + 1); // more are refused natively, and need no memory before
  if (isArrayOf(Float32Array, shares)) return shares;
  if (shares === 'uniform') return new Float32Array(count).fill(1);
  if (shares !== 'size') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'shares',
      `is unknown; got ${describe(shares)}, expected 'uniform', 'size' or a Float32Array`,
    );
  }
  const sizes = new Float32Array(count);
  for (const g of segments) if (g >= 0) sizes[g]++;
  return sizes;
}

/**
 * Attention whose mass is split anew among segments of keys, such as the images of a prompt, so that none
 * draws it all; the mass of every other key, and `softmaxLse`, stay as they are.
 *
 * Per row and head, with `a_g` the mass of segment g, `A` their sum and `w_g` the shares of those that the row
 * sees: `a'_g = (1 - strength) a_g + strength A w_g`, and `b_g = ln(a'_g / a_g)` is added to the scores of the
 * segment's keys. It is exact: partial results per segment are merged by their log-sum-exps, and no score is
 * stored. Formulas: native/ops/sparse-prefill/sparse-prefill.h.
 *
 * Backward takes the biases as constants. `segmentKeyBias` makes a table of them that one calibration
 * gave into the `keyBias` of `sparsePrefill`.
 *
 * @param plan of `planPrefill`; `{ heads: { kind: 'dense' } }` for plain attention
 * @param q `[totalTokensQ, numHeads, headDim]`, float32, float16 or bfloat16
 * @param k `[totalTokensK, numKvHeads, headDim]`
 * @param v `[totalTokensK, numKvHeads, valueDim]`
 * @throws `ERR_VARLEN_INDEX` for a segment below -1 or without a share, when the result is read;
 *   `ERR_VARLEN_RANGE`, and what `sparsePrefill` throws
 *
 * @example
 * ```ts
 * using plan = planPrefill({ heads: { kind: 'dense' } }, q, k, { cuSeqlens });
 * const { out } = rebalanceAttention(plan, q, k, v, { segments: imageOfKey, strength: 0.5 });
 * ```
 */
export function rebalanceAttention(
  plan: RunnablePlan,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RebalanceOptions,
): RebalancedState {
  checkTensor(OP, 'q', q);
  checkTensor(OP, 'k', k);
  checkTensor(OP, 'v', v);
  const given = readOptions(OP, options, ['segments', 'shares', 'strength', 'maxBias', 'stream']);
  const { segments, shares = 'uniform', strength = 0.5, maxBias = 4, stream } = given;
  if (!isArrayOf(Int32Array, segments)) throw wrongType(OP, 'segments', segments, 'an Int32Array');
  checkPlan(OP, plan, q, k);
  const { words, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap } = plan;
  const weights = readShares(shares, segments);
  const segmentIds = Tensor.from(segments, { device: q.device });
  const inputs = { plan: words, q, k, v, cuSeqlensQ, cuSeqlensK, softmaxScale, softcap };
  const values = { ...inputs, segments: segmentIds, shares: weights, strength, maxBias };
  try {
    const made = run(OP, values, q.device, stream);
    const [out, softmaxLse, segmentBias] = [made[0]!, made[1]!, made[2]!];
    const biases = { segments: segmentIds, segmentBias };
    recordPrefill(OP, plan, { q, k, v, out, softmaxLse }, biases, stream);
    return {
      out,
      softmaxLse,
      segmentBias,
      [Symbol.dispose]() {
        for (const tensor of [out, softmaxLse, segmentBias]) tensor.dispose();
      },
    };
  } finally {
    segmentIds.dispose();
  }
}
