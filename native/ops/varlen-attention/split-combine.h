#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"

namespace varlen::varlen_attention {

// What the splits of a row's keys found, weighed by what each is of the whole:
//   lse = ln sum_s exp(lse_s),  out = sum_s exp(lse_s - lse) out_s
// in the order of the splits. One warp per row and head.
template <class T>
struct SplitCombine {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int kRowsPerBlock = kThreads / simt::kWarpSize;

  struct Params {
    const float* partial_out;  // [splits, total_q, num_heads, head_dim]
    const float* partial_lse;  // [splits, num_heads, total_q]
    DeviceMatrix<T> out;
    float* softmax_lse;  // [num_heads, total_q]
    int64_t total_q;
    int32_t num_heads, head_dim, splits;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    constexpr float kLn2 = 0.6931471805599453f;
    const int64_t rows = p.total_q * p.num_heads;
    for (int64_t row = simt::BlockIndex() * kRowsPerBlock + simt::WarpIndex(); row < rows;
         row += simt::GridSize() * kRowsPerBlock) {
      const int64_t token = row / p.num_heads, head = row % p.num_heads;
      const float* lse = p.partial_lse + head * p.total_q + token;
      float maximum = -simt::Infinity();
      for (int32_t s = 0; s < p.splits; ++s) {
        maximum = simt::Max(maximum, simt::Load(lse + s * rows));
      }
      float sum = 0;
      for (int32_t s = 0; s < p.splits; ++s) sum += Weight(simt::Load(lse + s * rows), maximum);
      const bool seen = !(sum == 0);  // a NaN is
      for (int d = simt::LaneIndex(); d < p.head_dim; d += simt::kWarpSize) {
        float total = 0;
        for (int32_t s = 0; s < p.splits; ++s) {
          const float weight = Weight(simt::Load(lse + s * rows), maximum);
          // Where nothing was seen nothing was written.
          if (weight == 0) continue;
          total += weight * simt::Load(p.partial_out + (s * rows + row) * p.head_dim + d);
        }
        simt::Store(p.out.data + token * p.out.row + head * p.out.head + d,
                    NarrowFloat<T>(seen ? total / sum : 0.0f));
      }
      if (simt::LaneIndex() == 0) {
        simt::Store(p.softmax_lse + head * p.total_q + token,
                    seen ? maximum + simt::Log2(sum) * kLn2 : -simt::Infinity());
      }
    }
  }

 private:
  static SIMT_FN float Weight(float lse, float maximum) {
    constexpr float kLog2e = 1.4426950408889634f;
    return lse == -simt::Infinity() ? 0.0f : simt::Exp2((lse - maximum) * kLog2e);
  }
};

}  // namespace varlen::varlen_attention
