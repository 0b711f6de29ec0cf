#pragma once

#include <cstdint>

#include "core/simt/simt.h"

// Rows of kHeadDim elements in shared memory, as TMA writes and wgmma reads them, and the products
// that a warpgroup forms of them.
namespace varlen::varlen_attention {

template <class T, int kHeadDim>
struct TileSm90a {
  static constexpr int kGroupRows = 64;  // of a wgmma: a warpgroup's
  static constexpr int kWarps = simt::kWarpgroupSize / simt::kWarpSize;

  // Rows lie in panels: kPanelColumns columns of all rows, one swizzled line of kSpan bytes per
  // row. 96 columns are three panels of 32; all others divide by 64.
  static constexpr int kPanelColumns = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kSpan = kPanelColumns * 2;
  static constexpr simt::Swizzle kSwizzle =
      kPanelColumns == 64 ? simt::Swizzle::k128Bytes : simt::Swizzle::k64Bytes;
  static constexpr int kRowBytes = kHeadDim * 2;

  // 16-byte chunks of a row and of its line in a panel, for which as many threads load a row.
  static constexpr int kChunks = kHeadDim / 8, kLine = kPanelColumns / 8;
  static constexpr int kRowStep = simt::kWarpgroupSize / kLine;

  // [rows, heads, headDim], in boxes of one panel of `box_heads` heads of `box_rows` rows, heads
  // fastest; columns past headDim and rows past the tensor read as zeros.
  static simt::TensorMapShape Map(const T* data, int64_t row_stride, int64_t head_stride,
                                  int64_t rows, int64_t heads, int64_t head_dim, int box_heads,
                                  int box_rows) {
    return {.data = const_cast<T*>(data),
            .dtype = DTypeOf<T>::value,
            .rank = 3,
            .size = {head_dim, heads, rows},
            .stride = {1, head_stride, row_stride},
            .box = {kPanelColumns, box_heads, box_rows},
            .swizzle = kSwizzle};
  }

  // All panels of `row` of `head` and what follows it in the box, to a tile of `rows` rows.
  static SIMT_FN void Load(unsigned char* tile, int rows, const simt::TensorMap& map,
                           uint64_t* landed, int32_t head, int32_t row) {
    SIMT_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      simt::TmaLoad(tile + panel * rows * kSpan, map, landed, {panel * kPanelColumns, head, row});
    }
  }

  // Byte offset of a 16-byte chunk in a tile of `rows` rows, swizzled as TMA and wgmma do it: the
  // lowest bits of the chunk's number are XORed with those of its 128-byte line's.
  static SIMT_FN int At(int rows, int row, int chunk) {
    const int in_panel = row * kSpan + chunk % kLine * 16;
    return chunk / kLine * rows * kSpan + (in_panel ^ ((in_panel >> 7 & (kLine - 1)) << 4));
  }

  // Rows first, first + 1, ... of a tile become zeros; by a warp. Whole lines: the swizzle does not
  // matter.
  static SIMT_FN void ClearRows(unsigned char* tile, int rows, int first) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_NO_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      unsigned char* end = tile + (panel + 1) * rows * kSpan;
      for (unsigned char* at = tile + (panel * rows + first) * kSpan + lane * 16; at < end;
           at += simt::kWarpSize * 16) {
        simt::Store(reinterpret_cast<simt::Vector4*>(at), simt::Vector4{0, 0, 0, 0});
      }
    }
  }

  // --- products; under way until they are waited for ---

  template <int kColumns>
  using Scores = float[kColumns / 2];
  template <int kColumns>
  using Weights = uint32_t[kColumns / 16][4];
  using Sum = float[kHeadDim / 2];

  // s = X Y^T of this warpgroup's 64 rows of X and all kColumns of Y.
  template <int kColumns>
  static SIMT_FN void Multiply(float (&s)[kColumns / 2], const unsigned char* x,
                               const unsigned char* y) {
    const uint64_t a = RowsDescriptor(x), b = RowsDescriptor(y);
    SIMT_UNROLL
    for (int kk = 0; kk < kHeadDim / 16; ++kk) {
      simt::Wgmma<T, kColumns>(s, ColumnsOf(a, kGroupRows, kk), ColumnsOf(b, kColumns, kk), kk > 0);
    }
  }
  // sum += W Y. Y has its columns contiguous, which are not the sum's but the product's:
  // transposed, panels kColumns lines apart, 8 rows 8 lines.
  template <int kColumns>
  static SIMT_FN void Accumulate(Sum& sum, const uint32_t (&w)[kColumns / 16][4],
                                 const unsigned char* y) {
    const uint64_t b = simt::MatrixDescriptor(y, kColumns * kSpan, 8 * kSpan, kSwizzle);
    SIMT_UNROLL
    for (int j = 0; j < kColumns / 16; ++j) {
      simt::Wgmma<T, kHeadDim, true>(sum, w[j], Later(b, j * 16 * kSpan), true);
    }
  }
  // The accumulator layout of a product is the operand layout of W.
  template <int kColumns>
  static SIMT_FN void Convert(const float (&s)[kColumns / 2], uint32_t (&w)[kColumns / 16][4]) {
    SIMT_UNROLL
    for (int j = 0; j < kColumns / 16; ++j) {
      SIMT_UNROLL
      for (int r = 0; r < 4; ++r) {
        w[j][r] = simt::PackPair<T>(s[8 * j + 2 * r], s[8 * j + 2 * r + 1]);
      }
    }
  }

  // --- results: a warp's 16 rows of the tile ---

  static SIMT_FN int FirstRowOfWarp() { return simt::WarpIndex() % kWarps * 16; }
  // Row of the warpgroup's that register half `half` (0, 1) belongs to.
  static SIMT_FN int RowOf(int half) { return FirstRowOfWarp() + simt::LaneIndex() / 4 + 8 * half; }

  // A warp's rows of `sum`, each times its factor, to a tile of kGroupRows rows.
  static SIMT_FN void StoreSum(unsigned char* tile, const Sum& sum, const float (&factor)[2]) {
    const int lane = simt::Opaque(simt::LaneIndex());
    SIMT_UNROLL
    for (int d = 0; d < kChunks; d += 2) {
      // Matrices of 8 x 8: rows 0-7 and 8-15 of chunk d, then of chunk d + 1.
      uint32_t pairs[4];
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* pair = &sum[4 * d + 2 * i];
        pairs[i] = simt::PackPair<T>(pair[0] * factor[i % 2], pair[1] * factor[i % 2]);
      }
      simt::StoreMatrix(tile + At(kGroupRows, FirstRowOfWarp() + lane % 16, d + lane / 16), pairs);
    }
  }
  // fn(row of the warpgroup's, chunk, where it is) for every chunk of a warp's rows, line by line,
  // as the panels lie: no bank conflicts.
  template <class Fn>
  static SIMT_FN void ForEachChunk(const unsigned char* tile, const Fn& fn) {
    const int lane = simt::Opaque(simt::LaneIndex());
    for (int id = lane; id < 16 * kChunks; id += simt::kWarpSize) {
      const int row = FirstRowOfWarp() + id / kLine % 16;
      const int chunk = id / (16 * kLine) * kLine + id % kLine;
      fn(row, chunk, reinterpret_cast<const T*>(tile + At(kGroupRows, row, chunk)));
    }
  }

 private:
  // Descriptors of a tile's parts are sums: addresses count in 16 bytes in their lowest bits, and
  // no tile lies past those.
  static SIMT_FN uint64_t Later(uint64_t descriptor, int bytes) {
    return descriptor + static_cast<uint64_t>(bytes / 16);
  }
  // Of an operand with its columns, the sum's, contiguous: groups of 8 rows lie 8 lines apart.
  static SIMT_FN uint64_t RowsDescriptor(const unsigned char* tile) {
    return simt::MatrixDescriptor(tile, 16, 8 * kSpan, kSwizzle);
  }
  // Of its 16 columns from 16 kk on: 32 bytes of a panel.
  static SIMT_FN uint64_t ColumnsOf(uint64_t tile, int rows, int kk) {
    constexpr int kSteps = kPanelColumns / 16;  // of a panel
    return Later(tile, kk / kSteps * rows * kSpan + kk % kSteps * 32);
  }
};

}  // namespace varlen::varlen_attention
