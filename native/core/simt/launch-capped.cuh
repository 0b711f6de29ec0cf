#pragma once

#include <algorithm>

#include "core/simt/launch.cuh"

namespace varlen::simt {

// A kernel whose blocks stride over their work: `blocks` of them, but no more than the device can
// hold at once.
template <class Kernel>
cudaError_t LaunchCapped(int multiprocessors, int64_t blocks, const typename Kernel::Params& params,
                         cudaStream_t stream) {
  const auto entry = Entry<Kernel>;
  int resident = 0;
  cudaError_t error = cudaSuccess;
  if constexpr (Kernel::kSharedBytes > 48 * 1024) {  // what a block gets without asking
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 Kernel::kSharedBytes);
    if (error != cudaSuccess) return error;
  }
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, entry, Kernel::kThreads,
                                                        Kernel::kSharedBytes);
  if (error != cudaSuccess) return error;
  const int64_t grid =
      std::clamp<int64_t>(blocks, 1, int64_t{multiprocessors} * std::max(resident, 1));
  entry<<<static_cast<unsigned>(grid), Kernel::kThreads, Kernel::kSharedBytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace varlen::simt
