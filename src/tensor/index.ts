export {
  type CudaDevice,
  type CudaStatus,
  type CudaUnavailableCode,
  Device,
  type DeviceInfo,
  type DeviceKind,
  type DeviceLike,
  deviceInfo,
  setNumThreads,
} from './device.js';
export { DLPackHandle, type DLPackHandleOptions } from './dlpack.js';
export type { DType, Float16ArrayLike, TypedArray } from './dtype.js';
export { type IpcHandle, releaseIpc } from './ipc.js';
export { type MemoryStats, memoryStats, scope } from './lifetime.js';
export { PinnedBuffer, type PinnedCopyOptions } from './pinned-buffer.js';
export type { OpTrace } from './run.js';
export {
  fromSafetensors,
  type Safetensors,
  type SafetensorsEntry,
  type SafetensorsReadOptions,
  type SafetensorsSource,
  toSafetensors,
} from './safetensors.js';
export { readSafetensors, writeSafetensors } from './safetensors-file.js';
export { Event, Stream } from './stream.js';
export { Tensor, type TensorEmptyOptions, type TensorFromOptions } from './tensor.js';
export type { TensorLike } from './tensor-like.js';
export { tokenIds } from './token-ids.js';
