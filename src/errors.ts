/**
 * Every failure a caller can act on has one stable code. This file holds the only list:
 * the classes, the documentation page and the tests are all made from {@link ERROR_CODES}.
 */

/** All codes: the class that carries each one, and when it is raised. */
export const ERROR_CODES = {
  ERR_VARLEN_NO_BINARY: ['VarlenLoadError', 'no native binary for this platform, architecture and C library'],
  ERR_VARLEN_LOAD: [
    'VarlenLoadError',
    'the native binary exists but does not load; the loader’s reason is in `cause`',
  ],
  ERR_VARLEN_GLIBC_TOO_OLD: ['VarlenLoadError', 'the system’s glibc is older than the binary needs'],
  ERR_VARLEN_MUSL: ['VarlenLoadError', 'a glibc binary met a musl system'],
  ERR_VARLEN_UNSUPPORTED_CPU: [
    'VarlenLoadError',
    'the CPU lacks an instruction set below which nothing runs (x86-64-v2)',
  ],
  ERR_VARLEN_VERSION_MISMATCH: [
    'VarlenLoadError',
    'binary and JavaScript come from different versions (a stale build)',
  ],

  ERR_VARLEN_NO_CUDA: [
    'VarlenDeviceError',
    'device `cuda` was asked for and is not available; `details.code` says why',
  ],
  ERR_VARLEN_DEVICE_INDEX: ['VarlenDeviceError', '`cuda:N` names a device that does not exist'],
  ERR_VARLEN_OUT_OF_MEMORY: ['VarlenDeviceError', 'an allocation failed, on the host or on the device'],
  ERR_VARLEN_CUDA: ['VarlenDeviceError', 'a CUDA call failed; `details.cudaError` is CUDA’s name for it'],
  ERR_VARLEN_DEVICE_LOST: ['VarlenDeviceError', 'an earlier sticky CUDA error made the device unusable'],

  ERR_VARLEN_TYPE: [
    'VarlenInputError',
    'wrong JavaScript type (a string for a number, a plain array for a typed array)',
  ],
  ERR_VARLEN_DTYPE: ['VarlenInputError', 'wrong or ambiguous element type'],
  ERR_VARLEN_SHAPE: ['VarlenInputError', 'rank, length or dimensions disagree'],
  ERR_VARLEN_LAYOUT: ['VarlenInputError', 'strides the op cannot read'],
  ERR_VARLEN_DEVICE: ['VarlenInputError', 'tensors on different devices, or a host tensor on a CUDA stream'],
  ERR_VARLEN_RANGE: [
    'VarlenInputError',
    'a number or option value outside its range, NaN, or a fraction for an integer',
  ],
  ERR_VARLEN_OPTION: [
    'VarlenInputError',
    'an unknown option key, or a word that is not among the allowed ones',
  ],
  ERR_VARLEN_INCOMPATIBLE: ['VarlenInputError', 'options that are legal one by one but not together'],
  ERR_VARLEN_MISSING_INPUT: ['VarlenInputError', 'an input that the chosen options need is absent'],
  ERR_VARLEN_BUFFER: ['VarlenInputError', 'a detached, resizable, shared or misaligned buffer'],
  ERR_VARLEN_OVERFLOW: ['VarlenInputError', 'more rows or tokens than int32 offsets can hold (2^31 or more)'],
  ERR_VARLEN_CU_SEQLENS: [
    'VarlenInputError',
    'offsets that do not start at 0, decrease, or have a wrong end or length',
  ],
  ERR_VARLEN_MAX_SEQLEN: ['VarlenInputError', '`maxSeqlen` smaller than a real length'],
  ERR_VARLEN_HEAD_DIM: ['VarlenInputError', 'head dimension 0 or above the op’s limit'],
  ERR_VARLEN_TREE: ['VarlenInputError', '`keyEnd` not nested, out of range, or used without `causal`'],
  ERR_VARLEN_INDEX: [
    'VarlenInputError',
    'a token id, label, target or block index out of range or out of order',
  ],
  ERR_VARLEN_NON_FINITE: ['VarlenInputError', 'NaN or infinity where it was asked to be refused'],
  ERR_VARLEN_LOGPROB_POSITIVE: ['VarlenInputError', 'a log-probability above 1e-4'],
  ERR_VARLEN_WEIGHT: ['VarlenInputError', 'a token weight that is negative or NaN'],
  ERR_VARLEN_WHITEN_SINGLE: ['VarlenInputError', 'whitening over a single token'],
  ERR_VARLEN_SINGLETON_GROUP: ['VarlenInputError', "a group of one under `singleton: 'error'`"],
  ERR_VARLEN_TRUNCATED_SUPPORT: ['VarlenInputError', 'truncated sampling support without `keptLogMass`'],
  ERR_VARLEN_BLOCK_MASK: ['VarlenInputError', 'a malformed block mask'],
  ERR_VARLEN_MODALITY: ['VarlenInputError', 'a modality that is missing or unknown'],
  ERR_VARLEN_WORKSPACE: ['VarlenInputError', 'a workspace smaller than needed'],
  ERR_VARLEN_RECALL: ['VarlenInputError', 'a recall guarantee that was missed'],
  ERR_VARLEN_SAMPLE: ['VarlenInputError', 'a sample whose length or labels are unusable'],
  ERR_VARLEN_OVERSIZE_SAMPLE: ['VarlenInputError', "a sample over budget under `outlier: 'error'`"],
  ERR_VARLEN_DUPLICATE_SAMPLE: ['VarlenInputError', 'a sample id seen twice under `audit`'],
  ERR_VARLEN_CONFIG: ['VarlenInputError', 'a malformed configuration file'],
  ERR_VARLEN_SAFETENSORS: ['VarlenInputError', 'a hostile or broken safetensors file'],
  ERR_VARLEN_CHECKPOINT: [
    'VarlenInputError',
    'an unknown architecture, or a missing, extra or misshapen weight',
  ],
  ERR_VARLEN_DATA: ['VarlenInputError', 'a bad line in a JSONL or length file'],
  ERR_VARLEN_IO: ['VarlenInputError', 'reading or writing a file failed; the system’s error is in `cause`'],

  ERR_VARLEN_DISPOSED: ['VarlenStateError', 'a tensor, plan or stream used after `dispose()`'],
  ERR_VARLEN_BUSY: [
    'VarlenStateError',
    'a second iterator on one batcher, or a buffer already in a collective',
  ],
  ERR_VARLEN_CLOSED: ['VarlenStateError', 'a batcher or process group used after `close()`'],
  ERR_VARLEN_PLAN_MISMATCH: [
    'VarlenStateError',
    'a plan run with other lengths, dtype or device than it was made for',
  ],
  ERR_VARLEN_STATE_MISMATCH: ['VarlenStateError', 'restored state of another configuration'],
  ERR_VARLEN_GRAPH_FREED: ['VarlenStateError', 'a second `backward()` without `retainGraph`'],

  ERR_VARLEN_DIST_UNAVAILABLE: ['VarlenDistributedError', 'the Gloo or NCCL library cannot be loaded'],
  ERR_VARLEN_DIST_ENV: ['VarlenDistributedError', 'a launch environment variable is wrong'],
  ERR_VARLEN_DIST_STORE: ['VarlenDistributedError', 'the rendezvous failed'],
  ERR_VARLEN_DIST_WORLD_TOO_LARGE: ['VarlenDistributedError', 'a flat group over its limit'],
  ERR_VARLEN_DIST_TIMEOUT: ['VarlenDistributedError', 'a collective passed its deadline'],
  ERR_VARLEN_DIST_PEER_LOST: ['VarlenDistributedError', 'a peer died'],
  ERR_VARLEN_DIST_ABORTED: ['VarlenDistributedError', 'the group was aborted, here or by a peer'],
  ERR_VARLEN_DIST_MISMATCH: [
    'VarlenDistributedError',
    'ranks call different ops, lengths or package versions',
  ],
  ERR_VARLEN_DIST_NCCL: ['VarlenDistributedError', 'NCCL reported an error'],
  ERR_VARLEN_ALIGNMENT: [
    'VarlenDistributedError',
    'header version, configuration or round differ between ranks',
  ],
  ERR_VARLEN_PEER_ABORTED: [
    'VarlenDistributedError',
    'a peer’s source or batcher failed; that rank has the original error',
  ],

  ERR_VARLEN_UNSUPPORTED: ['VarlenUnsupportedError', 'a valid request for which this device has no kernel'],
  ERR_VARLEN_NO_BACKWARD: ['VarlenUnsupportedError', 'a tracked tensor entered an op without backward'],

  ERR_VARLEN_BUILD_TOOLS: ['VarlenBuildError', 'a build tool is missing'],
  ERR_VARLEN_BUILD_FAILED: ['VarlenBuildError', 'the source build failed'],
} as const;

/** A stable word to switch on. */
export type VarlenErrorCode = keyof typeof ERROR_CODES;

type VarlenErrorClassName = (typeof ERROR_CODES)[VarlenErrorCode][0];

/** Facts about a failure, safe to serialise. Input errors always name `op` and `argument`. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

const brand = Symbol.for('varlen.error');

/**
 * The base of every error this package throws.
 *
 * `instanceof` works across duplicate installs: it looks for a brand, not for the prototype.
 */
export class VarlenError extends Error {
  readonly code: VarlenErrorCode;
  readonly details: ErrorDetails;

  constructor(code: VarlenErrorCode, message: string, details: ErrorDetails = {}, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.details = Object.freeze({ ...details });
    Object.defineProperty(this, brand, { value: ERROR_CODES[code][0] });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    if (typeof value !== 'object' || value === null) return false;
    const className = (value as Record<symbol, unknown>)[brand];
    if (typeof className !== 'string') return false;
    // biome-ignore lint/complexity/noThisInStatic: `this` is the class on the right of instanceof
    return this === VarlenError || this.name === className;
  }
}

/** The native binary could not be found or loaded. */
export class VarlenLoadError extends VarlenError {}
/** A device is missing, full or broken. */
export class VarlenDeviceError extends VarlenError {}
/** The caller's arguments, values or files are wrong. */
export class VarlenInputError extends VarlenError {}
/** An object was used in a state that does not allow it. */
export class VarlenStateError extends VarlenError {}
/** Something between ranks went wrong. */
export class VarlenDistributedError extends VarlenError {}
/** A valid request for which there is no kernel. */
export class VarlenUnsupportedError extends VarlenError {}
/** Building the native binary from source failed. */
export class VarlenBuildError extends VarlenError {}

const classes: Record<VarlenErrorClassName, typeof VarlenError> = {
  VarlenLoadError,
  VarlenDeviceError,
  VarlenInputError,
  VarlenStateError,
  VarlenDistributedError,
  VarlenUnsupportedError,
  VarlenBuildError,
};

/** Makes the error of `code` in the class that carries it. */
export function varlenError(
  code: VarlenErrorCode,
  message: string,
  details: ErrorDetails = {},
  options?: ErrorOptions,
): VarlenError {
  const ErrorClass = classes[ERROR_CODES[code][0]];
  return new ErrorClass(code, message, details, options);
}

/**
 * Makes the error of a bad argument, worded `<op>: <argument> <problem>`.
 *
 * The problem says what came and what was expected: `must be positive; got -1, expected >= 1`.
 */
export function argumentError(
  code: VarlenErrorCode,
  op: string,
  argument: string,
  problem: string,
  details: ErrorDetails = {},
): VarlenError {
  return varlenError(code, `${op}: ${argument} ${problem}`, { op, argument, ...details });
}
