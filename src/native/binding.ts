import { describe, wrongType } from '../check.js';
import {
  argumentError,
  ERROR_CODES,
  type ErrorDetails,
  type VarlenErrorCode,
  varlenError,
} from '../errors.js';
import { loadNative } from './load.js';

/**
 * The only caller of the native binary. It turns named arguments into the flat form that
 * `native/addon/bind.h` reads, and native failures into {@link VarlenError}s.
 */

/** Element types, in the order of `DType` in native/core/dtype.h. */
export const DTYPES = ['float32', 'float16', 'bfloat16', 'float64', 'int32', 'int64', 'uint8'] as const;

/** An element type. */
export type DType = (typeof DTYPES)[number];

/** Whatever names a native tensor. A class, so that no look-alike of a caller's is taken for one. */
export abstract class HandleOwner {
  /** @internal 0 once it was disposed. */
  abstract readonly handle: number;
}

/** A tensor the native side has just made. */
export interface NativeTensor {
  readonly handle: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** One line per op, the same list as native/addon/ops.h. */
export type NativeOp =
  | 'adamw'
  | 'add'
  | 'compressVisualTokens'
  | 'compressVisualTokensBackward'
  | 'crossEntropy'
  | 'crossEntropyBackward'
  | 'crossEntropyFromHidden'
  | 'crossEntropyFromHiddenBackward'
  | 'embedding'
  | 'embeddingBackward'
  | 'fusedLinearJsd'
  | 'fusedLinearJsdBackward'
  | 'generalizedJsd'
  | 'generalizedJsdBackward'
  | 'gradClip'
  | 'groupAdvantage'
  | 'linear'
  | 'linearBackward'
  | 'mergeAttentionStates'
  | 'mergeAttentionStatesBackward'
  | 'policyLoss'
  | 'policyLossBackward'
  | 'policyLossFromHidden'
  | 'policyLossFromHiddenBackward'
  | 'policyLossFromLogits'
  | 'policyLossFromLogitsBackward'
  | 'rebalanceAttention'
  | 'rmsNorm'
  | 'rmsNormBackward'
  | 'rope'
  | 'ropeBackward'
  | 'sampling'
  | 'sparsePrefill'
  | 'sparsePrefillBackward'
  | 'sparsePrefillCount'
  | 'sparsePrefillIndices'
  | 'sparsePrefillMask'
  | 'sparsePrefillPlan'
  | 'swiglu'
  | 'swigluBackward'
  | 'varlenAttention'
  | 'varlenAttentionBackward'
  | 'vocabularyStatistics'
  | 'writeRows';

type Kind = 'tensor' | 'tensors' | 'ints' | 'floats' | 'integer' | 'number' | 'flag' | 'output';

interface OpDescription {
  readonly name: NativeOp;
  readonly args: readonly { readonly name: string; readonly kind: Kind; readonly optional: boolean }[];
}

interface NativeFailure {
  readonly code: string;
  readonly op: string;
  readonly call: number;
  readonly argument: string;
  readonly message: string;
  readonly details: ErrorDetails;
}

type TypedArray =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint16Array
  | BigInt64Array
  | Uint8Array
  | ArrayBufferView;

/** Functions return 0, or 1 when `takeError` says why not. Numbers travel through `args` and `result`. */
interface Addon {
  readonly version: string;
  readonly args: Float64Array;
  readonly result: Float64Array;
  readonly ops: readonly OpDescription[];
  call(op: number, ...arrays: TypedArray[]): number;
  takeError(): NativeFailure;
  onSettled(settle: (id: number, failure: NativeFailure | undefined) => void): void;
  threads(): number;
  create(source?: TypedArray): number;
  view(): number;
  slice(): number;
  release(): number;
  convert(): number;
  transfer(): number;
  accumulate(): number;
  assign(): number;
  read(target: TypedArray): number;
  memory(): number;
  pinned(made: ArrayBuffer[]): number;
  pinnedCopyTo(buffer: ArrayBuffer): number;
  pinnedCopyFrom(buffer: ArrayBuffer): number;
  pinnedDispose(buffer: ArrayBuffer): number;
  dlpackExport(made: bigint[]): number;
  dlpackDevice(pointer: bigint): number;
  dlpackImport(pointer: bigint): number;
  dlpackReady(pointer: bigint): number;
  dlpackRelease(pointer: bigint): number;
  ipcUuid(uuid: Uint8Array): number;
  ipcExport(segment: Uint8Array): number;
  ipcEnd(): number;
  ipcImport(segment: Uint8Array): number;
  info(): NativeInfo;
  newStream(): number;
  disposeStream(): number;
  record(): number;
  wait(): number;
  notify(): number;
  eventTime(): number;
  releaseEvent(): number;
}

/** What the native side knows about this machine. */
export interface NativeInfo {
  readonly isa: string;
  /** Why VARLEN_CPU_ISA was not followed; empty if it was, or is not set. */
  readonly isaNote: string;
  readonly cudaProblem: string;
  readonly cudaReason: string;
  readonly runtimeVersion: number;
  readonly driverVersion: number;
  readonly devices: readonly {
    readonly name: string;
    readonly computeCapability: string;
    readonly multiprocessors: number;
    readonly memoryBytes: number;
  }[];
}

interface Pending {
  resolve(): void;
  reject(error: Error): void;
  /** Keeps the memory that a stream thread writes. */
  readonly target: TypedArray | undefined;
}

/** The loaded binary and what one environment keeps about it. */
interface Binding {
  readonly addon: Addon;
  readonly args: Float64Array;
  readonly result: Float64Array;
  readonly ops: ReadonlyMap<NativeOp, OpDescription & { readonly index: number }>;
  readonly pending: Map<number, Pending>;
}

let loaded: Binding | undefined;
let nextId = 0;

function binding(): Binding {
  if (loaded !== undefined) return loaded;
  const addon = loadNative() as Addon;
  const pending = new Map<number, Pending>();
  addon.onSettled((id, failure) => {
    const waiting = pending.get(id)!;
    pending.delete(id);
    if (failure === undefined) waiting.resolve();
    else waiting.reject(toError(failure));
  });
  const ops = new Map(addon.ops.map((op, index) => [op.name, { ...op, index }]));
  loaded = { addon, args: addon.args, result: addon.result, ops, pending };
  return loaded;
}

function toError({ code, op, call, argument, message, details }: NativeFailure): Error {
  if (!(code in ERROR_CODES)) return new DOMException(message, 'AbortError');
  const where = argument === '' ? op : `${op}: ${argument}`;
  const which = call === 0 ? '' : ` (call ${call} of its stream)`;
  const text = argument === '' ? `${where}: ${message}${which}` : `${where} ${message}${which}`;
  return varlenError(code as VarlenErrorCode, text, {
    op,
    ...(argument === '' ? {} : { argument }),
    ...(call === 0 ? {} : { call }),
    ...details,
  });
}

function check(failed: number): void {
  if (failed !== 0) throw toError(binding().addon.takeError());
}

/** Reads tensors that the native side wrote into `result`; an output the caller brought is `undefined`. */
function takeTensors(result: Float64Array, count: number): (NativeTensor | undefined)[] {
  const tensors: (NativeTensor | undefined)[] = [];
  let slot = 0;
  for (let i = 0; i < count; i++) {
    const handle = result[slot];
    const dtype = DTYPES[result[slot + 1]];
    const rank = result[slot + 2];
    const shape: number[] = [];
    for (let i = 0; i < rank; i++) shape.push(result[slot + 3 + i]);
    slot += 3 + rank;
    tensors.push(handle === 0 ? undefined : { handle, dtype, shape });
  }
  return tensors;
}

function takeTensor(): NativeTensor {
  return takeTensors(binding().result, 1)[0]!;
}

/** Refuses memory that can change or vanish while native code reads it. */
export function checkBuffer(op: string, argument: string, array: ArrayBufferView): void {
  const buffer = array.buffer as ArrayBuffer & { resizable?: boolean; detached?: boolean };
  const problem =
    typeof SharedArrayBuffer !== 'undefined' && (buffer as unknown) instanceof SharedArrayBuffer
      ? 'a shared buffer'
      : buffer.resizable
        ? 'a resizable buffer'
        : buffer.detached
          ? 'a detached buffer'
          : undefined;
  if (problem === undefined) return;
  throw argumentError(
    'ERR_VARLEN_BUFFER',
    op,
    argument,
    `must have memory of its own; got ${problem}, expected a plain ArrayBuffer`,
  );
}

const hostArrays = { ints: Int32Array, floats: Float32Array } as const;

function handleOf(op: string, argument: string, value: unknown): number {
  if (!(value instanceof HandleOwner)) throw wrongType(op, argument, value, 'a Tensor');
  if (value.handle !== 0) return value.handle;
  throw varlenError('ERR_VARLEN_DISPOSED', `${op}: ${argument} was disposed`, { op, argument });
}

/**
 * Calls a device op: checks JavaScript types, enqueues it on `stream`, and returns its new outputs in
 * order, `undefined` for those the caller brought or did not ask for. `spelling` maps an argument's native name to the one
 * the caller used, for errors.
 */
export function call(
  name: NativeOp,
  values: object,
  stream = 0,
  spelling: Readonly<Record<string, string>> = {},
): (NativeTensor | undefined)[] {
  const { addon, args, result, ops } = binding();
  const op = ops.get(name)!;
  const arrays: TypedArray[] = [];
  args[0] = stream;
  let outputs = 0;
  for (let i = 0; i < op.args.length; i++) {
    const { name: nativeName, kind, optional } = op.args[i];
    const argument = spelling[nativeName] ?? nativeName;
    const value = (values as Readonly<Record<string, unknown>>)[nativeName];
    let slot = 0;
    switch (kind) {
      case 'flag':
        if (typeof value !== 'boolean') throw wrongType(name, argument, value, 'a boolean');
        slot = value ? 1 : 0;
        break;
      case 'number':
      case 'integer':
        if (typeof value !== 'number') throw wrongType(name, argument, value, 'a number');
        if (kind === 'integer' && !Number.isInteger(value)) {
          throw argumentError(
            'ERR_VARLEN_RANGE',
            name,
            argument,
            `must be whole; got ${value}, expected an integer`,
          );
        }
        slot = value;
        break;
      case 'ints':
      case 'floats':
        if (value === undefined && optional) break;
        if (value instanceof HandleOwner) {
          slot = handleOf(name, argument, value);
        } else if (ArrayBuffer.isView(value) && value instanceof hostArrays[kind]) {
          checkBuffer(name, argument, value);
          slot = -1;
          arrays.push(value);
        } else if (ArrayBuffer.isView(value)) {
          throw argumentError(
            'ERR_VARLEN_DTYPE',
            name,
            argument,
            `has the wrong element type; got ${describe(value)}, expected ${hostArrays[kind].name}`,
          );
        } else {
          throw wrongType(name, argument, value, `${hostArrays[kind].name} or Tensor`);
        }
        break;
      case 'tensors':
        if (!Array.isArray(value)) throw wrongType(name, argument, value, 'an array of Tensors');
        slot = value.length;
        arrays.push(Float64Array.from(value, (tensor, at) => handleOf(name, `${argument}[${at}]`, tensor)));
        break;
      case 'output':
        outputs++;
        if (value !== undefined) slot = handleOf(name, argument, value);
        break;
      case 'tensor':
        if (value !== undefined || !optional) slot = handleOf(name, argument, value);
        break;
    }
    args[i + 1] = slot;
  }
  if (addon.call(op.index, ...arrays) !== 0) {
    const failure = addon.takeError();
    throw toError({ ...failure, argument: spelling[failure.argument] ?? failure.argument });
  }
  return takeTensors(result, outputs);
}

function writeShape(args: Float64Array, slot: number, shape: readonly number[]): void {
  args[slot] = shape.length;
  args.set(shape, slot + 1);
}

/** A new tensor: a copy of `source`, or uninitialised. */
export function create(
  dtype: DType,
  shape: readonly number[],
  source?: TypedArray,
  stream = 0,
): NativeTensor {
  const { addon, args } = binding();
  args[0] = stream;
  args[1] = DTYPES.indexOf(dtype);
  writeShape(args, 2, shape);
  check(source === undefined ? addon.create() : addon.create(source));
  return takeTensor();
}

/** The same elements in another shape. */
export function view(handle: number, shape: readonly number[]): NativeTensor {
  const { addon, args } = binding();
  args[1] = handle;
  writeShape(args, 2, shape);
  check(addon.view());
  return takeTensor();
}

/** Elements `start` to `end` of one dimension, sharing memory. */
export function slice(handle: number, dim: number, start: number, end: number): NativeTensor {
  const { addon, args } = binding();
  args[1] = handle;
  args[2] = dim;
  args[3] = start;
  args[4] = end;
  check(addon.slice());
  return takeTensor();
}

/** Gives a handle back; an unknown one is ignored. */
export function release(handle: number): void {
  const { addon, args } = binding();
  args[0] = handle;
  addon.release();
}

/** Where a call takes a stream: the one that wrote the tensor last. */
const WRITER_STREAM = -1;

/** A contiguous copy in `dtype`. */
export function convert(handle: number, dtype: DType, stream: number = WRITER_STREAM): NativeTensor {
  const { addon, args } = binding();
  args[0] = stream;
  args[1] = handle;
  args[2] = DTYPES.indexOf(dtype);
  check(addon.convert());
  return takeTensor();
}

/** A contiguous copy on another device, whose `stream` is. */
export function transfer(handle: number, stream: number): NativeTensor {
  const { addon, args } = binding();
  args[0] = stream;
  args[1] = handle;
  check(addon.transfer());
  return takeTensor();
}

/** `target += source`, on the stream that wrote the target. */
export function accumulate(target: number, source: number): void {
  const { addon, args } = binding();
  args[0] = WRITER_STREAM;
  args[1] = target;
  args[2] = source;
  check(addon.accumulate());
}

/** `target = source` in the target's element type, on the stream that wrote the target. */
export function assign(target: number, source: number): void {
  const { addon, args } = binding();
  args[1] = target;
  args[2] = source;
  check(addon.assign());
}

/** Fills `target` with a tensor's elements once the stream that writes them reaches this point. */
export function read<T extends TypedArray>(handle: number, target: T): Promise<T> {
  const { addon, args, pending } = binding();
  const id = nextId++;
  args[1] = handle;
  args[2] = id;
  check(addon.read(target));
  // One promise, not `settled` and a second one: reads are made by the thousand.
  return new Promise((resolve, reject) => {
    pending.set(id, { resolve: () => resolve(target), reject, target });
  });
}

/** The same, blocking. */
export function readSync<T extends TypedArray>(handle: number, target: T): T {
  const { addon, args } = binding();
  args[1] = handle;
  args[2] = -1;
  check(addon.read(target));
  return target;
}

/** A device as the native side numbers them: the CPU is -1. */
export const CPU = -1;

/** Bytes of all streams of a device, and this environment's tensors. */
export function memory(device: number = CPU): {
  allocated: number;
  reserved: number;
  peak: number;
  liveTensors: number;
  pinned: number;
} {
  const { addon, args, result } = binding();
  args[0] = device;
  check(addon.memory());
  return {
    allocated: result[0],
    reserved: result[1],
    peak: result[2],
    liveTensors: result[3],
    pinned: result[5],
  };
}

/** A promise that the native side settles by this number. */
function settled(id: number): Promise<void> {
  const { pending } = binding();
  return new Promise((resolve, reject) => {
    pending.set(id, { resolve, reject, target: undefined });
  });
}

/** Page-locked host memory. A buffer that is none is copied through the native side's own. */
export const pinned: {
  open(device: number, byteLength: number): ArrayBuffer | undefined;
  copyTo(buffer: ArrayBuffer, byteOffset: number, target: number, stream: number): void;
  copyFrom(buffer: ArrayBuffer, byteOffset: number, source: number, stream: number): Promise<void>;
  dispose(buffer: ArrayBuffer): void;
} = {
  /** Zeroed memory of that size; none where the runtime forbids external buffers. */
  open(device, byteLength) {
    const { addon, args } = binding();
    args[0] = device;
    args[1] = byteLength;
    const made: ArrayBuffer[] = [];
    check(addon.pinned(made));
    return made[0];
  },
  copyTo(buffer, byteOffset, target, stream) {
    const { addon, args } = binding();
    args[0] = stream;
    args[1] = target;
    args[2] = byteOffset;
    check(addon.pinnedCopyTo(buffer));
  },
  copyFrom(buffer, byteOffset, source, stream) {
    const { addon, args } = binding();
    const id = nextId++;
    args[0] = stream;
    args[1] = source;
    args[2] = byteOffset;
    args[3] = id;
    check(addon.pinnedCopyFrom(buffer));
    return settled(id);
  },
  /** Lets go of the memory and empties the buffer. */
  dispose(buffer) {
    binding().addon.pinnedDispose(buffer);
  },
};

/** DLPack structs, by their address; `versioned` says of which of the two kinds. */
export const dlpack: {
  make(handle: number, versioned: boolean, stream: number | undefined): bigint;
  deviceOf(pointer: bigint, versioned: boolean): number;
  take(pointer: bigint, versioned: boolean, stream: number): NativeTensor;
  ready(pointer: bigint, versioned: boolean): Promise<void>;
  release(pointer: bigint, versioned: boolean): void;
} = {
  make(handle, versioned, stream = WRITER_STREAM) {
    const { addon, args } = binding();
    args[0] = stream;
    args[1] = handle;
    args[2] = versioned ? 1 : 0;
    const made: bigint[] = [];
    check(addon.dlpackExport(made));
    return made[0];
  },
  deviceOf(pointer, versioned) {
    const { addon, args, result } = binding();
    args[0] = versioned ? 1 : 0;
    check(addon.dlpackDevice(pointer));
    return result[0];
  },
  take(pointer, versioned, stream) {
    const { addon, args } = binding();
    args[0] = stream;
    args[1] = versioned ? 1 : 0;
    check(addon.dlpackImport(pointer));
    return takeTensor();
  },
  /** Nothing is known about another library's; such a promise resolves at once. */
  async ready(pointer, versioned) {
    const { addon, args, result } = binding();
    const id = nextId++;
    args[0] = versioned ? 1 : 0;
    args[1] = id;
    check(addon.dlpackReady(pointer));
    if (result[0] === 1) await settled(id);
  },
  release(pointer, versioned) {
    const { addon, args } = binding();
    args[0] = versioned ? 1 : 0;
    check(addon.dlpackRelease(pointer));
  },
};

/** What another process needs to open a tensor's memory. */
export interface NativeIpcExport {
  /** In this process. */
  readonly id: number;
  readonly segment: Uint8Array;
  readonly segmentBytes: number;
  readonly byteOffset: number;
}

/** Memory of a GPU that several processes see. */
export const ipc: {
  uuid(device: number): Uint8Array;
  share(handle: number): { readonly shared: NativeIpcExport; readonly ready: Promise<void> };
  end(id: number): boolean;
  open(
    segment: Uint8Array,
    byteOffset: number,
    dtype: DType,
    shape: readonly number[],
    stream: number,
  ): NativeTensor;
} = {
  uuid(device) {
    const { addon, args } = binding();
    const uuid = new Uint8Array(16);
    args[0] = device;
    check(addon.ipcUuid(uuid));
    return uuid;
  },
  /** `ready` settles when the elements are there. */
  share(handle) {
    const { addon, args, result } = binding();
    const id = nextId++;
    const segment = new Uint8Array(64);
    args[1] = handle;
    args[2] = id;
    check(addon.ipcExport(segment));
    const shared = { id: result[0], segment, segmentBytes: result[1], byteOffset: result[2] };
    return { shared, ready: settled(id) };
  },
  end(id) {
    const { addon, args, result } = binding();
    args[0] = id;
    check(addon.ipcEnd());
    return result[0] === 1;
  },
  open(segment, byteOffset, dtype, shape, stream) {
    const { addon, args } = binding();
    args[0] = stream;
    args[1] = DTYPES.indexOf(dtype);
    args[2] = byteOffset;
    writeShape(args, 3, shape);
    check(addon.ipcImport(segment));
    return takeTensor();
  },
};

/** The instruction set in use and the state of CUDA. */
export function info(): NativeInfo & { readonly version: string } {
  const { addon } = binding();
  return { version: addon.version, ...addon.info() };
}

/** Threads that may work on one op; `count` changes it. */
export function threads(count = 0): number {
  const { addon, args, result } = binding();
  args[0] = count;
  addon.threads();
  return result[0];
}

const NO_EVENT = -1;

function notify(stream: number, event: number, handle: number): Promise<void> {
  const { addon, args } = binding();
  const id = nextId++;
  args[0] = stream;
  args[1] = id;
  args[2] = event;
  args[3] = handle;
  check(addon.notify());
  return settled(id);
}

/** Streams and events, as the small numbers the native side knows them by. */
export const streams: {
  open(device?: number): number;
  dispose(stream: number): void;
  record(stream: number): number;
  wait(stream: number, event: number): void;
  finished(stream: number, handle?: number): Promise<void>;
  passed(event: number): Promise<void>;
  eventTimeMs(event: number): number;
  releaseEvent(event: number): void;
} = {
  open(device = CPU) {
    const { addon, args, result } = binding();
    args[0] = device;
    check(addon.newStream());
    return result[0];
  },
  dispose(stream) {
    const { addon, args } = binding();
    args[0] = stream;
    addon.disposeStream();
  },
  record(stream) {
    const { addon, args, result } = binding();
    args[0] = stream;
    check(addon.record());
    return result[0];
  },
  wait(stream, event) {
    const { addon, args } = binding();
    args[0] = stream;
    args[1] = event;
    check(addon.wait());
  },
  /** Rejects with the failure of the tensor, if one is given and has failed by then. */
  finished(stream, handle = 0) {
    return notify(stream, NO_EVENT, handle);
  },
  passed(event) {
    return notify(0, event, 0);
  },
  eventTimeMs(event) {
    const { addon, args, result } = binding();
    args[0] = event;
    addon.eventTime();
    return result[0];
  },
  releaseEvent(event) {
    const { addon, args } = binding();
    args[0] = event;
    addon.releaseEvent();
  },
};
