import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** test/tensor/dlpack-peer.c: another library of this process that speaks DLPack. */

interface Peer {
  make(fields: BigInt64Array, shape: BigInt64Array, strides: BigInt64Array, bytes: Uint8Array): bigint;
  read(pointer: bigint, versioned: bigint): bigint[];
  peek(address: bigint, target: Uint8Array): void;
  release(pointer: bigint, versioned: bigint): void;
  deleted(): number;
}

const folder = mkdtempSync(join(tmpdir(), 'varlen-dlpack-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const library = join(folder, 'dlpack-peer.node');
const required = createRequire(import.meta.url);
const headers = required('node-api-headers').include_dir as string;
const source = join(import.meta.dirname, '../tensor/dlpack-peer.c');
execFileSync('cc', ['-shared', '-fPIC', '-O1', '-Wall', '-Wextra', `-I${headers}`, '-o', library, source], {
  env: { ...process.env, LD_PRELOAD: '' }, // a preloaded sanitizer would report the compiler's leaks
});
const peer = required(library) as Peer;

/** What the other library says of a tensor; by default 2 x 3 float32 on the CPU, of version 1. */
export interface PeerTensor {
  versioned?: boolean;
  major?: number;
  flags?: number;
  deviceType?: number;
  deviceId?: number;
  code?: number;
  bits?: number;
  lanes?: number;
  byteOffset?: number;
  shape?: readonly number[];
  strides?: readonly number[];
  /** At most 256 bytes, copied. */
  bytes?: Uint8Array;
  /** Memory that is there already, instead of `bytes`. */
  data?: bigint;
}

const whole = (values: readonly number[], count: number) =>
  BigInt64Array.from({ length: count }, (_, i) => BigInt(values[i] ?? 0));

/** A struct of the other library, by its address. */
export function makePeerTensor(tensor: PeerTensor = {}): bigint {
  const { shape = [2, 3], strides = [3, 1], bytes = new Uint8Array(0), data = 0n } = tensor;
  const { versioned = true, major = 1, flags = 0, deviceType = 1, deviceId = 0 } = tensor;
  const { code = 2, bits = 32, lanes = 1, byteOffset = 0 } = tensor;
  const fields = whole(
    [versioned ? 1 : 0, major, flags, deviceType, deviceId, code, bits, lanes, byteOffset, shape.length],
    11,
  );
  fields[10] = data;
  const own = new Uint8Array(256);
  own.set(bytes);
  return peer.make(fields, whole(shape, 8), whole(strides, 8), own);
}

/** How the other library reads a struct. */
export function readByPeer(pointer: bigint, versioned = true): Required<Omit<PeerTensor, 'bytes'>> {
  const facts = peer.read(pointer, versioned ? 1n : 0n);
  const [major, flags, deviceType, deviceId, code, bits, lanes, byteOffset] = facts.map(Number);
  const rank = Number(facts[9]);
  const data = facts[8];
  const shape = facts.slice(10, 10 + rank).map(Number);
  const strides = facts.slice(10 + rank).map(Number);
  return {
    versioned,
    major,
    flags,
    deviceType,
    deviceId,
    code,
    bits,
    lanes,
    byteOffset,
    data,
    shape,
    strides,
  };
}

/** Memory as the other library sees it. */
export function peekByPeer(address: bigint, bytes: number): Uint8Array {
  const target = new Uint8Array(bytes);
  peer.peek(address, target);
  return target;
}

/** The other library is done with a struct. */
export function releaseByPeer(pointer: bigint, versioned = true): void {
  peer.release(pointer, versioned ? 1n : 0n);
}

/** How many of its own structs it was asked to delete so far. */
export const deletedByPeer = (): number => peer.deleted();
