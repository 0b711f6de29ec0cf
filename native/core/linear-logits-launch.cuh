#pragma once

#include "core/linear-logits-passes.h"
#include "core/simt/launch-capped.cuh"

// The kernels of linear-logits-device.h that no op changes: compiled in linear-logits-sm80.cu
// alone.
namespace varlen {

// What the passes take as `launch`.
struct CudaLauncher {
  int multiprocessors;
  cudaStream_t stream;

  template <class Kernel>
  cudaError_t operator()(int64_t blocks, const typename Kernel::Params& params) const {
    return simt::LaunchCapped<Kernel>(multiprocessors, blocks, params, stream);
  }
};

namespace simt {

#define VARLEN_LINEAR_KERNEL(prefix, Kernel)                                            \
  prefix template cudaError_t LaunchCapped<Kernel>(int, int64_t, const Kernel::Params&, \
                                                   cudaStream_t)
#define VARLEN_LINEAR_KERNELS(prefix, T)                   \
  VARLEN_LINEAR_KERNEL(prefix, DeviceLinearStatistics<T>); \
  VARLEN_LINEAR_KERNEL(prefix, DeviceHiddenGradients<T>);  \
  VARLEN_LINEAR_KERNEL(prefix, DeviceWeightGradients<T>)

#ifndef VARLEN_DEFINES_LINEAR_KERNELS
VARLEN_LINEAR_KERNELS(extern, float);
VARLEN_LINEAR_KERNELS(extern, bfloat16);
VARLEN_LINEAR_KERNELS(extern, half);
VARLEN_LINEAR_KERNEL(extern, DeviceRowOrder<MaskFilter>);
VARLEN_LINEAR_KERNEL(extern, DeviceBiasGradients);
#endif

}  // namespace simt
}  // namespace varlen
