/** What one group may hold: the budgets of a batcher, resolved to numbers. */
import { argumentError, type VarlenError } from '../errors.js';

/** Budgets of one group, i.e. of one model step on one rank. One token budget is required. */
export interface Budget {
  /** `count * longest`: what a padded step computes on. */
  paddedTokens?: number;
  /** Sum of lengths: what a packed step computes on. */
  packedTokens?: number;
  /** Cost of the group, in token units; covers the quadratic part of attention. */
  cost?: number;
  /** Sum of vision patches (memory of the vision tower). */
  patches?: number;
}

/** Settings that decide which sets of samples may run as one step. */
export interface LimitOptions {
  budget: Budget;
  /** Default `'packed'`. */
  mode?: 'padded' | 'packed';
  /** Samples per group at most. */
  maxBatchSize?: number;
  /** A group of this size or more must have a multiple of it. */
  batchSizeMultiple?: number;
  /**
   * Cost of a sample of `length` tokens, in token units; positive and never falling. Default
   * `length + length^2 / 24576`, a 7B-class model (general: `1 / (6 * hidden)` in place of `1 / 24576`).
   */
  costOf?: (length: number) => number;
}

/** Limits with every default filled in; absent ones are `Infinity` (the multiple: 1). */
export interface Limits {
  readonly mode: 'padded' | 'packed';
  /** Bound on `count * longest`. */
  readonly paddedTokens: number;
  /** Bound on the sum of lengths. */
  readonly packedTokens: number;
  readonly cost: number;
  readonly patches: number;
  readonly maxBatchSize: number;
  readonly multiple: number;
  readonly costOf: (length: number) => number;
}

/** Attention's share: `12 h^2 L + 2 h L^2` FLOPs with `h = 4096` give `L + L^2 / (6 h)`. */
const TOKENS_PER_QUADRATIC_UNIT = 24576;

/** Default cost of one sample, in token units. */
export function defaultCost(length: number): number {
  return length + (length * length) / TOKENS_PER_QUADRATIC_UNIT;
}

export function rangeError(op: string, argument: string, got: unknown, expected: string): VarlenError {
  return argumentError('ERR_VARLEN_RANGE', op, argument, `must be ${expected}; got ${show(got)}`, { got });
}

/** Prints any value without running its code. */
export function show(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
    case 'object':
      return value === null ? 'null' : Array.isArray(value) ? 'an array' : 'an object';
    case 'function':
      return 'a function';
    case 'bigint':
      return `${value}n`;
    default:
      return String(value);
  }
}

/** Checks a positive integer (default: required to be one when given). */
export function positiveInteger(op: string, argument: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1) {
    throw rangeError(op, argument, value, 'a positive integer');
  }
  return value;
}

function optionalInteger(op: string, argument: string, value: unknown, absent: number): number {
  return value === undefined ? absent : positiveInteger(op, argument, value);
}

/**
 * Fills in the defaults and checks the numbers.
 *
 * A packed batcher with only `paddedTokens` uses that value as its packed budget.
 */
export function resolveLimits(op: string, options: LimitOptions): Limits {
  const budget: unknown = options.budget;
  if (typeof budget !== 'object' || budget === null) {
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, 'budget', `must be an object; got ${show(budget)}`);
  }
  const known = ['paddedTokens', 'packedTokens', 'cost', 'patches'];
  const unknown = Object.keys(budget).find((key) => !known.includes(key));
  if (unknown !== undefined) {
    const problem = `is not a known budget; expected one of ${known.join(', ')}`;
    throw argumentError('ERR_VARLEN_OPTION', op, `budget.${unknown}`, problem);
  }
  const { paddedTokens, packedTokens, cost, patches } = budget as Budget;
  const mode: unknown = options.mode ?? 'packed';
  if (mode !== 'packed' && mode !== 'padded') {
    const problem = `must be 'packed' or 'padded'; got ${show(mode)}`;
    throw argumentError('ERR_VARLEN_OPTION', op, 'mode', problem);
  }
  if (paddedTokens === undefined && (mode === 'padded' || packedTokens === undefined)) {
    const wanted = mode === 'padded' ? 'budget.paddedTokens' : 'budget.packedTokens';
    const problem = `is required in ${mode} mode; got none, expected a positive integer`;
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, wanted, problem);
  }
  const padded = optionalInteger(op, 'budget.paddedTokens', paddedTokens, Infinity);
  const packed = optionalInteger(op, 'budget.packedTokens', packedTokens, Infinity);
  if (mode === 'packed' && padded < Infinity && packed < Infinity) {
    const problem = 'has no meaning beside budget.packedTokens in packed mode; expected one of them';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'budget.paddedTokens', problem);
  }
  if (cost !== undefined && !(typeof cost === 'number' && cost > 0 && cost < Infinity)) {
    throw rangeError(op, 'budget.cost', cost, 'a positive finite number');
  }
  if (options.costOf !== undefined && typeof options.costOf !== 'function') {
    throw argumentError('ERR_VARLEN_TYPE', op, 'costOf', `must be a function; got ${show(options.costOf)}`);
  }
  return {
    mode,
    paddedTokens: mode === 'padded' ? padded : Infinity,
    packedTokens: mode === 'packed' ? Math.min(packed, padded) : packed,
    cost: cost ?? Infinity,
    patches: optionalInteger(op, 'budget.patches', patches, Infinity),
    maxBatchSize: optionalInteger(op, 'maxBatchSize', options.maxBatchSize, Infinity),
    multiple: optionalInteger(op, 'batchSizeMultiple', options.batchSizeMultiple, 1),
    costOf: options.costOf ?? defaultCost,
  };
}

/** Tokens that one group may compute on. */
export function tokenBudget(limits: Limits): number {
  return limits.mode === 'padded' ? limits.paddedTokens : limits.packedTokens;
}

/** True when a single sample alone breaks a budget. */
export function exceedsAlone(limits: Limits, length: number, patches: number): boolean {
  return (
    length > limits.paddedTokens ||
    length > limits.packedTokens ||
    patches > limits.patches ||
    (limits.cost < Infinity && limits.costOf(length) > limits.cost)
  );
}

/** The longest sample that fits alone, in tokens: at least 1, at most `upTo`. */
export function longestWithin(limits: Limits, upTo: number): number {
  let longest = Math.min(upTo, limits.paddedTokens, limits.packedTokens);
  if (limits.cost === Infinity || limits.costOf(longest) <= limits.cost) return longest;
  let low = 1; // costs never fall with the length, so the limit can be bisected
  while (low < longest) {
    const middle = Math.ceil((low + longest) / 2);
    if (limits.costOf(middle) <= limits.cost) low = middle;
    else longest = middle - 1;
  }
  return low;
}
