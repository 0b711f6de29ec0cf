#pragma once

#include <cstdint>
#include <type_traits>

#include "core/simt/simt.h"
#include "core/tile-chunk-device.h"
#include "core/tile-sm80-device.h"

// TileSm80 for float32, by fused multiply-adds: there are no tensor cores that multiply floats
// exactly. A lane holds the elements of a product that mma.sync would leave it, so that the kernels
// do with them what they do with those.
namespace varlen::varlen_attention {

template <int kHeadDim, int kThreads>
struct TileF32 : TileChunk<float> {
  static constexpr int kChunks = kHeadDim / kPerChunk;
  static_assert(kChunks % 8 == 0, "rows are whole lines of 128 bytes");
  // As in TileSm80.
  static constexpr int kLine = 8;
  static constexpr int kRowStep = kThreads / kLine;

  // Chunks are XORed with the row, its lowest three bits rotated: the same chunk of 8 rows, and
  // pairs of chunks of 4 rows that follow each other, touch all 32 banks.
  static SIMT_FN int Swizzle(int row) { return (row * 2 + row / 4 % 2) & 7; }
  // Element offset of a chunk.
  static SIMT_FN int At(int row, int chunk) {
    return (row * kChunks + (chunk ^ Swizzle(row))) * kPerChunk;
  }
  // Of columns 8 d + 2 (lane mod 4) and the next. What depends on d and what depends on the lane
  // are apart: one address, then constants.
  static SIMT_FN int PairAt(int row, int d, int lane) {
    const int swizzle = Swizzle(row);
    const int chunk = (2 * d ^ (swizzle & 6)) + (lane % 4 / 2 ^ (swizzle & 1));
    return (row * kChunks + chunk) * kPerChunk + lane % 2 * 2;
  }

  // s = X Y^T of this warp's 16 * kSlabs rows of X and all 8 * kTiles rows of Y.
  template <int kSlabs, int kTiles>
  static SIMT_FN void Multiply(float (&s)[kSlabs][kTiles][4], const float* x, const float* y) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_UNROLL
    for (int slab = 0; slab < kSlabs; ++slab) {
      SIMT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) s[slab][j][i] = 0;
      }
    }
    SIMT_NO_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Four a[kSlabs][2];
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = (simt::WarpIndex() * kSlabs + slab) * 16 + lane / 4 + 8 * half;
          a[slab][half] = simt::Load(reinterpret_cast<const Four*>(x + At(row, chunk)));
        }
      }
      SIMT_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        SIMT_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int row = j * 8 + lane % 4 * 2 + e;
          const Four b = simt::Load(reinterpret_cast<const Four*>(y + At(row, chunk)));
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            SIMT_UNROLL
            for (int half = 0; half < 2; ++half) {
              SIMT_UNROLL
              for (int k = 0; k < 4; ++k) s[slab][j][2 * half + e] += a[slab][half].at[k] * b.at[k];
            }
          }
        }
      }
    }
  }

  // sum += W Y. Four lanes share a row of W: each weight goes from its owner to all of them.
  template <int kSlabs, int kTiles>
  static SIMT_FN void Accumulate(float (&sum)[kSlabs][kHeadDim / 8][4],
                                 const float (&w)[kSlabs][kTiles][4], const float* y) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      SIMT_UNROLL
      for (int i = 0; i < 8; ++i) {
        float weight[kSlabs][2];
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            weight[slab][half] =
                simt::ShuffleIndex(w[slab][j][2 * half + i % 2], lane / 4 * 4 + i / 2);
          }
        }
        SIMT_UNROLL
        for (int d = 0; d < kHeadDim / 8; ++d) {
          const Pair pair =
              simt::Load(reinterpret_cast<const Pair*>(y + PairAt(j * 8 + i, d, lane)));
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            SIMT_UNROLL
            for (int half = 0; half < 2; ++half) {
              sum[slab][d][2 * half] += weight[slab][half] * pair.low;
              sum[slab][d][2 * half + 1] += weight[slab][half] * pair.high;
            }
          }
        }
      }
    }
  }

  static SIMT_FN void StorePair(float* tile, int row, int d, int lane, float low, float high) {
    simt::Store(reinterpret_cast<Pair*>(tile + PairAt(row, d, lane)), Pair{low, high});
  }

 private:
  struct alignas(16) Four {
    float at[4];
  };
  struct alignas(8) Pair {
    float low, high;
  };
};

template <class T, int kHeadDim, int kThreads>
using ProductTile = std::conditional_t<std::is_same_v<T, float>, TileF32<kHeadDim, kThreads>,
                                       TileSm80<T, kHeadDim, kThreads>>;

}  // namespace varlen::varlen_attention
