#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/dispatch.h"
#include "core/dtype.h"
#include "core/tensor.h"

// What the launches of ops over tensors of floats share.
namespace varlen::cuda {

// body.operator()<T>(launch) for the element type of a tensor.
template <class Body>
Status LaunchFor(const Tensor& tensor, const Body& body) {
  Launch& launch = Launch::Current();
  return DispatchDType<float, bfloat16, half>(tensor.dtype, "dtype", [&]<class T>() {
    body.template operator()<T>(launch);
    return launch.status();
  });
}

// Whether all of them begin at multiples of 16 bytes; absent ones do.
template <class... Tensors>
bool Aligned(const Tensors&... tensors) {
  return ((reinterpret_cast<uintptr_t>(tensors.address()) % 16 == 0) && ...);
}
// Whether all their rows do; contiguous, of `width` elements.
template <class... Tensors>
bool AlignedRows(int64_t width, const Tensors&... tensors) {
  return Aligned(tensors...) && ((width * SizeOf(tensors.dtype) % 16 == 0) && ...);
}

}  // namespace varlen::cuda
