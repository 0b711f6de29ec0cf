#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/simt/simt.h"

// Rows of any float dtype, read and written as float in chunks of eight elements: as vectors where
// rows begin at multiples of 16 bytes, one by one elsewhere and at a row's end.
namespace varlen::internal {

inline constexpr int kChunk = 8;  // elements: 16 bytes, or two times 16 of float

// Elements first .. first + 7 of a row; only `count` of them are read.
template <class T>
SIMT_FN void LoadChunk(const T* row, int64_t first, int count, bool vector_access,
                       float (&out)[kChunk]) {
  if (count == kChunk && vector_access) {
    constexpr int kPerVector = 16 / sizeof(T);
    SIMT_UNROLL
    for (int i = 0; i < kChunk; i += kPerVector) {
      const auto v = simt::Load(reinterpret_cast<const simt::Vector4*>(row + first + i));
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      SIMT_UNROLL
      for (int w = 0; w < 4; ++w) {
        if constexpr (sizeof(T) == 4) {
          out[i + w] = simt::BitsToFloat(words[w]);
        } else {
          T low, high;
          low.bits = static_cast<uint16_t>(words[w]);
          high.bits = static_cast<uint16_t>(words[w] >> 16);
          out[i + 2 * w] = simt::ToFloat<T>(low);
          out[i + 2 * w + 1] = simt::ToFloat<T>(high);
        }
      }
    }
    return;
  }
  SIMT_UNROLL
  for (int i = 0; i < kChunk; ++i) out[i] = i < count ? LoadFloat(row + first + i) : 0.0f;
}

template <class T>
SIMT_FN void StoreChunk(const float (&values)[kChunk], T* row, int64_t first, int count,
                        bool vector_access) {
  if (count == kChunk && vector_access) {
    constexpr int kPerVector = 16 / sizeof(T);
    SIMT_UNROLL
    for (int i = 0; i < kChunk; i += kPerVector) {
      uint32_t words[4];
      SIMT_UNROLL
      for (int w = 0; w < 4; ++w) {
        if constexpr (sizeof(T) == 4) {
          words[w] = simt::FloatToBits(values[i + w]);
        } else {
          words[w] = simt::PackPair<T>(values[i + 2 * w], values[i + 2 * w + 1]);
        }
      }
      simt::Store(reinterpret_cast<simt::Vector4*>(row + first + i),
                  {words[0], words[1], words[2], words[3]});
    }
    return;
  }
  SIMT_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    if (i < count) simt::Store(row + first + i, NarrowFloat<T>(values[i]));
  }
}

SIMT_FN int ChunkLength(int64_t first, int64_t size) {
  return static_cast<int>(size - first < kChunk ? size - first : kChunk);
}

// The chunks of a row.
SIMT_FN int64_t NumChunks(int64_t size) { return (size + kChunk - 1) / kChunk; }

}  // namespace varlen::internal
