#pragma once

#include <cstdint>
#include <type_traits>

#include "core/simt/simt.h"
#include "core/tile-sm80-device.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/forward-tile.h"
#include "ops/varlen-attention/tile-f32.h"

// The forward pass on mma.sync, or on fused multiply-adds for float32 (sm_80 and everything after
// it): online softmax over key blocks, scores and output in registers (FlashAttention 2). One
// instance per dtype and padded head dimension; causal, window, softcap, alibi, trees, lengths and
// strides are run-time values.
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

// The same of float32, in 96 KiB from headDim 96 on.
template <int kHeadDim>
struct ForwardTileF32;
template <>
struct ForwardTileF32<64> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 64;
};
template <>
struct ForwardTileF32<96> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 64;
};
template <>
struct ForwardTileF32<128> {
  static constexpr int kWarps = 4, kSlabs = 2, kBlockN = 32;
};
template <>
struct ForwardTileF32<192> {
  static constexpr int kWarps = 4, kSlabs = 1, kBlockN = 32;
};
template <>
struct ForwardTileF32<256> {
  static constexpr int kWarps = 4, kSlabs = 1, kBlockN = 16;
};

template <class T, int kHeadDim>
struct ForwardSm80 {
  using Shape = std::conditional_t<std::is_same_v<T, float>, ForwardTileF32<kHeadDim>,
                                   ForwardTileSm80<kHeadDim>>;
  using Params = ForwardArguments<T>;
  static constexpr int kWarps = Shape::kWarps, kSlabs = Shape::kSlabs, kBlockN = Shape::kBlockN;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kBlockM = 16 * kSlabs * kWarps;
  using Memory = ProductTile<T, kHeadDim, kThreads>;
  static constexpr int kChunks = Memory::kChunks, kPerChunk = Memory::kPerChunk;

  static constexpr int64_t kSharedBytes =
      int64_t{kBlockM + 2 * kBlockN} * kHeadDim * sizeof(T) + sizeof(ForwardTile);

  static SIMT_FN Tiling TilingOf(const Params& p) {
    Tiling tiling = RowTiling(p, kBlockM, kBlockN);
    tiling.splits = p.splits;
    tiling.same_splits = p.same_splits;
    return tiling;
  }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* work = reinterpret_cast<ForwardTile*>(shared + kSharedBytes - sizeof(ForwardTile));
    const int64_t tiles = simt::Load(p.schedule.tile_start + p.sequences.num_seqs + 1);
    for (;;) {
      if (simt::ThreadIndex() == 0) {
        simt::Store(&work->id, simt::AtomicAdd(p.schedule.next_tile, 1));
      }
      simt::SyncThreads();
      const int64_t id = simt::Load(&work->id);
      if (id >= tiles) return;
      // Everyone has left the previous tile: its id is read and its memory is free.
      if (simt::WarpIndex() == 0) DescribeTile(p, id, TilingOf(p), work);
      simt::SyncThreads();
      Worker worker(p, work, reinterpret_cast<T*>(shared));
      worker.Work();
    }
  }

 private:
  static SIMT_FN int At(int row, int chunk) { return Memory::At(row, chunk); }

  // One tile: 16 * kSlabs rows per warp against every key block that any of its rows sees.
  struct Worker : ForwardRows<T, kBlockN> {
    using Rows = ForwardRows<T, kBlockN>;
    using Rows::p, Rows::tile;

    SIMT_FN Worker(const Params& p, const ForwardTile* tile, T* shared)
        : Rows(p, tile), shared(shared) {}

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
      Attend();
      Finish();
    }

    SIMT_FN void Attend() {
      const KeyBlocks blocks = OfSplit(Rows::Blocks());
      int32_t n = blocks.first;
      if (n < blocks.begin) return;

      LoadQ();
      LoadKeys(KTile(), p.k, n);
      simt::CopyAsyncCommit();
      while (n >= blocks.begin) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // K(n) is here; V of the block before is no longer read
        LoadKeys(VTile(), p.v, n);
        simt::CopyAsyncCommit();

        float s[kSlabs][kBlockN / 8][4];
        Memory::Multiply(s, QTile(), KTile());

        const int32_t next = Rows::NextBlock(n - 1, blocks.begin);
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // V(n) is here; K(n) is no longer read
        if (next >= blocks.begin) {
          LoadKeys(KTile(), p.k, next);
          simt::CopyAsyncCommit();
        }

        Softmax(s, n);
        Memory::Accumulate(out, s, VTile());
        n = next;
      }
    }

    // This tile's part of the blocks.
    SIMT_FN KeyBlocks OfSplit(const KeyBlocks& all) const {
      if (p.splits == 1 || all.first < all.begin) return all;
      const int64_t blocks = all.first + 1 - all.begin, split = simt::Load(&tile->split);
      const int32_t splits = simt::Load(&tile->splits);
      const int32_t begin = all.begin + static_cast<int32_t>(blocks * split / splits);
      const int32_t end = all.begin + static_cast<int32_t>(blocks * (split + 1) / splits);
      return {begin, Rows::NextBlock(end - 1, begin)};
    }

    // --- loads ---

    static constexpr int kLine = Memory::kLine, kRowStep = Memory::kRowStep;

    SIMT_FN void LoadQ() const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      SIMT_NO_UNROLL
      for (int row = first; row < kBlockM; row += kRowStep) {
        Rows::template LoadRowOfQ<kChunks, kLine>(
            row, column, [&](int chunk) { return QTile() + At(row, chunk); });
      }
    }
    SIMT_FN void LoadKeys(T* to, const DeviceMatrix<const T>& rows, int32_t n) const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      const int32_t key = n * kBlockN + first, length = simt::Load(&tile->k_length);
      const T* from = rows.data + (simt::Load(&tile->k_begin) + key) * rows.row +
                      simt::Load(&tile->kv_head) * rows.head + column * kPerChunk;
      T* tile_row = to + At(first, column);
      SIMT_UNROLL
      for (int i = 0; i < kBlockN / kRowStep; ++i) {
        const bool valid = key + i * kRowStep < length;
        SIMT_UNROLL
        for (int c = 0; c < kChunks / kLine; ++c) {
          const int count = valid ? Memory::Columns(p.head_dim, column + c * kLine) : 0;
          Memory::LoadChunk(tile_row + (i * kRowStep * kChunks + c * kLine) * kPerChunk,
                            count > 0 ? from + c * kLine * kPerChunk : rows.data, count,
                            p.vector_loads);
        }
        from += kRowStep * rows.row;
      }
    }

    // --- one key block ---

    // s -> P; the sum and the output follow a rising maximum.
    SIMT_FN void Softmax(float (&s)[kSlabs][kBlockN / 8][4], int32_t n) {
      const int lane = simt::Opaque(simt::LaneIndex());
      const bool whole = Rows::SeenWhole(n);
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          const auto score = [&](int j, int e) -> float& { return s[slab][j][2 * half + e]; };
          const float factor = Rows::ModifyRow(lane, RowOf(lane, slab, half), n, whole, score);
          const float rescale =
              Rows::SoftmaxRow(factor, maximum[slab][half], sum[slab][half], score);
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
          const int row = RowOf(lane, slab, half);
          if (p.splits > 1) {
            FinishPart(lane, row, slab, half);
            continue;
          }
          const float inverse = Rows::FinishRow(lane, row, maximum[slab][half], sum[slab][half]);
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            Memory::StorePair(QTile(), row, d, lane, out[slab][d][2 * half] * inverse,
                              out[slab][d][2 * half + 1] * inverse);
          }
        }
      }
      if (p.splits > 1) return;
      simt::SyncWarp();
      const int first = simt::WarpIndex() * kSlabs * 16;
      for (int id = lane; id < kSlabs * 16 * kChunks; id += simt::kWarpSize) {
        const int row = first + id / kChunks, chunk = id % kChunks;
        Rows::StoreChunk(row, chunk, QTile() + At(row, chunk));
      }
    }

    // A row's results of this split, for SplitCombine. A sequence with fewer splits than the pack
    // has fills the others' places.
    SIMT_FN void FinishPart(int lane, int row, int slab, int half) const {
      const int32_t split = simt::Load(&tile->split), splits = simt::Load(&tile->splits);
      const auto lse_of = [&](int32_t at) {
        return p.softmax_lse + at * p.num_heads * p.sequences.total_q;
      };
      const float inverse =
          Rows::FinishRow(lane, row, maximum[slab][half], sum[slab][half], lse_of(split));
      for (int32_t at = split + splits; at < p.splits; at += splits) {
        Rows::FinishRow(lane, row, -simt::Infinity(), 0.0f, lse_of(at));
      }
      const int32_t token = Rows::TokenOf(row);
      if (token >= simt::Load(&tile->q_length)) return;
      const int64_t at = split * p.sequences.total_q + simt::Load(&tile->q_begin) + token;
      float* to = p.partial_out + (at * p.num_heads + Rows::HeadOf(row)) * p.head_dim;
      SIMT_UNROLL
      for (int d = 0; d < kHeadDim / 8; ++d) {
        SIMT_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int column = d * 8 + lane % 4 * 2 + e;
          if (column < p.head_dim) simt::Store(to + column, out[slab][d][2 * half + e] * inverse);
        }
      }
    }

    T* shared;
    float maximum[kSlabs][2], sum[kSlabs][2];
    float out[kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::varlen_attention
