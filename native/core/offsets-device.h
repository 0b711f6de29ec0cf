#pragma once

#include <cstdint>

#include "core/simt/simt.h"

namespace varlen {

// Offsets that only the GPU knows, made safe before a kernel finds rows by them: copies that start
// at 0, never fall and stay inside the tensor, whatever the originals hold. What is wrong with
// those is said by the host's own checks, from a copy that comes back with the results. One warp.
struct DeviceOffsetsClamp {
  static constexpr int kThreads = 32;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const int32_t* cu;    // [num + 1]
    const int32_t* used;  // [num] or null: rows used out of each slot
    int64_t num;
    int64_t limit;    // rows, below 2^31
    int32_t* cu_out;  // [num + 1]
    int32_t* used_out;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    if (simt::BlockIndex() != 0) return;
    const int lane = simt::LaneIndex();
    const auto limit = static_cast<int32_t>(p.limit);
    int32_t highest = 0;  // so far
    for (int64_t base = 0; base <= p.num; base += simt::kWarpSize) {
      const int64_t i = base + lane;
      int32_t value = highest;
      if (i > 0 && i <= p.num) {
        const int32_t own = simt::Load(p.cu + i);
        const int32_t inside = own > limit ? limit : own;
        if (inside > value) value = inside;
      }
      // The running maximum over the lanes.
      for (int delta = 1; delta < simt::kWarpSize; delta *= 2) {
        const int32_t left = simt::ShuffleUp(value, delta);
        if (left > value) value = left;
      }
      int32_t before = simt::ShuffleUp(value, 1);
      if (lane == 0) before = highest;
      highest = simt::ShuffleIndex(value, simt::kWarpSize - 1);
      if (i > p.num) continue;
      simt::Store(p.cu_out + i, value);
      if (p.used == nullptr || i == 0) continue;
      const int32_t slot = value - before, used = simt::Load(p.used + i - 1);
      simt::Store(p.used_out + i - 1, used < 0 ? 0 : used > slot ? slot : used);
    }
  }
};

}  // namespace varlen
