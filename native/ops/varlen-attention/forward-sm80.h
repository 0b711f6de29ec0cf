#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/device-sequence.h"
#include "ops/varlen-attention/tile-sm80.h"

// The forward pass on mma.sync (sm_80 and everything after it): online softmax over key blocks,
// scores and output in registers (FlashAttention 2). One instance per dtype and padded head
// dimension; causal, window, softcap, alibi, trees, lengths and strides are run-time values.
namespace varlen::varlen_attention {

// Rows of the tile = 16 * kSlabs * kWarps. Shared memory holds Q, one K and one V block: the loads
// of V(n) run under Q K(n)^T and those of K(n-1) under P V(n). All fit the 99 KiB of sm_86 and
// sm_120; up to headDim 128 two blocks share a multiprocessor of an A100.
template <int kHeadDim>
struct ForwardTileSm80;
template <>
struct ForwardTileSm80<64> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 64;
};
template <>
struct ForwardTileSm80<96> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 64;
};
template <>
struct ForwardTileSm80<128> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 48;  // 64 spills
};
template <>
struct ForwardTileSm80<192> {
  static constexpr int kWarps = 8, kSlabs = 1, kBlockN = 64;
};
template <>
struct ForwardTileSm80<256> {
  static constexpr int kWarps = 4, kSlabs = 1, kBlockN = 64;
};

template <class T, int kHeadDim>
struct ForwardSm80 {
  using Shape = ForwardTileSm80<kHeadDim>;
  using Params = ForwardArguments<T>;
  static constexpr int kWarps = Shape::kWarps, kSlabs = Shape::kSlabs, kBlockN = Shape::kBlockN;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockM = 16 * kSlabs * kWarps;
  using Memory = TileSm80<T, kHeadDim, kThreads>;
  static constexpr int kChunks = Memory::kChunks;

  // What the threads of a block must know of their tile. It stays in shared memory and is read
  // where it is used: at headDim 128 the accumulators leave no registers for it.
  struct TileInfo {
    int64_t q_begin, k_begin;  // first row of the sequence
    int32_t q_slot, q_length, k_length;
    int32_t b, kv_head;
    int32_t first_token, first_in_group;  // of the tile's first row
    int32_t last_token;                   // of its last used row
    int32_t whole_begin, whole_end;       // keys that every row sees, trees apart
    int32_t id;
    int32_t unused;
  };
  static constexpr int64_t kSharedBytes =
      int64_t{kBlockM + 2 * kBlockN} * kHeadDim * 2 + sizeof(TileInfo);

  static SIMT_FN Tiling TilingOf(const Params& p) {
    return {false, p.num_kv_heads, p.num_heads / p.num_kv_heads, p.head_dim, kBlockM, kBlockN};
  }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* work = reinterpret_cast<TileInfo*>(shared + kSharedBytes - sizeof(TileInfo));
    const int64_t tiles = simt::Load(p.schedule.tile_start + p.sequences.num_seqs + 1);
    for (;;) {
      if (simt::ThreadIndex() == 0) {
        simt::Store(&work->id, simt::AtomicAdd(p.schedule.next_tile, 1));
      }
      simt::SyncThreads();
      const int64_t id = simt::Load(&work->id);
      if (id >= tiles) return;
      // Everyone has left the previous tile: its id is read and its memory is free.
      if (simt::WarpIndex() == 0) Describe(p, id, work);
      simt::SyncThreads();
      Worker worker(p, work, reinterpret_cast<T*>(shared));
      worker.Work();
    }
  }

 private:
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr float kLn2 = 0.6931471805599453f;

  static SIMT_FN int At(int row, int chunk) { return Memory::At(row, chunk); }

  static SIMT_FN void Describe(const Params& p, int64_t id, TileInfo* info) {
    const int32_t group = p.num_heads / p.num_kv_heads;
    const Tile tile = DecodeTile(p.sequences, p.schedule, id, TilingOf(p));
    if (simt::LaneIndex() != 0) return;
    const DeviceSequence& s = tile.sequence;
    const int64_t first_row = tile.index * kBlockM, end_row = first_row + kBlockM - 1;
    const int64_t last_row = int64_t{s.q_length} * group - 1;
    const auto first_token = static_cast<int32_t>(first_row / group);
    const auto last_token = static_cast<int32_t>((end_row < last_row ? end_row : last_row) / group);
    simt::Store(&info->q_begin, s.q_begin);
    simt::Store(&info->k_begin, s.k_begin);
    simt::Store(&info->q_slot, s.q_slot);
    simt::Store(&info->q_length, s.q_length);
    simt::Store(&info->k_length, s.k_length);
    simt::Store(&info->b, tile.b);
    simt::Store(&info->kv_head, tile.kv_head);
    simt::Store(&info->first_token, first_token);
    simt::Store(&info->first_in_group, static_cast<int32_t>(first_row % group));
    simt::Store(&info->last_token, last_token);
    simt::Store(&info->whole_begin, s.KeysBegin(last_token, p.mask));
    simt::Store(&info->whole_end, s.KeysEnd(first_token, p.mask));
  }

  // One tile: 16 * kSlabs rows per warp against every key block that any of its rows sees.
  struct Worker {
    SIMT_FN Worker(const Params& p, const TileInfo* tile, T* shared)
        : p(p), tile(tile), shared(shared) {}

    SIMT_FN int32_t Group() const { return p.num_heads / p.num_kv_heads; }
    // Used rows and keys of the tile's sequence; its q_slot and rows in the tensors stay unread.
    SIMT_FN DeviceSequence Lengths() const {
      DeviceSequence s{};
      s.q_length = simt::Load(&tile->q_length);
      s.k_length = simt::Load(&tile->k_length);
      return s;
    }
    SIMT_FN int32_t TokenOf(int row) const {
      return simt::Load(&tile->first_token) + (simt::Load(&tile->first_in_group) + row) / Group();
    }
    SIMT_FN int32_t HeadOf(int row) const {
      return simt::Load(&tile->kv_head) * Group() +
             (simt::Load(&tile->first_in_group) + row) % Group();
    }
    SIMT_FN T* QTile() const { return shared; }
    SIMT_FN T* KTile() const { return shared + kBlockM * kHeadDim; }
    SIMT_FN T* VTile() const { return shared + (kBlockM + kBlockN) * kHeadDim; }
    // Row of the tile that register half `half` (0, 1) of slab `slab` belongs to.
    static SIMT_FN int RowOf(int lane, int slab, int half) {
      return (simt::WarpIndex() * kSlabs + slab) * 16 + lane / 4 + 8 * half;
    }

    SIMT_FN void Work() {
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
      if (simt::Load(&tile->first_token) < simt::Load(&tile->q_length)) Attend();
      Finish();
    }

    SIMT_FN void Attend() {
      const DeviceSequence lengths = Lengths();
      const int32_t keys_begin = lengths.KeysBegin(simt::Load(&tile->first_token), p.mask);
      const int32_t keys_end = lengths.KeysEnd(simt::Load(&tile->last_token), p.mask);
      const int32_t begin = keys_begin / kBlockN;
      int32_t n = NextBlock((keys_end + kBlockN - 1) / kBlockN - 1, begin);
      if (keys_begin >= keys_end || n < begin) return;

      LoadQ();
      LoadKeys(KTile(), p.k, p.k_row, p.k_head, n);
      simt::CopyAsyncCommit();
      while (n >= begin) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // K(n) is here; V of the block before is no longer read
        LoadKeys(VTile(), p.v, p.v_row, p.v_head, n);
        simt::CopyAsyncCommit();

        float s[kSlabs][kBlockN / 8][4];
        Memory::Multiply(s, QTile(), KTile());

        const int32_t next = NextBlock(n - 1, begin);
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // V(n) is here; K(n) is no longer read
        if (next >= begin) {
          LoadKeys(KTile(), p.k, p.k_row, p.k_head, next);
          simt::CopyAsyncCommit();
        }

        if (PlainScores() && SeenWhole(n)) {
          Softmax(s, p.softmax_scale * kLog2e);
        } else {
          ModifyScores(s, n);
          Softmax(s, 1.0f);
        }
        Memory::Accumulate(out, s, VTile());
        n = next;
      }
    }

    // The fast path takes the maximum before scaling and knows no score but the scaled product.
    SIMT_FN bool PlainScores() const {
      return p.softcap == 0 && p.alibi_slopes == nullptr && p.softmax_scale >= 0;
    }
    // Does every row of the tile see every key of block n?
    SIMT_FN bool SeenWhole(int32_t n) const {
      return n * kBlockN >= simt::Load(&tile->whole_begin) &&
             (n + 1) * kBlockN <= simt::Load(&tile->whole_end) &&
             (p.mask.key_end == nullptr || SmallestKeyEnd(n) > simt::Load(&tile->last_token));
    }

    // --- trees: which blocks does any row of the tile see? ---

    SIMT_FN const int32_t* KeyEnds() const { return p.mask.key_end + simt::Load(&tile->k_begin); }
    SIMT_FN int32_t EndOfBlock(int32_t n) const {
      const int32_t end = (n + 1) * kBlockN, length = simt::Load(&tile->k_length);
      return end < length ? end : length;
    }
    SIMT_FN int32_t LargestKeyEnd(int32_t n) const {
      return varlen_attention::LargestKeyEnd(KeyEnds(), n * kBlockN, EndOfBlock(n));
    }
    SIMT_FN int32_t SmallestKeyEnd(int32_t n) const {
      return varlen_attention::SmallestKeyEnd(KeyEnds(), n * kBlockN, EndOfBlock(n));
    }
    // n, or the next lower block that some row sees. The same in every warp.
    SIMT_FN int32_t NextBlock(int32_t n, int32_t begin) const {
      if (p.mask.key_end == nullptr) return n;
      while (n >= begin && LargestKeyEnd(n) <= simt::Load(&tile->first_token)) --n;
      return n;
    }

    // --- loads ---

    SIMT_FN void LoadChunk(T* to, const T* from, int count) const {
      Memory::LoadChunk(to, from, count, p.vector_loads);
    }
    SIMT_FN int Columns(int chunk) const { return Memory::Columns(p.head_dim, chunk); }
    static constexpr int kLine = Memory::kLine, kRowStep = Memory::kRowStep;

    SIMT_FN void LoadQ() const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      SIMT_NO_UNROLL
      for (int row = first; row < kBlockM; row += kRowStep) {
        const int32_t token = TokenOf(row);
        const bool valid = token < simt::Load(&tile->q_length);
        const T* from = p.q;
        if (valid) {
          from += (simt::Load(&tile->q_begin) + token) * p.q_row + HeadOf(row) * p.q_head;
        }
        SIMT_UNROLL
        for (int chunk = column; chunk < kChunks; chunk += kLine) {
          const int count = valid ? Columns(chunk) : 0;
          LoadChunk(QTile() + At(row, chunk), count > 0 ? from + chunk * 8 : from, count);
        }
      }
    }
    SIMT_FN void LoadKeys(T* to, const T* rows, int64_t row_stride, int64_t head_stride,
                          int32_t n) const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      const int32_t key = n * kBlockN + first, length = simt::Load(&tile->k_length);
      const T* from = rows + (simt::Load(&tile->k_begin) + key) * row_stride +
                      simt::Load(&tile->kv_head) * head_stride + column * 8;
      T* tile_row = to + At(first, column);
      SIMT_UNROLL
      for (int i = 0; i < kBlockN / kRowStep; ++i) {
        const bool valid = key + i * kRowStep < length;
        SIMT_UNROLL
        for (int c = 0; c < kChunks / kLine; ++c) {
          const int count = valid ? Columns(column + c * kLine) : 0;
          LoadChunk(tile_row + (i * kRowStep * kChunks + c * kLine) * 8,
                    count > 0 ? from + c * kLine * 8 : rows, count);
        }
        from += kRowStep * row_stride;
      }
    }

    // --- one key block ---

    // Scale, cap, alibi and mask; the result is in base 2.
    SIMT_FN void ModifyScores(float (&s)[kSlabs][kBlockN / 8][4], int32_t n) const {
      const int lane = simt::Opaque(simt::LaneIndex());
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = RowOf(lane, slab, half);
          const DeviceSequence lengths = Lengths();
          const int32_t token = TokenOf(row), position = lengths.Position(token);
          const int32_t begin = lengths.KeysBegin(token, p.mask);
          const int32_t end = lengths.KeysEnd(token, p.mask);
          float slope = 0;
          if (p.alibi_slopes != nullptr && token < lengths.q_length) {
            slope =
                simt::Load(p.alibi_slopes +
                           int64_t{simt::Load(&tile->b)} * p.alibi_sequence_stride + HeadOf(row));
          }
          SIMT_UNROLL
          for (int j = 0; j < kBlockN / 8; ++j) {
            SIMT_UNROLL
            for (int e = 0; e < 2; ++e) {
              const int32_t key = n * kBlockN + j * 8 + lane % 4 * 2 + e;
              float& score = s[slab][j][2 * half + e];
              float u = score * p.softmax_scale;
              if (p.softcap > 0) u = p.softcap * simt::Tanh(u / p.softcap);
              const int32_t distance = position > key ? position - key : key - position;
              u -= slope * static_cast<float>(distance);
              bool keep = key >= begin && key < end;
              if (keep && p.mask.key_end != nullptr) keep = token < simt::Load(KeyEnds() + key);
              score = keep ? u * kLog2e : -simt::Infinity();
            }
          }
        }
      }
    }

    // s -> P = 2^(s * factor - maximum); the sum and the output follow a rising maximum. While a
    // row has seen no key its maximum is -inf, and 0 stands in for it: -inf - -inf is NaN.
    SIMT_FN void Softmax(float (&s)[kSlabs][kBlockN / 8][4], float factor) {
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          float largest = -simt::Infinity();
          SIMT_UNROLL
          for (int j = 0; j < kBlockN / 8; ++j) {
            largest = simt::Max(largest, simt::Max(s[slab][j][2 * half], s[slab][j][2 * half + 1]));
          }
          // Four lanes share a row.
          largest = simt::Max(largest, simt::ShuffleXor(largest, 1));
          largest = simt::Max(largest, simt::ShuffleXor(largest, 2));
          const float before = maximum[slab][half];
          const float now = simt::Max(before, largest * factor);
          const float shift = now == -simt::Infinity() ? 0.0f : now;
          const float rescale = simt::Exp2(before - shift);
          maximum[slab][half] = now;
          float total = sum[slab][half] * rescale;
          SIMT_UNROLL
          for (int j = 0; j < kBlockN / 8; ++j) {
            SIMT_UNROLL
            for (int e = 0; e < 2; ++e) {
              float& score = s[slab][j][2 * half + e];
              score = simt::Exp2(score * factor - shift);
              total += score;
            }
          }
          sum[slab][half] = total;
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            out[slab][d][2 * half] *= rescale;
            out[slab][d][2 * half + 1] *= rescale;
          }
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
          float total = sum[slab][half];
          total += simt::ShuffleXor(total, 1);
          total += simt::ShuffleXor(total, 2);
          // A row without keys has the sum 0 (a NaN sum is not that).
          const bool seen = !(total == 0);
          const float inverse = seen ? 1.0f / total : 0.0f;
          const int row = RowOf(lane, slab, half);
          const int32_t token = TokenOf(row);
          if (lane % 4 == 0 && token < simt::Load(&tile->q_slot)) {
            const bool has_lse = seen && token < simt::Load(&tile->q_length);
            simt::Store(
                p.softmax_lse + HeadOf(row) * p.lse_stride + simt::Load(&tile->q_begin) + token,
                has_lse ? (maximum[slab][half] + simt::Log2(total)) * kLn2 : -simt::Infinity());
          }
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            const uint32_t pair = simt::PackPair<T>(out[slab][d][2 * half] * inverse,
                                                    out[slab][d][2 * half + 1] * inverse);
            simt::Store(reinterpret_cast<uint32_t*>(QTile() + At(row, d)) + lane % 4, pair);
          }
        }
      }
      simt::SyncWarp();
      const int first = simt::WarpIndex() * kSlabs * 16;
      for (int id = lane; id < kSlabs * 16 * kChunks; id += simt::kWarpSize) {
        StoreChunk(first + id / kChunks, id % kChunks);
      }
    }

    SIMT_FN void StoreChunk(int row, int chunk) const {
      const int32_t token = TokenOf(row);
      const int count = Columns(chunk);
      if (token >= simt::Load(&tile->q_slot) || count == 0) return;
      T* to = p.out + (simt::Load(&tile->q_begin) + token) * p.out_row + HeadOf(row) * p.out_head +
              chunk * 8;
      const auto* from = reinterpret_cast<const simt::Vector4*>(QTile() + At(row, chunk));
      const simt::Vector4 values =
          token < simt::Load(&tile->q_length) ? simt::Load(from) : simt::Vector4{0, 0, 0, 0};
      Memory::StoreChunk(to, values, count, p.vector_stores);
    }

    const Params& p;
    const TileInfo* tile;
    T* shared;
    float maximum[kSlabs][2], sum[kSlabs][2];
    float out[kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::varlen_attention
