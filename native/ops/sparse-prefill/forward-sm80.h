#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "core/softmax-row-device.h"
#include "core/tile-sm80-device.h"
#include "ops/sparse-prefill/device-tables.h"

// The forward pass over a plan's tables on mma.sync (sm_80 and everything after it): online softmax
// over blocks of keys, scores and output in registers (FlashAttention 2). Keys come from wherever
// the segments of a tile say, row by row: a strided or listed key costs what a contiguous one does,
// and a block is full even where segments are short.
namespace varlen::sparse_prefill {

template <class T>
struct ForwardArguments {
  const T *q, *k, *v;
  T* out;
  float* softmax_lse;  // [num_heads, total_q]
  int64_t q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head;
  int64_t total_q, total_k;
  const float* key_bias;  // [num_heads, total_k] or null
  DeviceTables tables;
  int64_t tile_begin, tile_end;  // of the tables' tiles
  int32_t* next_tile;            // counter, starts at 0
  float* slot_out;               // [slots, value_dim], what tiles find for rows of several
  float* slot_lse;               // [slots]
  int32_t group;                 // query heads of a key/value head
  int32_t head_dim, value_dim;
  float softmax_scale;
  float softcap;       // 0: off
  bool vector_loads;   // q, k, v: base and strides are multiples of 16 bytes
  bool vector_stores;  // out likewise
};

// 64 rows, or 128 of which two tiles of a pattern share their keys. Shared memory as in dense
// attention: Q, one K and one V block, in the 99 KiB of sm_86 and sm_120.
template <int kHeadDim, bool kWide>
struct ForwardTileSm80 {
  static constexpr int kWarps = 4, kSlabs = kWide ? 2 : 1, kBlockN = 64;
};
template <>
struct ForwardTileSm80<128, true> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 48;  // 64 spills
};
template <>
struct ForwardTileSm80<192, true> {
  static constexpr int kWarps = 8, kSlabs = 1, kBlockN = 64;
};
// Is there room for 128 rows?
template <int kHeadDim>
inline constexpr bool kHasWide = kHeadDim <= 192;

template <class T, int kHeadDim, bool kWide>
struct ForwardSm80 {
  using Shape = ForwardTileSm80<kHeadDim, kWide>;
  using Params = ForwardArguments<T>;
  static constexpr int kWarps = Shape::kWarps, kSlabs = Shape::kSlabs, kBlockN = Shape::kBlockN;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockM = 16 * kSlabs * kWarps;
  static constexpr int kMaskWords = kBlockM / 32;
  using Memory = TileSm80<T, kHeadDim, kThreads>;
  static constexpr int kChunks = Memory::kChunks;

  // Of the keys of a block and of the next: where they stand in the sequence (-1: no key), and
  // which rows keep them.
  struct KeyBlock {
    int32_t column[kBlockN];
    uint32_t rows[kMaskWords][kBlockN];
  };
  struct Work {
    DeviceTile tile;
    int32_t id, unused[3];
    KeyBlock keys[2];
  };
  static constexpr int64_t kTileBytes = int64_t{kBlockM + 2 * kBlockN} * kHeadDim * 2;
  static constexpr int64_t kSharedBytes = kTileBytes + static_cast<int64_t>(sizeof(Work));

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* work = reinterpret_cast<Work*>(shared + kTileBytes);
    for (;;) {
      if (simt::ThreadIndex() == 0) simt::Store(&work->id, simt::AtomicAdd(p.next_tile, 1));
      simt::SyncThreads();
      const int64_t id = p.tile_begin + simt::Load(&work->id);
      if (id >= p.tile_end) return;
      // Everyone has left the previous tile: its id is read and its memory is free.
      constexpr int kVectors = sizeof(DeviceTile) / sizeof(simt::Vector4);
      if (const int i = simt::ThreadIndex(); i < kVectors) {
        const auto* from = reinterpret_cast<const simt::Vector4*>(p.tables.tiles + id);
        simt::Store(reinterpret_cast<simt::Vector4*>(&work->tile) + i, simt::Load(from + i));
      }
      simt::SyncThreads();
      Worker worker(p, work, reinterpret_cast<T*>(shared));
      worker.Run();
    }
  }

 private:
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr float kLn2 = 0.6931471805599453f;

  static SIMT_FN int At(int row, int chunk) { return Memory::At(row, chunk); }

  // One tile: 16 * kSlabs rows per warp against all its keys.
  struct Worker {
    SIMT_FN Worker(const Params& p, Work* work, T* shared)
        : p(p), work(work), tile(&work->tile), shared(shared) {}

    SIMT_FN T* QTile() const { return shared; }
    SIMT_FN T* KTile() const { return shared + kBlockM * kHeadDim; }
    SIMT_FN T* VTile() const { return shared + (kBlockM + kBlockN) * kHeadDim; }
    // Row of the tile that register half `half` (0, 1) of slab `slab` belongs to.
    static SIMT_FN int RowOf(int lane, int slab, int half) {
      return (simt::WarpIndex() * kSlabs + slab) * 16 + lane / 4 + 8 * half;
    }
    // Row of the packed tensors.
    SIMT_FN int64_t TokenOf(int row) const {
      const int64_t rows = simt::Load(&tile->rows);
      const int32_t own =
          rows < 0 ? simt::Load(&tile->first_row) + row : simt::Load(p.tables.rows + rows + row);
      return int64_t{simt::Load(&tile->q_begin)} + own;
    }
    // Where the row's results are kept to be joined with others, or -1.
    SIMT_FN int64_t SlotOf(int row) const {
      const int64_t slots = simt::Load(&tile->slots);
      if (slots < 0) return -1;
      const int32_t slot = simt::Load(p.tables.slots + slots + row);
      return slot < 0 ? -1 : int64_t{simt::Load(&tile->first_slot)} + slot;
    }

    SIMT_FN void Run() {
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          maximum[slab][half] = -simt::Infinity();
          sum[slab][half] = 0;
        }
        SIMT_UNROLL
        for (int d = 0; d < kHeadDim / 8; ++d) {
          SIMT_UNROLL
          for (int i = 0; i < 4; ++i) out[slab][d][i] = 0;
        }
      }
      Attend();
      Finish();
    }

    SIMT_FN void Attend() {
      const int32_t keys = simt::Load(&tile->end_key) - simt::Load(&tile->first_key);
      const int32_t blocks = (keys + kBlockN - 1) / kBlockN;
      if (blocks == 0) return;
      // A warp without rows loads and waits with the others, and multiplies nothing.
      const bool busy = simt::WarpIndex() * kSlabs * 16 < simt::Load(&tile->num_rows);

      LoadQ();
      FindKeys(0);
      simt::SyncThreads();
      LoadKeys(KTile(), p.k, p.k_row, p.k_head, p.head_dim, 0);
      simt::CopyAsyncCommit();
      for (int32_t n = 0; n < blocks; ++n) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // K(n) is here; V of the block before is no longer read
        LoadKeys(VTile(), p.v, p.v_row, p.v_head, p.value_dim, n);
        simt::CopyAsyncCommit();
        if (n + 1 < blocks) FindKeys(n + 1);

        float s[kSlabs][kBlockN / 8][4];
        if (busy) Memory::Multiply(s, QTile(), KTile());

        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // V(n) and the next keys are here; K(n) is no longer read
        if (n + 1 < blocks) {
          LoadKeys(KTile(), p.k, p.k_row, p.k_head, p.head_dim, n + 1);
          simt::CopyAsyncCommit();
        }
        if (!busy) continue;
        Softmax(s, n);
        Memory::Accumulate(out, s, VTile());
      }
    }

    // --- keys ---

    // Does every row keep every key of block n?
    SIMT_FN bool IsWhole(int32_t n) const {
      const int32_t end = simt::Load(&tile->first_key) + (n + 1) * kBlockN;
      return end <= simt::Load(&tile->whole_keys) && end <= simt::Load(&tile->end_key);
    }

    // One thread per key: each walks the segments by itself, forwards through the tile.
    SIMT_FN void FindKeys(int32_t n) {
      const int thread = simt::ThreadIndex();
      if (thread >= kBlockN) return;
      KeyBlock* to = &work->keys[n % 2];
      const int32_t key = simt::Load(&tile->first_key) + n * kBlockN + thread;
      const bool valid = key < simt::Load(&tile->end_key);
      int32_t column = -1;
      DeviceSegment segment{0, 0, 0, 0};
      if (valid) {
        segment = SegmentAt(cursor);
        while (key >= segment.end) {
          segment_begin = segment.end;
          segment = SegmentAt(++cursor);
        }
        const int32_t at = key - segment_begin;
        column =
            segment.stride == 0
                ? simt::Load(p.tables.columns + simt::Load(&tile->columns) + segment.first + at)
                : segment.first + at * segment.stride;
      }
      simt::Store(&to->column[thread], column);
      if (IsWhole(n)) return;
      const bool masked = valid && segment.mask >= 0;
      const int64_t number =
          masked ? segment.mask / 2 + (segment.mask % 2 == 0 ? 0 : key - segment_begin) : 0;
      const uint32_t* mask = p.tables.masks + simt::Load(&tile->masks) + number * kMaskWords;
      SIMT_UNROLL
      for (int w = 0; w < kMaskWords; ++w) {
        simt::Store(&to->rows[w][thread], masked ? simt::Load(mask + w) : valid ? ~0u : 0u);
      }
    }
    SIMT_FN DeviceSegment SegmentAt(int32_t index) const {
      const simt::Vector4 words = simt::Load(reinterpret_cast<const simt::Vector4*>(
          p.tables.segments + simt::Load(&tile->segments) + index));
      return {static_cast<int32_t>(words.x), static_cast<int32_t>(words.y),
              static_cast<int32_t>(words.z), static_cast<int32_t>(words.w)};
    }

    // --- loads ---

    static constexpr int kLine = Memory::kLine, kRowStep = Memory::kRowStep;

    SIMT_FN void LoadQ() const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      SIMT_NO_UNROLL
      for (int row = first; row < kBlockM; row += kRowStep) {
        const bool valid = row < simt::Load(&tile->num_rows);
        const T* from = p.q;
        if (valid) from += TokenOf(row) * p.q_row + simt::Load(&tile->head) * p.q_head;
        SIMT_UNROLL
        for (int chunk = column; chunk < kChunks; chunk += kLine) {
          const int count = valid ? Memory::Columns(p.head_dim, chunk) : 0;
          Memory::LoadChunk(QTile() + At(row, chunk), count > 0 ? from + chunk * 8 : from, count,
                            p.vector_loads);
        }
      }
    }
    SIMT_FN void LoadKeys(T* to, const T* rows, int64_t row_stride, int64_t head_stride,
                          int32_t dim, int32_t n) const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      const KeyBlock* keys = &work->keys[n % 2];
      const T* head = rows + simt::Load(&tile->k_begin) * row_stride +
                      simt::Load(&tile->head) / p.group * head_stride + column * 8;
      T* tile_row = to + At(first, column);
      SIMT_UNROLL
      for (int i = 0; i < kBlockN / kRowStep; ++i) {
        const int32_t key = simt::Load(&keys->column[first + i * kRowStep]);
        SIMT_UNROLL
        for (int c = 0; c < kChunks / kLine; ++c) {
          const int count = key >= 0 ? Memory::Columns(dim, column + c * kLine) : 0;
          Memory::LoadChunk(tile_row + (i * kRowStep * kChunks + c * kLine) * 8,
                            count > 0 ? head + key * row_stride + c * kLine * 8 : rows, count,
                            p.vector_loads);
        }
      }
    }

    // --- one block of keys ---

    // s -> P; the sum and the output follow a rising maximum.
    SIMT_FN void Softmax(float (&s)[kSlabs][kBlockN / 8][4], int32_t n) {
      const int lane = simt::Opaque(simt::LaneIndex());
      // No score but the scaled product, and the largest is the largest after scaling too (but 0
      // times the -inf of a masked score is NaN).
      const bool plain = p.softcap == 0 && p.key_bias == nullptr && p.softmax_scale > 0;
      const bool whole = IsWhole(n);
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const auto score = [&](int j, int e) -> float& { return s[slab][j][2 * half + e]; };
          if (!plain) ScaleRow(lane, n, score);
          if (!whole) MaskRow(lane, RowOf(lane, slab, half), n, score);
          const float factor = plain ? p.softmax_scale * kLog2e : 1.0f;
          const float rescale =
              SoftmaxRow<kBlockN / 8>(factor, maximum[slab][half], sum[slab][half], score);
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            out[slab][d][2 * half] *= rescale;
            out[slab][d][2 * half + 1] *= rescale;
          }
        }
      }
    }
    template <class Score>
    SIMT_FN void ScaleRow(int lane, int32_t n, const Score& score) const {
      const int32_t* columns = work->keys[n % 2].column + lane % 4 * 2;
      const float* bias = p.key_bias;
      if (bias != nullptr) {
        bias += simt::Load(&tile->head) * p.total_k + simt::Load(&tile->k_begin);
      }
      SIMT_UNROLL
      for (int j = 0; j < kBlockN / 8; ++j) {
        SIMT_UNROLL
        for (int e = 0; e < 2; ++e) {
          float u = score(j, e) * p.softmax_scale;
          if (p.softcap > 0) u = p.softcap * simt::Tanh(u / p.softcap);
          const int32_t column = simt::Load(columns + j * 8 + e);
          if (bias != nullptr && column >= 0) u += simt::Load(bias + column);
          score(j, e) = u * kLog2e;
        }
      }
    }
    template <class Score>
    SIMT_FN void MaskRow(int lane, int row, int32_t n, const Score& score) const {
      const uint32_t* masks = work->keys[n % 2].rows[row / 32] + lane % 4 * 2;
      SIMT_UNROLL
      for (int j = 0; j < kBlockN / 8; ++j) {
        SIMT_UNROLL
        for (int e = 0; e < 2; ++e) {
          const uint32_t rows = simt::Load(masks + j * 8 + e);
          if ((rows >> (row % 32) & 1) == 0) score(j, e) = -simt::Infinity();
        }
      }
    }

    // --- results: out / sum by way of this warp's own rows of the Q tile, and lse ---

    SIMT_FN void Finish() {
      const int lane = simt::Opaque(simt::LaneIndex());
      simt::SyncWarp();  // the warp's last reads of those rows
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = RowOf(lane, slab, half);
          const bool valid = row < simt::Load(&tile->num_rows);
          float total = sum[slab][half];
          total += simt::ShuffleXor(total, 1);
          total += simt::ShuffleXor(total, 2);
          // A row without keys has the sum 0 (a NaN sum is not that).
          const bool seen = !(total == 0);
          const float inverse = seen ? 1.0f / total : 0.0f;
          const int64_t slot = valid ? SlotOf(row) : -1;
          if (valid && lane % 4 == 0) {
            float* lse = slot >= 0
                             ? p.slot_lse + slot
                             : p.softmax_lse + simt::Load(&tile->head) * p.total_q + TokenOf(row);
            simt::Store(
                lse, seen ? (maximum[slab][half] + simt::Log2(total)) * kLn2 : -simt::Infinity());
          }
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            const float low = seen ? out[slab][d][2 * half] * inverse : 0.0f;
            const float high = seen ? out[slab][d][2 * half + 1] * inverse : 0.0f;
            const int column = d * 8 + lane % 4 * 2;
            if (slot >= 0) {
              float* to = p.slot_out + slot * p.value_dim + column;
              if (column < p.value_dim) simt::Store(to, low);
              if (column + 1 < p.value_dim) simt::Store(to + 1, high);
            } else {
              simt::Store(reinterpret_cast<uint32_t*>(QTile() + At(row, d)) + lane % 4,
                          simt::PackPair<T>(low, high));
            }
          }
        }
      }
      simt::SyncWarp();
      const int first = simt::WarpIndex() * kSlabs * 16;
      for (int id = lane; id < kSlabs * 16 * kChunks; id += simt::kWarpSize) {
        const int row = first + id / kChunks, chunk = id % kChunks;
        const int count = Memory::Columns(p.value_dim, chunk);
        if (row >= simt::Load(&tile->num_rows) || count == 0 || SlotOf(row) >= 0) continue;
        Memory::StoreChunk(
            p.out + TokenOf(row) * p.out_row + simt::Load(&tile->head) * p.out_head + chunk * 8,
            simt::Load(reinterpret_cast<const simt::Vector4*>(QTile() + At(row, chunk))), count,
            p.vector_stores);
      }
    }

    const Params& p;
    Work* work;
    const DeviceTile* tile;
    T* shared;
    int32_t cursor = 0, segment_begin = 0;  // of this thread's key
    float maximum[kSlabs][2], sum[kSlabs][2];
    float out[kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::sparse_prefill
