import { constants } from 'node:buffer';
import { checkInteger, readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import * as native from '../native/binding.js';
import { Device, type DeviceLike } from './device.js';
import { bytesOf } from './dtype.js';
import { type Event, Stream } from './stream.js';
import { allocate, streamFor, Tensor } from './tensor.js';

/** Options of {@link PinnedBuffer.copyTo} and {@link PinnedBuffer.copyFrom}. */
export interface PinnedCopyOptions {
  /** Where the tensor's bytes begin in the buffer, a multiple of its element's bytes. Default 0. */
  byteOffset?: number;
  /** Default: the device's own. */
  stream?: Stream;
}

/**
 * Page-locked host memory of a GPU, as a plain `ArrayBuffer`. The GPU reads and writes it by itself, without
 * the copy through the package's own pinned memory that {@link Tensor.from} and {@link Tensor.data} need:
 * fill a batch where it will be sent from, or read into the same memory every step.
 *
 * Page-locked memory is taken from the whole machine: make few of them and use them again. A copy under way
 * keeps the memory, also after `dispose()`; what JavaScript reads or writes meanwhile is its own affair.
 *
 * @example
 * ```ts
 * using pinned = new PinnedBuffer(4 * 1024);
 * const values = new Float32Array(pinned.buffer);
 * values.fill(1);
 * using t = Tensor.empty([1024], { dtype: 'float32', device: 'cuda' });
 * await pinned.copyTo(t).done(); // from here on `values` may be written again
 * await pinned.copyFrom(t);
 * ```
 */
export class PinnedBuffer implements Disposable {
  readonly device: Device;
  readonly byteLength: number;
  /**
   * False where the JavaScript runtime forbids buffers over native memory (Electron, V8's sandbox): `buffer` is
   * then ordinary memory, and every copy passes through pinned memory of the package's own.
   */
  readonly zeroCopy: boolean;
  #buffer: ArrayBuffer | undefined;

  /**
   * @param byteLength at least 1; the memory starts as zeros
   * @param device the GPU that it is for
   * @throws `ERR_VARLEN_NO_CUDA`, `ERR_VARLEN_DEVICE_INDEX`, `ERR_VARLEN_DEVICE` (the CPU),
   *   `ERR_VARLEN_RANGE` (more than an ArrayBuffer holds), `ERR_VARLEN_OUT_OF_MEMORY`, `ERR_VARLEN_DEVICE_LOST`
   */
  constructor(byteLength: number, device: DeviceLike = 'cuda') {
    const op = 'PinnedBuffer';
    checkInteger(op, 'byteLength', byteLength, 1, constants.MAX_LENGTH);
    this.device = Device.resolve(device);
    if (this.device.kind === 'cpu') {
      throw argumentError(
        'ERR_VARLEN_DEVICE',
        op,
        'device',
        `copies to no other device; got '${this.device}', expected a GPU`,
      );
    }
    this.byteLength = byteLength;
    const shared = native.pinned.open(this.device.index, byteLength);
    this.zeroCopy = shared !== undefined;
    this.#buffer = shared ?? (allocate(op, 'uint8', byteLength).buffer as ArrayBuffer);
  }

  /**
   * The memory, for typed arrays over it. Empty once this is disposed.
   *
   * @throws `ERR_VARLEN_DISPOSED`
   */
  get buffer(): ArrayBuffer {
    return this.#live('PinnedBuffer.buffer');
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#buffer === undefined;
  }

  #live(op: string): ArrayBuffer {
    if (this.#buffer !== undefined) return this.#buffer;
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: this was disposed`, { op, argument: 'this' });
  }

  /** What both copies check. */
  #readCopy(op: string, argument: string, tensor: Tensor, options: PinnedCopyOptions | undefined) {
    const buffer = this.#live(op);
    if (!(tensor instanceof Tensor)) throw wrongType(op, argument, tensor, 'a Tensor');
    const known = readOptions(op, options, ['byteOffset', 'stream']);
    const { byteOffset = 0 } = known;
    if (tensor.device !== this.device) {
      throw argumentError(
        'ERR_VARLEN_DEVICE',
        op,
        argument,
        `is on another device than the buffer's; got '${tensor.device}', expected '${this.device}'`,
      );
    }
    checkInteger(op, 'byteOffset', byteOffset, 0);
    if (byteOffset + tensor.byteLength > this.byteLength) {
      throw argumentError(
        'ERR_VARLEN_RANGE',
        op,
        argument,
        `does not fit the buffer; got ${tensor.byteLength} bytes at ${byteOffset}, expected at most ${this.byteLength} in all`,
      );
    }
    if (byteOffset % bytesOf(tensor.dtype) !== 0) {
      throw argumentError(
        'ERR_VARLEN_BUFFER',
        op,
        'byteOffset',
        `is misaligned; got ${byteOffset}, expected a multiple of the bytes of a ${tensor.dtype}`,
      );
    }
    const stream = known.stream ?? Stream.of(this.device);
    return { buffer, byteOffset, stream, id: streamFor(op, this.device, stream) };
  }

  /**
   * Enqueues `target = ` the bytes of this buffer. The elements are those at the moment when the stream
   * comes there: write the buffer again only when the event is done.
   *
   * @param target a contiguous tensor on this buffer's GPU
   * @returns the point in the stream's order at which the copy is done. A copy that fails rejects where
   *   `target` is read
   * @throws `ERR_VARLEN_DISPOSED`, `ERR_VARLEN_DEVICE`, `ERR_VARLEN_RANGE` (does not fit), `ERR_VARLEN_BUFFER`
   *   (misaligned offset), `ERR_VARLEN_LAYOUT`, `ERR_VARLEN_DEVICE_LOST`
   */
  copyTo(target: Tensor, options?: PinnedCopyOptions): Event {
    const { buffer, byteOffset, stream, id } = this.#readCopy(
      'PinnedBuffer.copyTo',
      'target',
      target,
      options,
    );
    native.pinned.copyTo(buffer, byteOffset, target.handle, id);
    return stream.record();
  }

  /**
   * Reads a tensor into this buffer, row-major, once the work that makes it is done.
   *
   * @param source a tensor on this buffer's GPU
   * @returns resolves when the bytes are there; rejects with the failure of the op that should have made
   *   them, or of the copy
   * @throws as {@link PinnedBuffer.copyTo}, all of it by rejecting; strided tensors are read
   */
  async copyFrom(source: Tensor, options?: PinnedCopyOptions): Promise<void> {
    const op = 'PinnedBuffer.copyFrom';
    const { buffer, byteOffset, id } = this.#readCopy(op, 'source', source, options);
    if (this.zeroCopy) return native.pinned.copyFrom(buffer, byteOffset, source.handle, id);
    // Into memory that nobody can take away meanwhile.
    const bytes = await native.read(source.handle, allocate(op, source.dtype, source.size));
    if (this.#buffer === undefined) return;
    const { buffer: read, byteLength } = bytes as Uint8Array;
    new Uint8Array(this.#buffer, byteOffset, byteLength).set(new Uint8Array(read, 0, byteLength));
  }

  /** Gives the memory back once no copy uses it, and empties `buffer`. Twice is once. */
  dispose(): void {
    if (this.#buffer === undefined) return;
    native.pinned.dispose(this.#buffer);
    this.#buffer = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
