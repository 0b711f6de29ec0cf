#pragma once

#include <cstdint>
#include <type_traits>

#include "core/simt/simt.h"
#include "core/tile-sm80-device.h"
#include "ops/varlen-attention/backward-tile.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/tile-f32.h"

// The backward pass on mma.sync, or on fused multiply-adds for float32 (sm_80 and everything after
// it); see backward-tile.h for what a tile and its blocks of columns are.
namespace varlen::varlen_attention {

// Rows of the tile = 16 * kSlabs * kWarps; columns of a block. Shared memory holds the tile and two
// blocks, of which one is loaded while the other is worked on: at most the 99 KiB of sm_86 and
// sm_120. The sums take kHeadDim / 2 registers per slab and gradient, the scores and dP kColumns
// each: from headDim 192 on dk and dv are passes of their own.
template <int kHeadDim, bool kOfKeys>
struct BackwardTileSm80;
template <>
struct BackwardTileSm80<64, true> {
  static constexpr int kWarps = 4, kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<96, true> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 64;
};
template <>
struct BackwardTileSm80<128, true> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 32;
};
template <>
struct BackwardTileSm80<64, false> {
  static constexpr int kWarps = 4, kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<96, false> {
  static constexpr int kWarps = 4, kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<128, false> {
  static constexpr int kWarps = 4, kSlabs = 2, kColumns = 32;
};
template <bool kOfKeys>
struct BackwardTileSm80<192, kOfKeys> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 32;
};
template <bool kOfKeys>
struct BackwardTileSm80<256, kOfKeys> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 16;
};

// The same of float32, in 96 KiB.
template <int kHeadDim>
struct BackwardTileF32;
template <>
struct BackwardTileF32<64> {
  static constexpr int kWarps = 4, kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileF32<96> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 32;
};
template <>
struct BackwardTileF32<128> {
  static constexpr int kWarps = 4, kSlabs = 1, kColumns = 16;
};
template <>
struct BackwardTileF32<192> {
  static constexpr int kWarps = 2, kSlabs = 1, kColumns = 16;
};
template <>
struct BackwardTileF32<256> {
  static constexpr int kWarps = 2, kSlabs = 1, kColumns = 8;
};

template <class T, int kHeadDim, Gradient kGradient>
struct BackwardSm80 {
  static constexpr bool kOfKeys = kGradient != Gradient::kQuery;

  using Shape = std::conditional_t<std::is_same_v<T, float>, BackwardTileF32<kHeadDim>,
                                   BackwardTileSm80<kHeadDim, kOfKeys>>;
  using Params = BackwardArguments<T>;
  static constexpr int kWarps = Shape::kWarps, kSlabs = Shape::kSlabs, kColumns = Shape::kColumns;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRows = 16 * kSlabs * kWarps;
  using Memory = ProductTile<T, kHeadDim, kThreads>;

  using Rows = BackwardRows<T, kGradient, kRows, kColumns>;
  static constexpr int kGradients = Rows::kGradients;

  static constexpr int64_t kTileBytes = int64_t{2 * kRows + 4 * kColumns} * kHeadDim * sizeof(T);
  static constexpr int64_t kStatisticsBytes =
      kOfKeys ? int64_t{2} * kColumns * sizeof(RowStatistics) : 0;
  static constexpr int64_t kSharedBytes = kTileBytes + kStatisticsBytes + sizeof(BackwardTile);

  static SIMT_FN Tiling TilingOf(const Params& p) { return Rows::TilingOf(p); }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* work = reinterpret_cast<BackwardTile*>(shared + kSharedBytes - sizeof(BackwardTile));
    for (;;) {
      if (simt::ThreadIndex() == 0) {
        simt::Store(&work->id, simt::AtomicAdd(p.schedule.next_tile, 1));
      }
      simt::SyncThreads();
      const int64_t id = simt::Load(&work->id);
      // Read each time: a tile takes all the registers there are.
      if (id >= simt::Load(p.schedule.tile_start + p.sequences.num_seqs + 1)) return;
      // Everyone has left the previous tile: its id is read and its memory is free.
      if (simt::WarpIndex() == 0) Rows::Describe(p, id, work);
      simt::SyncThreads();
      Worker worker(Rows(p, work), shared);
      worker.Work();
    }
  }

 private:
  // One tile: 16 * kSlabs rows per warp against every block of columns that any of its rows sees.
  struct Worker {
    SIMT_FN Worker(const Rows& rows, unsigned char* shared) : rows(rows), shared(shared) {}

    SIMT_FN void Work() {
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int d = 0; d < kHeadDim / 8; ++d) {
            SIMT_UNROLL
            for (int i = 0; i < 4; ++i) sums[g][slab][d][i] = 0;
          }
        }
      }
      Stream();
      Finish();
    }

    SIMT_FN void Stream() {
      const int32_t end = simt::Load(&rows.tile->end_block);
      int32_t n = rows.NextBlock(simt::Load(&rows.tile->first_block), end);
      if (n >= end) return;
      LoadTile();
      LoadBlock(n, 0);
      simt::CopyAsyncCommit();
      for (int stage = 0; n < end; stage ^= 1) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // block n is here; nobody reads the other one any longer
        const int32_t next = rows.NextBlock(n + 1, end);
        if (next < end) {
          LoadBlock(next, stage ^ 1);
          simt::CopyAsyncCommit();
        }
        AddBlock(n, stage);
        n = next;
      }
    }

    SIMT_FN void AddBlock(int32_t n, int stage) {
      float s[kSlabs][kColumns / 8][4], ds[kSlabs][kColumns / 8][4];
      Memory::Multiply(s, X(0), Y(0, stage));
      if constexpr (Rows::kGivesScores) Memory::Multiply(ds, X(1), Y(1, stage));
      Weigh(s, ds, n, stage);
      if constexpr (Rows::kGivesScores) Memory::Accumulate(sums[0], ds, Y(0, stage));
      if constexpr (Rows::kGivesWeights) Memory::Accumulate(sums[kGradients - 1], s, Y(1, stage));
    }

    // --- where things are ---

    SIMT_FN T* X(int i) const { return reinterpret_cast<T*>(shared) + i * kRows * kHeadDim; }
    SIMT_FN T* Y(int i, int stage) const { return X(2) + (2 * stage + i) * kColumns * kHeadDim; }
    SIMT_FN RowStatistics* ColumnStatistics(int stage) const {
      return reinterpret_cast<RowStatistics*>(shared + kTileBytes) + stage * kColumns;
    }
    // Row of the tile that register half `half` (0, 1) of slab `slab` belongs to.
    static SIMT_FN int RowOf(int lane, int slab, int half) {
      return (simt::WarpIndex() * kSlabs + slab) * 16 + lane / 4 + 8 * half;
    }

    // --- loads ---

    SIMT_FN void LoadTile() {
      const int thread = simt::Opaque(simt::ThreadIndex());
      rows.template LoadX<kRows, Memory>(thread, 0, [&](int matrix, int row, int chunk) {
        return X(matrix) + Memory::At(row, chunk);
      });
      if constexpr (!kOfKeys) {
        const int64_t first = simt::Load(&rows.tile->first_row);
        const int lane = simt::Opaque(simt::LaneIndex());
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            statistics[slab][half] = rows.StatisticsOf(first + RowOf(lane, slab, half));
          }
        }
      }
    }
    SIMT_FN void LoadBlock(int32_t n, int stage) const {
      const int64_t first = int64_t{n} * kColumns;
      const auto at = [&](int matrix, int row, int chunk) {
        return Y(matrix, stage) + Memory::At(row, chunk);
      };
      const int thread = simt::Opaque(simt::ThreadIndex());
      if constexpr (kOfKeys) {
        rows.template LoadRows<false, kColumns, 2, Memory>(thread, rows.p.q, rows.p.d_out, first,
                                                           at);
        const int column = simt::ThreadIndex();
        if (column < kColumns) {
          simt::Store(ColumnStatistics(stage) + column, rows.StatisticsOf(first + column));
        }
      } else {
        rows.template LoadRows<true, kColumns, 2, Memory>(thread, rows.p.k, rows.p.v, first, at);
      }
    }

    // --- weights: s becomes P and ds, which holds dP, becomes dU ---

    SIMT_FN void Weigh(float (&s)[kSlabs][kColumns / 8][4], float (&ds)[kSlabs][kColumns / 8][4],
                       int32_t n, int stage) const {
      const int lane = simt::Opaque(simt::LaneIndex());
      const auto row_of = [&](int slab, int half) { return RowOf(lane, slab, half); };
      const auto of = [](float(&scores)[kSlabs][kColumns / 8][4]) {
        return [&scores](int slab, int j, int half, int e) -> float& {
          return scores[slab][j][2 * half + e];
        };
      };
      rows.Weigh(n, ColumnStatistics(stage), statistics, row_of, of(s), of(ds));
    }

    // --- results, by way of this warp's own rows of the tile, which only it read ---

    SIMT_FN void Finish() {
      const int lane = simt::Opaque(simt::LaneIndex());
      simt::SyncWarp();  // the warp's last reads of those rows
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        const float scale = rows.ScaleOf(g);
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            SIMT_UNROLL
            for (int d = 0; d < kHeadDim / 8; ++d) {
              const float* pair = &sums[g][slab][d][2 * half];
              Memory::StorePair(X(g), RowOf(lane, slab, half), d, lane, pair[0] * scale,
                                pair[1] * scale);
            }
          }
        }
      }
      simt::SyncWarp();
      const auto place = rows.Where();
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        for (int id = lane; id < kSlabs * 16 * Memory::kChunks; id += simt::kWarpSize) {
          const int row = simt::WarpIndex() * kSlabs * 16 + id / Memory::kChunks;
          const int chunk = id % Memory::kChunks;
          rows.StoreChunk(place, row, chunk, X(g) + Memory::At(row, chunk), rows.GradientOf(g));
        }
      }
    }

    Rows rows;
    unsigned char* shared;
    RowStatistics statistics[kSlabs][2];  // of the rows of a tile of packed rows
    float sums[kGradients][kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::varlen_attention
