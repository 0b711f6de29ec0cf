#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>

#include "core/dtype.h"

namespace varlen::simt {

// The float of a 16-bit pattern.
template <class T>
float Decode(uint16_t bits);

template <>
inline float Decode<bfloat16>(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

template <>
inline float Decode<half>(uint16_t bits) {
  // Matrix products decode millions of values: a table is ten times faster than the arithmetic.
  static const auto table = [] {
    auto values = std::make_unique<std::array<float, 65536>>();
    for (uint32_t i = 0; i < 65536; ++i) {
      half h;
      h.bits = static_cast<uint16_t>(i);
      (*values)[i] = static_cast<float>(h);
    }
    return values;
  }();
  return (*table)[bits];
}

template <class T>
uint16_t Encode(float value) {
  return T(value).bits;
}

}  // namespace varlen::simt
