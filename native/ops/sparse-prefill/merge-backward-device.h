#pragma once

#include <cmath>
#include <cstdint>

#include "core/chunks-device.h"
#include "core/cuda/kernel.h"

// The gradient of a merge of two attention results on a GPU: a warp takes a row of a head. Every
// pointer is device memory.
namespace varlen::sparse_prefill {

template <class T>
struct DeviceMergeGradients {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 0;

  // Rows of an input lie where its strides say, in elements.
  struct Rows {
    const T* data;
    int64_t row_stride, head_stride;
    SIMT_FN const T* At(int64_t row, int64_t head) const {
      return data + row * row_stride + head * head_stride;
    }
  };
  struct Params {
    Rows d_out, out1, out2;
    const float* lse1;   // [num_heads][num_rows]
    const float* lse2;   // [num_heads][num_rows]
    const float* d_lse;  // [num_heads][num_rows] or null
    int64_t num_rows, num_heads, dim;
    T* d_out1;      // [num_rows][num_heads][dim]
    T* d_out2;      // [num_rows][num_heads][dim]
    float* d_lse1;  // [num_heads][num_rows]
    float* d_lse2;  // [num_heads][num_rows]
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t i = simt::BlockIndex() * kWarps + simt::WarpIndex(); i < p.num_rows * p.num_heads;
         i += simt::GridSize() * kWarps) {
      Row(p, i / p.num_heads, i % p.num_heads);
    }
  }

 private:
  static SIMT_FN void Row(const Params& p, int64_t row, int64_t head) {
    using internal::kChunk;
    const int64_t at = head * p.num_rows + row;
    const float lse1 = simt::Load(p.lse1 + at), lse2 = simt::Load(p.lse2 + at);
    // NaN is no infinity: it spreads.
    const bool empty = lse1 == -simt::Infinity() && lse2 == -simt::Infinity();
    const float top = lse2 > lse1 ? lse2 : lse1;
    const float lse = top + std::log1p(std::exp(-std::abs(lse1 - lse2)));
    const float w1 = empty ? 0.0f : std::exp(lse1 - lse);
    const float w2 = empty ? 0.0f : std::exp(lse2 - lse);
    const int64_t to = (row * p.num_heads + head) * p.dim;
    double apart = 0;
    for (int64_t first = simt::LaneIndex() * kChunk; first < p.dim;
         first += simt::kWarpSize * kChunk) {
      const int count = internal::ChunkLength(first, p.dim);
      float d_out[kChunk], out1[kChunk], out2[kChunk];
      internal::LoadChunk(p.d_out.At(row, head), first, count, p.vector_access, d_out);
      internal::LoadChunk(p.out1.At(row, head), first, count, p.vector_access, out1);
      internal::LoadChunk(p.out2.At(row, head), first, count, p.vector_access, out2);
      SIMT_UNROLL
      for (int k = 0; k < kChunk; ++k) {
        apart += d_out[k] * (out1[k] - out2[k]);
        out1[k] = w1 * d_out[k];
        out2[k] = w2 * d_out[k];
      }
      internal::StoreChunk(out1, p.d_out1 + to, first, count, p.vector_access);
      internal::StoreChunk(out2, p.d_out2 + to, first, count, p.vector_access);
    }
    apart = FoldLanes(Fold::kSum, apart);
    if (simt::LaneIndex() != 0) return;
    const float both = w1 * w2;
    // One side alone: the other's rows, whatever they hold, say nothing.
    const float moved = both == 0 ? 0.0f : both * static_cast<float>(apart);
    const float d_lse = p.d_lse == nullptr ? 0.0f : simt::Load(p.d_lse + at);
    simt::Store(p.d_lse1 + at, w1 * d_lse + moved);
    simt::Store(p.d_lse2 + at, w2 * d_lse - moved);
  }
};

using MergeBackwardKernels = cuda::FloatKernels<DeviceMergeGradients>;

}  // namespace varlen::sparse_prefill
