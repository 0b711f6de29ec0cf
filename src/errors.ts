/**
 * Every failure a caller can act on has one stable code. This file holds the only list:
 * the classes, the documentation page and the tests are all made from {@link ERROR_CODES}.
 */

/** One entry of the list: the class that carries the code and when it is raised. */
interface ErrorCodeEntry {
  readonly class: VarlenErrorClassName;
  readonly when: string;
}

type VarlenErrorClassName =
  | 'VarlenLoadError'
  | 'VarlenDeviceError'
  | 'VarlenInputError'
  | 'VarlenStateError'
  | 'VarlenDistributedError'
  | 'VarlenUnsupportedError'
  | 'VarlenBuildError';

const load = (when: string) => ({ class: 'VarlenLoadError', when }) as const;
const device = (when: string) => ({ class: 'VarlenDeviceError', when }) as const;
const input = (when: string) => ({ class: 'VarlenInputError', when }) as const;
const state = (when: string) => ({ class: 'VarlenStateError', when }) as const;
const distributed = (when: string) => ({ class: 'VarlenDistributedError', when }) as const;
const unsupported = (when: string) => ({ class: 'VarlenUnsupportedError', when }) as const;
const build = (when: string) => ({ class: 'VarlenBuildError', when }) as const;

/** All codes, grouped by the class that carries them. */
export const ERROR_CODES = {
  ERR_VARLEN_NO_BINARY: load('no native binary for this platform, architecture and C library'),
  ERR_VARLEN_LOAD: load('the native binary exists but does not load; the loader’s reason is in `cause`'),
  ERR_VARLEN_GLIBC_TOO_OLD: load('the system’s glibc is older than the binary needs'),
  ERR_VARLEN_MUSL: load('a glibc binary met a musl system'),
  ERR_VARLEN_UNSUPPORTED_CPU: load('the CPU lacks an instruction set below which nothing runs (x86-64-v2)'),
  ERR_VARLEN_VERSION_MISMATCH: load('binary and JavaScript come from different versions (a stale build)'),

  ERR_VARLEN_NO_CUDA: device('device `cuda` was asked for and is not available; `details.code` says why'),
  ERR_VARLEN_DEVICE_INDEX: device('`cuda:N` names a device that does not exist'),
  ERR_VARLEN_OUT_OF_MEMORY: device('an allocation failed, on the host or on the device'),
  ERR_VARLEN_CUDA: device('a CUDA call failed; `details.cudaError` is CUDA’s name for it'),
  ERR_VARLEN_DEVICE_LOST: device('an earlier sticky CUDA error made the device unusable'),

  ERR_VARLEN_TYPE: input('wrong JavaScript type (a string for a number, a plain array for a typed array)'),
  ERR_VARLEN_DTYPE: input('wrong or ambiguous element type'),
  ERR_VARLEN_SHAPE: input('rank, length or dimensions disagree'),
  ERR_VARLEN_LAYOUT: input('strides the op cannot read'),
  ERR_VARLEN_DEVICE: input('tensors on different devices, or a host tensor on a CUDA stream'),
  ERR_VARLEN_RANGE: input('a number or option value outside its range, NaN, or a fraction for an integer'),
  ERR_VARLEN_OPTION: input('an unknown option key, or a word that is not among the allowed ones'),
  ERR_VARLEN_INCOMPATIBLE: input('options that are legal one by one but not together'),
  ERR_VARLEN_MISSING_INPUT: input('an input that the chosen options need is absent'),
  ERR_VARLEN_BUFFER: input('a detached, resizable, shared or misaligned buffer'),
  ERR_VARLEN_OVERFLOW: input('more rows or tokens than int32 offsets can hold (2^31 or more)'),
  ERR_VARLEN_CU_SEQLENS: input('offsets that do not start at 0, decrease, or have a wrong end or length'),
  ERR_VARLEN_MAX_SEQLEN: input('`maxSeqlen` smaller than a real length'),
  ERR_VARLEN_HEAD_DIM: input('head dimension 0 or above the op’s limit'),
  ERR_VARLEN_TREE: input('`keyEnd` not nested, out of range, or used without `causal`'),
  ERR_VARLEN_INDEX: input('a token id, label, target or block index out of range or out of order'),
  ERR_VARLEN_NON_FINITE: input('NaN or infinity where it was asked to be refused'),
  ERR_VARLEN_LOGPROB_POSITIVE: input('a log-probability above 1e-4'),
  ERR_VARLEN_WEIGHT: input('a token weight that is negative or NaN'),
  ERR_VARLEN_WHITEN_SINGLE: input('whitening over a single token'),
  ERR_VARLEN_SINGLETON_GROUP: input('a group of one under `singleton: \'error\'`'),
  ERR_VARLEN_TRUNCATED_SUPPORT: input('truncated sampling support without `keptLogMass`'),
  ERR_VARLEN_BLOCK_MASK: input('a malformed block mask'),
  ERR_VARLEN_MODALITY: input('a modality that is missing or unknown'),
  ERR_VARLEN_WORKSPACE: input('a workspace smaller than needed'),
  ERR_VARLEN_RECALL: input('a recall guarantee that was missed'),
  ERR_VARLEN_SAMPLE: input('a sample whose length or labels are unusable'),
  ERR_VARLEN_OVERSIZE_SAMPLE: input('a sample over budget under `outlier: \'error\'`'),
  ERR_VARLEN_DUPLICATE_SAMPLE: input('a sample id seen twice under `audit`'),
  ERR_VARLEN_CONFIG: input('a malformed configuration file'),
  ERR_VARLEN_SAFETENSORS: input('a hostile or broken safetensors file'),
  ERR_VARLEN_CHECKPOINT: input('an unknown architecture, or a missing, extra or misshapen weight'),
  ERR_VARLEN_DATA: input('a bad line in a JSONL or length file'),
  ERR_VARLEN_IO: input('reading or writing a file failed; the system’s error is in `cause`'),

  ERR_VARLEN_DISPOSED: state('a tensor, plan or stream used after `dispose()`'),
  ERR_VARLEN_BUSY: state('a second iterator on one batcher, or a buffer already in a collective'),
  ERR_VARLEN_CLOSED: state('a batcher or process group used after `close()`'),
  ERR_VARLEN_PLAN_MISMATCH: state('a plan run with other lengths, dtype or device than it was made for'),
  ERR_VARLEN_STATE_MISMATCH: state('restored state of another configuration'),
  ERR_VARLEN_GRAPH_FREED: state('a second `backward()` without `retainGraph`'),

  ERR_VARLEN_DIST_UNAVAILABLE: distributed('the Gloo or NCCL library cannot be loaded'),
  ERR_VARLEN_DIST_ENV: distributed('a launch environment variable is wrong'),
  ERR_VARLEN_DIST_STORE: distributed('the rendezvous failed'),
  ERR_VARLEN_DIST_WORLD_TOO_LARGE: distributed('a flat group over its limit'),
  ERR_VARLEN_DIST_TIMEOUT: distributed('a collective passed its deadline'),
  ERR_VARLEN_DIST_PEER_LOST: distributed('a peer died'),
  ERR_VARLEN_DIST_ABORTED: distributed('the group was aborted, here or by a peer'),
  ERR_VARLEN_DIST_MISMATCH: distributed('ranks call different ops, lengths or package versions'),
  ERR_VARLEN_DIST_NCCL: distributed('NCCL reported an error'),
  ERR_VARLEN_ALIGNMENT: distributed('header version, configuration or round differ between ranks'),
  ERR_VARLEN_PEER_ABORTED: distributed('a peer’s source or batcher failed; that rank has the original error'),

  ERR_VARLEN_UNSUPPORTED: unsupported('a valid request for which this device has no kernel'),
  ERR_VARLEN_NO_BACKWARD: unsupported('a tracked tensor entered an op without backward'),

  ERR_VARLEN_BUILD_TOOLS: build('a build tool is missing'),
  ERR_VARLEN_BUILD_FAILED: build('the source build failed'),
} as const satisfies Record<string, ErrorCodeEntry>;

/** A stable word to switch on. */
export type VarlenErrorCode = keyof typeof ERROR_CODES;

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
    Object.defineProperty(this, brand, { value: ERROR_CODES[code].class });
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
  const ErrorClass = classes[ERROR_CODES[code].class];
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
