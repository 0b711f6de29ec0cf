#pragma once

#include "core/chunks-device.h"
#include "core/cuda/kernel.h"
#include "core/token-chains-device.h"

// The lookup on a GPU: a warp copies a row. Backwards a block takes a word and adds up its tokens'
// gradients along their chain (core/token-chains-device.h), in order and without atomics. Every
// pointer is device memory. Words that no id names, and rows of ids that name no word, become 0.
namespace varlen::embedding {

template <class T>
struct DeviceLookup {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const T* weight;
    const int32_t* ids;
    int64_t num_tokens, vocab_size, hidden;
    T* out;
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t t = simt::BlockIndex() * kWarps + simt::WarpIndex(); t < p.num_tokens;
         t += simt::GridSize() * kWarps) {
      const int32_t id = simt::Load(p.ids + t);
      const bool known = id >= 0 && id < p.vocab_size;
      for (int64_t c = simt::LaneIndex() * internal::kChunk; c < p.hidden;
           c += simt::kWarpSize * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.hidden);
        float values[internal::kChunk] = {};
        // Through float and back: exact for every dtype.
        if (known) {
          internal::LoadChunk(p.weight + id * p.hidden, c, count, p.vector_access, values);
        }
        internal::StoreChunk(values, p.out + t * p.hidden, c, count, p.vector_access);
      }
    }
  }
};

template <class T>
struct DeviceWordGradients {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const T* d_out;
    const int32_t* head;  // of DeviceTokenChains
    const int32_t* next;
    int64_t vocab_size, hidden;
    float* d_weight;  // [vocab_size, hidden]
    bool vector_access, vector_stores;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t word = simt::BlockIndex(); word < p.vocab_size; word += simt::GridSize()) {
      for (int64_t c = simt::ThreadIndex() * internal::kChunk; c < p.hidden;
           c += kThreads * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.hidden);
        float sums[internal::kChunk] = {};
        for (int32_t t = simt::Load(p.head + word); t >= 0; t = simt::Load(p.next + t)) {
          float values[internal::kChunk];
          internal::LoadChunk(p.d_out + t * p.hidden, c, count, p.vector_access, values);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) sums[i] += values[i];
        }
        internal::StoreChunk(sums, p.d_weight + word * p.hidden, c, count, p.vector_stores);
      }
    }
  }
};

using Kernels = cuda::FloatKernels<DeviceLookup, DeviceWordGradients>;

}  // namespace varlen::embedding
