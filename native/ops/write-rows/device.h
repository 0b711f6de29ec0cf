#pragma once

#include "core/chunks-device.h"
#include "core/cuda/kernel.h"
#include "core/token-chains-device.h"

// The rows on a GPU: a warp writes the row of a token that no later one names again, so that the
// last value stays whatever the order of the warps. Every pointer is device memory. A row number
// outside the target writes nothing.
namespace varlen::write_rows {

template <class T>
struct DeviceWriteRows {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const T* values;      // [num_tokens, width]
    const int32_t* rows;  // [num_tokens]
    const int32_t* next;  // [num_tokens], of DeviceTokenChains
    int64_t num_tokens, num_rows, width;
    T* target;  // [num_rows, width]
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t t = simt::BlockIndex() * kWarps + simt::WarpIndex(); t < p.num_tokens;
         t += simt::GridSize() * kWarps) {
      const int32_t row = simt::Load(p.rows + t);
      if (row < 0 || row >= p.num_rows || simt::Load(p.next + t) >= 0) continue;
      for (int64_t c = simt::LaneIndex() * internal::kChunk; c < p.width;
           c += simt::kWarpSize * internal::kChunk) {
        const int count = internal::ChunkLength(c, p.width);
        float values[internal::kChunk];
        // Through float and back: exact for every dtype.
        internal::LoadChunk(p.values + t * p.width, c, count, p.vector_access, values);
        internal::StoreChunk(values, p.target + row * p.width, c, count, p.vector_access);
      }
    }
  }
};

using Kernels = cuda::FloatKernels<DeviceWriteRows>;

}  // namespace varlen::write_rows
