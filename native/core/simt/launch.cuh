#pragma once

#include "core/simt/simt.h"

// The kernel of a simt struct under nvcc. Kernel::kThreads, and Kernel::kMinBlocks per
// multiprocessor, give the compiler its register limit.
namespace varlen::simt {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    Entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Kernel::Run(params, shared);
}

}  // namespace varlen::simt
