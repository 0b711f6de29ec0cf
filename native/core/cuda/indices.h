#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/cuda/offsets.h"
#include "core/index_check.h"

namespace varlen::cuda {

// What is on the host was checked when the call was made. Of a tensor a copy comes back with the
// results; meanwhile kernels must leave entries outside [0, end) alone.
inline void CheckIndicesWhenDone(Launch& launch, const char* argument,
                                 const HostOrTensor<int32_t>& indices, int64_t end) {
  if (indices.on_host()) return;
  launch.OnDone([argument, end, read = ReadBack(launch, indices)] {
    return CheckIndices(argument, read.OnHost(), end);
  });
}

}  // namespace varlen::cuda
