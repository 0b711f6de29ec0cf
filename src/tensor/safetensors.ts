import { createHash, type Hash } from 'node:crypto';
import { describe, readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { checkBuffer } from '../native/binding.js';
import { bytesOf, type DType, naturalDType, newArray, type TypedArray } from './dtype.js';
import {
  brokenFile,
  type Header,
  LENGTH_BYTES,
  MAX_HEADER_BYTES,
  parseHeader,
  readHeaderLength,
  type TensorEntry,
} from './safetensors-header.js';
import { Tensor } from './tensor.js';
import { readTensorLike, type TensorLike } from './tensor-like.js';

/**
 * Tensors as bytes in the safetensors format. Our files also carry SHA-256 sums in their metadata, of
 * every tensor and of the header; files of others, which have none, are read all the same.
 */

/** One tensor of a file; {@link Tensor.from} takes it as it is. */
export interface SafetensorsEntry {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** float16 and bfloat16 as their bits. */
  readonly data: TypedArray;
}

/** What a file holds. Both objects have no prototype: any name is plain data, `__proto__` too. */
export interface Safetensors {
  readonly tensors: Readonly<Record<string, SafetensorsEntry>>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** Options of {@link fromSafetensors} and {@link readSafetensors}. */
export interface SafetensorsReadOptions {
  /** Only these tensors. Default: all. */
  names?: readonly string[];
  /** Compare with the SHA-256 sums where the file has them. Default true. */
  verify?: boolean;
}

/** Tensors to write, by name. */
export type SafetensorsSource =
  | Readonly<Record<string, Tensor | TensorLike>>
  | ReadonlyMap<string, Tensor | TensorLike>;

/** The format's words for our element types, and back. BOOL is read as bytes of 0 and 1. */
const WORDS: Record<DType, string> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  float64: 'F64',
  int32: 'I32',
  int64: 'I64',
  uint8: 'U8',
};
const DTYPES = new Map<string, DType>([
  ...(Object.entries(WORDS) as [DType, string][]).map(([dtype, word]) => [word, dtype] as const),
  ['BOOL', 'uint8'],
]);

/** Metadata keys of ours: this one for the header, this one and `:<name>` for a tensor. */
const SUM = 'varlen.sha256';

/** @internal A running SHA-256 sum. */
export function newSum(): Hash {
  return createHash('sha256');
}

/** What the header's sum covers, in an order that does not depend on who wrote the file. */
function headerSum(entries: ReadonlyMap<string, TensorEntry>, metadata: ReadonlyMap<string, string>): string {
  const byName = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number =>
    a < b ? -1 : a > b ? 1 : 0;
  const described = [...entries].sort(byName).map(([name, { dtype, shape }]) => [name, dtype, shape]);
  const rest = [...metadata].filter(([key]) => key !== SUM).sort(byName);
  return newSum()
    .update(JSON.stringify([described, rest]))
    .digest('hex');
}

/** @internal Refuses a header that its own sum contradicts. */
export function verifyHeader({ entries, metadata }: Header): void {
  const expected = metadata.get(SUM);
  if (expected === undefined || expected === headerSum(entries, metadata)) return;
  throw brokenFile(LENGTH_BYTES, 'has a header that does not match its SHA-256 sum');
}

/** @internal Refuses the bytes of a tensor when the file has another sum for them. */
export function verifyTensor(header: Header, name: string, sum: Hash): void {
  const expected = header.metadata.get(`${SUM}:${name}`);
  if (expected === undefined || expected === sum.digest('hex')) return;
  const { begin } = header.entries.get(name)!;
  throw brokenFile(
    header.dataStart + begin,
    `has data of ${JSON.stringify(name)} that do not match their SHA-256 sum`,
  );
}

/** @internal The tensors that the options ask for, in the order of their bytes. */
export function chosen(
  op: string,
  header: Header,
  names: readonly string[] | undefined,
): [string, TensorEntry, DType][] {
  if (names !== undefined && !Array.isArray(names))
    throw wrongType(op, 'names', names, 'an array of strings');
  const missing = names?.find((name) => !header.entries.has(name));
  if (missing !== undefined) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'names',
      `lists a tensor the file lacks; got ${describe(missing)}, expected one of its ${header.entries.size} names`,
    );
  }
  const wanted = new Set(names ?? header.entries.keys());
  return [...header.entries]
    .filter(([name]) => wanted.has(name))
    .sort(([, a], [, b]) => a.begin - b.begin)
    .map(([name, entry]) => {
      const dtype = DTYPES.get(entry.dtype);
      if (dtype !== undefined) return [name, entry, dtype];
      throw varlenError(
        'ERR_VARLEN_UNSUPPORTED',
        `${op}: no tensor of ours holds ${entry.dtype}; got it in ${JSON.stringify(name)}, expected ${[...DTYPES.keys()].join(', ')} (\`names\` can leave it out)`,
        {
          op,
          feature: entry.dtype,
          name,
        },
      );
    });
}

/** @internal The user's metadata without our sums. */
export function publicMetadata(metadata: ReadonlyMap<string, string>): Record<string, string> {
  const shown: Record<string, string> = Object.create(null);
  for (const [key, value] of metadata) if (key !== SUM && !key.startsWith(`${SUM}:`)) shown[key] = value;
  return Object.freeze(shown);
}

/**
 * The tensors in the bytes of a safetensors file. Nothing in the file is believed before it was checked,
 * and nothing is allocated before that. The arrays are views of `bytes` where alignment allows.
 *
 * @throws `ERR_VARLEN_SAFETENSORS` (`details.offset` is the byte at fault), `ERR_VARLEN_UNSUPPORTED` (an
 *   element type that {@link Tensor} lacks), `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_BUFFER`
 *
 * @example
 * ```ts
 * const { tensors } = fromSafetensors(toSafetensors({ w: { data: new Float32Array(6), shape: [2, 3] } }));
 * using w = Tensor.from(tensors.w);
 * ```
 */
export function fromSafetensors(bytes: Uint8Array, options?: SafetensorsReadOptions): Safetensors {
  const op = 'fromSafetensors';
  const { names, verify = true } = readOptions<SafetensorsReadOptions>(op, options, ['names', 'verify']);
  if (!(bytes instanceof Uint8Array)) throw wrongType(op, 'bytes', bytes, 'a Uint8Array');
  checkBuffer(op, 'bytes', bytes);
  const headerEnd = LENGTH_BYTES + readHeaderLength(bytes, bytes.length);
  const header = parseHeader(bytes.subarray(LENGTH_BYTES, headerEnd), bytes.length);
  if (verify) verifyHeader(header);
  const tensors: Record<string, SafetensorsEntry> = Object.create(null);
  for (const [name, { shape, begin, end }, dtype] of chosen(op, header, names)) {
    const raw = bytes.subarray(header.dataStart + begin, header.dataStart + end);
    if (verify) verifyTensor(header, name, newSum().update(raw));
    tensors[name] = Object.freeze({ dtype, shape: Object.freeze([...shape]), data: asElements(raw, dtype) });
  }
  return Object.freeze({ tensors: Object.freeze(tensors), metadata: publicMetadata(header.metadata) });
}

/** The same memory as elements of `dtype`, or a copy when it is not aligned for them. */
function asElements(raw: Uint8Array, dtype: DType): TypedArray {
  const size = bytesOf(dtype);
  const length = raw.byteLength / size;
  if (raw.byteOffset % size === 0) {
    const ArrayType = newArray(dtype, 0).constructor as new (
      b: ArrayBufferLike,
      at: number,
      n: number,
    ) => TypedArray;
    return new ArrayType(raw.buffer, raw.byteOffset, length);
  }
  const copy = newArray(dtype, length);
  bytesOfArray(copy).set(raw);
  return copy;
}

/** @internal The memory of an array as bytes. */
export function bytesOfArray(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

/** @internal A tensor to write: what the header says of it, and where its elements come from. */
export interface Part {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly source: Tensor | ArrayBufferView;
}

function readPart(op: string, name: string, value: unknown): Part {
  if (value instanceof Tensor) {
    const { dtype, shape, byteLength } = value;
    return { name, dtype, shape, byteLength, source: value };
  }
  if (typeof value !== 'object' || value === null)
    throw wrongType(op, name, value, 'a Tensor or a tensor-like object');
  const { data, dtype: wanted, shape } = readTensorLike(op, value);
  checkBuffer(op, name, data);
  const dtype = naturalDType(op, data, wanted as DType | undefined);
  if (wanted !== undefined && wanted !== dtype) {
    throw argumentError(
      'ERR_VARLEN_DTYPE',
      op,
      name,
      `has other elements than it says; got ${describe(data)}, expected those of ${describe(wanted)}`,
    );
  }
  const expected = shape.reduce((product, size) => product * size, bytesOf(dtype));
  if (expected !== data.byteLength) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      op,
      name,
      `does not fit its shape; got ${data.byteLength} bytes for [${shape}], expected ${expected}`,
    );
  }
  return { name, dtype, shape, byteLength: data.byteLength, source: data };
}

/** @internal What there is to write, wide elements first: each array then starts at a multiple of its element size. */
export function readParts(op: string, source: SafetensorsSource): Part[] {
  if (typeof source !== 'object' || source === null)
    throw wrongType(op, 'tensors', source, 'an object or a Map of tensors');
  const named: [string, unknown][] = source instanceof Map ? [...source] : Object.entries(source);
  for (const [name] of named) {
    if (typeof name === 'string' && name !== '__metadata__' && !/\p{Surrogate}/u.test(name)) continue;
    throw argumentError(
      'ERR_VARLEN_OPTION',
      op,
      'tensors',
      `has a name the format cannot hold; got ${describe(name)}, expected well-formed text other than '__metadata__'`,
    );
  }
  const parts = named.map(([name, value]) => readPart(op, name, value));
  return parts.sort((a, b) => bytesOf(b.dtype) - bytesOf(a.dtype) || (a.name < b.name ? -1 : 1));
}

function readUserMetadata(op: string, metadata: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(metadata).map(([key, value]) => {
    if (typeof value !== 'string') throw wrongType(op, `metadata.${key}`, value, 'a string');
    if (key === SUM || key.startsWith(`${SUM}:`)) {
      throw argumentError(
        'ERR_VARLEN_OPTION',
        op,
        `metadata.${key}`,
        `is reserved for sums; got it from the caller, expected another key`,
      );
    }
    return [key, value];
  });
}

/**
 * @internal The first bytes of a file, up to the data: length and header, padded with spaces to a
 * multiple of 8. Its length depends on names and shapes only, so it can be written before the sums are known.
 */
export function makeHeader(
  op: string,
  parts: readonly Part[],
  metadata: Readonly<Record<string, string>>,
  sums: ReadonlyMap<string, string>,
): Uint8Array {
  const all = new Map(readUserMetadata(op, metadata));
  const entries = new Map<string, TensorEntry>();
  let end = 0;
  for (const { name, dtype, shape, byteLength } of parts) {
    all.set(`${SUM}:${name}`, sums.get(name) ?? ''.padEnd(64, '0'));
    const begin = end;
    end += byteLength;
    entries.set(name, { dtype: WORDS[dtype], shape, begin, end });
  }
  all.set(SUM, headerSum(entries, all));
  // Joined by hand: as keys of an object, names like '10' would change places and '__proto__' vanish.
  const member = (key: string, value: unknown): string => `${JSON.stringify(key)}:${JSON.stringify(value)}`;
  const described = [...entries].map(([name, { dtype, shape, begin, end }]) =>
    member(name, { dtype, shape, data_offsets: [begin, end] }),
  );
  const sumsAndMore = `"__metadata__":{${[...all].map(([key, value]) => member(key, value)).join(',')}}`;
  const text = new TextEncoder().encode(`{${[sumsAndMore, ...described].join(',')}}`);
  const length = Math.ceil(text.length / 8) * 8;
  if (length > MAX_HEADER_BYTES) {
    throw argumentError(
      'ERR_VARLEN_OVERFLOW',
      op,
      'tensors',
      `need a header of ${length} bytes; got more than the format allows, expected at most ${MAX_HEADER_BYTES}`,
    );
  }
  const header = new Uint8Array(LENGTH_BYTES + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(text, LENGTH_BYTES);
  return header;
}

/**
 * The bytes of a safetensors file with `tensors` and their SHA-256 sums. The same tensors give the same
 * bytes. A {@link Tensor} is read as `dataSync()` does, blocking; `writeSafetensors` does not block.
 *
 * @param metadata text to keep with them
 * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_OPTION` (a reserved name),
 *   `ERR_VARLEN_BUFFER`, `ERR_VARLEN_DISPOSED`, `ERR_VARLEN_OVERFLOW`
 *
 * @example
 * ```ts
 * const bytes = toSafetensors({ scale: { data: Float32Array.of(1, 2), shape: [2] } }, { step: '100' });
 * ```
 */
export function toSafetensors(
  tensors: SafetensorsSource,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array {
  const op = 'toSafetensors';
  const parts = readParts(op, tensors);
  const arrays = parts.map(({ source }) =>
    bytesOfArray(source instanceof Tensor ? source.dataSync() : source),
  );
  const sums = new Map(parts.map(({ name }, i) => [name, newSum().update(arrays[i]).digest('hex')]));
  const header = makeHeader(op, parts, metadata, sums);
  const bytes = new Uint8Array(header.length + arrays.reduce((total, { length }) => total + length, 0));
  bytes.set(header);
  let at = header.length;
  for (const array of arrays) {
    bytes.set(array, at);
    at += array.length;
  }
  return bytes;
}
