/** Reinforcement learning with verifiable rewards: sample, judge, weigh, update. */
import { RolloutController, type RolloutEntry, type RolloutPrompt } from '../batch/index.js';
import { varlenError } from '../errors.js';
import { recordUpdate } from './rl/record.js';
import { update } from './rl/update.js';
import { type Run, Stopwatch } from './run.js';
import type { Verdict } from './tasks/task.js';
import { promptIds, responseText } from './tokenizer/tokenizer.js';

/** So many prompts in a row that leave no room for a response mean that none will. */
const MAX_OVERLONG = 10_000;

/** This rank's share of the training prompts, named by their positions. */
class Prompts implements Iterable<RolloutPrompt> {
  /** Position of the next one. */
  next: number;
  readonly #run: Run;

  constructor(run: Run, next: number) {
    this.#run = run;
    this.next = next;
  }

  *[Symbol.iterator](): Generator<RolloutPrompt> {
    const { task, recipe } = this.#run.options;
    const room = recipe.model.maxTokens - recipe.rl.maxNewTokens;
    for (let overlong = 0; ; ) {
      const index = this.next;
      this.next += this.#run.ranks.size;
      const ids = promptIds(task.tokenizer, task.problem('train', index).prompt);
      if (ids.length > room) {
        if (++overlong < MAX_OVERLONG) continue;
        const message = `train: prompts leave no room for a response; got ${ids.length} tokens, expected at most ${room}`;
        throw varlenError('ERR_VARLEN_OVERSIZE_SAMPLE', message, {
          op: 'train',
          argument: 'model.maxTokens',
        });
      }
      overlong = 0;
      yield { id: String(index), promptIds: ids };
    }
  }
}

/** What the task says of a rollout. */
function judge({ options: { task } }: Run, { promptId, tokens }: RolloutEntry): Verdict {
  return task.verify(task.problem('train', Number(promptId)), responseText(task.tokenizer, tokens));
}

/** A controller that goes on where the run stands. */
function controllerOf(run: Run, prompts: Prompts): RolloutController {
  const { rl } = run.options.recipe;
  const own = rl.prompts / run.ranks.size;
  return new RolloutController(prompts, run.generator, {
    groupPrompts: own,
    responsesPerPrompt: rl.responses,
    updateBatch: own * rl.responses,
    maxTokens: rl.maxNewTokens,
    keepPromptGroupsTogether: true,
    ...(rl.partialRollouts
      ? { mode: 'partial', load: 'overlap', maxStaleness: rl.maxStaleness }
      : { mode: 'on-policy', load: 'grouped' }),
    reward: (entry) => judge(run, entry).reward,
    ...(run.rollouts === null ? {} : { resume: run.rollouts.controller }),
  });
}

/** Trains until the recipe's updates are done or somebody asks for an end; saves now and then. */
export async function trainRl(run: Run): Promise<void> {
  const { recipe } = run.options;
  const { rl } = recipe;
  if (run.step >= rl.steps) return;
  run.generator.draw = { temperature: rl.temperature };
  const prompts = new Prompts(run, run.rollouts?.nextPrompt ?? run.ranks.rank);
  const controller = controllerOf(run, prompts);
  let watch = new Stopwatch();
  let before = controller.metrics();
  for await (const { entries, version } of controller) {
    watch.lap('generate');
    const metrics = controller.metrics();
    const updated = await update(run, entries, version, watch);
    run.step++;
    const rollouts = {
      entries,
      verdicts: entries.map((entry) => judge(run, entry)),
      version,
      generatedTokens: metrics.generatedTokens - before.generatedTokens,
      wastedTokens: metrics.wastedTokens - before.wastedTokens,
      bubbleRatio: metrics.bubbleRatio,
    };
    before = metrics;
    await recordUpdate(run, rollouts, updated, watch);
    const last = (await run.agree()) || run.step >= rl.steps;
    const due = run.step % recipe.checkpointEvery === 0;
    if (last || due) run.rollouts = { nextPrompt: prompts.next, controller: controller.state() };
    if (last) break;
    if (due) await run.save();
    watch = new Stopwatch();
  }
  run.generator.draw = {};
}
