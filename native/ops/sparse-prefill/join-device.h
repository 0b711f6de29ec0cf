#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/simt/simt.h"
#include "ops/sparse-prefill/device-tables.h"

// Kernels that put attention results over disjoint keys together. One warp per row and head.
namespace varlen::sparse_prefill {

// What the tiles of a row found, weighed by what each is of the whole and in the order of slots:
//   lse = ln sum_s exp(lse_s),  out = sum_s exp(lse_s - lse) out_s
template <class T>
struct JoinSlots {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int kRowsPerBlock = kThreads / simt::kWarpSize;

  struct Params {
    const DeviceJoin* joins;
    int64_t num_joins;
    const float *slot_out, *slot_lse;  // [slots, value_dim], [slots]
    T* out;
    int64_t out_row, out_head;
    float* softmax_lse;  // [num_heads, total_q]
    int64_t total_q;
    int32_t value_dim;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    constexpr float kLn2 = 0.6931471805599453f;
    for (int64_t i = simt::BlockIndex() * kRowsPerBlock + simt::WarpIndex(); i < p.num_joins;
         i += simt::GridSize() * kRowsPerBlock) {
      const simt::Vector4 words = simt::Load(reinterpret_cast<const simt::Vector4*>(p.joins + i));
      const DeviceJoin join{static_cast<int32_t>(words.x), static_cast<int32_t>(words.y),
                            static_cast<int32_t>(words.z), static_cast<int32_t>(words.w)};
      const float* lse = p.slot_lse + join.first_slot;
      float maximum = -simt::Infinity();
      for (int32_t s = 0; s < join.slots; ++s) maximum = simt::Max(maximum, simt::Load(lse + s));
      float sum = 0;
      for (int32_t s = 0; s < join.slots; ++s) sum += Weight(simt::Load(lse + s), maximum);
      const bool seen = !(sum == 0);  // a NaN is
      for (int d = simt::LaneIndex(); d < p.value_dim; d += simt::kWarpSize) {
        float total = 0;
        for (int32_t s = 0; s < join.slots; ++s) {
          const int64_t slot = int64_t{join.first_slot} + s;
          total += Weight(simt::Load(lse + s), maximum) *
                   simt::Load(p.slot_out + slot * p.value_dim + d);
        }
        simt::Store(p.out + join.row * p.out_row + join.head * p.out_head + d,
                    NarrowFloat<T>(seen ? total / sum : 0.0f));
      }
      if (simt::LaneIndex() == 0) {
        simt::Store(p.softmax_lse + join.head * p.total_q + join.row,
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

// The op mergeAttentionStates.
template <class T>
struct MergeStates {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int kRowsPerBlock = kThreads / simt::kWarpSize;

  struct Source {
    const T* out;
    int64_t row, head;  // strides
    const float* lse;   // [num_heads, rows]
  };
  struct Params {
    Source first, second;
    T* out;
    int64_t out_row, out_head;
    float* softmax_lse;
    int64_t rows;
    int32_t num_heads, value_dim;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
    for (int64_t i = simt::BlockIndex() * kRowsPerBlock + simt::WarpIndex();
         i < p.rows * p.num_heads; i += simt::GridSize() * kRowsPerBlock) {
      const int64_t row = i / p.num_heads, head = i % p.num_heads;
      const float l1 = simt::Load(p.first.lse + head * p.rows + row);
      const float l2 = simt::Load(p.second.lse + head * p.rows + row);
      // The heavier state first: swapping the two changes no bit, however products are contracted.
      const bool swapped = l2 > l1;
      const Source& more = swapped ? p.second : p.first;
      const Source& less = swapped ? p.first : p.second;
      const float top = swapped ? l2 : l1, gap = swapped ? l1 - l2 : l2 - l1;
      const bool empty = top == -simt::Infinity() && l1 == l2;
      const float weight = empty ? 0.0f : simt::Exp2(gap * kLog2e);
      const float inverse = 1.0f / (1.0f + weight);
      const T* from1 = more.out + row * more.row + head * more.head;
      const T* from2 = less.out + row * less.row + head * less.head;
      T* to = p.out + row * p.out_row + head * p.out_head;
      for (int d = simt::LaneIndex(); d < p.value_dim; d += simt::kWarpSize) {
        const float sum = LoadFloat(from1 + d) + weight * LoadFloat(from2 + d);
        simt::Store(to + d, NarrowFloat<T>(empty ? 0.0f : sum * inverse));
      }
      if (simt::LaneIndex() == 0) {
        simt::Store(p.softmax_lse + head * p.rows + row,
                    empty ? -simt::Infinity() : top + simt::Log2(1.0f + weight) * kLn2);
      }
    }
  }
};

}  // namespace varlen::sparse_prefill
