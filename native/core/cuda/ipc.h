#pragma once

#include <array>
#include <cstdint>

#include "core/status.h"
#include "core/tensor.h"

// Memory of a GPU that several processes see: one gives out a handle of 64 bytes, the others open
// it.
namespace varlen {

using IpcHandle = std::array<uint8_t, 64>;   // cudaIpcMemHandle_t
using DeviceUuid = std::array<uint8_t, 16>;  // the same in every process, whatever it calls cuda:0

// The calls of CUDA for it, beside the table of api.h, which every kernel's file includes. Results
// are cudaError_t as int; null where there is no runtime.
struct CudaIpc {
  int (*uuid)(DeviceUuid* uuid, int index) = nullptr;
  // Of the calling thread's device. `segment` is what cudaMalloc returned.
  int (*export_memory)(IpcHandle* handle, void* segment) = nullptr;
  int (*open_memory)(void** segment, const IpcHandle& handle) = nullptr;
  int (*close_memory)(void* segment) = nullptr;
};

// Of the runtime that this binary was linked with: runtime.cc with CUDA, cuda_stub.cc without.
CudaIpc LinkedCudaIpc();
// The linked one, unless ReplaceCudaIpc was called before the first use.
const CudaIpc& ThisCudaIpc();
void ReplaceCudaIpc(const CudaIpc& ipc);

namespace cuda {

class Gpu;

Status UuidOf(Gpu& gpu, DeviceUuid* uuid);

// What another process needs to find a tensor.
struct IpcExport {
  uint64_t id = 0;  // in this process
  IpcHandle handle{};
  int64_t segment_bytes = 0, byte_offset = 0;
};
// Keeps the tensor's memory until EndExport(id), or until the process ends.
Status ExportMemory(Gpu& gpu, const Tensor& tensor, IpcExport* exported);
// False when there is no such export, or no longer.
bool EndExport(uint64_t id);

// `bytes` of what another process exported. A segment stays open while something of it is in use.
Status ImportMemory(Gpu& gpu, const IpcHandle& handle, int64_t byte_offset, int64_t bytes,
                    StorageRef* storage);

}  // namespace cuda
}  // namespace varlen
