/** Options of the batcher: their types, their checks and their defaults. */
import type { AlignOptions } from '../dist/align.js';
import type { ProcessGroup } from '../dist/process-group.js';
import type { StepInfo } from '../dist/step-info.js';
import { argumentError } from '../errors.js';
import { hash64 } from '../seeded-random.js';
import { checkPolicy } from './grouping.js';
import {
  type LimitOptions,
  type Limits,
  positiveInteger,
  rangeError,
  resolveLimits,
  show,
} from './limits.js';
import type { RoundMetrics } from './metrics.js';
import { type CollateOptions, type ResolvedCollate, resolveCollate } from './pack.js';
import type { SampleId } from './sample.js';

/** One sample of a window, as a custom grouping sees it. */
export interface WindowSample<S> {
  readonly sample: S;
  readonly id: SampleId;
  readonly length: number;
  readonly weight: number;
  readonly patches: number;
  /** Rounds it has been carried. */
  readonly carryAge: number;
}

/**
 * A grouping of your own: window positions, each exactly once, each group within the limits or a
 * single sample. It must be a function of the window only. Anything else ends the run with an error.
 */
export type GroupingPolicy<S> = (window: readonly WindowSample<S>[], limits: Limits) => number[][];

/** A sample that was left out. */
export interface DroppedSample {
  readonly id: SampleId;
  /**
   * `'empty'` (length 0), `'filter'`, `'oversize'`, `'pass-end'` (another rank of a non-join pass ran
   * dry), `'quota'`, or `'abandoned'` (the consumer left the loop).
   */
  readonly reason: 'empty' | 'filter' | 'oversize' | 'pass-end' | 'quota' | 'abandoned';
  readonly length: number;
}

/** What to do with a sample that alone exceeds a budget. */
export type OutlierPolicy = 'single' | 'error' | 'drop' | 'truncate' | 'split';

/** Options of `DynamicBatcher`. Numbers without a unit are counts; all are checked in the constructor. */
export interface BatcherOptions<S, B> extends LimitOptions, AlignOptions {
  /** Fresh samples per rank and round, `D`. Default 1024. */
  window?: number;
  /**
   * `'count'` (default) collects `window` samples; `'cost'` collects until their cost reaches
   * `window` times the mean so far, which evens out the ranks.
   */
  windowTrigger?: 'count' | 'cost';
  /** `'ramp'` grows the first windows by 5 % of `window` a round, for an early first step. Default `'full'`. */
  warmup?: 'full' | 'ramp';
  /** Padded mode: a built-in rule (default `'headroom'`) or a grouping of your own (both modes). */
  groupingPolicy?: 'headroom' | 'odb' | GroupingPolicy<S>;
  /** Cap on a round's steps. Default none. */
  maxStepsPerRound?: number;
  /** Longest sample the model can take; `outlier` says what happens to longer ones (`'single'`: an error). */
  maxSampleTokens?: number;
  /** Default `'single'`: a step of its own, flagged `overBudget`. `'split'` needs packed mode. */
  outlier?: OutlierPolicy;
  /** For `outlier: 'truncate'`: the sample cut to at most `maxLen` tokens. */
  truncate?: (sample: S, maxLen: number) => S;
  /** Length for the budgets, called once per sample. Default tokens. */
  lengthOf?: (sample: S) => number;
  /** Loss weight, called once per sample. Default labels that count. */
  weightOf?: (sample: S) => number;
  /** Default the sample's `id`, else `${epoch}:${rank}:${position}`. */
  idOf?: (sample: S) => SampleId;
  /** False leaves the sample out. */
  filter?: (sample: S) => boolean;
  /** A group of the batcher's own (`group.subgroup(...)`), of the data-parallel ranks. Default one rank. */
  group?: ProcessGroup;
  /** What a rank without data does. Default `'idle'`: IDLE steps, so that all ranks do equal steps. */
  join?: 'idle' | 'shadow' | 'none';
  /** IDLE batches have no row (`'empty'`, default) or one ignored token (`'dummy'`). */
  idleShape?: 'empty' | 'dummy';
  /** End after the first step at which all ranks together have emitted that many samples. */
  quota?: number | { epochs: number };
  /** Passes over the source in one iteration. Default 1; with a quota as many as it takes. */
  epochs?: number;
  /** What the loss is averaged over. Default `'exact'`: supervised tokens. */
  lossScaling?: 'exact' | 'samples' | 'tokens' | 'approx' | 'none';
  /** How gradients are combined over ranks. Default `'mean'`. */
  reduction?: 'mean' | 'sum';
  /** What your loss is on one rank. Default `'mean'`. */
  localLoss?: 'mean' | 'sum';
  /** Micro-steps per optimizer step. Default 1. */
  accumulate?: number;
  /** Finish an accumulation in the next round instead of closing it short. Default false. */
  accumulateAcrossRounds?: boolean;
  /** Order of a round's steps. Default `'shuffle'`; `'none'` keeps the order of first arrival. */
  order?: 'shuffle' | 'sorted-desc' | 'none';
  /** Default 0. */
  seed?: number;
  /** Samples shuffled together before the window. Default 0: the source's order. */
  preShuffle?: number;
  /** Standard deviation of the log-normal noise on sort lengths (padded mode). Default 0. */
  lengthJitter?: number;
  /** The costliest step comes first in the first round, so that memory runs out early or never. */
  probe?: boolean;
  /** Steps made ahead of the consumer. Default 2; 0 makes each on demand. */
  prefetchSteps?: number;
  /** Deadline of one gather. Default 1,800,000: ranks wait there for the slowest consumer. */
  timeoutMs?: number;
  /** Check that every sample leaves exactly once; `'list'` also keeps the ids per step. */
  audit?: boolean | 'list';
  /** `'exact'` trims the last step so that the quota is met to the sample. */
  quotaTrim?: 'exact';
  /** `join: 'shadow'`: divide by all ranks (default) or by those whose iterator has not ended. */
  divisor?: 'initial' | 'active';
  /** Resume a source without `state()` by reading and discarding what was consumed. */
  replay?: 'skip';
  /** Put what was read but not consumed into the state; for sources that cannot go back. */
  statePayload?: boolean;
  /** Default structured clone. */
  serialize?: (sample: S) => Uint8Array;
  deserialize?: (bytes: Uint8Array) => S;
  collateOptions?: CollateOptions;
  /** Default packed or padded, by `mode`. Called with no samples on an IDLE step. */
  collate?: (group: S[], info: StepInfo) => B | Promise<B>;
  onDrop?: (dropped: DroppedSample) => void;
  onRound?: (metrics: RoundMetrics) => void;
  /** Ends the run: pending `next()` calls reject with its reason, peers are told. */
  signal?: AbortSignal;
}

type Optional =
  | 'truncate'
  | 'lengthOf'
  | 'weightOf'
  | 'idOf'
  | 'filter'
  | 'group'
  | 'collate'
  | 'onDrop'
  | 'onRound'
  | 'signal';

/** Options with every default filled in. */
export interface ResolvedOptions<S, B> extends Pick<BatcherOptions<S, B>, Optional> {
  readonly limits: Limits;
  readonly align: Required<AlignOptions>;
  readonly window: number;
  readonly windowTrigger: 'count' | 'cost';
  readonly warmup: 'full' | 'ramp';
  readonly groupingPolicy: 'headroom' | 'odb' | GroupingPolicy<S>;
  readonly maxStepsPerRound: number;
  readonly maxSampleTokens: number;
  readonly outlier: OutlierPolicy;
  readonly join: 'idle' | 'shadow' | 'none';
  readonly idleShape: 'empty' | 'dummy';
  readonly quota: number | { readonly epochs: number } | undefined;
  readonly epochs: number;
  readonly lossScaling: 'exact' | 'samples' | 'tokens' | 'approx' | 'none';
  readonly reduction: 'mean' | 'sum';
  readonly localLoss: 'mean' | 'sum';
  readonly accumulate: number;
  readonly accumulateAcrossRounds: boolean;
  readonly order: 'shuffle' | 'sorted-desc' | 'none';
  readonly seed: number;
  readonly preShuffle: number;
  readonly lengthJitter: number;
  readonly probe: boolean;
  readonly prefetchSteps: number;
  readonly timeoutMs: number;
  readonly audit: boolean | 'list';
  readonly quotaTrim: boolean;
  readonly divisor: 'initial' | 'active';
  readonly replay: boolean;
  readonly statePayload: boolean;
  readonly serialize: ((sample: S) => Uint8Array) | undefined;
  readonly deserialize: ((bytes: Uint8Array) => S) | undefined;
  readonly collateOptions: ResolvedCollate;
  /** int32 hash of everything that must be the same on all ranks and after a restore. */
  readonly configHash: number;
}

const OP = 'DynamicBatcher';

const WORDS: Readonly<Record<string, readonly unknown[]>> = {
  windowTrigger: ['count', 'cost'],
  warmup: ['full', 'ramp'],
  align: ['auto', 'split', 'defer'],
  outlier: ['single', 'error', 'drop', 'truncate', 'split'],
  join: ['idle', 'shadow', 'none'],
  idleShape: ['empty', 'dummy'],
  lossScaling: ['exact', 'samples', 'tokens', 'approx', 'none'],
  reduction: ['mean', 'sum'],
  localLoss: ['mean', 'sum'],
  order: ['shuffle', 'sorted-desc', 'none'],
  audit: [false, true, 'list'],
  quotaTrim: ['exact'],
  divisor: ['initial', 'active'],
  replay: ['skip'],
  statePayload: [false, true],
  probe: [false, true],
  accumulateAcrossRounds: [false, true],
};

const FUNCTIONS = [
  'truncate',
  'lengthOf',
  'weightOf',
  'idOf',
  'filter',
  'serialize',
  'deserialize',
  'collate',
  'onDrop',
  'onRound',
] as const;

const NUMBERS = [
  'window',
  'maxStepsPerRound',
  'maxSampleTokens',
  'maxDeferRounds',
  'epochs',
  'accumulate',
  'seed',
  'preShuffle',
  'lengthJitter',
  'prefetchSteps',
  'timeoutMs',
] as const;

const OTHERS = [
  'budget',
  'mode',
  'maxBatchSize',
  'batchSizeMultiple',
  'costOf',
  'groupingPolicy',
  'group',
  'quota',
  'collateOptions',
  'signal',
] as const;

function checkWords(options: Record<string, unknown>): void {
  const known = new Set<string>([...Object.keys(WORDS), ...FUNCTIONS, ...NUMBERS, ...OTHERS]);
  for (const key of Object.keys(options)) {
    if (known.has(key)) continue;
    throw argumentError('ERR_VARLEN_OPTION', OP, key, 'is not an option; see BatcherOptions');
  }
  for (const [argument, allowed] of Object.entries(WORDS)) {
    const value = options[argument];
    if (value === undefined || allowed.includes(value)) continue;
    const problem = `must be one of ${allowed.map(show).join(', ')}; got ${show(value)}`;
    throw argumentError('ERR_VARLEN_OPTION', OP, argument, problem);
  }
  for (const argument of FUNCTIONS) {
    const value = options[argument];
    if (value === undefined || typeof value === 'function') continue;
    throw argumentError('ERR_VARLEN_TYPE', OP, argument, `must be a function; got ${show(value)}`);
  }
}

function incompatible(argument: string, problem: string): never {
  throw argumentError('ERR_VARLEN_INCOMPATIBLE', OP, argument, problem);
}

function integerFrom(
  argument: string,
  value: unknown,
  least: number,
  absent: number,
  most = 2 ** 31 - 1,
): number {
  if (value === undefined) return absent;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= least && value <= most)
    return value;
  throw rangeError(OP, argument, value, `an integer in ${least}..${most}`);
}

function resolveQuota(quota: unknown): number | { readonly epochs: number } | undefined {
  if (quota === undefined) return undefined;
  if (typeof quota === 'object' && quota !== null) {
    return { epochs: positiveInteger(OP, 'quota.epochs', (quota as { epochs: unknown }).epochs) };
  }
  return positiveInteger(OP, 'quota', quota);
}

function checkGroup(group: unknown): void {
  if (group === undefined) return;
  const { rank, size, allGather } = (group ?? {}) as Partial<ProcessGroup>;
  const usable =
    Number.isInteger(rank) &&
    Number.isInteger(size) &&
    rank! >= 0 &&
    rank! < size! &&
    typeof allGather === 'function';
  if (!usable) {
    throw argumentError('ERR_VARLEN_TYPE', OP, 'group', `must be a ProcessGroup; got ${show(group)}`);
  }
}

/** Checks all options at once, and their combinations. */
export function resolveOptions<S, B>(given: BatcherOptions<S, B>): ResolvedOptions<S, B> {
  if (typeof given !== 'object' || given === null) {
    throw argumentError('ERR_VARLEN_TYPE', OP, 'options', `must be an object; got ${show(given)}`);
  }
  const options = { ...given }; // read once: a getter may answer differently the second time
  checkWords(options as Record<string, unknown>);
  const limits = resolveLimits(OP, options);
  if (limits.mode === 'packed' && options.budget.packedTokens === undefined) {
    const text = 'DynamicBatcher: budget.paddedTokens is used as the packed budget in packed mode';
    process.emitWarning(text, { code: 'VARLEN_PACKED_BUDGET' });
  }
  const policy = options.groupingPolicy ?? 'headroom';
  if (typeof policy !== 'function') checkPolicy(OP, limits, policy);
  const seed = options.seed ?? 0;
  if (!Number.isSafeInteger(seed) || seed < 0) throw rangeError(OP, 'seed', seed, 'a non-negative integer');
  const lengthJitter = options.lengthJitter ?? 0;
  if (!(lengthJitter >= 0 && lengthJitter < Infinity)) {
    throw rangeError(OP, 'lengthJitter', lengthJitter, 'a finite number >= 0');
  }
  const outlier = options.outlier ?? 'single';
  const quota = resolveQuota(options.quota);
  const join = options.join ?? 'idle';
  const epochs = integerFrom('epochs', options.epochs, 1, quota === undefined ? 1 : Infinity);
  checkGroup(options.group);
  if (outlier === 'truncate' && options.truncate === undefined) {
    const problem = "is needed by outlier 'truncate'; got none, expected a function";
    throw argumentError('ERR_VARLEN_MISSING_INPUT', OP, 'truncate', problem);
  }
  if (outlier === 'split' && limits.mode === 'padded') incompatible('outlier', "'split' needs mode 'packed'");
  if (outlier === 'split' && (options.lengthOf ?? options.collate ?? options.weightOf) !== undefined) {
    incompatible(
      'outlier',
      "'split' cuts token arrays; it goes with the built-in lengthOf, weightOf and collate only",
    );
  }
  if (lengthJitter > 0 && (limits.mode === 'packed' || policy !== 'headroom')) {
    incompatible('lengthJitter', "acts on mode 'padded' with groupingPolicy 'headroom' only");
  }
  if (join === 'shadow' && (epochs > 1 || quota !== undefined)) {
    incompatible(
      'join',
      "'shadow' ends ranks at different steps; it goes with one epoch per iteration and no quota",
    );
  }
  if (options.divisor === 'active' && join !== 'shadow')
    incompatible('divisor', "'active' needs join 'shadow'");
  if (options.quotaTrim !== undefined && quota === undefined) incompatible('quotaTrim', 'needs a quota');
  if (options.accumulateAcrossRounds === true && join === 'shadow') {
    incompatible(
      'accumulateAcrossRounds',
      "does not go with join 'shadow', whose ranks end at different steps",
    );
  }
  if (options.replay !== undefined && options.statePayload === true) {
    incompatible('replay', 'and statePayload are two ways to resume; expected one');
  }
  const signal: unknown = options.signal;
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw argumentError('ERR_VARLEN_TYPE', OP, 'signal', `must be an AbortSignal; got ${show(signal)}`);
  }
  const resolved = {
    ...options,
    limits,
    align: {
      align: options.align ?? 'auto',
      maxDeferRounds: integerFrom('maxDeferRounds', options.maxDeferRounds, 0, 2),
    },
    window: integerFrom('window', options.window, 1, 1024),
    windowTrigger: options.windowTrigger ?? 'count',
    warmup: options.warmup ?? 'full',
    groupingPolicy: policy,
    maxStepsPerRound: integerFrom('maxStepsPerRound', options.maxStepsPerRound, 1, 2 ** 31 - 1),
    maxSampleTokens: integerFrom('maxSampleTokens', options.maxSampleTokens, 1, Infinity),
    outlier,
    join,
    idleShape: options.idleShape ?? 'empty',
    quota,
    epochs,
    lossScaling: options.lossScaling ?? 'exact',
    reduction: options.reduction ?? 'mean',
    localLoss: options.localLoss ?? 'mean',
    accumulate: integerFrom('accumulate', options.accumulate, 1, 1),
    accumulateAcrossRounds: options.accumulateAcrossRounds ?? false,
    order: options.order ?? 'shuffle',
    seed,
    preShuffle: integerFrom('preShuffle', options.preShuffle, 0, 0),
    lengthJitter,
    probe: options.probe ?? false,
    prefetchSteps: integerFrom('prefetchSteps', options.prefetchSteps, 0, 2),
    timeoutMs: integerFrom('timeoutMs', options.timeoutMs, 1, 1_800_000, 86_400_000),
    audit: options.audit ?? false,
    quotaTrim: options.quotaTrim === 'exact',
    divisor: options.divisor ?? 'initial',
    replay: options.replay === 'skip',
    statePayload: options.statePayload ?? false,
    serialize: options.serialize,
    deserialize: options.deserialize,
    collateOptions: resolveCollate(OP, options.collateOptions),
  } as const;
  return { ...resolved, configHash: hashConfig(resolved) };
}

/** Hash of the options that steer the protocol or the order of samples; functions count by presence. */
function hashConfig(
  options: Omit<ResolvedOptions<never, never>, 'configHash'> | Record<string, unknown>,
): number {
  const { limits, align, groupingPolicy, quota, collateOptions, ...rest } = options as ResolvedOptions<
    never,
    never
  >;
  const steering = [
    limits.mode,
    limits.paddedTokens,
    limits.packedTokens,
    limits.cost,
    limits.patches,
    limits.maxBatchSize,
    limits.multiple,
    align.align,
    align.maxDeferRounds,
    rest.window,
    rest.windowTrigger,
    rest.warmup,
    typeof groupingPolicy === 'function' ? 'custom' : groupingPolicy,
    rest.maxSampleTokens,
    rest.outlier,
    rest.join,
    JSON.stringify(quota ?? null),
    rest.lossScaling,
    rest.reduction,
    rest.localLoss,
    rest.accumulate,
    rest.accumulateAcrossRounds,
    rest.order,
    rest.seed,
    rest.preShuffle,
    rest.lengthJitter,
    rest.probe,
    rest.quotaTrim,
    rest.divisor,
    collateOptions.labels,
    rest.filter !== undefined,
    rest.lengthOf !== undefined,
    rest.weightOf !== undefined,
  ];
  return hash64(...Buffer.from(steering.join('\u0000')))[0] | 0;
}
