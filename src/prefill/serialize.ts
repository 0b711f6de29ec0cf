import { wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import type { PrefillPlanData } from './plan.js';

/**
 * Plans as bytes: "VSPP", a version, the length of a JSON header, the header, then words (int32), report
 * (float64) and the two rows of offsets (int32), little-endian.
 */

const MAGIC = 0x50505356; // "VSPP"
const VERSION = 1;
const FIXED = 12;

interface Header {
  readonly words: number;
  readonly report: number;
  readonly offsets: number;
  readonly causal: boolean;
  readonly softmaxScale: number;
  readonly softcap: number;
  readonly dtype: PrefillPlanData['dtype'];
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly allDense: boolean;
}

/** A plan's data as bytes; {@link deserializePlan} reads them back exactly. */
export function serializePlan(data: PrefillPlanData): Uint8Array {
  const { words, report, cuSeqlensQ, cuSeqlensK, ...rest } = data;
  const header: Header = { ...rest, words: words.length, report: report.length, offsets: cuSeqlensQ.length };
  const text = new TextEncoder().encode(JSON.stringify(header));
  const parts = [words, report, cuSeqlensQ, cuSeqlensK].map(
    (array) => new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength),
  );
  const size = FIXED + text.length + parts.reduce((sum, part) => sum + part.length, 0);
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, VERSION, true);
  view.setUint32(8, text.length, true);
  bytes.set(text, FIXED);
  let at = FIXED + text.length;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function fail(problem: string): never {
  throw argumentError('ERR_VARLEN_CONFIG', 'deserializePlan', 'bytes', problem);
}

const isCount = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31;

function readHeader(text: string): Header {
  let header: Header;
  try {
    header = JSON.parse(text) as Header;
  } catch {
    return fail('have a header that is no JSON; expected what serializePlan wrote');
  }
  const counts = ['words', 'report', 'offsets', 'numHeads', 'numKvHeads', 'headDim'] as const;
  const bad = counts.find((name) => !isCount(header?.[name]));
  if (bad !== undefined)
    fail(`have a header without a usable ${bad}; got ${String(header?.[bad])}, expected a count`);
  const flags = typeof header.causal === 'boolean' && typeof header.allDense === 'boolean';
  const numbers =
    Number.isFinite(header.softmaxScale) && Number.isFinite(header.softcap) && header.softcap >= 0;
  if (!flags || !numbers || !['float32', 'float16', 'bfloat16'].includes(header.dtype)) {
    fail('have a header with values out of range; expected what serializePlan wrote');
  }
  return header;
}

/**
 * Reads what {@link serializePlan} wrote. What the words say is checked again when the plan runs.
 *
 * @throws `ERR_VARLEN_CONFIG` for bytes that are cut short, too long or not a plan
 */
export function deserializePlan(bytes: Uint8Array): PrefillPlanData {
  if (!(bytes instanceof Uint8Array)) throw wrongType('deserializePlan', 'bytes', bytes, 'a Uint8Array');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < FIXED || view.getUint32(0, true) !== MAGIC)
    fail('are no plan; expected "VSPP" at their start');
  if (view.getUint32(4, true) !== VERSION) {
    fail(`are of another version; got ${view.getUint32(4, true)}, expected ${VERSION}`);
  }
  const length = view.getUint32(8, true);
  if (FIXED + length > bytes.length)
    fail(`are cut short; got ${bytes.length} bytes, expected more than ${FIXED + length}`);
  const header = readHeader(new TextDecoder().decode(bytes.subarray(FIXED, FIXED + length)));
  const { words, report, offsets, ...rest } = header;
  const size = FIXED + length + 4 * words + 8 * report + 8 * offsets;
  if (size !== bytes.length)
    fail(`have another length than their header says; got ${bytes.length}, expected ${size}`);
  // Copied: the arrays need not be aligned in the caller's bytes.
  let at = FIXED + length;
  const take = (count: number, elementBytes: number): ArrayBuffer => {
    const start = at;
    at += count * elementBytes;
    return bytes.slice(start, at).buffer as ArrayBuffer;
  };
  return Object.freeze({
    words: new Int32Array(take(words, 4)),
    report: new Float64Array(take(report, 8)),
    cuSeqlensQ: new Int32Array(take(offsets, 4)),
    cuSeqlensK: new Int32Array(take(offsets, 4)),
    ...rest,
  });
}
