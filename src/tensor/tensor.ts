import { inspect } from 'node:util';
import { checkBoolean, checkInteger, describe, readOptions, wrongType } from '../check.js';
import { argumentError, type VarlenError, varlenError } from '../errors.js';
import * as native from '../native/binding.js';
import { Device, type DeviceLike } from './device.js';
import { DLPackHandle, type DLPackHandleOptions } from './dlpack.js';
import {
  bytesOf,
  checkDType,
  type DType,
  type Float16ArrayLike,
  naturalDType,
  newArray,
  type TypedArray,
} from './dtype.js';
import { checkExtent, checkPeer, deviceOf, type IpcHandle, messageOf, readMessage } from './ipc.js';
import { abandon, adopt, adoptAsOurs, debug } from './lifetime.js';
import { Stream } from './stream.js';
import { backward, dropNode, isTracked, passOn, record, type TapeNode } from './tape.js';
import { readTensorLike, type TensorLike } from './tensor-like.js';

/** Options of {@link Tensor.from}. */
export interface TensorFromOptions {
  /** Default `[data.length]`. */
  shape?: readonly number[];
  /** Default: the array's own. Required for a `Uint16Array`. Another one converts, rounding to nearest even. */
  dtype?: DType;
  /** Default `'auto'`. */
  device?: DeviceLike;
  /** The stream that will use it first; default: the device's own. */
  stream?: Stream;
  /** Record what is computed from it, so that `backward()` fills `grad`. Default false. */
  requiresGrad?: boolean;
}

/** Options of {@link Tensor.empty}. */
export interface TensorEmptyOptions {
  dtype: DType;
  /** Default `'auto'`. */
  device?: DeviceLike;
  stream?: Stream;
  requiresGrad?: boolean;
}

/** Native tensors have at most this many dimensions. */
const MAX_RANK = 6;

/** A copy of a shape, read once: an array may be a Proxy that answers differently the next time. */
function readShape(op: string, shape: unknown): number[] {
  if (!Array.isArray(shape)) throw wrongType(op, 'shape', shape, 'an array of numbers');
  const rank = shape.length;
  if (rank > MAX_RANK) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      op,
      'shape',
      `has too many dimensions; got ${rank}, expected at most ${MAX_RANK}`,
    );
  }
  return Array.from({ length: rank }, (_, i) => {
    const size: unknown = shape[i];
    checkInteger(op, `shape[${i}]`, size, 0);
    return size as number;
  });
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Refuses what is no boolean, and gradients of integers. */
function readRequiresGrad(op: string, requiresGrad: unknown, dtype: DType): boolean {
  if (requiresGrad === undefined) return false;
  checkBoolean(op, 'requiresGrad', requiresGrad);
  if (!requiresGrad || dtype.includes('float')) return requiresGrad;
  throw argumentError(
    'ERR_VARLEN_DTYPE',
    op,
    'requiresGrad',
    `needs a floating-point tensor; got '${dtype}', expected a float dtype`,
  );
}

/** A copy, when native code could not read the memory itself. */
function unshared(data: ArrayBufferView): ArrayBufferView {
  if (typeof SharedArrayBuffer === 'undefined') return data;
  if (!((data.buffer as unknown) instanceof SharedArrayBuffer)) return data;
  return (data as unknown as TypedArray).slice();
}

/** @internal An allocation of JavaScript memory that fails is an error of ours like any other. */
export function allocate(op: string, dtype: DType, size: number): TypedArray {
  try {
    return newArray(dtype, size);
  } catch (cause) {
    const requestedBytes = size * bytesOf(dtype);
    throw varlenError(
      'ERR_VARLEN_OUT_OF_MEMORY',
      `${op}: no JavaScript memory for the elements; got a request of ${requestedBytes} bytes, expected one that fits`,
      { op, requestedBytes },
      { cause },
    );
  }
}

/**
 * Numbers on a device, in row-major order. Ops take tensors and return tensors at once; the work runs
 * later, in order, on the device's stream, and {@link Tensor.data} waits for it.
 *
 * A tensor holds native memory until `dispose()`; `using` and {@link scope} call it for you.
 *
 * @example
 * ```ts
 * using t = Tensor.from(new Float32Array([1, 2, 3, 4]), { shape: [2, 2] });
 * console.log(t.shape, await t.data());
 * ```
 */
export class Tensor extends native.HandleOwner implements Disposable {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  /**
   * Sum of the gradients that `backward()` brought here, float32; `null` until then. Dispose it, or set it
   * to `null`, to start anew. It goes with this tensor: to keep it longer, take it and set this to `null`.
   */
  grad: Tensor | null = null;
  #handle: number;
  #requiresGrad: boolean;
  #source: { readonly node: TapeNode; readonly output: number } | undefined;
  readonly #madeAt: Error | undefined;

  /** @internal Wraps what the native side made. */
  constructor(made: native.NativeTensor, device: Device, requiresGrad = false) {
    super();
    this.shape = Object.freeze(made.shape);
    this.dtype = made.dtype;
    this.device = device;
    this.#handle = made.handle;
    this.#requiresGrad = requiresGrad;
    this.#madeAt = debug ? new Error('the tensor was made here') : undefined;
    adopt(this, made.handle, this.#madeAt?.stack);
  }

  /**
   * A tensor with a copy of `data`.
   *
   * @param data a typed array, or a tensor of `onnxruntime`, `transformers.js` and their like
   * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_RANGE`,
   *   `ERR_VARLEN_BUFFER` (detached or resizable), `ERR_VARLEN_OPTION`, `ERR_VARLEN_NO_CUDA`,
   *   `ERR_VARLEN_OUT_OF_MEMORY`
   */
  static from(data: TypedArray | Float16ArrayLike | TensorLike, options?: TensorFromOptions): Tensor {
    const op = 'Tensor.from';
    const known = readOptions(op, options, ['shape', 'dtype', 'device', 'stream', 'requiresGrad']);
    const like =
      typeof data === 'object' && data !== null && !ArrayBuffer.isView(data)
        ? readTensorLike(op, data)
        : undefined;
    const elements: unknown = like?.data ?? data;
    if (!ArrayBuffer.isView(elements) || elements instanceof DataView) {
      throw wrongType(op, 'data', data, 'a typed array or a tensor-like object');
    }
    const array = unshared(elements);
    native.checkBuffer(op, 'data', array);
    const wanted = known.dtype ?? like?.dtype;
    if (wanted !== undefined) checkDType(op, 'dtype', wanted);
    const dtype = naturalDType(op, array, wanted);
    const length = (array as unknown as { length: number }).length;
    const shape = readShape(op, known.shape ?? like?.shape ?? [length]);
    const size = sizeOf(shape);
    if (size !== length) {
      throw argumentError(
        'ERR_VARLEN_SHAPE',
        op,
        'shape',
        `does not fit the data; got [${shape}] for ${length} elements, expected a product of ${length}`,
        { expected: length, received: size },
      );
    }
    const requiresGrad = readRequiresGrad(op, known.requiresGrad, wanted ?? dtype);
    const device = Device.resolve(known.device ?? known.stream?.device ?? 'auto');
    const stream = streamFor(op, device, known.stream);
    // A Float16Array goes through as its bits: Node-API knows its kind only from Node 24 on.
    const bits =
      dtype === 'float16' ? new Uint16Array(array.buffer as ArrayBuffer, array.byteOffset, length) : array;
    const made = native.create(dtype, shape, bits, stream);
    if (wanted === undefined || wanted === dtype) return new Tensor(made, device, requiresGrad);
    try {
      return new Tensor(native.convert(made.handle, wanted, stream), device, requiresGrad);
    } finally {
      native.release(made.handle);
    }
  }

  /** A tensor whose elements are whatever the memory held. For outputs that an op will fill. */
  static empty(shape: readonly number[], options: TensorEmptyOptions): Tensor {
    const op = 'Tensor.empty';
    const known = readOptions(op, options, ['dtype', 'device', 'stream', 'requiresGrad']);
    checkDType(op, 'dtype', known.dtype);
    const dims = readShape(op, shape);
    const requiresGrad = readRequiresGrad(op, known.requiresGrad, known.dtype);
    const device = Device.resolve(known.device ?? known.stream?.device ?? 'auto');
    const made = native.create(known.dtype, dims, undefined, streamFor(op, device, known.stream));
    return new Tensor(made, device, requiresGrad);
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** Bytes of its elements. */
  get byteLength(): number {
    return this.size * bytesOf(this.dtype);
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#handle === 0;
  }

  /** True for a parameter, and for what was computed from one. */
  get requiresGrad(): boolean {
    return this.#requiresGrad;
  }

  /** @internal The native name, 0 once disposed. */
  override get handle(): number {
    return this.#handle;
  }

  /** @internal The call that made it, when that was recorded. */
  get source(): { readonly node: TapeNode; readonly output: number } | undefined {
    return this.#source;
  }

  /** @internal Makes it a recorded result. */
  track(source: { readonly node: TapeNode; readonly output: number }): void {
    this.#source = source;
    this.#requiresGrad = true;
  }

  /** @internal Lets it live past the current scope, on the package's own account. */
  outlive(): this {
    adoptAsOurs(this, this.#handle);
    return this;
  }

  /** @internal A contiguous copy of its own, unrecorded. */
  copy(dtype: DType = this.dtype): Tensor {
    return new Tensor(native.convert(this.#live('Tensor.to'), dtype), this.device);
  }

  /** @internal A second name for the same elements, with a lifetime of its own; unrecorded, outside scopes. */
  alias(requiresGrad = false): Tensor {
    const handle = this.#live('Tensor.detach');
    const made =
      this.shape.length === 0 ? native.view(handle, []) : native.slice(handle, 0, 0, this.shape[0]);
    return new Tensor(made, this.device, requiresGrad);
  }

  #live(op: string): number {
    if (this.#handle !== 0) return this.#handle;
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: this was disposed`, { op, argument: 'this' });
  }

  /**
   * The same elements in another shape, sharing memory.
   *
   * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_LAYOUT` (a strided tensor), `ERR_VARLEN_DISPOSED`
   */
  view(shape: readonly number[]): Tensor {
    const dims = readShape('Tensor.view', shape);
    const result = new Tensor(native.view(this.#live('Tensor.view'), dims), this.device);
    if (isTracked([this])) {
      const { shape: own } = this;
      record('Tensor.view', [this], [result], [], ([gradient]) => [passOn(gradient!, gradient!.view(own))]);
    }
    return result;
  }

  /**
   * Elements `start` to `end` (exclusive) of dimension `dim`, sharing memory. The gradient of the rest is 0.
   *
   * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_DISPOSED`
   */
  slice(dim: number, start: number, end: number): Tensor {
    const op = 'Tensor.slice';
    const handle = this.#live(op);
    checkInteger(op, 'dim', dim, 0, this.shape.length - 1);
    checkInteger(op, 'start', start, 0, this.shape[dim]);
    checkInteger(op, 'end', end, start, this.shape[dim]);
    const result = new Tensor(native.slice(handle, dim, start, end), this.device);
    if (isTracked([this])) {
      const { shape, size, device } = this;
      record(op, [this], [result], [], ([gradient]) => {
        const { dtype } = gradient!;
        const whole = Tensor.from(new Float32Array(size), { shape, dtype, device });
        using part = whole.slice(dim, start, end);
        native.accumulate(part.handle, gradient!.handle);
        return [whole];
      });
    }
    return result;
  }

  /** The same elements, cut off from what computed them. */
  detach(): Tensor {
    return this.alias();
  }

  /**
   * A contiguous copy on another device or in another element type. Rounds to nearest even; floats
   * become integers towards zero, NaN 0, and the nearest bound where they do not fit. With nothing to
   * change it is a second name for the same memory; either way the result is a tensor of its own to
   * dispose. Runs on `stream`, by default on the one that wrote this tensor, or on the own stream of the
   * other device.
   *
   * @throws `ERR_VARLEN_NO_CUDA`, `ERR_VARLEN_DEVICE_INDEX`, `ERR_VARLEN_OUT_OF_MEMORY`,
   *   `ERR_VARLEN_UNSUPPORTED` (from one GPU to another)
   */
  to(target: DeviceLike | DType, options?: { stream?: Stream }): Tensor {
    const op = 'Tensor.to';
    const handle = this.#live(op);
    const { stream } = readOptions(op, options, ['stream']);
    const dtype = (native.DTYPES as readonly unknown[]).includes(target) ? (target as DType) : this.dtype;
    if (dtype !== target) {
      const device = Device.resolve(target as DeviceLike);
      if (device !== this.device) return this.#toDevice(device, stream);
    }
    const id = stream === undefined ? undefined : streamFor(op, this.device, stream);
    const result =
      dtype === this.dtype ? this.alias() : new Tensor(native.convert(handle, dtype, id), this.device);
    if (isTracked([this])) {
      const own = this.dtype;
      record(op, [this], [result], [], ([gradient]) => [gradient?.copy(own)]);
    }
    return result;
  }

  #toDevice(device: Device, stream: Stream | undefined): Tensor {
    const op = 'Tensor.to';
    const made = native.transfer(this.#live(op), streamFor(op, device, stream));
    const result = new Tensor(made, device);
    if (isTracked([this])) {
      const own = this.device;
      record(op, [this], [result], [], ([gradient]) => [gradient?.to(own)]);
    }
    return result;
  }

  /**
   * The elements, once the work that makes them is done. Does not block the event loop.
   *
   * `float16` and `bfloat16` come as their bits; {@link Tensor.toFloat32} gives values. Rejects with the
   * failure of the op that should have made them.
   */
  async data(): Promise<TypedArray> {
    const op = 'Tensor.data';
    const handle = this.#live(op);
    const target = allocate(op, this.dtype, this.size);
    try {
      return await native.read(handle, target);
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /** The same, blocking until the stream is there. For scripts and tests. */
  dataSync(): TypedArray {
    const op = 'Tensor.dataSync';
    const handle = this.#live(op);
    const target = allocate(op, this.dtype, this.size);
    try {
      return native.readSync(handle, target);
    } catch (error) {
      throw this.#explain(error);
    }
  }

  /** Under `VARLEN_DEBUG=1` a late failure points to the call that made the tensor. */
  #explain(error: unknown): unknown {
    if (this.#madeAt !== undefined) (error as VarlenError).cause ??= this.#madeAt;
    return error;
  }

  /** The elements as float32 values, whatever the element type. */
  async toFloat32(): Promise<Float32Array> {
    if (this.dtype === 'float32') return (await this.data()) as Float32Array;
    const converted = this.copy('float32');
    try {
      return (await converted.data()) as Float32Array;
    } finally {
      converted.dispose();
    }
  }

  /** The elements with the property names of `onnxruntime`, `transformers.js` and their like. */
  async toTensorLike(): Promise<Required<TensorLike>> {
    const { dtype, shape } = this;
    return { type: dtype, dtype, dims: shape, shape, data: await this.data() };
  }

  /**
   * Adds to `grad` of every parameter this was computed from.
   *
   * @param gradient the gradient of this tensor, its shape; default 1 for a tensor of one element
   * @throws `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_GRAPH_FREED`
   */
  backward(gradient?: Tensor, options?: { retainGraph?: boolean }): void {
    const op = 'Tensor.backward';
    this.#live(op);
    const { retainGraph = false } = readOptions(op, options, ['retainGraph']);
    checkBoolean(op, 'retainGraph', retainGraph);
    if (gradient !== undefined && !(gradient instanceof Tensor)) {
      throw wrongType(op, 'gradient', gradient, 'a Tensor');
    }
    backward(op, this, () => this.#startGradient(op, gradient), retainGraph);
  }

  #startGradient(op: string, gradient: Tensor | undefined): Tensor {
    const { shape, dtype, device } = this;
    if (gradient === undefined) {
      if (this.size !== 1) {
        throw argumentError(
          'ERR_VARLEN_MISSING_INPUT',
          op,
          'gradient',
          `is required unless the tensor has one element; got shape [${shape}], expected a gradient of that shape`,
        );
      }
      return Tensor.from(new Float32Array([1]), { shape, dtype, device });
    }
    if (gradient.shape.length !== shape.length || gradient.shape.some((n, i) => n !== shape[i])) {
      throw argumentError(
        'ERR_VARLEN_SHAPE',
        op,
        'gradient',
        `must have the tensor's shape; got [${gradient.shape}], expected [${shape}]`,
        { expected: shape, received: gradient.shape },
      );
    }
    return gradient.copy(dtype);
  }

  /**
   * The same elements for another library of this process, without a copy. The memory stays until the handle, or
   * whoever took it, lets go. With `stream`, what is enqueued there from now on sees the elements; a library
   * with streams of its own must be given the handle after {@link DLPackHandle.ready}.
   *
   * @param options `versioned`: false for libraries from before DLPack 1.0. Default true
   * @throws `ERR_VARLEN_INCOMPATIBLE` for a tensor that requires gradients: `detach()` it first
   */
  toDLPack(options?: DLPackHandleOptions & { stream?: Stream }): DLPackHandle {
    const op = 'Tensor.toDLPack';
    const handle = this.#live(op);
    const { versioned = true, stream } = readOptions(op, options, ['versioned', 'stream']);
    checkBoolean(op, 'versioned', versioned);
    if (this.#requiresGrad) {
      throw argumentError(
        'ERR_VARLEN_INCOMPATIBLE',
        op,
        'this',
        'requires gradients, which no other library records; got requiresGrad true, expected a tensor that was detached',
      );
    }
    const id = stream === undefined ? undefined : streamFor(op, this.device, stream);
    return new DLPackHandle(native.dlpack.make(handle, versioned, id), { versioned });
  }

  /**
   * The tensor of another library of this process, without a copy unless its memory may not be written or its
   * elements lie upon each other. It consumes the handle; the other library's deleter runs when this tensor,
   * its views and all work that uses them are done. A handle that is refused stays as it was.
   *
   * Page-locked host memory becomes a CPU tensor. The elements must be there: of a handle that
   * {@link Tensor.toDLPack} made, work enqueued on `stream` waits for them by itself.
   *
   * @param options `stream`: the one that will use it first; default: the device's own
   * @throws `ERR_VARLEN_DTYPE` (no such element type, or vectors of them), `ERR_VARLEN_SHAPE` (more than 6
   *   dimensions), `ERR_VARLEN_LAYOUT` (negative strides), `ERR_VARLEN_BUFFER` (no memory, misaligned),
   *   `ERR_VARLEN_OVERFLOW`, `ERR_VARLEN_DEVICE`, `ERR_VARLEN_DEVICE_INDEX`, `ERR_VARLEN_NO_CUDA`,
   *   `ERR_VARLEN_UNSUPPORTED` (another major version of DLPack), `ERR_VARLEN_DISPOSED` (consumed already)
   */
  static fromDLPack(handle: DLPackHandle, options?: { stream?: Stream }): Tensor {
    const op = 'Tensor.fromDLPack';
    if (!(handle instanceof DLPackHandle)) throw wrongType(op, 'handle', handle, 'a DLPackHandle');
    const { stream } = readOptions(op, options, ['stream']);
    const { pointer, versioned } = handle;
    const index = native.dlpack.deviceOf(pointer, versioned);
    const device = index === native.CPU ? Device.cpu() : Device.cuda(index);
    const made = native.dlpack.take(pointer, versioned, streamFor(op, device, stream));
    handle.take();
    return new Tensor(made, device);
  }

  /**
   * What another process needs to see the same elements on the same GPU. Resolves when they are there. The memory
   * stays until {@link releaseIpc}, or until this process ends. Linux only, as CUDA has it.
   *
   * @throws by rejecting: `ERR_VARLEN_DEVICE` (a tensor of the CPU), `ERR_VARLEN_LAYOUT` (a strided one),
   *   `ERR_VARLEN_UNSUPPORTED` (memory of another process or library), `ERR_VARLEN_CUDA`, the failure of
   *   the op that should have made the elements
   */
  async ipcHandle(): Promise<IpcHandle> {
    const op = 'Tensor.ipcHandle';
    const handle = this.#live(op);
    if (this.device.kind === 'cpu') {
      throw argumentError(
        'ERR_VARLEN_DEVICE',
        op,
        'this',
        `is not on a GPU; got '${this.device}', expected a tensor of a GPU`,
      );
    }
    const { shared, ready } = native.ipc.share(handle);
    try {
      await ready;
      return messageOf(this.device, shared, this.dtype, this.shape);
    } catch (error) {
      native.ipc.end(shared.id);
      throw error;
    }
  }

  /**
   * The tensor that another process exported, without a copy: what one of them writes, the other sees. Dispose it
   * before that process calls {@link releaseIpc}.
   *
   * @param options `stream`: the one that will use it first; default: the device's own
   * @throws `ERR_VARLEN_INCOMPATIBLE` (made by this process), `ERR_VARLEN_DIST_PEER_LOST` (its process is
   *   gone), `ERR_VARLEN_DEVICE` (a GPU that this process does not see), `ERR_VARLEN_NO_CUDA`,
   *   `ERR_VARLEN_RANGE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE` (a malformed handle), `ERR_VARLEN_CUDA`
   */
  static fromIpc(handle: IpcHandle, options?: { stream?: Stream }): Tensor {
    const op = 'Tensor.fromIpc';
    const { stream } = readOptions(op, options, ['stream']);
    const message = readMessage(op, handle);
    const shape = readShape(op, message.shape);
    checkExtent(op, message, shape);
    checkPeer(op, message);
    const device = deviceOf(op, message);
    const segment = Buffer.from(message.segment, 'hex');
    const made = native.ipc.open(
      new Uint8Array(segment),
      message.byteOffset,
      message.dtype,
      shape,
      streamFor(op, device, stream),
    );
    return new Tensor(made, device);
  }

  /** Gives the memory back, that of {@link grad} too, once the work that uses it is done. Twice is once. */
  dispose(): void {
    if (this.#handle === 0) return;
    abandon(this, this.#handle);
    this.#handle = 0;
    this.grad?.dispose();
    if (this.#source !== undefined) dropNode(this.#source.node);
    this.#source = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Shape, element type and device, for logs. */
  override toString(): string {
    return `Tensor(${this.dtype} [${this.shape.join(', ')}] on ${this.device}${this.disposed ? ', disposed' : ''})`;
  }
}

// console.log shows what toString says instead of private fields.
Object.defineProperty(Tensor.prototype, inspect.custom, { value: Tensor.prototype.toString });

/** The number of the stream that a call goes to. */
export function streamFor(op: string, device: Device, stream: Stream | undefined): number {
  if (stream === undefined) return device.kind === 'cpu' ? 0 : Stream.of(device).idFor(op);
  if (!(stream instanceof Stream)) throw wrongType(op, 'stream', stream, 'a Stream');
  if (stream.device !== device) {
    throw argumentError(
      'ERR_VARLEN_DEVICE',
      op,
      'stream',
      `belongs to another device; got ${describe(String(stream.device))}, expected '${device}'`,
    );
  }
  return stream.idFor(op);
}
