/** What a batcher has done so far, in plain numbers. */
import { channel } from 'node:diagnostics_channel';
import type { StepInfo } from '../dist/step-info.js';

/** One finished round; also published on the `diagnostics_channel` named `varlen.batch.round`. */
export interface RoundMetrics {
  readonly epoch: number;
  readonly round: number;
  /** Aligned steps, `T`. */
  readonly target: number;
  /** Samples in this rank's window, and how many of them were fresh. */
  readonly windowSamples: number;
  readonly freshSamples: number;
  /** Groups before they were fitted to the target. */
  readonly groups: number;
  /** IDLE entries of this rank. */
  readonly idleSteps: number;
  /** Samples carried into the next round, and the age of the oldest in rounds. */
  readonly carried: number;
  readonly maxCarryAge: number;
  /** Samples and tokens of all ranks. */
  readonly globalSamples: number;
  readonly globalTokens: number;
  /** `sum max cost / sum mean cost - 1` over the ranks. */
  readonly straggler: number;
  /** Milliseconds: collecting the window, waiting in gathers. */
  readonly windowFillMs: number;
  readonly alignMs: number;
}

/** A snapshot; see `DynamicBatcher.metrics`. Rates are over the time from the first request to the last step. */
export interface BatcherMetrics {
  readonly elapsedMs: number;
  readonly rounds: number;
  readonly stepCount: number;
  readonly idleSteps: number;
  readonly idleRatio: number;
  readonly localSamples: number;
  readonly globalSamples: number;
  readonly localTokens: number;
  readonly globalTokens: number;
  /** Samples of all ranks per second: training samples, not batch size times steps. */
  readonly samplesPerSecond: number;
  /** Real tokens of all ranks per second. */
  readonly realTokensPerSecond: number;
  /** Tokens this rank computes on, padding included, per second. */
  readonly paddedTokensPerSecond: number;
  /** `1 - real / padded` on this rank. */
  readonly paddingRatio: number;
  /** Mean share of the token budget that a step with data uses on this rank. */
  readonly budgetFill: number;
  /** Samples of all ranks per step. */
  readonly samplesPerStep: number;
  /** `sum max cost / sum mean cost - 1` over the ranks. */
  readonly straggler: number;
  /** Share of rank time that waits for the costliest rank, in cost units. */
  readonly bubbleRatio: number;
  /** Coefficient of variation of the steps' largest cost. */
  readonly stepCostCV: number;
  /** Times a sample was carried over, and the most rounds one was. */
  readonly deferred: number;
  readonly maxDeferAge: number;
  /** Mean rounds of delay per length decile of its window, shortest first. */
  readonly delayByLengthDecile: readonly number[];
  /** Lag-1 correlation of the mean length of consecutive steps of this rank. */
  readonly lengthAutocorrelation: number;
  readonly alignMs: number;
  readonly waitInputMs: number;
  readonly windowFillMs: number;
  readonly dropped: number;
  /** With `audit`: sums of the hashes of the ids that entered and left; equal when every sample left once. */
  readonly auditIn: string;
  readonly auditOut: string;
}

const roundChannel = channel('varlen.batch.round');
const stepChannel = channel('varlen.batch.step');

/** Mean, variance and the like from running sums. */
class Moments {
  count = 0;
  sum = 0;
  squares = 0;

  add(value: number): void {
    this.count++;
    this.sum += value;
    this.squares += value * value;
  }

  get mean(): number {
    return this.count === 0 ? 0 : this.sum / this.count;
  }

  get variance(): number {
    return this.count === 0 ? 0 : Math.max(0, this.squares / this.count - this.mean ** 2);
  }
}

function ratio(numerator: number, denominator: number): number {
  return denominator > 0 ? numerator / denominator : 0;
}

/** Gathers the numbers of {@link BatcherMetrics}. */
export class MetricsRecorder {
  readonly #worldSize: number;
  readonly #budget: number;
  #startedMs: number | undefined;
  #lastMs = 0;
  #rounds = 0;
  #steps = 0;
  #idle = 0;
  #localSamples = 0;
  #globalSamples = 0;
  #localTokens = 0;
  #globalTokens = 0;
  #paddedTokens = 0;
  #fill = new Moments();
  #maxCost = new Moments();
  #meanCostSum = 0;
  #deferred = 0;
  #maxDeferAge = 0;
  #delaySum = new Float64Array(10);
  #delayCount = new Float64Array(10);
  #length = new Moments();
  #lengthLagSum = 0;
  #lengthLags = 0;
  #previousLength: number | undefined;
  #alignMs = 0;
  #windowFillMs = 0;
  waitInputMs = 0;

  constructor(worldSize: number, budget: number) {
    this.#worldSize = worldSize;
    this.#budget = budget;
  }

  begin(): void {
    this.#startedMs ??= performance.now();
    this.#lastMs = performance.now();
  }

  round(metrics: RoundMetrics, delays: { lengths: readonly number[]; ages: readonly number[] }): void {
    this.#rounds++;
    this.#deferred += metrics.carried;
    this.#alignMs += metrics.alignMs;
    this.#windowFillMs += metrics.windowFillMs;
    const order = delays.lengths.map((_, i) => i);
    // Without a delay every decile counts the same, whoever is in it.
    if (delays.ages.some((age) => age > 0)) order.sort((a, b) => delays.lengths[a] - delays.lengths[b]);
    order.forEach((sample, place) => {
      const decile = Math.floor((10 * place) / order.length);
      this.#delaySum[decile] += delays.ages[sample];
      this.#delayCount[decile]++;
      this.#maxDeferAge = Math.max(this.#maxDeferAge, delays.ages[sample]);
    });
    if (roundChannel.hasSubscribers) roundChannel.publish(metrics);
  }

  /** A step was handed to the consumer. */
  step(info: StepInfo, globalCost: number): void {
    this.#lastMs = performance.now();
    this.#steps++;
    this.#localSamples += info.localSamples;
    this.#globalSamples += info.globalSamples;
    this.#localTokens += info.localTokens;
    this.#globalTokens += info.globalTokens;
    this.#paddedTokens += info.paddedTokens;
    this.#maxCost.add(info.maxCost);
    this.#meanCostSum += globalCost / this.#worldSize;
    if (info.idle) this.#idle++;
    else {
      this.#fill.add(info.paddedTokens / this.#budget);
      const meanLength = info.localTokens / info.localSamples;
      this.#length.add(meanLength);
      if (this.#previousLength !== undefined) {
        this.#lengthLagSum += this.#previousLength * meanLength;
        this.#lengthLags++;
      }
      this.#previousLength = meanLength;
    }
    if (stepChannel.hasSubscribers) stepChannel.publish(info);
  }

  snapshot(dropped: number, auditIn: string, auditOut: string): BatcherMetrics {
    const elapsedMs = this.#startedMs === undefined ? 0 : this.#lastMs - this.#startedMs;
    const seconds = elapsedMs / 1000;
    const covariance = ratio(this.#lengthLagSum, this.#lengthLags) - this.#length.mean ** 2;
    return Object.freeze({
      elapsedMs,
      rounds: this.#rounds,
      stepCount: this.#steps,
      idleSteps: this.#idle,
      idleRatio: ratio(this.#idle, this.#steps),
      localSamples: this.#localSamples,
      globalSamples: this.#globalSamples,
      localTokens: this.#localTokens,
      globalTokens: this.#globalTokens,
      samplesPerSecond: ratio(this.#globalSamples, seconds),
      realTokensPerSecond: ratio(this.#globalTokens, seconds),
      paddedTokensPerSecond: ratio(this.#paddedTokens, seconds),
      paddingRatio: this.#paddedTokens > 0 ? 1 - this.#localTokens / this.#paddedTokens : 0,
      budgetFill: this.#fill.mean,
      samplesPerStep: ratio(this.#globalSamples, this.#steps),
      straggler: this.#meanCostSum > 0 ? this.#maxCost.sum / this.#meanCostSum - 1 : 0,
      bubbleRatio: this.#maxCost.sum > 0 ? 1 - this.#meanCostSum / this.#maxCost.sum : 0,
      stepCostCV: ratio(Math.sqrt(this.#maxCost.variance), this.#maxCost.mean),
      deferred: this.#deferred,
      maxDeferAge: this.#maxDeferAge,
      delayByLengthDecile: Object.freeze(
        Array.from(this.#delaySum, (sum, decile) => ratio(sum, this.#delayCount[decile])),
      ),
      lengthAutocorrelation: this.#lengthLags > 0 ? ratio(covariance, this.#length.variance) : 0,
      alignMs: this.#alignMs,
      waitInputMs: this.waitInputMs,
      windowFillMs: this.#windowFillMs,
      dropped,
      auditIn,
      auditOut,
    });
  }
}
