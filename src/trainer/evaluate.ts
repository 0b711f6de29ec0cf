/** Accuracy on held-out problems. */
import { type GeneratedEvent, generate } from './generate.js';
import type { EvalRecord } from './records.js';
import { type Run, Stopwatch } from './run.js';
import { lengthStatistics, meanOf, shareOf, sum } from './statistics.js';
import type { Problem, Verdict } from './tasks/task.js';
import { promptIds, responseText } from './tokenizer/tokenizer.js';

/** So many held-out problems in a row that were seen before mean that there are no more. */
const MAX_REPEATS = 2000;

/** The first `count` different held-out problems that fit the model; fewer when there are no more. */
export function heldOutProblems(run: Run, count: number): Problem[] {
  const { task, recipe } = run.options;
  const room = recipe.model.maxTokens - recipe.rl.maxNewTokens;
  const problems = new Map<string, Problem>();
  for (let index = 0, repeats = 0; problems.size < count && repeats < MAX_REPEATS; index++) {
    const problem = task.problem('held-out', index);
    const isNew = !problems.has(problem.id) && promptIds(task.tokenizer, problem.prompt).length <= room;
    if (isNew) problems.set(problem.id, problem);
    repeats = isNew ? 0 : repeats + 1;
  }
  return [...problems.values()];
}

/** Measures the policy as it is: samples at temperature 1, and the greedy answer. */
export async function evaluate(run: Run, after: EvalRecord['after']): Promise<void> {
  const { task, recipe } = run.options;
  const { problems: count, samples } = recipe.evaluation;
  const { generator } = run;
  const watch = new Stopwatch();
  const problems = heldOutProblems(run, count);
  const before = generator.generatedTokens;
  const answers = async (temperature: number, copies: number): Promise<GeneratedEvent[]> => {
    generator.draw = { temperature };
    const prompts = problems.flatMap(({ id, prompt }) =>
      Array.from({ length: copies }, (_, k) => ({
        // Named by the problem, not the stage: the same random numbers judge every stage.
        id: `eval ${id}#${k}`,
        promptIds: promptIds(task.tokenizer, prompt),
      })),
    );
    const outputs = await generate(generator, prompts, recipe.rl.maxNewTokens);
    generator.draw = {};
    return outputs;
  };
  const sampled = await answers(1, samples);
  const greedy = await answers(0, 1);
  watch.lap('generate');
  const judge = ({ tokens }: GeneratedEvent, i: number): Verdict =>
    task.verify(problems[i], responseText(task.tokenizer, tokens));
  const rewards = sampled.map((output, i) => judge(output, Math.floor(i / samples)).reward);
  const verdicts = greedy.map(judge);
  watch.lap('verify');
  const generatedTokens = generator.generatedTokens - before;
  const meanOfProblem = (i: number) => sum(rewards.slice(i * samples, (i + 1) * samples)) / samples;
  run.record({
    phase: 'eval',
    after,
    problems: problems.length,
    samplesPerProblem: samples,
    sampled: meanOf(problems.map((_, i) => meanOfProblem(i))),
    greedy: shareOf(sum(verdicts.map(({ reward }) => reward)), problems.length),
    format: sum(verdicts.map(({ formatReward }) => formatReward)) / problems.length,
    lengths: lengthStatistics(sampled.map(({ tokens }) => tokens.length)),
    generatedTokens,
    chance: sum(problems.map((problem) => task.chance?.(problem) ?? 0)) / problems.length,
    machine: run.machine('eval', watch, generatedTokens),
  });
}
