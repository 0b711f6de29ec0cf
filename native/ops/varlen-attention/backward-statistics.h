#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"

namespace varlen::varlen_attention {

// RowStatistics of every query row, one warp per row. Rows of nobody get some too, which nobody
// reads.
template <class T>
struct BackwardStatistics {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int kRowsPerBlock = kThreads / simt::kWarpSize;

  struct Params {
    DeviceMatrix<const T> out, d_out;
    const float* softmax_lse;   // [num_heads, total_q]
    const float* d_lse;         // likewise, or null
    RowStatistics* statistics;  // [num_kv_heads, total_q, group]
    int64_t total_q;
    int32_t num_heads, num_kv_heads, head_dim;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    constexpr float kLog2e = 1.4426950408889634f;
    const int64_t rows = p.total_q * p.num_heads;
    const int32_t group = p.num_heads / p.num_kv_heads;
    for (int64_t row = simt::BlockIndex() * kRowsPerBlock + simt::WarpIndex(); row < rows;
         row += simt::GridSize() * kRowsPerBlock) {
      const int64_t token = row / p.num_heads;
      const auto head = static_cast<int32_t>(row % p.num_heads);
      const T* out = p.out.data + token * p.out.row + head * p.out.head;
      const T* d_out = p.d_out.data + token * p.d_out.row + head * p.d_out.head;
      float delta = 0;
      for (int d = simt::LaneIndex(); d < p.head_dim; d += simt::kWarpSize) {
        delta += LoadFloat(out + d) * LoadFloat(d_out + d);
      }
      for (int mask = 16; mask > 0; mask /= 2) delta += simt::ShuffleXor(delta, mask);
      if (simt::LaneIndex() != 0) continue;
      const int64_t at = head * p.total_q + token;
      if (p.d_lse != nullptr) delta -= simt::Load(p.d_lse + at);
      const float lse = simt::Load(p.softmax_lse + at);
      simt::Store(p.statistics + (head / group * p.total_q + token) * group + head % group,
                  {lse == -simt::Infinity() ? simt::Infinity() : lse * kLog2e, delta});
    }
  }
};

}  // namespace varlen::varlen_attention
