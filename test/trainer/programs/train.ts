// A run that a test kills: `train.ts <folder> [resume]`.
import { knightsAndKnaves } from '../../../src/trainer/tasks/knights-and-knaves.js';
import { train } from '../../../src/trainer/train.js';
import { parityTask, tinyRecipe } from '../recipes.js';

const [, , out, resume] = process.argv;
void (async () => {
  const task = parityTask(knightsAndKnaves({ seed: 5 }));
  await train({ task, recipe: tinyRecipe, out, device: 'cpu', resume: resume === 'resume' });
  process.stdout.write('done\n');
})();
