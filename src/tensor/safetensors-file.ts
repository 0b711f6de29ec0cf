import { randomBytes } from 'node:crypto';
import { constants, type FileHandle, open, rename, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { readOptions, wrongType } from '../check.js';
import { VarlenError, varlenError } from '../errors.js';
import {
  bytesOfArray,
  chosen,
  makeHeader,
  newSum,
  type Part,
  publicMetadata,
  readParts,
  type Safetensors,
  type SafetensorsEntry,
  type SafetensorsReadOptions,
  type SafetensorsSource,
  verifyHeader,
  verifyTensor,
} from './safetensors.js';
import {
  brokenFile,
  type Header,
  LENGTH_BYTES,
  parseHeader,
  readHeaderLength,
} from './safetensors-header.js';
import { allocate, Tensor } from './tensor.js';

/** Safetensors files: read without trust, written so that a crash leaves the old file or the new one. */

/** A step of reading, hashing or writing; hashing this much blocks the event loop for a few milliseconds. */
const CHUNK_BYTES = 1 << 20;

/** Failures of the system become ours; our own pass through. */
async function asIo<T>(op: string, path: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof VarlenError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    // A system error has a code like ENOSPC; anything else is a bug and stays what it is.
    if (code === undefined) throw cause;
    throw varlenError(
      'ERR_VARLEN_IO',
      `${op}: ${path}: ${message}`,
      { op, argument: 'path', path, code },
      { cause },
    );
  }
}

/** Fills `target` from `position` on. A file that ends early has shrunk since its size was asked. */
async function readFully(
  file: FileHandle,
  target: Uint8Array,
  position: number,
  each?: (chunk: Uint8Array) => void,
): Promise<void> {
  for (let done = 0; done < target.length; ) {
    const length = Math.min(CHUNK_BYTES, target.length - done);
    const { bytesRead } = await file.read(target, done, length, position + done);
    if (bytesRead === 0) throw brokenFile(position + done, 'ended while it was read');
    each?.(target.subarray(done, done + bytesRead));
    done += bytesRead;
  }
}

async function writeFully(
  file: FileHandle,
  source: Uint8Array,
  position: number,
  each?: (chunk: Uint8Array) => void,
): Promise<void> {
  for (let done = 0; done < source.length; ) {
    const length = Math.min(CHUNK_BYTES, source.length - done);
    const { bytesWritten } = await file.write(source, done, length, position + done);
    each?.(source.subarray(done, done + bytesWritten));
    done += bytesWritten;
  }
}

async function readHeader(file: FileHandle, verify: boolean): Promise<Header> {
  const { size } = await file.stat();
  const start = new Uint8Array(LENGTH_BYTES);
  await readFully(file, start.subarray(0, Math.min(size, LENGTH_BYTES)), 0);
  const bytes = new Uint8Array(readHeaderLength(start, size));
  await readFully(file, bytes, LENGTH_BYTES);
  const header = parseHeader(bytes, size);
  if (verify) verifyHeader(header);
  return header;
}

async function readFrom(op: string, file: FileHandle, options: SafetensorsReadOptions): Promise<Safetensors> {
  const { names, verify = true } = options;
  const header = await readHeader(file, verify);
  const tensors: Record<string, SafetensorsEntry> = Object.create(null);
  for (const [name, { shape, begin }, dtype] of chosen(op, header, names)) {
    const data = allocate(
      op,
      dtype,
      shape.reduce((product, n) => product * n, 1),
    );
    const sum = newSum();
    const update = verify ? (chunk: Uint8Array): void => void sum.update(chunk) : undefined;
    await readFully(file, bytesOfArray(data), header.dataStart + begin, update);
    if (verify) verifyTensor(header, name, sum);
    tensors[name] = Object.freeze({ dtype, shape: Object.freeze([...shape]), data });
  }
  return Object.freeze({ tensors: Object.freeze(tensors), metadata: publicMetadata(header.metadata) });
}

/** Reads everything once and compares the sums, keeping nothing. */
async function checkFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    const header = await readHeader(file, true);
    const buffer = new Uint8Array(CHUNK_BYTES);
    for (const [name, { begin, end }] of header.entries) {
      const sum = newSum();
      for (let at = begin; at < end; at += CHUNK_BYTES) {
        const chunk = buffer.subarray(0, Math.min(CHUNK_BYTES, end - at));
        await readFully(file, chunk, header.dataStart + at);
        sum.update(chunk);
      }
      verifyTensor(header, name, sum);
    }
  } finally {
    await file.close();
  }
}

async function readFile(op: string, path: string, options: SafetensorsReadOptions): Promise<Safetensors> {
  const file = await open(path, 'r');
  try {
    return await readFrom(op, file, options);
  } finally {
    await file.close();
  }
}

/**
 * The tensors in a safetensors file; with `names`, only those are read. Reads, never maps: a file that
 * shrinks meanwhile is an error, not a crash.
 *
 * @throws as {@link fromSafetensors}; `ERR_VARLEN_IO` with the system's error as `cause`
 *
 * @example
 * ```ts
 * const { tensors } = await readSafetensors('model.safetensors', { names: ['embed.weight'] });
 * using embed = Tensor.from(tensors['embed.weight'], { device: 'cpu' });
 * ```
 */
export async function readSafetensors(path: string, options?: SafetensorsReadOptions): Promise<Safetensors> {
  const op = 'readSafetensors';
  if (typeof path !== 'string') throw wrongType(op, 'path', path, 'a string');
  const known = readOptions<SafetensorsReadOptions>(op, options, ['names', 'verify']);
  return asIo(op, path, readFile(op, path, known));
}

/** Writes header, data, and the header again once the sums are known; then makes sure it is on the disk. */
async function writeTo(
  op: string,
  file: FileHandle,
  parts: readonly Part[],
  metadata: Readonly<Record<string, string>>,
): Promise<void> {
  const sums = new Map<string, string>();
  const placeholder = makeHeader(op, parts, metadata, sums);
  await writeFully(file, placeholder, 0);
  let position = placeholder.length;
  for (const { name, source } of parts) {
    // One tensor at a time: the file may be larger than what fits beside it.
    const bytes = bytesOfArray(source instanceof Tensor ? await source.data() : source);
    const sum = newSum();
    await writeFully(file, bytes, position, (chunk) => void sum.update(chunk));
    sums.set(name, sum.digest('hex'));
    position += bytes.length;
  }
  await writeFully(file, makeHeader(op, parts, metadata, sums), 0);
  await file.datasync();
}

async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return; // folders cannot be opened there; the rename is journalled
  const handle = await open(folder, constants.O_RDONLY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function replaceFile(
  op: string,
  path: string,
  parts: readonly Part[],
  metadata: Readonly<Record<string, string>>,
): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${randomBytes(6).toString('hex')}.tmp`);
  const file = await open(temporary, 'wx', 0o600);
  try {
    try {
      await writeTo(op, file, parts, metadata);
    } finally {
      await file.close();
    }
    // The old file stays until the new one is known to be readable and right.
    await checkFile(temporary);
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
  await syncFolder(folder);
}

/**
 * Writes `tensors` and their SHA-256 sums to a file, mode 0600. At any moment, also after a crash, `path`
 * is either what it was or complete: the bytes go to a new file in the same folder, are flushed and read
 * back, and only then take the name. A process that is killed meanwhile leaves a `.<name>.<random>.tmp`.
 *
 * @throws as {@link toSafetensors}; `ERR_VARLEN_IO` with the system's error as `cause`, the old file intact
 *
 * @example
 * ```ts
 * await writeSafetensors('checkpoint.safetensors', { weight }, { step: '100' });
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: SafetensorsSource,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const op = 'writeSafetensors';
  if (typeof path !== 'string') throw wrongType(op, 'path', path, 'a string');
  const parts = readParts(op, tensors);
  await asIo(op, path, replaceFile(op, path, parts, metadata));
}
