/** One update of the policy: judge, score, and one optimizer step or Lopti's two. */
import type { RolloutEntry } from '../../batch/index.js';
import {
  embedding,
  type PolicyLossConfig,
  type PolicyLossStats,
  policyLossFromHidden,
} from '../../ops/index.js';
import {
  type Aggregation,
  type AggregationPlan,
  planAggregation,
  planAggregationAcross,
} from '../../rl/index.js';
import { scope, Tensor } from '../../tensor/index.js';
import type { RlRecipe } from '../recipe.js';
import type { Run, Stopwatch } from '../run.js';
import { warmedUp } from '../sft.js';
import { type Judged, judged } from './judge.js';
import { type MicroBatch, microBatches } from './micro-batch.js';
import { type Pass, passCount, passesOf } from './passes.js';
import { score } from './score.js';

/** A micro-batch with everything that is the same in all passes. */
interface Prepared {
  readonly part: MicroBatch;
  /** Its weights within the update. */
  readonly plan: AggregationPlan;
  /** Log-probabilities under the policy as it stands before the update, `[totalTokens]`. */
  readonly old: Float32Array;
  /** The same under the reference; none without a KL penalty. */
  readonly reference: Float32Array | undefined;
  readonly passes: readonly Pass[];
}

/** What a micro-batch leaves behind in one pass, besides gradients. */
export interface Outcome {
  readonly stats: PolicyLossStats;
  /** Differences of the trainer's and the generator's log-probs, over tokens of the current policy. */
  readonly mismatch: { readonly sum: number; readonly max: number; readonly tokens: number };
  /** Sum over tokens of `exp(-d) + d - 1`, `d = logp - logp_reference`; 0 without a reference. */
  readonly referenceKl: number;
}

/** An update that is done. */
export interface Updated extends Judged {
  readonly parts: readonly MicroBatch[];
  /** Of all passes; those of the first come first. */
  readonly outcomes: readonly Outcome[];
  readonly learningRate: number;
  /** Before clipping, the largest of the passes. */
  readonly gradientNorm: number;
}

/** How the recipe's words name a rule of `planAggregation`. */
function aggregationOf({ aggregation, alpha, maxNewTokens }: RlRecipe): Aggregation {
  switch (aggregation) {
    case 'delta-l':
      return { mode: 'delta-l', alpha, normConstant: maxNewTokens };
    case 'seq-mean-token-sum-norm':
      return { mode: 'seq-mean-token-sum-norm', normConstant: maxNewTokens };
    default:
      return { mode: aggregation };
  }
}

function lossOf({ clipLow, clipHigh, klCoef, klKind, partialRollouts }: RlRecipe): PolicyLossConfig {
  return {
    ratio: { level: 'token' },
    clip: { kind: 'ppo', clipLow, clipHigh },
    ...(klCoef === 0 ? {} : { kl: { kind: klKind, coef: klCoef } }),
    // Tokens of earlier policies: truncated importance sampling from the one that drew each.
    ...(partialRollouts ? { rolloutCorrection: { mode: 'token-truncate' as const } } : {}),
  };
}

/** One plan for the whole update of all ranks, in the order of the micro-batches; each takes its slice. */
function planOf({ ranks, options }: Run, parts: readonly MicroBatch[]): Promise<AggregationPlan> {
  const rollouts = parts.flatMap((part) => part.rollouts);
  const lengths = Int32Array.from(rollouts, ({ entry }) => entry.tokens.length);
  const groupIds = Int32Array.from(rollouts, ({ group }) => group);
  const aggregation = aggregationOf(options.recipe.rl);
  if (ranks.size === 1) return Promise.resolve(planAggregation({ lengths, groupIds }, { aggregation }));
  return planAggregationAcross(
    { lengths, groupIds },
    { aggregation, worldSize: ranks.size, gradReduction: 'mean' },
    (values) => ranks.sum(values),
  );
}

async function prepare(run: Run, part: MicroBatch, plan: AggregationPlan): Promise<Prepared> {
  const { rl } = run.options.recipe;
  // The generator ran these very weights, unless a rollout has seen more than one policy.
  const old = rl.partialRollouts ? await score(run.model, part, rl.temperature) : part.sampled;
  const reference =
    run.reference === undefined ? undefined : await score(run.reference, part, rl.temperature);
  return { part, plan, old, reference, passes: passesOf(part, old, rl) };
}

/** Loss and gradients of one micro-batch in one pass. */
async function backward(
  { model, options }: Run,
  { part, plan, old, reference, passes }: Prepared,
  pass: number,
  version: number,
): Promise<Outcome> {
  const { rl } = options.recipe;
  const { device } = model;
  const { batch, predictors, targetIds, cuSeqlens, advantages, sampled, versions } = part;
  const { tokenWeights, klMask } = passes[pass];
  const read = scope(() => {
    const { inputIds, positionIds, maxSeqlen } = batch;
    const all = model.forward({ inputIds, positionIds, cuSeqlens: batch.cuSeqlens, maxSeqlen });
    const loss = policyLossFromHidden(
      {
        hidden: embedding(all, predictors),
        weight: model.headWeight,
        targetIds,
        cuSeqlens,
        oldLogprobs: Tensor.from(old, { device }),
        advantages,
        advantagesPer: 'sequence',
        ...(reference === undefined ? {} : { refLogprobs: Tensor.from(reference, { device }) }),
        ...(rl.partialRollouts ? { rolloutLogprobs: Tensor.from(sampled, { device }) } : {}),
        ...(tokenWeights === undefined ? {} : { tokenWeights }),
        ...(klMask === undefined ? {} : { klMask: Tensor.from(klMask, { device }) }),
      },
      plan,
      lossOf(rl),
      { temperature: rl.temperature },
    );
    loss.loss.backward();
    // Reads that have begun outlive their tensors.
    return { stats: loss.stats.data(), logprobs: loss.logprobs.data() };
  });
  const [stats, trained] = await Promise.all([read.stats, read.logprobs]);
  const mismatch = { sum: 0, max: 0, tokens: 0 };
  let referenceKl = 0;
  for (let t = 0; t < sampled.length; t++) {
    const logprob = Number(trained[t]);
    if (reference !== undefined) {
      const d = logprob - reference[t];
      referenceKl += Math.exp(-d) + d - 1;
    }
    if (versions[t] !== version) continue;
    const difference = Math.abs(logprob - sampled[t]);
    mismatch.sum += difference;
    mismatch.max = Math.max(mismatch.max, difference);
    mismatch.tokens++;
  }
  return { stats, mismatch, referenceKl };
}

/** Trains the policy on a batch of rollouts that have their rewards. */
export async function update(
  run: Run,
  entries: readonly RolloutEntry[],
  version: number,
  watch: Stopwatch,
): Promise<Updated> {
  const { ranks } = run;
  const { rl } = run.options.recipe;
  const teaching = judged(entries);
  const parts = await microBatches(teaching.rollouts, rl.packedTokens);
  const plan = await planOf(run, parts);
  watch.lap('data');
  const prepared: Prepared[] = [];
  let start = 0;
  for (const part of parts) {
    const end = start + part.rollouts.length;
    prepared.push(await prepare(run, part, plan.slice(start, end)));
    start = end;
  }
  watch.lap('score');
  const learningRate = warmedUp(rl.learningRate, run.step + 1, rl.warmupSteps);
  const outcomes: Outcome[] = [];
  let gradientNorm = 0;
  // Nothing to learn on any rank: no step.
  const passes = plan.totals.seqs > 0 ? passCount(rl) : 0;
  for (let pass = 0; pass < passes; pass++) {
    for (const [i, each] of prepared.entries()) {
      if (i === prepared.length - 1) ranks.beginBackward();
      outcomes.push(await backward(run, each, pass, version));
    }
    await ranks.finishBackward();
    gradientNorm = Math.max(gradientNorm, await run.optimize(learningRate));
  }
  watch.lap('train');
  return { ...teaching, parts, outcomes, learningRate, gradientNorm };
}
