/** Reinforcement learning with verifiable rewards: sample, judge, weigh, update. */
import {
  collatePacked,
  DynamicBatcher,
  type PackedBatch,
  RolloutController,
  type RolloutEntry,
  type RolloutPrompt,
  type Sample,
  type UpdateBatch,
} from '../batch/index.js';
import { varlenError } from '../errors.js';
import { embedding, type PolicyLossStats, policyLossFromHidden } from '../ops/index.js';
import {
  type Aggregation,
  type AggregationPlan,
  groupAdvantages,
  planAggregation,
  planAggregationAcross,
} from '../rl/index.js';
import { scope, Tensor } from '../tensor/index.js';
import type { RlRecipe } from './recipe.js';
import { type Run, Stopwatch } from './run.js';
import { warmedUp } from './sft.js';
import { lengthStatistics, sum } from './statistics.js';
import type { Problem, Verdict } from './tasks/task.js';
import { promptIds, responseText } from './tokenizer/tokenizer.js';

/** A judged rollout. */
interface Rollout {
  readonly entry: RolloutEntry;
  readonly group: number;
  readonly advantage: number;
}

/** The part of an update that runs at once. */
interface MicroBatch {
  readonly batch: PackedBatch;
  readonly rollouts: readonly Rollout[];
}

interface RolloutSample extends Sample {
  readonly rollout: Rollout;
}

/** So many prompts in a row that leave no room for a response mean that none will. */
const MAX_OVERLONG = 10_000;

/** This rank's share of the training prompts from a position on, named by their positions. */
function* prompts(run: Run, problems: Map<string, Problem>): Generator<RolloutPrompt> {
  const { task, recipe } = run.options;
  const { rank, size } = run.ranks;
  const room = recipe.model.maxTokens - recipe.rl.maxNewTokens;
  for (let index = run.prompts + rank, overlong = 0; ; index += size) {
    const problem = task.problem('train', index);
    const ids = promptIds(task.tokenizer, problem.prompt);
    if (ids.length > room) {
      if (++overlong < MAX_OVERLONG) continue;
      const message = `train: prompts leave no room for a response; got ${ids.length} tokens, expected at most ${room}`;
      throw varlenError('ERR_VARLEN_OVERSIZE_SAMPLE', message, { op: 'train', argument: 'model.maxTokens' });
    }
    overlong = 0;
    const id = String(index);
    problems.set(id, problem);
    yield { id, promptIds: ids };
  }
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

/** Group-relative advantages; rollouts of groups in which all earned the same are left out. */
function judged(entries: readonly RolloutEntry[]): { rollouts: Rollout[]; groups: number; flat: number } {
  // The position of a prompt is its name on all ranks.
  const groupIds = Int32Array.from(entries, ({ promptId }) => Number(promptId));
  const rewards = Float32Array.from(entries, ({ reward }) => reward!);
  const advantages = groupAdvantages(rewards, groupIds, { estimator: 'grpo', singleton: 'zero' });
  const rollouts = entries
    .map((entry, i) => ({ entry, group: groupIds[i], advantage: advantages[i] }))
    .filter(({ advantage, entry }) => advantage !== 0 && entry.tokens.length > 0);
  const groups = new Set(groupIds).size;
  return { rollouts, groups, flat: groups - new Set(rollouts.map(({ group }) => group)).size };
}

/** Rollouts grouped by their true lengths to the token budget. */
async function microBatches(rollouts: readonly Rollout[], packedTokens: number): Promise<MicroBatch[]> {
  const samples = rollouts.map((rollout): RolloutSample => {
    const { promptIds: prompt, tokens, id } = rollout.entry;
    const inputIds = new Int32Array(prompt.length + tokens.length);
    inputIds.set(prompt);
    inputIds.set(tokens, prompt.length);
    return { id, inputIds, rollout };
  });
  const batcher = new DynamicBatcher<RolloutSample, MicroBatch>(samples, {
    budget: { packedTokens },
    window: samples.length,
    order: 'none',
    lossScaling: 'none',
    collate: (group) => ({ batch: collatePacked(group), rollouts: group.map(({ rollout }) => rollout) }),
  });
  const parts: MicroBatch[] = [];
  for await (const { batch } of batcher) parts.push(batch);
  return parts;
}

/** What a micro-batch leaves behind, besides gradients. */
interface Outcome {
  readonly stats: PolicyLossStats;
  readonly mismatchSum: number;
  readonly mismatchMax: number;
}

/** Loss and gradients of one micro-batch. */
async function backward(
  { model, options }: Run,
  { batch, rollouts }: MicroBatch,
  plan: AggregationPlan,
): Promise<Outcome> {
  const { temperature, clipLow, clipHigh } = options.recipe.rl;
  const cuSeqlens = new Int32Array(rollouts.length + 1);
  rollouts.forEach(({ entry }, i) => {
    cuSeqlens[i + 1] = cuSeqlens[i] + entry.tokens.length;
  });
  const total = cuSeqlens[rollouts.length];
  const targetIds = new Int32Array(total);
  const sampled = new Float32Array(total);
  /** Row that predicts each response token: the one before it. */
  const predictors = new Int32Array(total);
  rollouts.forEach(({ entry }, i) => {
    targetIds.set(entry.tokens, cuSeqlens[i]);
    sampled.set(entry.logprobs, cuSeqlens[i]);
    const first = batch.cuSeqlens[i] + entry.promptIds.length - 1;
    for (let t = 0; t < entry.tokens.length; t++) predictors[cuSeqlens[i] + t] = first + t;
  });
  const advantages = Float32Array.from(rollouts, ({ advantage }) => advantage);
  const read = scope(() => {
    const { inputIds, positionIds, maxSeqlen } = batch;
    const all = model.forward({ inputIds, positionIds, cuSeqlens: batch.cuSeqlens, maxSeqlen });
    const loss = policyLossFromHidden(
      {
        hidden: embedding(all, predictors),
        weight: model.headWeight,
        targetIds,
        cuSeqlens,
        // The generator ran these very weights: its log-probs are those of the old policy.
        oldLogprobs: Tensor.from(sampled, { device: model.device }),
        advantages,
        advantagesPer: 'sequence',
      },
      plan,
      { ratio: { level: 'token' }, clip: { kind: 'ppo', clipLow, clipHigh } },
      { temperature },
    );
    loss.loss.backward();
    // Reads that have begun outlive their tensors.
    return { stats: loss.stats.data(), logprobs: loss.logprobs.data() };
  });
  const [stats, trained] = await Promise.all([read.stats, read.logprobs]);
  let mismatchSum = 0;
  let mismatchMax = 0;
  for (let t = 0; t < total; t++) {
    const difference = Math.abs(Number(trained[t]) - sampled[t]);
    mismatchSum += difference;
    mismatchMax = Math.max(mismatchMax, difference);
  }
  return { stats, mismatchSum, mismatchMax };
}

/** One update of the policy, and its record. */
async function update(
  run: Run,
  { entries }: UpdateBatch,
  verdicts: ReadonlyMap<string, Verdict>,
  controller: { readonly bubbleRatio: number; readonly generatedTokens: number },
  watch: Stopwatch,
): Promise<void> {
  const { ranks } = run;
  const { rl } = run.options.recipe;
  const { rollouts, groups, flat } = judged(entries);
  const parts = rollouts.length === 0 ? [] : await microBatches(rollouts, rl.packedTokens);
  const ordered = parts.flatMap((part) => part.rollouts);
  // One plan for the whole update of all ranks, in the order of the micro-batches; each takes its slice.
  const lengths = Int32Array.from(ordered, ({ entry }) => entry.tokens.length);
  const groupIds = Int32Array.from(ordered, ({ group }) => group);
  const aggregation = aggregationOf(rl);
  const plan =
    ranks.size === 1
      ? planAggregation({ lengths, groupIds }, { aggregation })
      : await planAggregationAcross(
          { lengths, groupIds },
          { aggregation, worldSize: ranks.size, gradReduction: 'mean' },
          (values) => ranks.sum(values),
        );
  watch.lap('data');
  const outcomes: Outcome[] = [];
  let start = 0;
  for (const [i, part] of parts.entries()) {
    const end = start + part.rollouts.length;
    if (i === parts.length - 1) ranks.beginBackward();
    outcomes.push(await backward(run, part, plan.slice(start, end)));
    start = end;
  }
  const learningRate = warmedUp(rl.learningRate, run.step + 1, rl.warmupSteps);
  let gradientNorm = 0;
  if (plan.totals.seqs > 0) {
    await ranks.finishBackward();
    gradientNorm = await run.optimize(learningRate);
  }
  watch.lap('train');
  run.step++;
  // Prompts without room were passed over: count by the last one's number.
  run.prompts = 1 + (await ranks.max(Math.max(...entries.map(({ promptId }) => Number(promptId)))));
  run.prompts += (ranks.size - (run.prompts % ranks.size)) % ranks.size;

  const stats = outcomes.map((outcome) => outcome.stats);
  const perToken = (value: (stat: PolicyLossStats) => number) =>
    sum(stats.map((stat) => value(stat) * stat.activeTokens));
  const rows = sum(parts.map(({ batch }) => batch.totalTokens));
  const local = {
    count: entries.length,
    reward: sum(entries.map(({ reward }) => reward!)),
    format: sum(entries.map(({ id }) => verdicts.get(id)!.formatReward)),
    truncated: entries.filter(({ truncated }) => truncated).length,
    loss: sum(stats.map(({ loss }) => loss)) / ranks.size,
    active: sum(stats.map(({ activeTokens }) => activeTokens)),
    clippedLow: perToken(({ clipFracLow }) => clipFracLow),
    clippedHigh: perToken(({ clipFracHigh }) => clipFracHigh),
    entropy: perToken(({ entropy }) => entropy),
    approxKl: perToken(({ approxKl }) => approxKl),
    advantage: perToken(({ advMean }) => advMean),
    advantageSquare: perToken(({ advMean, advStd }) => advStd ** 2 + advMean ** 2),
    mismatch: sum(outcomes.map(({ mismatchSum }) => mismatchSum)),
    groups,
    flat,
    generated: controller.generatedTokens,
    tokens: rows - sum(parts.map(({ batch }) => batch.numPadTokens)),
    rows,
    parts: parts.length,
  };
  const summed = await ranks.sum(Float64Array.from(Object.values(local)));
  const all = Object.fromEntries(Object.keys(local).map((key, i) => [key, summed[i]])) as typeof local;
  const mean = (total: number) => (all.active === 0 ? 0 : total / all.active);
  const spread = mean(all.advantageSquare) - mean(all.advantage) ** 2;
  run.record({
    phase: 'rl',
    step: run.step,
    reward: all.reward / all.count,
    formatReward: all.format / all.count,
    loss: all.loss,
    learningRate,
    gradientNorm,
    clipLowFraction: mean(all.clippedLow),
    clipHighFraction: mean(all.clippedHigh),
    entropy: mean(all.entropy),
    approxKl: mean(all.approxKl),
    mismatch: {
      mean: mean(all.mismatch),
      max: await ranks.max(Math.max(0, ...outcomes.map(({ mismatchMax }) => mismatchMax))),
    },
    advantages: { mean: mean(all.advantage), std: Math.sqrt(Math.max(0, spread)) },
    groups: all.groups,
    flatGroups: all.flat,
    lengths: lengthStatistics((await ranks.gather(entries.map(({ tokens }) => tokens.length))).flat()),
    truncated: all.truncated / all.count,
    generatedTokens: all.generated,
    tokens: all.tokens,
    microBatches: all.parts,
    paddingRatio: all.rows === 0 ? 0 : 1 - all.tokens / all.rows,
    machine: {
      ...run.machine('rl', watch, all.tokens + all.generated),
      bubbleRatio: controller.bubbleRatio,
    },
  });
}

/** Trains until the recipe's updates are done or somebody asks for an end; saves now and then. */
export async function trainRl(run: Run): Promise<void> {
  const { recipe, task } = run.options;
  const { rl } = recipe;
  if (run.step >= rl.steps) return;
  const problems = new Map<string, Problem>();
  const verdicts = new Map<string, Verdict>();
  run.generator.draw = { temperature: rl.temperature };
  const controller = new RolloutController(prompts(run, problems), run.generator, {
    groupPrompts: rl.prompts / run.ranks.size,
    responsesPerPrompt: rl.responses,
    updateBatch: (rl.prompts / run.ranks.size) * rl.responses,
    maxTokens: rl.maxNewTokens,
    mode: 'on-policy',
    load: 'grouped',
    keepPromptGroupsTogether: true,
    reward(entry) {
      const verdict = task.verify(problems.get(entry.promptId)!, responseText(task.tokenizer, entry.tokens));
      verdicts.set(entry.id, verdict);
      return verdict.reward;
    },
  });
  let watch = new Stopwatch();
  let generated = 0;
  for await (const batch of controller) {
    watch.lap('generate');
    const { bubbleRatio, generatedTokens } = controller.metrics();
    const facts = { bubbleRatio, generatedTokens: generatedTokens - generated };
    generated = generatedTokens;
    await update(run, batch, verdicts, facts, watch);
    problems.clear();
    verdicts.clear();
    if ((await run.agree()) || run.step >= rl.steps) break;
    if (run.step % recipe.checkpointEvery === 0) await run.save();
    watch = new Stopwatch();
  }
  run.generator.draw = {};
}
