#pragma once

#include <cstdint>
#include <type_traits>

#include "core/simt/simt.h"

// 16 bytes of a row: what moves between global memory and a tile in shared memory.
namespace varlen {

template <class T>
struct TileChunk {
  static constexpr int kPerChunk = 16 / sizeof(T);  // columns

  // How many of a chunk's columns lie inside the head dimension.
  static SIMT_FN int Columns(int head_dim, int chunk) {
    const int left = head_dim - chunk * kPerChunk;
    return left < 0 ? 0 : left < kPerChunk ? left : kPerChunk;
  }

  // `count` columns of a row, the rest of the chunk as zeros. Rows and columns outside the sequence
  // must become zeros, whatever memory holds there: a masked key still multiplies its V row, and 0
  // * NaN is NaN.
  static SIMT_FN void LoadChunk(T* to, const T* from, int count, bool vector_loads) {
    if (vector_loads) {
      simt::CopyAsync16(to, from, count * static_cast<int>(sizeof(T)));
      return;
    }
    uint32_t words[4] = {0, 0, 0, 0};
    SIMT_UNROLL
    for (int i = 0; i < kPerChunk; ++i) {
      if (i < count) words[i / kPerWord] |= uint32_t{Bits(from + i)} << (16 * (i % kPerWord));
    }
    simt::Store(reinterpret_cast<simt::Vector4*>(to),
                simt::Vector4{words[0], words[1], words[2], words[3]});
  }
  static SIMT_FN void StoreChunk(T* to, const simt::Vector4& values, int count,
                                 bool vector_stores) {
    if (vector_stores && count == kPerChunk) {
      simt::Store(reinterpret_cast<simt::Vector4*>(to), values);
      return;
    }
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
    SIMT_UNROLL
    for (int i = 0; i < kPerChunk; ++i) {
      if (i < count) {
        simt::Store(reinterpret_cast<Word*>(to + i),
                    static_cast<Word>(words[i / kPerWord] >> (16 * (i % kPerWord))));
      }
    }
  }

 private:
  static constexpr int kPerWord = 4 / sizeof(T);
  using Word = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  static SIMT_FN Word Bits(const T* from) {
    return simt::Load(reinterpret_cast<const Word*>(from));
  }
};

}  // namespace varlen
