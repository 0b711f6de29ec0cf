#pragma once

#include <cstdint>
#include <string>

namespace varlen {

// "[2, 3]"
inline std::string ShapeText(const int64_t* shape, int rank) {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace varlen
