#pragma once

#include <cmath>

#include "core/column-sums-device.h"
#include "core/cuda/kernel.h"

// The normalisation on a GPU: a block takes a row and reads it twice, the second time from the
// cache. The gradient of the weight is a sum over rows (core/column-sums-device.h). Every pointer
// is device memory.
namespace varlen::rms_norm {

inline constexpr int kRowThreads = 128;
inline constexpr int kRowWarps = kRowThreads / simt::kWarpSize;

// Over a block, in a fixed order: the same bits in every thread. Two may follow one another without
// a barrier if their memory differs.
SIMT_FN float RowSum(float value, double* partial) {
  const double sum = FoldLanes(Fold::kSum, value);
  if (simt::LaneIndex() == 0) simt::Store(partial + simt::WarpIndex(), sum);
  simt::SyncThreads();
  return static_cast<float>(FoldFew<kRowWarps>(Fold::kSum, partial));
}

template <class T>
struct DeviceNormalize {
  static constexpr int kThreads = kRowThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 2 * kRowWarps * sizeof(double);

  struct Params {
    const T* x;
    const T* residual;  // or null
    const T* weight;    // [hidden]
    float eps, weight_offset;
    int64_t num_rows, hidden;
    T* out;
    float* scale;  // [num_rows]
    T* sum;        // with a residual
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    // Turns take turns with the memory of the sums: one barrier per row is enough.
    int turn = 0;
    for (int64_t row = simt::BlockIndex(); row < p.num_rows; row += simt::GridSize()) {
      const T* h = p.residual == nullptr ? p.x : p.sum;
      float squares = 0;
      for (int64_t c = simt::ThreadIndex() * internal::kChunk; c < p.hidden;
           c += kThreads * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.hidden);
        float v[internal::kChunk];
        internal::LoadChunk(p.x + row * p.hidden, c, count, p.vector_access, v);
        if (p.residual != nullptr) {
          float r[internal::kChunk];
          internal::LoadChunk(p.residual + row * p.hidden, c, count, p.vector_access, r);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            // What the next layer sees.
            v[i] = Rounded(v[i] + r[i]);
          }
          internal::StoreChunk(v, p.sum + row * p.hidden, c, count, p.vector_access);
        }
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) squares += v[i] * v[i];
      }
      const float total = RowSum(squares, partial + turn * kRowWarps);
      turn = 1 - turn;
      const float s = 1.0f / std::sqrt(total / static_cast<float>(p.hidden) + p.eps);
      if (simt::ThreadIndex() == 0) simt::Store(p.scale + row, s);
      for (int64_t c = simt::ThreadIndex() * internal::kChunk; c < p.hidden;
           c += kThreads * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.hidden);
        float v[internal::kChunk], w[internal::kChunk];
        internal::LoadChunk(h + row * p.hidden, c, count, p.vector_access, v);
        internal::LoadChunk(p.weight, c, count, p.vector_access, w);
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) v[i] = v[i] * s * (w[i] + p.weight_offset);
        internal::StoreChunk(v, p.out + row * p.hidden, c, count, p.vector_access);
      }
    }
  }

 private:
  static SIMT_FN float Rounded(float value) {
    if constexpr (sizeof(T) == 4) {
      return value;
    } else {
      return simt::ToFloat<T>(simt::FromFloat<T>(value));
    }
  }
};

template <class T>
struct DeviceNormGradients {
  static constexpr int kThreads = kRowThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 2 * kRowWarps * sizeof(double);

  struct Params {
    const T* d_out;
    const T* d_sum;  // or null
    const T* sum;
    const T* weight;
    const float* scale;
    float weight_offset;
    int64_t num_rows, hidden;
    T* dx;
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* partial = reinterpret_cast<double*>(shared);
    int turn = 0;
    for (int64_t row = simt::BlockIndex(); row < p.num_rows; row += simt::GridSize()) {
      float products = 0;
      for (int64_t c = simt::ThreadIndex() * internal::kChunk; c < p.hidden;
           c += kThreads * internal::kChunk) {
        float g[internal::kChunk], h[internal::kChunk];
        Load(p, row, c, g, h);
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) products += g[i] * h[i];
      }
      const float mean =
          RowSum(products, partial + turn * kRowWarps) / static_cast<float>(p.hidden);
      turn = 1 - turn;
      const float s = simt::Load(p.scale + row), pull = s * s * mean;
      for (int64_t c = simt::ThreadIndex() * internal::kChunk; c < p.hidden;
           c += kThreads * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.hidden);
        float g[internal::kChunk], h[internal::kChunk], d[internal::kChunk] = {};
        Load(p, row, c, g, h);
        if (p.d_sum != nullptr) {
          internal::LoadChunk(p.d_sum + row * p.hidden, c, count, p.vector_access, d);
        }
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) d[i] += s * (g[i] - h[i] * pull);
        internal::StoreChunk(d, p.dx + row * p.hidden, c, count, p.vector_access);
      }
    }
  }

 private:
  static SIMT_FN void Load(const Params& p, int64_t row, int64_t c, float (&g)[internal::kChunk],
                           float (&h)[internal::kChunk]) {
    const int count = internal::ChunkLength(c, p.hidden);
    float w[internal::kChunk];
    internal::LoadChunk(p.d_out + row * p.hidden, c, count, p.vector_access, g);
    internal::LoadChunk(p.sum + row * p.hidden, c, count, p.vector_access, h);
    internal::LoadChunk(p.weight, c, count, p.vector_access, w);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) g[i] *= w[i] + p.weight_offset;
  }
};

// dy h s of a row.
template <class T>
struct WeightTerm {
  const T* d_out;
  const T* sum;
  const float* scale;
  int64_t hidden;
  bool vector_access;

  SIMT_FN void Load(int64_t row, int64_t first, int count, float (&out)[internal::kChunk]) const {
    float h[internal::kChunk];
    internal::LoadChunk(d_out + row * hidden, first, count, vector_access, out);
    internal::LoadChunk(sum + row * hidden, first, count, vector_access, h);
    const float s = simt::Load(scale + row);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) out[i] *= h[i] * s;
  }
};
template <class T>
using WeightSums = DeviceColumnSums<WeightTerm<T>>;

using Kernels = cuda::FloatKernels<DeviceNormalize, DeviceNormGradients, WeightSums>;

}  // namespace varlen::rms_norm
