#pragma once

#include <cstdint>

#include "core/simt/simt.h"

// Eight columns of a row, 16 bytes: what moves between global memory and a tile in shared memory.
namespace varlen {

template <class T>
struct TileChunk {
  // How many of a chunk's columns lie inside the head dimension.
  static SIMT_FN int Columns(int head_dim, int chunk) {
    const int left = head_dim - chunk * 8;
    return left < 0 ? 0 : left < 8 ? left : 8;
  }

  // `count` columns of a row, the rest of the 8 as zeros. Rows and columns outside the sequence
  // must become zeros, whatever memory holds there: a masked key still multiplies its V row, and 0
  // * NaN is NaN.
  static SIMT_FN void LoadChunk(T* to, const T* from, int count, bool vector_loads) {
    if (vector_loads) {
      simt::CopyAsync16(to, from, count * 2);
      return;
    }
    uint32_t pairs[4] = {0, 0, 0, 0};
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i < count) pairs[i / 2] |= uint32_t{simt::Load(&from[i].bits)} << (16 * (i % 2));
    }
    simt::Store(reinterpret_cast<simt::Vector4*>(to),
                simt::Vector4{pairs[0], pairs[1], pairs[2], pairs[3]});
  }
  static SIMT_FN void StoreChunk(T* to, const simt::Vector4& values, int count,
                                 bool vector_stores) {
    if (vector_stores && count == 8) {
      simt::Store(reinterpret_cast<simt::Vector4*>(to), values);
      return;
    }
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    SIMT_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i < count) {
        simt::Store(&to[i].bits, static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2))));
      }
    }
  }
};

}  // namespace varlen
