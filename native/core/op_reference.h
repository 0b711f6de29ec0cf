#pragma once

#include <cstdint>
#include <limits>

#include "core/dtype.h"
#include "core/tensor.h"

namespace varlen {

// Element i of a tensor of floats of any type or of mask bytes, as the references read it.
inline double ReadDouble(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kF64:
      return tensor.data<double>()[i];
    case DType::kF32:
      return tensor.data<float>()[i];
    case DType::kF16:
      return static_cast<float>(tensor.data<half>()[i]);
    case DType::kBF16:
      return static_cast<float>(tensor.data<bfloat16>()[i]);
    case DType::kU8:
      return tensor.data<uint8_t>()[i];
    default:
      return std::numeric_limits<double>::quiet_NaN();  // Validate() refuses every other dtype
  }
}
// The same of an argument that may be absent.
inline double ReadOr(const Tensor& tensor, int64_t i, double absent) {
  return tensor ? ReadDouble(tensor, i) : absent;
}

}  // namespace varlen
