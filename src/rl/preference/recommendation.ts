/** LPO4Rec: listwise preferences for long-tail recommendation, the label against popular items. */
import { checkInteger, readOptions } from '../../check.js';
import { SeededRandom } from '../../seeded-random.js';
import { checkArray, checkFloats, checkNumber, checkWord } from '../check-arrays.js';
import { drawTopK } from './gumbel-top-k.js';
import { winnerLoss } from './listwise.js';
import { checkFinite } from './segments.js';

/** Scores of all items for each row of a batch. */
export interface RecommendationBatch {
  /** `[numRows, numItems]` */
  readonly logits: Float32Array | Float64Array;
  /** `[numRows]`, item that was chosen. */
  readonly labels: Int32Array;
  /** Ids of the popular ("head") items; all others are tail items. */
  readonly headItems: Int32Array;
  /** `[numRows]`, score behind each row's weight. Default: 1 where the label is a tail item, else 0. */
  readonly tailScores?: Float32Array | Float64Array;
}

/** Options of {@link recommendationLoss}; defaults as published where a note says nothing else. */
export interface RecommendationOptions {
  /** Equal seeds draw equal negatives. An integer. */
  seed: number;
  /** Training step: other negatives each step. */
  step: number;
  /** Temperature of the listwise loss, above 0. Default 2. */
  tau?: number;
  /** Head items drawn against each label. Default 5. */
  negatives?: number;
  /** Factor of the listwise loss beside the cross entropy, at least 0. Default 0.5. */
  listwiseWeight?: number;
  /** What the listwise loss compares. Default `'probability'`. */
  utility?: 'probability' | 'logit';
  /**
   * What the draw follows. Default `'logit'`: negatives are drawn in proportion to the model's own
   * probabilities, so they get harder as it learns. `'probability'` is the published code: noise of
   * deviation 1.3 on numbers below 1, a nearly even draw.
   */
  drawBy?: 'logit' | 'probability';
}

/** What {@link recommendationLoss} returns. */
export interface RecommendationLoss {
  /** `sum_b weight_b * (crossEntropy_b + listwiseWeight * listwise_b)` */
  readonly loss: number;
  /** `[numRows, numItems]` */
  readonly dLogits: Float32Array;
  /** `[numRows, negatives]`, items that were drawn. */
  readonly negatives: Int32Array;
  /** `[numRows]`, softmax of the tail scores over the batch; sums to 1. */
  readonly weights: Float64Array;
  /** `[numRows]` */
  readonly crossEntropy: Float64Array;
  /** `[numRows]` */
  readonly listwise: Float64Array;
}

/**
 * Weighted cross entropy plus listwise loss of each row, with its derivative by the logits. In float64.
 *
 * The published code adds the positive's share itself where its description has the negative logarithm of
 * it; this is the negative logarithm. Where no label is a tail item the published code weighs rows by 1,
 * here they keep weighing `1 / numRows`.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE` (also: fewer head
 * items beside the label than `negatives`), `ERR_VARLEN_OPTION` and `ERR_VARLEN_NON_FINITE`.
 *
 * @param numItems items per row
 *
 * @example
 * const batch = { logits: new Float32Array(4), labels: Int32Array.of(3), headItems: Int32Array.of(0, 1) };
 * const { loss } = recommendationLoss(batch, 4, { seed: 1, step: 0, negatives: 2 });
 * // all items alike: log(4) + 0.5 * log(3)
 */
export function recommendationLoss(
  batch: RecommendationBatch,
  numItems: number,
  options: RecommendationOptions,
): RecommendationLoss {
  const op = 'recommendationLoss';
  const { seed, step, tau, numNegatives, listwiseWeight, utility, drawBy } = resolve(op, options);
  const { logits, labels, headItems } = batch;
  checkInteger(op, 'numItems', numItems, 1);
  checkArray(op, 'labels', labels, 'Int32Array');
  const numRows = labels.length;
  checkFloats(op, 'logits', logits, numRows * numItems);
  checkItems(op, 'labels', labels, numItems);
  checkArray(op, 'headItems', headItems, 'Int32Array');
  checkItems(op, 'headItems', headItems, numItems);
  const weights = tailWeights(op, batch);

  const dLogits = new Float32Array(logits.length);
  const negatives = new Int32Array(numRows * numNegatives);
  const crossEntropy = new Float64Array(numRows);
  const listwise = new Float64Array(numRows);
  let loss = 0;
  for (let row = 0; row < numRows; row++) {
    const label = labels[row];
    const z = Float64Array.from(logits.subarray(row * numItems, (row + 1) * numItems));
    z.forEach((logit, item) => {
      checkFinite(op, `logits[${row * numItems + item}]`, logit);
    });
    const entropy = winnerLoss(z, label, 1);
    const p = entropy.slopes.map((slope, item) => (item === label ? slope + 1 : slope));

    const candidates = headItems.filter((item) => item !== label);
    const scores = Float64Array.from(candidates, (item) => (drawBy === 'logit' ? z[item] : p[item]));
    const random = new SeededRandom(seed, step, row, RECOMMENDATION_STREAM);
    const drawn = drawTopK(op, scores, numNegatives, 1, random).map((place) => candidates[place]);
    const members = Int32Array.of(label, ...drawn);
    const u = Float64Array.from(members, (item) => (utility === 'probability' ? p[item] : z[item]));
    const preference = winnerLoss(u, 0, tau);

    const slope = entropy.slopes;
    addListwise(slope, preference.slopes, members, listwiseWeight, utility === 'probability' ? p : undefined);
    slope.forEach((value, item) => {
      dLogits[row * numItems + item] = weights[row] * value;
    });
    negatives.set(drawn, row * numNegatives);
    crossEntropy[row] = entropy.value;
    listwise[row] = preference.value;
    loss += weights[row] * (entropy.value + listwiseWeight * preference.value);
  }
  return Object.freeze({ loss, dLogits, negatives, weights, crossEntropy, listwise });
}

/** Adds `weight` times the slopes by a list's utilities to those by the logits, through the softmax if `p` is given. */
function addListwise(
  slope: Float64Array,
  dUtility: Float64Array,
  members: Int32Array,
  weight: number,
  p: Float64Array | undefined,
): void {
  members.forEach((item, k) => {
    slope[item] += weight * dUtility[k] * (p === undefined ? 1 : p[item]);
  });
  if (p === undefined) return;
  const mean = members.reduce((sum, item, k) => sum + p[item] * dUtility[k], 0);
  for (let item = 0; item < slope.length; item++) slope[item] -= weight * mean * p[item];
}

function resolve(op: string, options: RecommendationOptions) {
  const resolved = readOptions(op, options, [
    'seed',
    'step',
    'tau',
    'negatives',
    'listwiseWeight',
    'utility',
    'drawBy',
  ]);
  const { seed, step, tau = 2, negatives: numNegatives = 5, listwiseWeight = 0.5 } = resolved;
  const { utility = 'probability', drawBy = 'logit' } = resolved;
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'step', step, 0);
  checkNumber(op, 'tau', tau, { above: 0 });
  checkInteger(op, 'negatives', numNegatives, 1);
  checkNumber(op, 'listwiseWeight', listwiseWeight, { min: 0 });
  checkWord(op, 'utility', utility, ['probability', 'logit']);
  checkWord(op, 'drawBy', drawBy, ['probability', 'logit']);
  return { seed, step, tau, numNegatives, listwiseWeight, utility, drawBy };
}

function checkItems(op: string, argument: string, items: Int32Array, numItems: number): void {
  for (let i = 0; i < items.length; i++) checkInteger(op, `${argument}[${i}]`, items[i], 0, numItems - 1);
}

/** Softmax of the tail scores over the batch. */
function tailWeights(op: string, { labels, headItems, tailScores }: RecommendationBatch): Float64Array {
  const head = new Set(headItems);
  const scores = tailScores ?? Float64Array.from(labels, (label) => (head.has(label) ? 0 : 1));
  checkFloats(op, 'tailScores', scores, labels.length);
  let highest = -Infinity;
  for (let row = 0; row < scores.length; row++) {
    checkNumber(op, `tailScores[${row}]`, scores[row]);
    highest = Math.max(highest, scores[row]);
  }
  const exps = Float64Array.from(scores, (score) => Math.exp(score - highest));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((exp) => exp / sum);
}

/** Keeps these draws apart from other uses of the same seed and step. */
const RECOMMENDATION_STREAM = 0x4c50_4f34;
