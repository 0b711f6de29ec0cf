/** Checks of the typed arrays that the host functions of `varlen/rl` take, and the words of their errors. */
import { describe, wrongType } from '../check.js';
import { argumentError } from '../errors.js';

type ArrayKind = {
  Int32Array: Int32Array;
  Uint8Array: Uint8Array;
  Float32Array: Float32Array;
  Float64Array: Float64Array;
};

function isKind(value: unknown, kind: string): boolean {
  return Object.prototype.toString.call(value) === `[object ${kind}]`;
}

/** Refuses what is not a typed array of the one kind, and, when `length` is given, of that length. */
export function checkArray<K extends keyof ArrayKind>(
  op: string,
  argument: string,
  value: unknown,
  kind: K,
  length?: number,
): asserts value is ArrayKind[K] {
  if (!isKind(value, kind)) refuseKind(op, argument, value, kind);
  if (length !== undefined) checkLength(op, argument, value as ArrayKind[K], length);
}

/** Refuses what is neither a Float32Array nor a Float64Array of `length` values. */
export function checkFloats(
  op: string,
  argument: string,
  value: unknown,
  length?: number,
): asserts value is Float32Array | Float64Array {
  const expected = 'Float32Array or Float64Array';
  if (!isKind(value, 'Float32Array') && !isKind(value, 'Float64Array')) {
    refuseKind(op, argument, value, expected);
  }
  if (length !== undefined) checkLength(op, argument, value as Float32Array, length);
}

function refuseKind(op: string, argument: string, value: unknown, expected: string): never {
  if (!ArrayBuffer.isView(value)) throw wrongType(op, argument, value, `a ${expected}`);
  const problem = `has the wrong element type; got ${describe(value)}, expected ${expected}`;
  throw argumentError('ERR_VARLEN_DTYPE', op, argument, problem);
}

function checkLength(op: string, argument: string, array: { length: number }, expected: number): void {
  if (array.length === expected) return;
  const problem = `has the wrong length; got ${array.length}, expected ${expected}`;
  throw argumentError('ERR_VARLEN_SHAPE', op, argument, problem);
}

/** Refuses offsets that do not start at 0, that decrease, or that do not end at `totalTokens`. */
export function checkCuSeqlens(
  op: string,
  cuSeqlens: unknown,
  totalTokens?: number,
): asserts cuSeqlens is Int32Array {
  checkArray(op, 'cuSeqlens', cuSeqlens, 'Int32Array');
  const refuse = (problem: string): never => {
    throw argumentError('ERR_VARLEN_CU_SEQLENS', op, 'cuSeqlens', problem);
  };
  if (cuSeqlens.length === 0) refuse('is empty; got 0 entries, expected numSeqs + 1');
  if (cuSeqlens[0] !== 0) refuse(`must start at 0; got ${cuSeqlens[0]}, expected 0`);
  for (let i = 1; i < cuSeqlens.length; i++) {
    if (cuSeqlens[i] < cuSeqlens[i - 1]) {
      refuse(`must not decrease; got ${cuSeqlens[i]} at ${i}, expected >= ${cuSeqlens[i - 1]}`);
    }
  }
  const last = cuSeqlens[cuSeqlens.length - 1];
  if (totalTokens !== undefined && last !== totalTokens) {
    refuse(`must end at totalTokens; got ${last}, expected ${totalTokens}`);
  }
}

/** The error of a number outside its range, with the path to it. */
export function rangeError(op: string, path: string, value: unknown, expected: string): Error {
  const got = typeof value === 'number' ? value : describe(value);
  return argumentError('ERR_VARLEN_RANGE', op, path, `is out of range; got ${got}, expected ${expected}`, {
    path,
    value,
    allowed: expected,
  });
}

/** Refuses what is not a finite number, above (or at) `min` when that is given. */
export function checkNumber(
  op: string,
  path: string,
  value: unknown,
  bound: { above?: number; min?: number; below?: number; max?: number } = {},
): asserts value is number {
  if (typeof value !== 'number') throw wrongType(op, path, value, 'a number');
  const { above, min, below, max } = bound;
  const fits =
    Number.isFinite(value) &&
    (above === undefined || value > above) &&
    (min === undefined || value >= min) &&
    (below === undefined || value < below) &&
    (max === undefined || value <= max);
  if (fits) return;
  const words = [
    above === undefined ? '' : ` above ${above}`,
    min === undefined ? '' : ` >= ${min}`,
    below === undefined ? '' : ` below ${below}`,
    max === undefined ? '' : ` <= ${max}`,
  ];
  throw rangeError(op, path, value, `a finite number${words.filter((word) => word !== '').join(' and')}`);
}

/** Refuses a word that is not among `allowed`. */
export function checkWord(op: string, path: string, value: unknown, allowed: readonly string[]): void {
  if (allowed.includes(value as string)) return;
  const problem = `is not known; got ${describe(value)}, expected one of ${allowed.join(', ')}`;
  throw argumentError('ERR_VARLEN_OPTION', op, path, problem);
}
