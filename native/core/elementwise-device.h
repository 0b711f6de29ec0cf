#pragma once

#include "core/chunks-device.h"

namespace varlen {

// One thread per chunk of eight elements. Body::Do(params, first, count) works on `count` elements
// from `first` on; params.size is how many there are.
template <class Body>
struct DeviceElementwise {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;
  using Params = typename Body::Params;

  static constexpr int64_t BlocksFor(int64_t size) {
    return (size + kThreads * internal::kChunk - 1) / (kThreads * internal::kChunk);
  }

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t chunks = internal::NumChunks(p.size);
    for (int64_t i = simt::BlockIndex() * kThreads + simt::ThreadIndex(); i < chunks;
         i += simt::GridSize() * kThreads) {
      const int64_t first = i * internal::kChunk;
      Body::Do(p, first, internal::ChunkLength(first, p.size));
    }
  }
};

}  // namespace varlen
