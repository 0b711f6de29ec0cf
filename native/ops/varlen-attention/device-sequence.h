#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"

// One packed sequence as a kernel sees it, and the tile scheduler that hands its work out.
namespace varlen::varlen_attention {

struct DeviceSequence {
  int64_t q_begin, k_begin;  // rows
  int32_t q_slot, k_slot;    // rows and keys owned, of which
  int32_t q_length;          // rows are used
  int32_t k_length;          // and keys

  // Bottom-right alignment: the last query stands at the last key.
  SIMT_FN int32_t Position(int32_t token) const { return token + k_length - q_length; }
  // Keys [begin, end) that causal and window leave to a token; both never fall with it.
  SIMT_FN int32_t KeysBegin(int32_t token, const DeviceMask& mask) const {
    const int64_t begin = int64_t{Position(token)} - mask.left;
    return begin < 0 ? 0 : begin > k_length ? k_length : static_cast<int32_t>(begin);
  }
  SIMT_FN int32_t KeysEnd(int32_t token, const DeviceMask& mask) const {
    const int64_t end = int64_t{Position(token)} + mask.right + 1;
    return end < 0 ? 0 : end > k_length ? k_length : static_cast<int32_t>(end);
  }
  // The same seen from a key: tokens [begin, end) to which causal and window leave it.
  SIMT_FN int32_t TokensBegin(int32_t key, const DeviceMask& mask) const {
    const int64_t begin = int64_t{key} - mask.right - Position(0);
    return begin < 0 ? 0 : begin > q_length ? q_length : static_cast<int32_t>(begin);
  }
  SIMT_FN int32_t TokensEnd(int32_t key, const DeviceMask& mask) const {
    const int64_t end = int64_t{key} + mask.left - Position(0) + 1;
    return end < 0 ? 0 : end > q_length ? q_length : static_cast<int32_t>(end);
  }
};

SIMT_FN DeviceSequence ReadSequence(const DeviceSequences& all, int32_t b) {
  DeviceSequence s;
  s.q_begin = simt::Load(all.cu_q + b);
  s.k_begin = simt::Load(all.cu_k + b);
  if (b == all.num_seqs) {
    s.q_slot = static_cast<int32_t>(all.total_q - s.q_begin);
    s.k_slot = static_cast<int32_t>(all.total_k - s.k_begin);
    s.q_length = 0;
    s.k_length = 0;
    return s;
  }
  s.q_slot = static_cast<int32_t>(simt::Load(all.cu_q + b + 1) - s.q_begin);
  s.k_slot = static_cast<int32_t>(simt::Load(all.cu_k + b + 1) - s.k_begin);
  s.q_length = all.used_q != nullptr ? simt::Load(all.used_q + b) : s.q_slot;
  s.k_length = all.used_k != nullptr ? simt::Load(all.used_k + b) : s.k_slot;
  return s;
}

// Over the keys [begin, end) of a sequence, `key_end` being its first key's: the first token that
// sees none of them, and the first that does not see all of them. For a whole warp.
SIMT_FN int32_t LargestKeyEnd(const int32_t* key_end, int32_t begin, int32_t end) {
  int32_t largest = 0;
  for (int32_t j = begin + simt::LaneIndex(); j < end; j += simt::kWarpSize) {
    const int32_t here = simt::Load(key_end + j);
    largest = here > largest ? here : largest;
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const int32_t other = simt::ShuffleXor(largest, mask);
    largest = other > largest ? other : largest;
  }
  return largest;
}
SIMT_FN int32_t SmallestKeyEnd(const int32_t* key_end, int32_t begin, int32_t end) {
  int32_t smallest = kUnbounded;
  for (int32_t j = begin + simt::LaneIndex(); j < end; j += simt::kWarpSize) {
    const int32_t here = simt::Load(key_end + j);
    smallest = here < smallest ? here : smallest;
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const int32_t other = simt::ShuffleXor(smallest, mask);
    smallest = other < smallest ? other : smallest;
  }
  return smallest;
}

SIMT_FN int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

SIMT_FN int64_t RowTiles(const DeviceSequence& s, const Tiling& tiling) {
  const int64_t rows = tiling.of_keys ? int64_t{s.k_slot} : int64_t{s.q_slot} * tiling.group;
  return CeilDiv(rows, tiling.block_rows);
}

// Parts into which a sequence's keys are cut: what was asked for, else one for every 1024 of them
// where all its rows are one tile. It depends on nothing else in the pack, and so do its bits.
SIMT_FN int32_t SplitsOf(const DeviceSequence& s, const Tiling& tiling) {
  if (tiling.same_splits || tiling.splits == 1) return tiling.splits;
  if (RowTiles(s, tiling) > 1) return 1;
  const int32_t parts = s.k_length / 1024;
  return parts < 1 ? 1 : parts < tiling.splits ? parts : tiling.splits;
}

// Tiles of one key/value head.
SIMT_FN int64_t TilesPerHead(const DeviceSequence& s, const Tiling& tiling) {
  return RowTiles(s, tiling) * SplitsOf(s, tiling);
}

// Blocks that stream through the heaviest tile: what a sequence is sorted by. A pure function of
// shapes.
SIMT_FN int32_t HeaviestTile(const DeviceSequence& s, const DeviceMask& mask,
                             const Tiling& tiling) {
  if (s.q_length == 0) return 0;
  if (!tiling.of_keys) {
    const int64_t blocks = CeilDiv(s.KeysEnd(s.q_length - 1, mask), tiling.block_columns);
    return static_cast<int32_t>(CeilDiv(blocks, SplitsOf(s, tiling)));
  }
  if (s.k_length == 0) return 0;
  const int64_t tokens = s.TokensEnd(s.k_length - 1, mask) - s.TokensBegin(0, mask);
  return static_cast<int32_t>(CeilDiv(tokens * tiling.group, tiling.block_columns));
}

// Key/value heads that are walked together so that what streams through their tiles stays in the L2
// cache: the largest of 16, 8, 4, 2, 1 that needs at most 8 MiB (FlashAttention 3; an
// under-estimate of the cache works better than an over-estimate).
SIMT_FN int32_t HeadsTogether(const DeviceSequence& s, const Tiling& tiling) {
  const int64_t rows = tiling.of_keys ? int64_t{s.q_length} * tiling.group : int64_t{s.k_length};
  const int64_t bytes = rows * tiling.head_dim * 4;
  int32_t heads = 16;
  while (heads > 1 && heads * bytes > (int64_t{8} << 20)) heads /= 2;
  return heads;
}

struct Tile {
  DeviceSequence sequence;
  int32_t b;
  int32_t kv_head;
  int64_t index;  // within the sequence and the head
  int32_t split, splits;
};

// Entry of `order` that tile `id` belongs to: a 32-ary search in tile_start, one probe per lane, so
// that a thousand sequences take two rounds. Every warp does it for itself.
SIMT_FN int32_t FindEntry(const DeviceSchedule& schedule, int32_t entries, int64_t id) {
  int32_t low = 0, size = entries;
  while (size > 1) {
    const int32_t step = static_cast<int32_t>(CeilDiv(size, simt::kWarpSize));
    const int32_t probe = low + simt::LaneIndex() * step;
    const bool starts_before = probe < low + size && simt::Load(schedule.tile_start + probe) <= id;
    // Lane 0 always starts before; entries without tiles share their start with the next one, and
    // the last of them is the owner.
    const uint32_t before = simt::Ballot(starts_before);
    int32_t last = 0;
    for (uint32_t rest = before >> 1; rest != 0; rest >>= 1) ++last;
    low += last * step;
    size = size - last * step < step ? size - last * step : step;
  }
  return low;
}

// Long tiles first within a sequence too: for a causal mask the last rows see most keys, and the
// first keys are seen by most rows.
SIMT_FN Tile DecodeTile(const DeviceSequences& sequences, const DeviceSchedule& schedule,
                        int64_t id, const Tiling& tiling) {
  const int32_t entry = FindEntry(schedule, sequences.num_seqs + 1, id);
  Tile tile;
  tile.b = simt::Load(schedule.order + entry);
  tile.sequence = ReadSequence(sequences, tile.b);
  const int64_t tiles = TilesPerHead(tile.sequence, tiling);
  const int32_t together = HeadsTogether(tile.sequence, tiling);
  const int64_t in_sequence = id - simt::Load(schedule.tile_start + entry);
  const auto first_head = static_cast<int32_t>(in_sequence / (tiles * together)) * together;
  const int64_t in_heads = in_sequence - first_head * tiles;
  const int32_t left = tiling.num_kv_heads - first_head, heads = left < together ? left : together;
  tile.kv_head = first_head + static_cast<int32_t>(in_heads % heads);
  const int64_t in_head = tiling.of_keys ? in_heads / heads : tiles - 1 - in_heads / heads;
  tile.splits = SplitsOf(tile.sequence, tiling);
  tile.split = static_cast<int32_t>(in_head % tile.splits);
  tile.index = in_head / tile.splits;
  return tile;
}

}  // namespace varlen::varlen_attention
