/** The main job: tasks with verifiable answers, generation, and the loop over both. */

export { OpenAiEngine, type OpenAiEngineOptions } from './generate/openai-engine.js';
export {
  type DrawOptions,
  type GeneratedEvent,
  type GeneratorInput,
  generate,
  type SparsePrefillRule,
  TextGenerator,
  type TextGeneratorOptions,
} from './generate.js';
export {
  type AggregationName,
  demoRecipe,
  type EvalRecipe,
  type ModelRecipe,
  quickRecipe,
  type RlRecipe,
  type SftRecipe,
  type TrainRecipe,
} from './recipe.js';
export type { EvalRecord, MachineRecord, RlRecord, SftRecord, TrainRecord } from './records.js';
export type { Estimate, LengthStatistics } from './statistics.js';
export type { Summary } from './summary.js';
export { type CountdownOptions, type CountdownProblem, countdown } from './tasks/countdown.js';
export { type JsonlOptions, type JsonlProblem, jsonlTask } from './tasks/jsonl.js';
export type { Assignment, Connective, Statement } from './tasks/knights-and-knaves/statement.js';
export {
  type KnightsAndKnavesOptions,
  knightsAndKnaves,
  type Puzzle,
} from './tasks/knights-and-knaves.js';
export type { Problem, Split, Task, Verdict } from './tasks/task.js';
export { ByteTokenizer } from './tokenizer/byte-tokenizer.js';
export { promptIds, responseIds, responseText, type Tokenizer } from './tokenizer/tokenizer.js';
export { WordTokenizer } from './tokenizer/word-tokenizer.js';
export { type TrainOptions, type TrainResult, train } from './train.js';
