#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace varlen {

// Refuses entries outside [0, end). Arrays on the host are checked when the call is made, tensors
// in the stream.
inline Status CheckIndices(const char* argument, const HostOrTensor<int32_t>& indices,
                           int64_t end) {
  const int32_t* values = indices.data();
  for (int64_t i = 0; i < indices.size(); ++i) {
    if (values[i] >= 0 && values[i] < end) continue;
    return Invalid(
        Code::kIndex, argument, "is out of range",
        std::string(argument) + "[" + std::to_string(i) + "] = " + std::to_string(values[i]),
        end == 0 ? "no entry" : "0.." + std::to_string(end - 1));
  }
  return {};
}

}  // namespace varlen
