#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"

// How the roles of a warp-specialised block hand things to each other: rings of slots guarded by
// mbarriers, and the tiles that one warp takes from the schedule for all others.
namespace varlen::varlen_attention {

// A ring of kSize slots after some rounds: the slot of the next, and the parity of the phase in
// which it is full. It is empty, for its first filling too, at the other parity.
template <int kSize>
struct Ring {
  static_assert((kSize & (kSize - 1)) == 0, "the count may wrap");
  uint32_t count = 0;
  SIMT_FN int Slot() const { return static_cast<int>(count % kSize); }
  SIMT_FN int Full() const { return static_cast<int>(count / kSize % 2); }
  SIMT_FN int Empty() const { return Full() ^ 1; }
  SIMT_FN void Advance() { ++count; }
};

// One arrival per warp, when all of it is here.
SIMT_FN void Release(uint64_t* empty) {
  simt::SyncWarp();
  if (simt::LaneIndex() == 0) simt::MBarrierArrive(empty);
}

// Two tiles in shared memory: the one that is worked on and the next. TileInfo has an `id`.
template <class TileInfo>
struct TileQueue {
  // Full: written, to be read. Empty: read, to be written again.
  struct Memory {
    uint64_t full[2], empty[2];
    TileInfo tiles[2];
  };

  // By one thread, before its simt::FenceMBarrierInit. `readers` are warps.
  SIMT_FN void Init(int readers) const {
    SIMT_UNROLL
    for (int i = 0; i < 2; ++i) {
      simt::MBarrierInit(memory->full + i, 1);
      simt::MBarrierInit(memory->empty + i, readers);
    }
  }

  // The scheduler's half, of one warp: describe(id, to) for every tile, one ahead of those who work
  // on them.
  template <class Describe>
  SIMT_FN void Fill(const DeviceSchedule& schedule, int32_t num_seqs,
                    const Describe& describe) const {
    for (Ring<2> ring;; ring.Advance()) {
      int32_t id = 0;
      if (simt::LaneIndex() == 0) id = simt::AtomicAdd(schedule.next_tile, 1);
      id = simt::ShuffleIndex(id, 0);
      TileInfo* tile = memory->tiles + ring.Slot();
      simt::MBarrierWait(memory->empty + ring.Slot(), ring.Empty());
      // Read each time: decoding a tile takes all the registers there are.
      if (id >= simt::Load(schedule.tile_start + num_seqs + 1)) id = kNoTile;
      if (id != kNoTile) describe(id, tile);
      if (simt::LaneIndex() == 0) {
        simt::Store(&tile->id, id);
        simt::MBarrierArrive(memory->full + ring.Slot());
      }
      if (id == kNoTile) return;
    }
  }

  // The readers' half: fn(tile) for every tile.
  template <class Fn>
  SIMT_FN void ForEachTile(const Fn& fn) const {
    for (Ring<2> ring;; ring.Advance()) {
      simt::MBarrierWait(memory->full + ring.Slot(), ring.Full());
      const TileInfo* tile = memory->tiles + ring.Slot();
      if (simt::Load(&tile->id) == kNoTile) return;
      fn(tile);
      Release(memory->empty + ring.Slot());
    }
  }

  static constexpr int32_t kNoTile = -1;
  Memory* memory;
};

}  // namespace varlen::varlen_attention
