import { varlenError } from '../errors.js';

/**
 * Reading the header of a safetensors file: 8 bytes of header length (little endian), a JSON object of
 * tensor descriptions, the data. The header comes from strangers, so nothing is believed: it is parsed
 * byte by byte against the one structure that is allowed, and every complaint names its position in the
 * file. JSON.parse would accept duplicate keys and could not say where it stopped.
 *
 * Format: the README of the safetensors project; limits of ours are marked.
 */

/** What the header says of one tensor. */
export interface TensorEntry {
  /** The format's word, such as `F32`. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Bytes of the data section, `[begin, end)`. */
  readonly begin: number;
  readonly end: number;
}

/** A header that is consistent with itself and with the length of the file. */
export interface Header {
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
  /** Where the data section starts in the file. */
  readonly dataStart: number;
}

/** Bytes of the length field in front of the header. */
export const LENGTH_BYTES = 8;
/** The format's own cap. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Ours: far above any model, far below what would exhaust memory. */
const MAX_ENTRIES = 1_000_000;

/** Bytes of one element, for every word of the format whose elements are whole bytes. */
const BYTES: Readonly<Record<string, number>> = Object.assign(Object.create(null), {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  I64: 8,
  U64: 8,
  F64: 8,
  C64: 8,
});

/** The error of a file that breaks a rule at byte `offset`. */
export function brokenFile(offset: number, problem: string): Error {
  return varlenError('ERR_VARLEN_SAFETENSORS', `safetensors: the file ${problem} (byte ${offset})`, {
    op: 'safetensors',
    argument: 'bytes',
    offset,
  });
}

/** Length of the header, from the first 8 bytes of a file of `fileBytes`. */
export function readHeaderLength(start: Uint8Array, fileBytes: number): number {
  if (fileBytes < LENGTH_BYTES || start.length < LENGTH_BYTES) {
    throw brokenFile(fileBytes, `is too short; got ${fileBytes} bytes, expected at least ${LENGTH_BYTES}`);
  }
  const view = new DataView(start.buffer, start.byteOffset, LENGTH_BYTES);
  const length = view.getBigUint64(0, true);
  const limit = Math.min(MAX_HEADER_BYTES, fileBytes - LENGTH_BYTES);
  if (length > BigInt(limit)) {
    throw brokenFile(0, `has an impossible header length; got ${length}, expected at most ${limit}`);
  }
  return Number(length);
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACE = 0x7b;
const DIGIT_0 = 0x30;
const DIGIT_9 = 0x39;

/** A cursor over the header's bytes. Positions in errors count from the start of the file. */
class Cursor {
  private at = 0;
  private readonly bytes: Buffer;
  private readonly decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  fail(problem: string, at: number = this.at): never {
    throw brokenFile(LENGTH_BYTES + at, problem);
  }

  get position(): number {
    return this.at;
  }

  /** The next byte that is not white space; undefined at the end. */
  peek(): number | undefined {
    for (;;) {
      const byte = this.bytes[this.at];
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return byte;
      this.at++;
    }
  }

  /** Steps over `character`, or does nothing when something else is next. */
  skip(character: string): boolean {
    const found = this.peek() === character.charCodeAt(0);
    if (found) this.at++;
    return found;
  }

  take(character: string): void {
    if (this.skip(character)) return;
    const found = this.peek();
    const shown = found === undefined ? 'its end' : `'${String.fromCharCode(found)}'`;
    this.fail(`has a malformed header; got ${shown}, expected '${character}'`);
  }

  /** Calls `item` for each element of `open ... close` until the list ends. */
  list(open: string, close: string, item: () => void): void {
    this.take(open);
    if (this.skip(close)) return;
    for (;;) {
      item();
      if (this.skip(close)) return;
      this.take(',');
    }
  }

  /** A JSON string. */
  string(): string {
    this.take('"');
    const start = this.at;
    let escaped = false;
    let ascii = true;
    for (;;) {
      const byte = this.bytes[this.at];
      if (byte === undefined) this.fail('ends inside a string of its header', start);
      if (byte === QUOTE) break;
      if (byte < 0x20) this.fail('has a control character in a string of its header');
      if (byte >= 0x80) ascii = false;
      if (byte === BACKSLASH) {
        escaped = true;
        this.at++; // whatever is escaped, a quote does not end the string
      }
      this.at++;
    }
    const end = this.at++;
    const text = ascii ? this.bytes.toString('latin1', start, end) : this.decode(start, end);
    const value = escaped ? this.unescape(text, start) : text;
    if (!(ascii && !escaped) && /\p{Surrogate}/u.test(value)) {
      this.fail('has half a surrogate pair in its header', start);
    }
    return value;
  }

  private decode(start: number, end: number): string {
    try {
      return this.decoder.decode(this.bytes.subarray(start, end));
    } catch {
      return this.fail('has a header that is not UTF-8', start);
    }
  }

  private unescape(text: string, start: number): string {
    try {
      return JSON.parse(`"${text}"`) as string;
    } catch {
      return this.fail('has an unknown escape in a string of its header', start);
    }
  }

  /** A whole number from 0 to 2^53 - 1, written in digits only. */
  integer(): number {
    const first = this.peek();
    const start = this.at;
    let value = 0;
    let byte = this.bytes[this.at];
    for (
      ;
      byte >= DIGIT_0 && byte <= DIGIT_9 && value <= Number.MAX_SAFE_INTEGER;
      byte = this.bytes[++this.at]
    ) {
      value = 10 * value + (byte - DIGIT_0);
    }
    const length = this.at - start;
    const leadingZero = first === DIGIT_0 && length > 1;
    if (length === 0 || leadingZero || value > Number.MAX_SAFE_INTEGER) {
      const shown = this.bytes.toString('latin1', start, start + Math.max(length, 1));
      this.fail(`has a bad number; got '${shown}', expected a whole number from 0 to 2^53 - 1`, start);
    }
    return value; // what follows, be it a point or an exponent, fails where ',' or ']' is expected
  }

  /** Nothing but white space is left. */
  end(): void {
    if (this.peek() !== undefined) this.fail('has more than one JSON value in its header');
  }
}

/** Calls `member` with every key of an object; a key that comes twice is an error. */
function readObject(cursor: Cursor, member: (key: string, at: number) => void): void {
  const seen = new Set<string>();
  cursor.list('{', '}', () => {
    cursor.peek();
    const at = cursor.position;
    const key = cursor.string();
    if (seen.has(key)) cursor.fail(`has the key ${JSON.stringify(key)} twice`, at);
    seen.add(key);
    cursor.take(':');
    member(key, at);
  });
}

function readIntegers(cursor: Cursor): number[] {
  const values: number[] = [];
  cursor.list('[', ']', () => {
    values.push(cursor.integer());
  });
  return values;
}

function readEntry(cursor: Cursor, name: string): TensorEntry {
  cursor.peek();
  const at = cursor.position;
  const entry: { dtype?: string; shape?: number[]; offsets?: number[] } = {};
  readObject(cursor, (key, keyAt) => {
    if (key === 'dtype') entry.dtype = cursor.string();
    else if (key === 'shape') entry.shape = readIntegers(cursor);
    else if (key === 'data_offsets') entry.offsets = readIntegers(cursor);
    else cursor.fail(`describes ${JSON.stringify(name)} by an unknown key ${JSON.stringify(key)}`, keyAt);
  });
  const { dtype, shape, offsets } = entry;
  const complain = (problem: string): never => cursor.fail(`${problem} in ${JSON.stringify(name)}`, at);
  if (dtype === undefined || shape === undefined || offsets === undefined) {
    return complain('lacks one of dtype, shape, data_offsets');
  }
  if (BYTES[dtype] === undefined) return complain(`has an unknown dtype '${dtype.slice(0, 32)}'`);
  if (offsets.length !== 2) return complain(`has ${offsets.length} data_offsets instead of 2`);
  const [begin, end] = offsets;
  if (begin > end) return complain(`has data_offsets that fall, from ${begin} to ${end},`);
  // A product past 2^53 is no longer exact: a small file must not claim a large tensor by wrapping around.
  const bytes = shape.reduce((product, size) => product * size, BYTES[dtype]);
  if (!Number.isSafeInteger(bytes) || bytes !== end - begin) {
    return complain(`has ${end - begin} bytes for ${dtype} of shape [${shape.slice(0, 8)}]`);
  }
  return { dtype, shape, begin, end };
}

function readMetadata(cursor: Cursor): Map<string, string> {
  const metadata = new Map<string, string>();
  readObject(cursor, (key) => {
    metadata.set(key, cursor.string());
  });
  return metadata;
}

/** The entries must cover the data section once: no overlap, no hole, nothing behind the last one. */
function checkCoverage(
  entries: ReadonlyMap<string, TensorEntry>,
  dataStart: number,
  dataBytes: number,
): void {
  const sorted = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let covered = 0;
  for (const [name, { begin, end }] of sorted) {
    if (begin !== covered) {
      const what = begin < covered ? 'overlaps the tensor before it' : 'leaves a hole before it';
      throw brokenFile(dataStart + begin, `has a tensor ${JSON.stringify(name)} that ${what}`);
    }
    covered = end;
  }
  if (covered === dataBytes) return;
  const problem = covered > dataBytes ? 'is cut off' : 'has bytes behind the last tensor';
  throw brokenFile(
    dataStart + Math.min(covered, dataBytes),
    `${problem}; got ${dataBytes} bytes of data, expected ${covered}`,
  );
}

/**
 * Parses and checks a header.
 *
 * @param bytes the header without the length in front of it
 * @param fileBytes length of the whole file
 * @throws `ERR_VARLEN_SAFETENSORS` with `details.offset`
 */
export function parseHeader(bytes: Uint8Array, fileBytes: number): Header {
  // Depth is bounded by the grammar: object, entry, list of numbers.
  if (bytes[0] !== OPEN_BRACE) throw brokenFile(LENGTH_BYTES, "has a header that does not start with '{'");
  const cursor = new Cursor(bytes);
  const entries = new Map<string, TensorEntry>();
  let metadata = new Map<string, string>();
  readObject(cursor, (name, at) => {
    if (name === '__metadata__') {
      metadata = readMetadata(cursor);
      return;
    }
    if (entries.size === MAX_ENTRIES) cursor.fail(`has more than ${MAX_ENTRIES} tensors`, at);
    entries.set(name, readEntry(cursor, name));
  });
  cursor.end();
  const dataStart = LENGTH_BYTES + bytes.length;
  checkCoverage(entries, dataStart, fileBytes - dataStart);
  return { entries, metadata, dataStart };
}
