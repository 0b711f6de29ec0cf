#pragma once

#include "core/chunks-device.h"
#include "core/cuda/kernel.h"
#include "core/host_device.h"

// The rotation on a GPU; the gradient is the same kernel with direction -1. A thread takes eight
// rotated pairs of halves, or eight neighbours, or eight dimensions that pass through. Every
// pointer is device memory.
namespace varlen::rope {

template <class T>
struct DeviceRotate {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const T* from;  // rows [num_heads, head_dim], token_stride and head_stride elements apart
    int64_t token_stride, head_stride;
    const float* table;        // [max_positions, rotary_dim]
    const int32_t* positions;  // [num_tokens]
    int64_t num_tokens, num_heads, head_dim, rotary_dim, max_positions;
    bool interleaved;
    float direction;
    T* to;  // [num_tokens, num_heads, head_dim]
    // Bases, strides, head_dim and where halves begin are multiples of 16 bytes.
    bool vector_access;
  };
  static VARLEN_HOST_DEVICE constexpr int64_t Items(const Params& p) {
    const int64_t turned = p.interleaved ? p.rotary_dim : p.rotary_dim / 2;
    const int64_t rest = p.head_dim - p.rotary_dim;
    return (turned + internal::kChunk - 1) / internal::kChunk +
           (rest + internal::kChunk - 1) / internal::kChunk;
  }
  static constexpr int64_t BlocksFor(const Params& p) {
    return (p.num_tokens * p.num_heads * Items(p) + kThreads - 1) / kThreads;
  }

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t items = Items(p), all = p.num_tokens * p.num_heads * items;
    const int64_t turned = p.interleaved ? p.rotary_dim : p.rotary_dim / 2;
    for (int64_t id = simt::BlockIndex() * kThreads + simt::ThreadIndex(); id < all;
         id += simt::GridSize() * kThreads) {
      const int64_t row = id / items, token = row / p.num_heads, head = row % p.num_heads;
      const T* from = p.from + token * p.token_stride + head * p.head_stride;
      T* to = p.to + row * p.head_dim;
      const int64_t first = id % items * internal::kChunk;
      const int64_t passing = (id % items - internal::NumChunks(turned)) * internal::kChunk;
      if (passing >= 0) {
        const int64_t c = p.rotary_dim + passing;
        const int count = internal::ChunkLength(c, p.head_dim);
        float values[internal::kChunk];
        internal::LoadChunk(from, c, count, p.vector_access, values);
        internal::StoreChunk(values, to, c, count, p.vector_access);
        continue;
      }
      const int32_t position = simt::Load(p.positions + token);
      const bool known = position >= 0 && position < p.max_positions;
      const float* cosines = p.table + (known ? position : 0) * p.rotary_dim;
      if (p.interleaved) {
        RotatePairs(p, from, to, cosines, first);
      } else {
        RotateHalves(p, from, to, cosines, first);
      }
    }
  }

 private:
  static SIMT_FN void RotateHalves(const Params& p, const T* from, T* to, const float* cosines,
                                   int64_t first) {
    const int64_t half = p.rotary_dim / 2;
    const int count = internal::ChunkLength(first, half);
    float x1[internal::kChunk], x2[internal::kChunk];
    internal::LoadChunk(from, first, count, p.vector_access, x1);
    internal::LoadChunk(from + half, first, count, p.vector_access, x2);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; ++i) {
      if (i >= count) continue;
      Turn(simt::Load(cosines + first + i), p.direction * simt::Load(cosines + half + first + i),
           x1[i], x2[i]);
    }
    internal::StoreChunk(x1, to, first, count, p.vector_access);
    internal::StoreChunk(x2, to + half, first, count, p.vector_access);
  }
  static SIMT_FN void RotatePairs(const Params& p, const T* from, T* to, const float* cosines,
                                  int64_t first) {
    const int64_t half = p.rotary_dim / 2;
    const int count = internal::ChunkLength(first, p.rotary_dim);
    float x[internal::kChunk];
    internal::LoadChunk(from, first, count, p.vector_access, x);
    SIMT_UNROLL
    for (int i = 0; i < internal::kChunk; i += 2) {
      if (i >= count) continue;
      const int64_t pair = (first + i) / 2;
      Turn(simt::Load(cosines + pair), p.direction * simt::Load(cosines + half + pair), x[i],
           x[i + 1]);
    }
    internal::StoreChunk(x, to, first, count, p.vector_access);
  }
  static SIMT_FN void Turn(float cosine, float sine, float& x1, float& x2) {
    const float y1 = x1 * cosine - x2 * sine;
    x2 = x2 * cosine + x1 * sine;
    x1 = y1;
  }
};

using Kernels = cuda::FloatKernels<DeviceRotate>;

}  // namespace varlen::rope
