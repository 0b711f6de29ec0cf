#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/offsets-device.h"

namespace varlen::cuda {

// Offsets as kernels may trust them, and the host's copies of those that were tensors, which the
// host's checks read when the task is done.
struct TrustedOffsets {
  const int32_t* cu = nullptr;    // device memory
  const int32_t* used = nullptr;  // likewise, or null
};

// What is on the host was checked when the call was made. Of tensors a kernel makes safe copies.
inline TrustedOffsets Trust(Launch& launch, const HostOrTensor<int32_t>& cu,
                            const HostOrTensor<int32_t>& used, int64_t limit) {
  const int64_t num = cu.size() - 1;
  TrustedOffsets trusted{launch.DataOf(cu), launch.DataOf(used)};
  if (cu.on_host() && (!used || used.on_host())) return trusted;
  auto* cu_out = launch.Scratch<int32_t>(num + 1);
  auto* used_out = used ? launch.Scratch<int32_t>(num) : nullptr;
  launch.Run<DeviceOffsetsClamp>(1, {trusted.cu, trusted.used, num, limit, cu_out, used_out});
  return {cu_out, used_out};
}

// The same array with its elements on the host, from when the task is done.
template <class T>
struct ReadBack {
  ReadBack(Launch& launch, const HostOrTensor<T>& array) : array(array) {
    if (!array || array.on_host()) return;
    elements = launch.ReadBack(array.data(), array.size());
  }
  HostOrTensor<T> OnHost() const {
    if (!array || array.on_host()) return array;
    HostOrTensor<T> read;
    const int64_t size = elements == nullptr ? 0 : array.size();
    read.host = std::make_shared<const std::vector<T>>(elements, elements + size);
    return read;
  }

  HostOrTensor<T> array;
  const T* elements = nullptr;
};

}  // namespace varlen::cuda
