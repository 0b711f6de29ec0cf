import { existsSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { checkInteger, describe, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { info, threads } from '../native/binding.js';

/** Why CUDA cannot be used, in the order in which it is decided. */
export type CudaUnavailableCode =
  | 'NOT_BUILT'
  | 'DISABLED'
  | 'NO_DRIVER'
  | 'DRIVER_TOO_OLD'
  | 'NO_DEVICE'
  | 'ARCH_UNSUPPORTED'
  | 'INIT_FAILED';

/** One GPU. */
export interface CudaDevice {
  readonly name: string;
  /** For example `'9.0'`. */
  readonly computeCapability: string;
  readonly multiprocessors: number;
  readonly memoryBytes: number;
}

/** Whether CUDA can be used here, and if not, why. Versions read like `'13.0'`. */
export type CudaStatus =
  | {
      readonly available: true;
      readonly runtimeVersion: string;
      readonly driverVersion: string;
      readonly devices: readonly CudaDevice[];
    }
  | {
      readonly available: false;
      readonly code: CudaUnavailableCode;
      readonly reason: string;
      readonly runtimeVersion?: string;
      readonly driverVersion?: string;
    };

/** This machine as the package sees it. */
export interface DeviceInfo {
  /** Version of the native binary. */
  readonly version: string;
  readonly cpu: {
    readonly model: string;
    readonly cores: number;
    /** Instruction set of the CPU kernels: `baseline`, `avx2`, `avx512`, `avx512-bf16` or `neon`. */
    readonly isa: string;
    /** Why `VARLEN_CPU_ISA` was not followed; absent if it was, or is not set. */
    readonly isaNote?: string;
  };
  /** Threads that may work on one op. */
  readonly threads: number;
  readonly cuda: CudaStatus;
}

/** CUDA's way of writing versions: 13000 is 13.0, 12040 is 12.4. */
function readVersion(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
}

function cudaStatus(native: ReturnType<typeof info>): CudaStatus {
  const { cudaProblem, cudaReason, runtimeVersion, driverVersion, devices } = native;
  if (cudaProblem === '') {
    return Object.freeze({
      available: true,
      runtimeVersion: readVersion(runtimeVersion),
      driverVersion: readVersion(driverVersion),
      devices: Object.freeze(devices.map((device) => Object.freeze(device))),
    });
  }
  return Object.freeze({
    available: false,
    code: cudaProblem as CudaUnavailableCode,
    reason: cudaReason,
    ...(runtimeVersion === 0 ? {} : { runtimeVersion: readVersion(runtimeVersion) }),
    ...(driverVersion === 0 ? {} : { driverVersion: readVersion(driverVersion) }),
  });
}

/**
 * What this machine offers: CPU, instruction set, threads, and CUDA or the reason it is off. Frozen.
 *
 * @example
 * ```ts
 * const { cpu, cuda } = deviceInfo();
 * console.log(cpu.isa, cuda.available ? cuda.devices : cuda.reason);
 * ```
 */
export function deviceInfo(): DeviceInfo {
  const native = info();
  const cpu = {
    model: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    isa: native.isa,
    ...(native.isaNote === '' ? {} : { isaNote: native.isaNote }),
  };
  return Object.freeze({
    version: native.version,
    cpu: Object.freeze(cpu),
    threads: threads(),
    cuda: cudaStatus(native),
  });
}

/**
 * Sets how many threads may work on one op, for the whole process. Results do not depend on it.
 *
 * @param count 1 to 1024
 * @throws `ERR_VARLEN_RANGE`
 */
export function setNumThreads(count: number): void {
  checkInteger('setNumThreads', 'count', count, 1, 1024);
  threads(count);
}

/** Where a tensor lives. */
export type DeviceKind = 'cpu' | 'cuda';

/**
 * A device, or the word for it. `'auto'` is the CPU for as long as some ops have no CUDA kernel: a program
 * that never named a GPU must not stop at the first of them. `'cuda'` is for those that have.
 */
export type DeviceLike = Device | 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

let warnedOfFallback = false;

/** A silent CPU fallback on a GPU machine is the most expensive surprise there is; one warning is not. */
function warnOfFallback(status: CudaStatus): void {
  if (warnedOfFallback || !existsSync('/dev/nvidiactl')) return;
  warnedOfFallback = true;
  const reason = status.available
    ? "device 'auto' does not choose it before every op has a CUDA kernel; device 'cuda' does"
    : status.reason;
  process.emitWarning(`varlen runs on the CPU although this machine has an NVIDIA GPU: ${reason}`, {
    code: 'VARLEN_CPU_FALLBACK',
  });
}

const devices = new Map<string, Device>();

/** A place where tensors live and ops run. Equal devices are the same object. */
export class Device {
  readonly kind: DeviceKind;
  readonly index: number;

  private constructor(kind: DeviceKind, index: number) {
    this.kind = kind;
    this.index = index;
    Object.freeze(this);
  }

  private static of(kind: DeviceKind, index: number): Device {
    const key = `${kind}:${index}`;
    let device = devices.get(key);
    if (device === undefined) {
      device = new Device(kind, index);
      devices.set(key, device);
    }
    return device;
  }

  /** The CPU. */
  static cpu(): Device {
    return Device.of('cpu', 0);
  }

  /**
   * GPU number `index`.
   *
   * @throws `ERR_VARLEN_NO_CUDA` (`details.code` says why), `ERR_VARLEN_DEVICE_INDEX`
   */
  static cuda(index = 0): Device {
    checkInteger('Device.cuda', 'index', index, 0, 1023);
    const status = cudaStatus(info());
    if (!status.available) {
      throw varlenError('ERR_VARLEN_NO_CUDA', `device 'cuda' is not available: ${status.reason}`, {
        op: 'Device.cuda',
        code: status.code,
      });
    }
    if (index >= status.devices.length) {
      throw argumentError(
        'ERR_VARLEN_DEVICE_INDEX',
        'Device.cuda',
        'index',
        `names no device; got ${index}, expected below ${status.devices.length}`,
      );
    }
    return Device.of('cuda', index);
  }

  /** Every device of this machine, the CPU first. */
  static list(): Device[] {
    const status = cudaStatus(info());
    const gpus = status.available ? status.devices.map((_, index) => Device.of('cuda', index)) : [];
    return [Device.cpu(), ...gpus];
  }

  /**
   * The device that a word stands for.
   *
   * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_NO_CUDA`, `ERR_VARLEN_DEVICE_INDEX`
   */
  static resolve(device: DeviceLike): Device {
    if (device instanceof Device) return device;
    if (typeof device !== 'string')
      throw wrongType('Device.resolve', 'device', device, 'a Device or a string');
    if (device === 'cpu') return Device.cpu();
    if (device === 'auto') {
      warnOfFallback(cudaStatus(info()));
      return Device.cpu();
    }
    const match = /^cuda(?::(0|[1-9]\d{0,3}))?$/.exec(device);
    if (match !== null) return Device.cuda(Number(match[1] ?? 0));
    throw argumentError(
      'ERR_VARLEN_OPTION',
      'Device.resolve',
      'device',
      `is not a device; got ${describe(device)}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'`,
    );
  }

  /** `'cpu'` or `'cuda:N'`. */
  toString(): string {
    return this.kind === 'cpu' ? 'cpu' : `cuda:${this.index}`;
  }
}
