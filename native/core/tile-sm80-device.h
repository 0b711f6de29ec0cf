#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "core/tile-chunk-device.h"

// Rows of kHeadDim elements in shared memory, and the products that mma.sync forms of them.
namespace varlen {

template <class T, int kHeadDim, int kThreads>
struct TileSm80 : TileChunk<T> {
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte chunks of a row
  // Eight threads (four where a row is not whole lines) load a line of a row, so that a thread
  // keeps its column and steps by whole swizzle patterns: one address, then constants.
  static constexpr int kLine = kChunks % 8 == 0 ? 8 : 4;
  static constexpr int kRowStep = kThreads / kLine;

  // Element offset of a 16-byte chunk. Chunks are XORed with the row inside each 128-byte line, so
  // that 8 rows of one chunk (an ldmatrix) touch all 32 banks. Rows of 96 elements are one and a
  // half lines: there two rows share three lines, and 64-byte halves are XORed by row / 2.
  static SIMT_FN int At(int row, int chunk) {
    if constexpr (kChunks % 8 == 0) {
      return (row * kChunks + ((chunk & ~7) | ((chunk ^ row) & 7))) * 8;
    } else {
      static_assert(kChunks % 8 == 4);
      return (row * kChunks + ((chunk & ~3) | ((chunk ^ (row >> 1)) & 3))) * 8;
    }
  }

  // Shared addresses depend on the lane only, and the compiler would compute all of them before the
  // tile loop and spill: simt::Opaque keeps each where it is used.

  // s = X Y^T of this warp's 16 * kSlabs rows of X and all 8 * kTiles rows of Y.
  template <int kSlabs, int kTiles>
  static SIMT_FN void Multiply(float (&s)[kSlabs][kTiles][4], const T* x, const T* y) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_UNROLL
    for (int slab = 0; slab < kSlabs; ++slab) {
      SIMT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) s[slab][j][i] = 0;
      }
    }
    SIMT_UNROLL
    for (int kk = 0; kk < kHeadDim / 16; ++kk) {
      uint32_t a[kSlabs][4];
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        const int row = (simt::WarpIndex() * kSlabs + slab) * 16 + lane % 16;
        simt::LoadMatrix(a[slab], x + At(row, kk * 2 + lane / 16));
      }
      SIMT_UNROLL
      for (int j = 0; j < kTiles / 2; ++j) {
        uint32_t b[4];
        simt::LoadMatrix(b, y + At(j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          simt::Mma<T>(s[slab][2 * j], a[slab], b[0], b[1]);
          simt::Mma<T>(s[slab][2 * j + 1], a[slab], b[2], b[3]);
        }
      }
    }
  }

  // sum += W Y, W rounded to T. The accumulator layout of a product is the operand layout of W.
  template <int kSlabs, int kTiles>
  static SIMT_FN void Accumulate(float (&sum)[kSlabs][kHeadDim / 8][4],
                                 const float (&w)[kSlabs][kTiles][4], const T* y) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_UNROLL
    for (int j = 0; j < kTiles / 2; ++j) {
      uint32_t a[kSlabs][4];
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int r = 0; r < 4; ++r) {
          const float* pair = &w[slab][2 * j + r / 2][r % 2 * 2];
          a[slab][r] = simt::PackPair<T>(pair[0], pair[1]);
        }
      }
      SIMT_UNROLL
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t b[4];
        simt::LoadMatrixTransposed(b, y + At(j * 16 + lane % 16, d * 2 + lane / 16));
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          simt::Mma<T>(sum[slab][2 * d], a[slab], b[0], b[1]);
          simt::Mma<T>(sum[slab][2 * d + 1], a[slab], b[2], b[3]);
        }
      }
    }
  }

  // Columns 8 d + 2 (lane mod 4) and the next of a row: a lane's pair of such a sum.
  static SIMT_FN void StorePair(T* tile, int row, int d, int lane, float low, float high) {
    simt::Store(reinterpret_cast<uint32_t*>(tile + At(row, d)) + lane % 4,
                simt::PackPair<T>(low, high));
  }
};

}  // namespace varlen
