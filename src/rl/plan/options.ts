/** What a plan is made from, and the checks that must pass before any number is computed. */
import { wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkNumber, checkWord, rangeError } from '../check-arrays.js';
import { type Aggregation, checkAggregation } from './aggregation.js';

/** The sequences of one scope, as far as their weights depend on them. */
export interface PlanInput {
  /**
   * `[numSeqs]`, active tokens per sequence (see `activeLengths`): counted with the caller's `lossMask`,
   * before rejection masks, pass masks and clip masks. 0 is an inactive sequence.
   */
  readonly lengths: Int32Array;
  /** `[numSeqs]`, active tokens after rejection; read by `lengthMask: 'effective'` only. */
  readonly effectiveLengths?: Int32Array;
  /** `[numSeqs]`, equal value = same prompt. Needed by `group-mean-token-mean`. */
  readonly groupIds?: Int32Array;
  /** `[numSeqs]`, names of the sequences, kept beside the weights. */
  readonly ids?: readonly (string | number)[];
  /** Tokens that take part in the entropy bonus, of this rank. Default: all active tokens. */
  readonly entropyTokens?: number;
  /** Sum of the rollout-correction weights over this rank's active tokens, for `batchNormalize`. */
  readonly correctionSum?: number;
}

/**
 * Over which sequences sums run.
 *
 * `optimizer-step` (default): all whose gradients are added before one optimizer step, over all ranks and
 * micro-batches. `rollout-batch`: a larger batch that is split in `optimizerSteps` steps; weights are
 * multiplied by that number, so that the average step has the same size (how Delta-L was published).
 * `micro-batch`: each micro-batch by itself, divided by `microBatches` (default 1): wrong whenever
 * micro-batches differ, here to reproduce other programs in tests; it warns once.
 */
export type ScopeOptions =
  | { readonly scope?: 'optimizer-step'; readonly optimizerSteps?: never; readonly microBatches?: never }
  | { readonly scope: 'rollout-batch'; readonly optimizerSteps: number; readonly microBatches?: never }
  | { readonly scope: 'micro-batch'; readonly microBatches?: number; readonly optimizerSteps?: never };

/** Settings of {@link planAggregation}. */
export type AggregationPlanOptions = ScopeOptions & {
  readonly aggregation: Aggregation;
  /** Ranks whose gradients are combined. Default 1. */
  readonly worldSize?: number;
  /**
   * How the trainer combines gradients over ranks. Default `'mean'` (DDP, FSDP): weights are multiplied
   * by `worldSize` to undo it. `'sum'`: by 1.
   */
  readonly gradReduction?: 'mean' | 'sum';
  /**
   * Lengths that the weights use. Default `'base'`, the mask before rejection: a changed denominator
   * would re-inflate the tokens that are kept. `'effective'` reads `effectiveLengths`.
   */
  readonly lengthMask?: 'base' | 'effective';
};

/** Options with defaults filled in, and the factor on every weight. */
export interface ResolvedPlan {
  readonly aggregation: Aggregation;
  readonly scope: 'optimizer-step' | 'rollout-batch' | 'micro-batch';
  readonly worldSize: number;
  readonly gradReduction: 'mean' | 'sum';
  readonly lengthMask: 'base' | 'effective';
  /** Lengths that the weights use. */
  readonly counted: Int32Array;
  /** `W` for a mean over ranks, times `K` for a rollout batch, over the number of micro-batches. */
  readonly gradScale: number;
  /** `gradScale` as it enters the weights: a plain sum has no denominator that a larger scope could grow. */
  readonly factor: number;
}

const OPTION_KEYS = [
  'aggregation',
  'scope',
  'optimizerSteps',
  'microBatches',
  'worldSize',
  'gradReduction',
  'lengthMask',
];
const INPUT_KEYS = ['lengths', 'effectiveLengths', 'groupIds', 'ids', 'entropyTokens', 'correctionSum'];

/** Checks everything about one rank's input and fills in the defaults. */
export function resolvePlan(
  op: string,
  input: PlanInput,
  options: AggregationPlanOptions,
  extraOptions: readonly string[] = [],
): ResolvedPlan {
  checkKeys(op, 'input', input, INPUT_KEYS);
  checkKeys(op, 'options', options, [...OPTION_KEYS, ...extraOptions]);
  const { lengths, effectiveLengths, groupIds, ids } = input;
  checkLengths(op, 'lengths', lengths);
  if (effectiveLengths !== undefined) {
    checkLengths(op, 'effectiveLengths', effectiveLengths, lengths.length);
    effectiveLengths.forEach((length, i) => {
      if (length > lengths[i]) {
        throw rangeError(op, `effectiveLengths[${i}]`, length, `at most lengths[${i}] = ${lengths[i]}`);
      }
    });
  }
  if (groupIds !== undefined) checkArray(op, 'groupIds', groupIds, 'Int32Array', lengths.length);
  if (ids !== undefined && !(Array.isArray(ids) && ids.length === lengths.length)) {
    const got = Array.isArray(ids) ? `${ids.length} ids` : typeof ids;
    const problem = `must name every sequence; got ${got}, expected an array of ${lengths.length}`;
    throw argumentError('ERR_VARLEN_SHAPE', op, 'ids', problem);
  }
  const { aggregation, worldSize = 1, gradReduction = 'mean', lengthMask = 'base' } = options;
  checkAggregation(op, aggregation, lengths.length);
  if (aggregation.mode === 'group-mean-token-mean' && groupIds === undefined) {
    const problem = `is needed by mode '${aggregation.mode}'; got none, expected an Int32Array`;
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'groupIds', problem);
  }
  checkCount(op, 'worldSize', worldSize);
  checkWord(op, 'gradReduction', gradReduction, ['mean', 'sum']);
  checkWord(op, 'lengthMask', lengthMask, ['base', 'effective']);
  if (lengthMask === 'effective' && effectiveLengths === undefined) {
    const problem = "is needed by lengthMask 'effective'; got none, expected an Int32Array";
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'effectiveLengths', problem);
  }
  for (const key of ['entropyTokens', 'correctionSum'] as const) {
    if (input[key] !== undefined) checkNumber(op, key, input[key], { min: 0 });
  }
  const { scope, steps } = resolveScope(op, options);
  const ranks = gradReduction === 'mean' ? worldSize : 1;
  return {
    aggregation: Object.freeze({ ...aggregation }),
    scope,
    worldSize,
    gradReduction,
    lengthMask,
    counted: lengthMask === 'effective' ? effectiveLengths! : lengths,
    gradScale: ranks * steps,
    factor: aggregation.mode === 'token-sum' ? ranks : ranks * steps,
  };
}

function resolveScope(
  op: string,
  options: AggregationPlanOptions,
): { scope: ResolvedPlan['scope']; steps: number } {
  const given = options as {
    scope?: ResolvedPlan['scope'];
    optimizerSteps?: number;
    microBatches?: number;
  };
  const { scope = 'optimizer-step', optimizerSteps, microBatches } = given;
  checkWord(op, 'scope', scope, ['optimizer-step', 'rollout-batch', 'micro-batch']);
  const stray =
    optimizerSteps !== undefined && scope !== 'rollout-batch'
      ? 'optimizerSteps'
      : microBatches !== undefined && scope !== 'micro-batch'
        ? 'microBatches'
        : undefined;
  if (stray !== undefined) {
    const owner = stray === 'optimizerSteps' ? 'rollout-batch' : 'micro-batch';
    const problem = `does not belong to scope '${scope}'; got ${given[stray as 'microBatches']}, expected scope '${owner}'`;
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, stray, problem);
  }
  if (scope === 'rollout-batch') {
    if (optimizerSteps === undefined) {
      const problem = "is needed by scope 'rollout-batch'; got none, expected an integer >= 1";
      throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'optimizerSteps', problem);
    }
    checkCount(op, 'optimizerSteps', optimizerSteps);
    return { scope, steps: optimizerSteps };
  }
  if (microBatches !== undefined) checkCount(op, 'microBatches', microBatches);
  if (scope === 'micro-batch') warnMicroBatch(op);
  return { scope, steps: 1 / (microBatches ?? 1) };
}

let warned = false;

function warnMicroBatch(op: string): void {
  if (warned) return;
  warned = true;
  process.emitWarning(
    `${op}: scope 'micro-batch' weighs a token by the micro-batch it lands in; use it to reproduce other programs only`,
    { type: 'VarlenWarning', code: 'VARLEN_MICRO_BATCH_SCOPE' },
  );
}

function checkKeys(op: string, argument: string, value: unknown, known: readonly string[]): void {
  if (typeof value !== 'object' || value === null) throw wrongType(op, argument, value, 'an object');
  for (const key of Object.keys(value)) {
    if (known.includes(key)) continue;
    const problem = `is not known; got '${key}', expected one of ${known.join(', ')}`;
    throw argumentError('ERR_VARLEN_OPTION', op, key, problem);
  }
}

/** Refuses what is not a whole number of at least 1. */
function checkCount(op: string, path: string, value: unknown): void {
  if (!(Number.isSafeInteger(value) && (value as number) >= 1)) {
    throw rangeError(op, path, value, 'an integer >= 1');
  }
}

function checkLengths(op: string, argument: string, lengths: unknown, length?: number): void {
  checkArray(op, argument, lengths, 'Int32Array', length);
  for (let i = 0; i < lengths.length; i++) {
    if (lengths[i] < 0) throw rangeError(op, `${argument}[${i}]`, lengths[i], 'an integer >= 0');
  }
}
