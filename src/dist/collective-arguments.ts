/** Checks the arguments of a collective before it takes a sequence number, so that ranks stay aligned. */
import { types } from 'node:util';
import { argumentError } from '../errors.js';
import type { CollectiveArray, CollectiveOptions } from './process-group.js';

/** The longest deadline: one day, in milliseconds. */
const MAX_TIMEOUT_MS = 86_400_000;

/** Element types; the index is the number in a call's signature. */
const arrayNames = ['Uint8Array', 'Int32Array', 'Float32Array', 'Float64Array', 'BigInt64Array'] as const;

/** Number of the element type, or throws `ERR_VARLEN_TYPE` or `ERR_VARLEN_BUFFER`. */
export function checkArray(op: string, argument: string, array: CollectiveArray): number {
  const kind = types.isUint8Array(array)
    ? 0
    : types.isInt32Array(array)
      ? 1
      : types.isFloat32Array(array)
        ? 2
        : types.isFloat64Array(array)
          ? 3
          : types.isBigInt64Array(array)
            ? 4
            : -1;
  if (kind < 0) {
    const got = array === null ? 'null' : typeof array === 'object' ? 'another object' : typeof array;
    const problem = `must be a typed array; got ${got}, expected one of ${arrayNames.join(', ')}`;
    throw argumentError('ERR_VARLEN_TYPE', op, argument, problem);
  }
  const buffer: ArrayBufferLike = array.buffer;
  const fault = types.isSharedArrayBuffer(buffer)
    ? 'shared memory'
    : 'resizable' in buffer && buffer.resizable === true
      ? 'a resizable buffer'
      : isDetached(buffer)
        ? 'a detached buffer'
        : undefined;
  if (fault !== undefined) {
    const problem = `must lie in ordinary memory; got ${fault}, expected a fixed ArrayBuffer`;
    throw argumentError('ERR_VARLEN_BUFFER', op, argument, problem);
  }
  return kind;
}

/** A view over a detached buffer reports length 0; only constructing another one tells. */
function isDetached(buffer: ArrayBufferLike): boolean {
  if (buffer.byteLength > 0) return false;
  try {
    new Uint8Array(buffer);
    return false;
  } catch {
    return true;
  }
}

/** Throws `ERR_VARLEN_RANGE` unless `timeoutMs` is an integer in `1..86,400,000`. */
export function checkTimeout(op: string, argument: string, timeoutMs: number): number {
  if (Number.isInteger(timeoutMs) && timeoutMs >= 1 && timeoutMs <= MAX_TIMEOUT_MS) return timeoutMs;
  const problem = `is out of range; got ${String(timeoutMs)}, expected an integer in [1, ${MAX_TIMEOUT_MS}] ms`;
  throw argumentError('ERR_VARLEN_RANGE', op, argument, problem);
}

/** Throws unless `value` is an integer of `0..limit - 1`. */
export function checkRank(op: string, argument: string, value: number, size: number): void {
  if (Number.isInteger(value) && value >= 0 && value < size) return;
  const problem = `is no rank; got ${String(value)}, expected an integer in [0, ${size - 1}]`;
  throw argumentError('ERR_VARLEN_RANGE', op, argument, problem);
}

/** The list of ranks of a subgroup: at least one, each once. */
export function checkRanks(op: string, ranks: readonly number[], size: number): void {
  if (!Array.isArray(ranks)) {
    throw argumentError(
      'ERR_VARLEN_TYPE',
      op,
      'ranks',
      `must be an array; got ${typeof ranks}, expected ranks`,
    );
  }
  ranks.forEach((rank, i) => {
    checkRank(op, `ranks[${i}]`, rank, size);
  });
  if (ranks.length === 0 || new Set(ranks).size !== ranks.length) {
    const problem = `must list each rank once; got [${ranks.join(', ')}], expected at least one rank, none twice`;
    throw argumentError('ERR_VARLEN_RANGE', op, 'ranks', problem);
  }
}

/** The checked options of one call. */
export function checkOptions(
  op: string,
  options: CollectiveOptions,
  defaultTimeoutMs: number,
): { timeoutMs: number; tag: string; signal: AbortSignal | undefined } {
  const { timeoutMs = defaultTimeoutMs, tag = '', signal } = options;
  checkTimeout(op, 'options.timeoutMs', timeoutMs);
  if (typeof tag !== 'string') {
    throw argumentError(
      'ERR_VARLEN_TYPE',
      op,
      'options.tag',
      `must be a word; got ${typeof tag}, expected a string`,
    );
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    const problem = `must be an AbortSignal; got ${typeof signal}, expected one or none`;
    throw argumentError('ERR_VARLEN_TYPE', op, 'options.signal', problem);
  }
  return { timeoutMs, tag, signal };
}
