#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "core/cuda/api.h"
#include "core/dtype.h"

namespace varlen::cuda {

inline constexpr int kMaxDevices = 16;

// A kernel as the table of core/cuda/api.h launches it. One source gives both forms: a .cu file
// links the device's (link.cuh), a test build the emulator's (fake/link.h); a build may have
// either.
struct KernelImage {
  int threads;
  int64_t shared_bytes;
  int64_t params_bytes;
  const void* device = nullptr;                                           // of __global__
  void (*emulated)(const void* params, unsigned char* shared) = nullptr;  // one thread's run
  std::array<std::atomic<int>, kMaxDevices> resident{};  // blocks per multiprocessor, 0: not asked
};

template <class Kernel>
struct KernelOf {
  inline static KernelImage image{Kernel::kThreads, Kernel::kSharedBytes,
                                  sizeof(typename Kernel::Params)};
};

// The kernels of one .cu file.
template <class... Kernels>
struct KernelList {};
// Templates of kernels, for every element type that ops compute with.
template <template <class> class... Kernels>
using FloatKernels = KernelList<Kernels<float>..., Kernels<bfloat16>..., Kernels<half>...>;

}  // namespace varlen::cuda
