#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/simt/tensor_map.h"

// Every call of CUDA that the package makes, as one table of function pointers, free of CUDA
// headers. runtime.cc fills it with the statically linked runtime; core/cuda/fake with host memory
// and the SIMT emulator, so that all of the device runtime runs and fails on demand in tests where
// there is no GPU.
namespace varlen {

namespace cuda {

struct KernelImage;

// cudaError_t, here because these files must compile without the toolkit; runtime.cc compares them.
namespace error {
inline constexpr int kSuccess = 0;
inline constexpr int kInvalidValue = 1;
inline constexpr int kMemoryAllocation = 2;
inline constexpr int kInitialization = 3;
inline constexpr int kInvalidDeviceFunction = 98;
inline constexpr int kNoDevice = 100;
inline constexpr int kNoKernelImageForDevice = 209;
inline constexpr int kEccUncorrectable = 214;
inline constexpr int kUnsupportedPtxVersion = 222;
inline constexpr int kNotReady = 600;
inline constexpr int kIllegalAddress = 700;
inline constexpr int kLaunchOutOfResources = 701;
inline constexpr int kLaunchTimeout = 702;
inline constexpr int kHardwareStackError = 714;
inline constexpr int kLaunchFailure = 719;
inline constexpr int kUnknown = 999;
}  // namespace error

// The errors after which a context answers nothing else until the process ends (CUDA runtime API,
// cudaError: "the process must be terminated and relaunched").
constexpr bool IsSticky(int error) {
  return error == error::kEccUncorrectable || error == error::kIllegalAddress ||
         error == error::kLaunchTimeout ||
         (error >= error::kHardwareStackError && error <= error::kLaunchFailure) ||
         error == error::kUnknown;
}

enum class CopyKind : uint8_t { kHostToDevice, kDeviceToHost, kDeviceToDevice };

// One-dimensional, as all of ours.
struct LaunchShape {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

}  // namespace cuda

struct CudaDevice {
  std::string name;
  int compute_major = 0;  // 9 and 0 for compute capability 9.0
  int compute_minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};

// Results are cudaError_t as int; streams and events are void*.
struct CudaRuntime {
  const char* not_built = nullptr;  // why there is no runtime; the calls below are then null

  // The probe's. None creates a context on a device.
  int (*runtime_version)(int* version) = nullptr;
  int (*driver_version)(int* version) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device)(CudaDevice* device, int index) = nullptr;
  // Asks for the attributes of one kernel of this build; null when the build has no kernels.
  int (*kernel)(int index) = nullptr;
  const char* (*error_name)(int error) = nullptr;

  // Of the calling thread: which device the calls below are for.
  int (*set_device)(int index) = nullptr;
  int (*memory_info)(int64_t* free_bytes, int64_t* total_bytes) = nullptr;
  int (*allocate)(void** data, int64_t bytes) = nullptr;
  int (*release)(void* data) = nullptr;
  int (*allocate_pinned)(void** data, int64_t bytes) = nullptr;
  int (*release_pinned)(void* data) = nullptr;

  // Streams do not wait for the legacy default stream.
  int (*create_stream)(void** stream) = nullptr;
  int (*destroy_stream)(void* stream) = nullptr;
  int (*synchronize_stream)(void* stream) = nullptr;  // the calling thread waits
  // Waiting for one gives the processor away; it keeps the time.
  int (*create_event)(void** event) = nullptr;
  int (*destroy_event)(void* event) = nullptr;
  int (*record_event)(void* event, void* stream) = nullptr;
  int (*wait_event)(void* stream, void* event) = nullptr;  // the stream waits
  int (*synchronize_event)(void* event) = nullptr;         // the calling thread waits
  int (*elapsed_ms)(float* ms, void* start, void* end) = nullptr;

  int (*copy)(void* to, const void* from, int64_t bytes, cuda::CopyKind kind,
              void* stream) = nullptr;
  int (*fill)(void* data, int byte, int64_t bytes, void* stream) = nullptr;
  // Does this binary have the kernel?
  bool (*has)(const cuda::KernelImage& kernel) = nullptr;
  // cuTensorMapEncodeTiled; the map is for kernels' Params.
  int (*encode)(simt::TensorMap* map, const simt::TensorMapShape& shape) = nullptr;
  // Once per kernel and device: allows it its shared memory, and says how many of its blocks a
  // multiprocessor holds at once.
  int (*prepare)(const cuda::KernelImage& kernel, int* resident) = nullptr;
  // `params` is copied during the call.
  int (*launch)(const cuda::KernelImage& kernel, const cuda::LaunchShape& shape, const void* params,
                void* stream) = nullptr;
  // The files that may be cuBLASLt (core/cuda/cublas-lt.h), in the order in which to try them.
  std::vector<std::string> (*cublas_lt)() = nullptr;
};

// The runtime that this binary was linked with: runtime.cc with CUDA, cuda_stub.cc without.
CudaRuntime LinkedCudaRuntime();

// The linked one, unless ReplaceCudaRuntime was called before the first use.
const CudaRuntime& ThisCudaRuntime();
void ReplaceCudaRuntime(const CudaRuntime& runtime);

}  // namespace varlen
