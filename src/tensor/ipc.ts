import { checkInteger, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { ipc, type NativeIpcExport } from '../native/binding.js';
import { Device } from './device.js';
import { bytesOf, checkDType, type DType } from './dtype.js';

/**
 * Where another process finds a tensor of a GPU: a plain object for `process.send`, a socket or a file, also as
 * JSON. Made by {@link Tensor.ipcHandle}, opened by {@link Tensor.fromIpc}.
 */
export interface IpcHandle {
  /** The exporting process. */
  readonly pid: number;
  /** Of the export, for {@link releaseIpc} in that process. */
  readonly id: number;
  /** UUID of the GPU, 32 hexadecimal digits: processes may number GPUs differently. */
  readonly deviceUuid: string;
  /** CUDA's handle of the allocation that the tensor lies in, 128 hexadecimal digits. */
  readonly segment: string;
  readonly segmentBytes: number;
  /** Of the tensor in that allocation. */
  readonly byteOffset: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** The message for an export. */
export function messageOf(
  device: Device,
  { id, segment, segmentBytes, byteOffset }: NativeIpcExport,
  dtype: DType,
  shape: readonly number[],
): IpcHandle {
  const deviceUuid = hex(ipc.uuid(device.index));
  return { pid: process.pid, id, deviceUuid, segment: hex(segment), segmentBytes, byteOffset, dtype, shape };
}

function checkHex(op: string, argument: string, value: unknown, bytes: number): void {
  if (typeof value !== 'string') throw wrongType(op, argument, value, 'a string');
  if (new RegExp(`^[0-9a-f]{${2 * bytes}}$`).test(value)) return;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    op,
    argument,
    `is malformed; got '${value.slice(0, 200)}', expected ${2 * bytes} hexadecimal digits`,
  );
}

/** A message from another process, read once and checked; its shape only for being one. */
export function readMessage(op: string, message: unknown): IpcHandle {
  if (typeof message !== 'object' || message === null) throw wrongType(op, 'handle', message, 'an IpcHandle');
  const { pid, id, deviceUuid, segment, segmentBytes, byteOffset, dtype, shape } = message as IpcHandle;
  checkInteger(op, 'handle.pid', pid, 1);
  checkInteger(op, 'handle.id', id, 1);
  checkHex(op, 'handle.deviceUuid', deviceUuid, 16);
  checkHex(op, 'handle.segment', segment, 64);
  checkInteger(op, 'handle.segmentBytes', segmentBytes, 1);
  checkInteger(op, 'handle.byteOffset', byteOffset, 0, segmentBytes);
  checkDType(op, 'handle.dtype', dtype);
  return { pid, id, deviceUuid, segment, segmentBytes, byteOffset, dtype, shape };
}

/** Refuses a tensor that does not lie in its segment. `shape` was read from the handle. */
export function checkExtent(op: string, handle: IpcHandle, shape: readonly number[]): void {
  const { byteOffset, segmentBytes, dtype } = handle;
  const bytes = shape.reduce((product, size) => product * size, bytesOf(dtype));
  if (byteOffset % bytesOf(dtype) === 0 && byteOffset + bytes <= segmentBytes) return;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    op,
    'handle.shape',
    `leaves its allocation; got ${bytes} bytes at ${byteOffset}, expected whole elements within ${segmentBytes}`,
  );
}

/** The GPU of this process that the exporter means. */
export function deviceOf(op: string, { deviceUuid }: IpcHandle): Device {
  Device.cuda(); // no CUDA at all is an error of its own
  const gpus = Device.list().filter(({ kind }) => kind === 'cuda');
  const device = gpus.find(({ index }) => hex(ipc.uuid(index)) === deviceUuid);
  if (device !== undefined) return device;
  throw argumentError(
    'ERR_VARLEN_DEVICE',
    op,
    'handle.deviceUuid',
    `names no GPU of this process; got ${deviceUuid}, expected one of ${gpus.map(({ index }) => hex(ipc.uuid(index))).join(', ')}`,
  );
}

/** Refuses a handle of this very process, and one whose process is gone. */
export function checkPeer(op: string, { pid }: IpcHandle): void {
  if (pid === process.pid) {
    throw argumentError(
      'ERR_VARLEN_INCOMPATIBLE',
      op,
      'handle',
      `was made by this process; got pid ${pid}, expected another one's: here the tensor itself will do, or toDLPack()`,
    );
  }
  try {
    process.kill(pid, 0);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ESRCH') return; // it lives, as another user
    throw varlenError(
      'ERR_VARLEN_DIST_PEER_LOST',
      `${op}: handle comes from a process that is gone; got pid ${pid}, expected one that runs`,
      { op, argument: 'handle', pid },
      { cause },
    );
  }
}

/**
 * Gives the memory of an exported tensor free again, once the importers are done with it: to be called in the
 * process that made the handle. Without it the memory stays until that process ends, also when the tensor is
 * disposed.
 *
 * @returns false when it was released before
 * @throws `ERR_VARLEN_INCOMPATIBLE` when another process made the handle
 *
 * @example
 * ```ts
 * const handle = await tensor.ipcHandle();
 * child.send(handle);
 * child.once('message', () => releaseIpc(handle)); // the child has disposed its tensor
 * ```
 */
export function releaseIpc(handle: IpcHandle): boolean {
  const op = 'releaseIpc';
  const { pid, id } = readMessage(op, handle);
  if (pid === process.pid) return ipc.end(id);
  throw argumentError(
    'ERR_VARLEN_INCOMPATIBLE',
    op,
    'handle',
    `was made by another process; got pid ${pid}, expected ${process.pid}, which keeps the memory`,
  );
}
