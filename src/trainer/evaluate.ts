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
function heldOutProblems(run: Run, count: number): Problem[] {
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
  const { generator, ranks } = run;
  const watch = new Stopwatch();
  const problems = heldOutProblems(run, count);
  const own = problems.filter((_, i) => i % ranks.size === ranks.rank);
  const before = generator.generatedTokens;
  const answers = async (temperature: number, copies: number): Promise<GeneratedEvent[]> => {
    generator.draw = { temperature };
    const prompts = own.flatMap(({ id, prompt }) =>
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
    task.verify(own[i], responseText(task.tokenizer, tokens));
  const rewards = sampled.map((output, i) => judge(output, Math.floor(i / samples)).reward);
  const verdicts = greedy.map(judge);
  watch.lap('verify');
  // Each problem's figures stand at its place, whichever rank has measured it.
  const width = 3 + samples;
  const figures = new Float64Array(problems.length * width);
  for (const [i, { reward, formatReward }] of verdicts.entries()) {
    const means = sum(rewards.slice(i * samples, (i + 1) * samples)) / samples;
    const lengths = sampled.slice(i * samples, (i + 1) * samples).map(({ tokens }) => tokens.length);
    figures.set([means, reward, formatReward, ...lengths], (ranks.rank + i * ranks.size) * width);
  }
  const totals = Float64Array.of(generator.generatedTokens - before);
  await ranks.sum(figures);
  const [generatedTokens] = await ranks.sum(totals);
  const column = (at: number) => problems.map((_, i) => figures[i * width + at]);
  run.record({
    phase: 'eval',
    after,
    problems: problems.length,
    samplesPerProblem: samples,
    sampled: meanOf(column(0)),
    greedy: shareOf(sum(column(1)), problems.length),
    format: sum(column(2)) / problems.length,
    lengths: lengthStatistics(Array.from({ length: samples }, (_, k) => column(3 + k)).flat()),
    generatedTokens,
    chance: sum(problems.map((problem) => task.chance?.(problem) ?? 0)) / problems.length,
    machine: run.machine('eval', watch, generatedTokens),
  });
}
