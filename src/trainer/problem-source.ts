/** Endless training data that can say where it is: problems of a task, as samples for the batcher. */
import { type OpenableSource, parallelMap, type Sample } from '../batch/index.js';
import type { Task } from './tasks/task.js';
import { promptIds, responseIds, type Tokenizer } from './tokenizer/tokenizer.js';

/** A worked problem as a sample: the loss looks at the response alone. */
function workedSample(tokenizer: Tokenizer, id: string, prompt: string, response: string): Sample {
  const before = promptIds(tokenizer, prompt);
  const after = responseIds(tokenizer, response);
  const inputIds = new Int32Array(before.length + after.length);
  inputIds.set(before);
  inputIds.set(after, before.length);
  return { id, inputIds, lossMask: new Uint8Array(inputIds.length).fill(1, before.length) };
}

/** One rank's share of the training problems, tokenized some ahead of the reader. */
export function problemSource(task: Task, rank: number, size: number): OpenableSource<Sample> {
  let next = rank;
  const indices: OpenableSource<number> = {
    *open() {
      for (;;) {
        const index = next;
        next += size;
        yield index;
      }
    },
    state: () => next,
    restore(state) {
      next = state as number;
    },
  };
  return parallelMap(indices, (index) => {
    const { prompt, response } = task.problem('train', index);
    return workedSample(task.tokenizer, String(index), prompt, response!);
  });
}
