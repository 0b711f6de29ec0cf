#pragma once

#include "core/cuda/kernel.h"
#include "core/simt/launch.cuh"

namespace varlen::cuda {

// Compiles the kernels of a list and makes them known to KernelOf. Always true:
//   const bool linked = cuda::LinkDevice(Kernels{});
template <class... Kernels>
bool LinkDevice(KernelList<Kernels...>) {
  ((KernelOf<Kernels>::image.device = reinterpret_cast<const void*>(simt::Entry<Kernels>)), ...);
  return true;
}

}  // namespace varlen::cuda
