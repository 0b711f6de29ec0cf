import { quickRecipe, type TrainRecipe } from '../../src/trainer/recipe.js';
import type { TrainRecord } from '../../src/trainer/records.js';
import type { Problem, Task } from '../../src/trainer/tasks/task.js';

/** A run of a second or two that goes through every phase. */
export const tinyRecipe: TrainRecipe = {
  ...quickRecipe,
  seed: 5,
  model: {
    ...quickRecipe.model,
    hiddenSize: 16,
    numLayers: 1,
    numHeads: 2,
    numKvHeads: 1,
    intermediateSize: 32,
    maxTokens: 96,
  },
  sft: { ...quickRecipe.sft, steps: 6, packedTokens: 512, window: 16 },
  rl: { ...quickRecipe.rl, steps: 3, prompts: 4, responses: 4, maxNewTokens: 40, packedTokens: 256 },
  evaluation: { problems: 4, samples: 2 },
  generatorSlots: 8,
  checkpointEvery: 1,
};

/** Runs with steps enough to be killed ten times; between them they have every kind of state. */
export const killedRecipes = {
  plain: {
    ...tinyRecipe,
    sft: { ...tinyRecipe.sft, steps: 18 },
    rl: { ...tinyRecipe.rl, steps: 8 },
  },
  partial: {
    ...tinyRecipe,
    sft: { ...tinyRecipe.sft, steps: 2 },
    rl: {
      ...tinyRecipe.rl,
      steps: 18,
      partialRollouts: true,
      klCoef: 0.1,
      reweightAlpha: 0.3,
      loptiEta: 0.1,
    },
  },
} satisfies Record<string, TrainRecipe>;

/** What two equal runs must agree on: everything but the machine. */
export function withoutMachine(records: readonly TrainRecord[]): object[] {
  return records.map(({ machine, ...rest }) => rest);
}

/**
 * The same problems, with a reward that an untrained policy earns now and then: the number of tokens is
 * even. So every update of a short run has something to learn from.
 */
export function parityTask<P extends Problem>(task: Task<P>): Task<Problem> {
  return {
    ...task,
    problem: (split, index) => task.problem(split, index),
    verify(_, output) {
      const even = output.split(' ').length % 2 === 0;
      return { reward: even ? 1 : 0, formatReward: 0, reason: even ? 'even' : 'odd' };
    },
    chance: () => 0.5,
  };
}
