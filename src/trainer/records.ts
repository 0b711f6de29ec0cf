/** What a run writes down, one record per step; one line of `metrics.jsonl` each. */
import type { Estimate, LengthStatistics } from './statistics.js';

/**
 * What depends on the machine and the moment. Two runs of one seed write the same records but for these.
 */
export interface MachineRecord {
  /** Since the phase began. */
  readonly seconds: number;
  /** Parts of the step, in milliseconds. */
  readonly ms: Readonly<Record<string, number>>;
  /** Tokens that the step trained on or generated, per second of it. */
  readonly tokensPerSecond: number;
  /** The highest allocation of tensors so far. */
  readonly peakBytes: number;
}

/** One optimizer step of supervised fine-tuning. */
export interface SftRecord {
  readonly phase: 'sft';
  /** From 1. */
  readonly step: number;
  /** Mean negative log-probability of the response tokens, natural log. */
  readonly loss: number;
  readonly learningRate: number;
  /** Before clipping. */
  readonly gradientNorm: number;
  readonly samples: number;
  /** Real tokens; padding is not counted. */
  readonly tokens: number;
  /** Response tokens, which the loss looks at. */
  readonly supervisedTokens: number;
  readonly paddingRatio: number;
  /** Share of the token budget that was used. */
  readonly budgetFill: number;
  /** IDLE steps of this rank so far. */
  readonly idleSteps: number;
  readonly machine: MachineRecord;
}

/** One policy update. */
export interface RlRecord {
  readonly phase: 'rl';
  readonly step: number;
  /** Mean over the rollouts, before anything is dropped. */
  readonly reward: number;
  readonly formatReward: number;
  /** Sum of the next two, over all passes. */
  readonly loss: number;
  readonly policyLoss: number;
  /** The KL penalty, coefficient included. */
  readonly klLoss: number;
  readonly learningRate: number;
  /** Before clipping; under Lopti the larger of the two passes'. */
  readonly gradientNorm: number;
  /** Optimizer steps per update: 1, under Lopti 2. */
  readonly passes: number;
  /** Share of tokens whose ratio was clipped. */
  readonly clipLowFraction: number;
  readonly clipHighFraction: number;
  /** Mean over tokens, in nats: of the sampling distribution, estimated by minus the mean log-prob. */
  readonly entropy: number;
  /** Mean of `logp_old - logp_new`. */
  readonly approxKl: number;
  /** Mean over tokens of the KL to the policy that RL began with (estimator k3); null without a penalty. */
  readonly referenceKl: number | null;
  /** `|logp_train - logp_sample|` over the trained tokens that the current policy drew. */
  readonly mismatch: { readonly mean: number; readonly max: number };
  /** Updates since a token was drawn; all 0 unless rollouts are partial. */
  readonly staleness: { readonly mean: number; readonly max: number };
  /** Of the prompt groups with any spread. */
  readonly advantages: { readonly mean: number; readonly std: number };
  readonly groups: number;
  /** Groups whose responses all earned the same: nothing to learn from. */
  readonly flatGroups: number;
  readonly lengths: LengthStatistics;
  /** Share of responses that ended at the length limit. */
  readonly truncated: number;
  readonly generatedTokens: number;
  /** Of them, those that were thrown away. */
  readonly wastedTokens: number;
  /** Tokens trained on, prompts included. */
  readonly tokens: number;
  readonly microBatches: number;
  /** Ranks that had nothing to train on and took part with zeros. */
  readonly idleRanks: number;
  readonly paddingRatio: number;
  readonly machine: MachineRecord & {
    /** Share of the generator's slots that stood empty. */
    readonly bubbleRatio: number;
  };
}

/** One measurement on held-out problems. */
export interface EvalRecord {
  readonly phase: 'eval';
  /** What had been trained. */
  readonly after: 'start' | 'sft' | 'rl';
  readonly problems: number;
  readonly samplesPerProblem: number;
  /** Mean reward of samples at temperature 1. */
  readonly sampled: Estimate;
  readonly greedy: Estimate;
  /** Share of greedy outputs of the right form. */
  readonly format: number;
  readonly lengths: LengthStatistics;
  readonly generatedTokens: number;
  /** Mean accuracy of guessing; 0 where the task does not know. */
  readonly chance: number;
  readonly machine: MachineRecord;
}

/** One line of `metrics.jsonl`. */
export type TrainRecord = SftRecord | RlRecord | EvalRecord;
