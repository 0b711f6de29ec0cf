#pragma once

#include <cstdint>

#include "ops/varlen-attention/device-sequence.h"

namespace varlen::varlen_attention {

// Orders the sequences for the tile scheduler: by descending heaviest tile, ties by index (longest
// processing time first), and counts their tiles. One block; more sequences than threads are
// sorted chunk by chunk. Also resets the tile counter.
struct Prepare {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = kThreads * 8;

  struct Params {
    DeviceSequences sequences;
    DeviceMask mask;
    DeviceSchedule schedule;
    Tiling tiling;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* items = reinterpret_cast<uint64_t*>(shared);
    const int32_t entries = p.sequences.num_seqs + 1;
    const int thread = simt::ThreadIndex();
    int64_t tiles_before = 0;
    for (int32_t chunk = 0; chunk < entries; chunk += kThreads) {
      // Ascending in (most work first, index): absent entries sort to the end.
      uint64_t item = ~uint64_t{0};
      if (chunk + thread < entries) {
        const DeviceSequence s = ReadSequence(p.sequences, chunk + thread);
        const auto work = static_cast<uint32_t>(HeaviestTile(s, p.mask, p.tiling));
        item = uint64_t{~work} << 32 | static_cast<uint32_t>(chunk + thread);
      }
      item = Sort(item, items);
      const bool present = item != ~uint64_t{0};
      const auto b = static_cast<int32_t>(item & 0xffffffff);
      const int64_t tiles =
          present ? TilesPerHead(ReadSequence(p.sequences, b), p.tiling) * p.tiling.num_kv_heads
                  : 0;
      const int64_t through = Scan(tiles, items);
      if (present) {
        simt::Store(p.schedule.order + chunk + thread, b);
        simt::Store(p.schedule.tile_start + chunk + thread, tiles_before + through - tiles);
      }
      tiles_before += static_cast<int64_t>(simt::Load(items + kThreads - 1));
      simt::SyncThreads();  // before the next chunk overwrites the items
    }
    if (thread == 0) {
      simt::Store(p.schedule.tile_start + entries, tiles_before);
      simt::Store(p.schedule.next_tile, 0);
    }
  }

 private:
  // Bitonic sort of one item per thread.
  static SIMT_FN uint64_t Sort(uint64_t item, uint64_t* items) {
    const int thread = simt::ThreadIndex();
    for (int size = 2; size <= kThreads; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        simt::Store(items + thread, item);
        simt::SyncThreads();
        const uint64_t other = simt::Load(items + (thread ^ stride));
        const bool keep_smaller = ((thread & size) == 0) == ((thread & stride) == 0);
        item = (other < item) == keep_smaller ? other : item;
        simt::SyncThreads();
      }
    }
    return item;
  }

  // Inclusive prefix sum; leaves the sums in `items`.
  static SIMT_FN int64_t Scan(int64_t value, uint64_t* items) {
    const int thread = simt::ThreadIndex();
    for (int distance = 1; distance < kThreads; distance *= 2) {
      simt::Store(items + thread, static_cast<uint64_t>(value));
      simt::SyncThreads();
      if (thread >= distance) value += static_cast<int64_t>(simt::Load(items + thread - distance));
      simt::SyncThreads();
    }
    simt::Store(items + thread, static_cast<uint64_t>(value));
    simt::SyncThreads();
    return value;
  }
};

}  // namespace varlen::varlen_attention
