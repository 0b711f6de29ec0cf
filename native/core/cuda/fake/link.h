#pragma once

#include "core/cuda/kernel.h"

namespace varlen::cuda {

// Makes the emulator's form of the kernels of a list known to KernelOf, as link.cuh the device's.
template <class... Kernels>
bool LinkEmulated(KernelList<Kernels...>) {
  ((KernelOf<Kernels>::image.emulated =
        [](const void* params, unsigned char* shared) {
          Kernels::Run(*static_cast<const typename Kernels::Params*>(params), shared);
        }),
   ...);
  return true;
}

}  // namespace varlen::cuda
