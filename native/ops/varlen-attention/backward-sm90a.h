#pragma once

#include <array>
#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/backward-tile.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/tile-queue-sm90a.h"
#include "ops/varlen-attention/tile-sm90a.h"

// The backward pass on TMA and wgmma (sm_90a); see backward-tile.h for what a tile and its blocks
// of columns are. A block is a warpgroup with two warps at work, one that takes tiles from the
// schedule and one that loads the columns that stream through them, and two consumer warpgroups of
// 64 rows each. While one consumer is at its weights the other multiplies.
namespace varlen::varlen_attention {

// Columns of a block. Of a consumer's 232 registers the sums take headDim / 2 per gradient, the
// scores and dP half a column each. Shared memory holds the tile and two blocks, 227 KiB at most.
// From headDim 192 on dk and dv are passes of their own.
constexpr int BackwardColumnsSm90a(int head_dim, Gradient gradient) {
  if (gradient == Gradient::kQuery) return head_dim <= 128 ? 96 : head_dim <= 192 ? 64 : 48;
  if (gradient == Gradient::kValue) return head_dim <= 192 ? 96 : 80;
  if (gradient == Gradient::kKey) return head_dim <= 192 ? 80 : 48;
  return head_dim <= 64 ? 96 : head_dim <= 96 ? 80 : 64;
}

template <class T, int kHeadDim, Gradient kGradient>
struct BackwardSm90a {
  static constexpr int kColumns = BackwardColumnsSm90a(kHeadDim, kGradient);
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = (1 + kConsumers) * simt::kWarpgroupSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kStages = 2;
  // Per thread. Together they are what a block has at entry, 168 for each of its threads: more is
  // waited for in vain.
  static constexpr int kProducerRegisters = kHeadDim <= 64 ? 56 : 40;
  static constexpr int kConsumerRegisters = kHeadDim <= 64 ? 224 : 232;
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters == 3 * 168);

  using Shared = TileSm90a<T, kHeadDim>;
  static constexpr int kGroupRows = Shared::kGroupRows;
  static constexpr int kRows = kConsumers * kGroupRows;
  using Rows = BackwardRows<T, kGradient, kRows, kColumns, /*kWholeTokens=*/true>;
  static constexpr bool kOfKeys = Rows::kOfKeys, kGivesScores = Rows::kGivesScores,
                        kGivesWeights = Rows::kGivesWeights;
  static constexpr int kGradients = Rows::kGradients;
  static constexpr int kOperands = kGivesScores ? 2 : 1;  // of X: v is none of dv's

  static constexpr int kGroupBytes = kGroupRows * Shared::kRowBytes;
  static constexpr int kBlockBytes = kColumns * Shared::kRowBytes;

  // Full: written, to be read. Empty: read, to be written again. One arrival per writer, one per
  // warp of readers.
  struct Barriers {
    uint64_t full[kStages], empty[kStages];
    uint64_t landed;  // of the producer alone, see LoadBlock
  };
  using Queue = TileQueue<BackwardTile>;
  struct Control {
    RowStatistics statistics[kStages][kOfKeys ? kColumns : 1];  // of the columns
    Barriers barriers;
    typename Queue::Memory tiles;
  };
  static constexpr int64_t kSharedBytes =
      kConsumers * kOperands * kGroupBytes + 2 * kStages * kBlockBytes + sizeof(Control);
  static_assert(kSharedBytes <= 227 * 1024);

  struct Params : BackwardArguments<T> {
    simt::TensorMap y_maps[2];  // Maps()
  };

  // Y1 and Y2. A box is one panel of kColumns keys of a head, or of as many tokens as fit, all
  // heads of a group: packed rows, side by side as the statistics are.
  static std::array<simt::TensorMapShape, 2> Maps(const BackwardArguments<T>& p) {
    const auto map = [&](const DeviceMatrix<const T>& y, int64_t rows, int64_t heads) {
      const int box_heads = kOfKeys ? Rows::GroupOf(p) : 1;
      return Shared::Map(y.data, y.row, y.head, rows, heads, p.head_dim, box_heads,
                         kColumns / box_heads);
    };
    if constexpr (kOfKeys) {
      const int64_t rows = p.sequences.total_q;
      return {map(p.q, rows, p.num_heads), map(p.d_out, rows, p.num_heads)};
    } else {
      const int64_t rows = p.sequences.total_k;
      return {map(p.k, rows, p.num_kv_heads), map(p.v, rows, p.num_kv_heads)};
    }
  }
  // Has a block room for all heads of a token?
  static bool Takes(const BackwardArguments<T>& p) { return Rows::ColumnsOf(p) > 0; }

  static SIMT_FN Tiling TilingOf(const BackwardArguments<T>& p) { return Rows::TilingOf(p); }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const Memory memory{shared};
    if (simt::ThreadIndex() == 0) InitBarriers(memory);
    simt::SyncThreads();
    // From one lane, so that the compiler sees that it is the whole warp's.
    const int warpgroup = simt::ShuffleIndex(simt::WarpIndex() / kWarps, 0);
    if (warpgroup == 0) {
      simt::DecreaseRegisters<kProducerRegisters>();
      if (simt::WarpIndex() == 0) {
        Producer{p, memory}.Run();
      } else if (simt::WarpIndex() == 1) {
        memory.queue().Fill(p.schedule, p.sequences.num_seqs,
                            [&](int32_t id, BackwardTile* tile) { Rows::Describe(p, id, tile); });
      }
    } else {
      simt::IncreaseRegisters<kConsumerRegisters>();
      Consumer{p, memory, warpgroup - 1}.Run();
    }
  }

 private:
  static constexpr int kWarps = Shared::kWarps;

  struct Memory {
    SIMT_FN unsigned char* X(int group, int i) const {
      return shared + (group * kOperands + i) * kGroupBytes;
    }
    SIMT_FN unsigned char* Y(int stage, int i) const {
      return X(kConsumers, 0) + (2 * stage + i) * kBlockBytes;
    }
    SIMT_FN Control* control() const { return reinterpret_cast<Control*>(Y(kStages, 0)); }
    SIMT_FN RowStatistics* Statistics(int stage) const { return control()->statistics[stage]; }
    SIMT_FN Barriers* barriers() const { return &control()->barriers; }
    SIMT_FN Queue queue() const { return {&control()->tiles}; }

    unsigned char* shared;
  };

  static SIMT_FN void InitBarriers(const Memory& memory) {
    constexpr int kReaders = kConsumers * kWarps;
    memory.queue().Init(1 + kReaders);  // the producer too
    Barriers* b = memory.barriers();
    SIMT_UNROLL
    for (int i = 0; i < kStages; ++i) {
      simt::MBarrierInit(b->full + i, 1);
      simt::MBarrierInit(b->empty + i, kReaders);
    }
    simt::MBarrierInit(&b->landed, 1);
    simt::FenceMBarrierInit();
  }

  // --- the producer: one warp, of which lane 0 issues the copies ---

  struct Producer {
    SIMT_FN void Run() {
      ClearPadding();
      memory.queue().ForEachTile([&](const BackwardTile* tile) { LoadBlocks(Rows(p, tile)); });
    }

    // Rows of a block that no box reaches are never written: once is enough.
    SIMT_FN void ClearPadding() const {
      const int first = Rows::ColumnsOf(p);
      if (first == kColumns) return;
      SIMT_NO_UNROLL
      for (int block = 0; block < 2 * kStages; ++block) {
        Shared::ClearRows(memory.Y(0, block), kColumns, first);
      }
      simt::FenceAsyncProxy();
    }

    SIMT_FN void LoadBlocks(const Rows& rows) {
      const int32_t end = simt::Load(&rows.tile->end_block);
      for (int32_t n = rows.NextBlock(simt::Load(&rows.tile->first_block), end); n < end;
           n = rows.NextBlock(n + 1, end)) {
        LoadBlock(rows, n);
      }
    }

    // A block that reaches past the sequence brings rows of others. Their weights are 0, but still
    // multiply them, and 0 * NaN is NaN: they are cleared before the consumers hear of the block.
    // Not so v, of which only dP is made: it is masked.
    SIMT_FN void LoadBlock(const Rows& rows, int32_t n) {
      Barriers* b = memory.barriers();
      const int slot = ring.Slot();
      const int32_t left = rows.ColumnsLeft(n);
      uint64_t* full = b->full + slot;
      WaitAndDescribe(rows, n, left);
      if (left >= rows.Columns()) {
        LoadOperands(rows, n, full);
      } else {
        LoadOperands(rows, n, &b->landed);
        simt::MBarrierWait(&b->landed, landed_ring.Full());
        landed_ring.Advance();
        Shared::ClearRows(memory.Y(slot, 0), kColumns, left);
        if constexpr (kOfKeys) Shared::ClearRows(memory.Y(slot, 1), kColumns, left);
        simt::FenceAsyncProxy();
        simt::SyncWarp();
        if (Leads()) simt::MBarrierArrive(full);
      }
      ring.Advance();
    }

    // Until block n may be written; the statistics of its columns come meanwhile.
    SIMT_FN void WaitAndDescribe(const Rows& rows, int32_t n, int32_t left) const {
      uint64_t* empty = memory.barriers()->empty + ring.Slot();
      if constexpr (kOfKeys) {
        constexpr int kEach = (kColumns + simt::kWarpSize - 1) / simt::kWarpSize;
        const int32_t columns = left < rows.Columns() ? left : rows.Columns();
        const RowStatistics* from = rows.StatisticsFrom(int64_t{n} * rows.Columns());
        const int lane = simt::Opaque(simt::LaneIndex());
        RowStatistics statistics[kEach];
        SIMT_UNROLL
        for (int i = 0; i < kEach; ++i) {
          const int column = i * simt::kWarpSize + lane;
          statistics[i] = column < columns ? simt::Load(from + column) : Rows::NoStatistics();
        }
        simt::MBarrierWait(empty, ring.Empty());
        SIMT_UNROLL
        for (int i = 0; i < kEach; ++i) {
          const int column = i * simt::kWarpSize + lane;
          if (column < kColumns) {
            simt::Store(memory.Statistics(ring.Slot()) + column, statistics[i]);
          }
        }
        simt::SyncWarp();
      } else {
        simt::MBarrierWait(empty, ring.Empty());
      }
    }

    SIMT_FN void LoadOperands(const Rows& rows, int32_t n, uint64_t* landed) const {
      if (!Leads()) return;
      const int32_t tokens = kOfKeys ? kColumns / rows.Group() : kColumns;
      const int64_t begin = simt::Load(kOfKeys ? &rows.tile->q_begin : &rows.tile->k_begin);
      const auto row = static_cast<int32_t>(begin + n * tokens);
      const int32_t head = simt::Load(&rows.tile->kv_head) * (kOfKeys ? rows.Group() : 1);
      simt::MBarrierArriveExpect(landed, 2 * rows.Columns() * Shared::kRowBytes);
      SIMT_UNROLL
      for (int i = 0; i < 2; ++i) {
        Shared::Load(memory.Y(ring.Slot(), i), kColumns, p.y_maps[i], landed, head, row);
      }
    }

    static SIMT_FN bool Leads() { return simt::LaneIndex() == 0; }

    const Params& p;
    Memory memory;
    Ring<kStages> ring{};
    Ring<1> landed_ring{};
  };

  // --- a consumer: 64 rows of each tile ---

  struct Consumer {
    using Sums = typename Shared::Sum[kGradients];
    using Scores = typename Shared::template Scores<kColumns>;
    using Weights = typename Shared::template Weights<kColumns>;

    SIMT_FN void Run() {
      memory.queue().ForEachTile([&](const BackwardTile* tile) { Work(Rows(p, tile)); });
    }

    SIMT_FN void Work(const Rows& rows) {
      Sums sums;
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        SIMT_UNROLL
        for (int i = 0; i < kHeadDim / 2; ++i) sums[g][i] = 0;
      }
      const int32_t end = simt::Load(&rows.tile->end_block);
      int32_t n = rows.NextBlock(simt::Load(&rows.tile->first_block), end);
      if (n < end) LoadX(rows);
      for (; n < end; n = rows.NextBlock(n + 1, end)) AddBlock(rows, n, sums);
      Finish(rows, sums);
    }

    SIMT_FN void SyncGroup() const { simt::BarrierSync(1 + group, simt::kWarpgroupSize); }
    // Row of the tile that register half `half` (0, 1) belongs to.
    SIMT_FN int RowOf(int half) const { return group * kGroupRows + Shared::RowOf(half); }

    // Once per tile, and packed rows begin at any head of a group, as no box can: by cp.async.
    SIMT_FN void LoadX(const Rows& rows) {
      SyncGroup();  // the results of the tile before have left this memory
      rows.template LoadX<kGroupRows, Shared>(
          simt::Opaque(simt::ThreadIndex() % simt::kWarpgroupSize), group * kGroupRows,
          [&](int matrix, int row, int chunk) {
            return reinterpret_cast<T*>(memory.X(group, matrix) +
                                        Shared::At(kGroupRows, row, chunk));
          });
      simt::CopyAsyncCommit();
      if constexpr (!kOfKeys) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          statistics[0][half] = rows.StatisticsOf(simt::Load(&rows.tile->first_row) + RowOf(half));
        }
      }
      simt::CopyAsyncWait<0>();
      simt::FenceAsyncProxy();
      SyncGroup();
    }

    SIMT_FN void AddBlock(const Rows& rows, int32_t n, Sums& sums) {
      Barriers* b = memory.barriers();
      const int slot = ring.Slot();
      Scores s, ds;
      simt::MBarrierWait(b->full + slot, ring.Full());
      simt::WgmmaFence();
      Shared::template Multiply<kColumns>(s, memory.X(group, 0), memory.Y(slot, 0));
      if constexpr (kGivesScores) {
        Shared::template Multiply<kColumns>(ds, memory.X(group, 1), memory.Y(slot, 1));
      }
      simt::WgmmaCommit();
      simt::WgmmaWait<0>();
      simt::PinRegisters(s);
      if constexpr (kGivesScores) simt::PinRegisters(ds);
      Weigh(rows, n, s, ds);
      Weights p_weights, u_weights;
      if constexpr (kGivesWeights) {
        Shared::template Convert<kColumns>(s, p_weights);
        simt::PinRegisters(p_weights);
      }
      if constexpr (kGivesScores) {
        Shared::template Convert<kColumns>(ds, u_weights);
        simt::PinRegisters(u_weights);
      }
      PinSums(sums);
      simt::WgmmaFence();
      if constexpr (kGivesWeights) {
        Shared::template Accumulate<kColumns>(sums[kGradients - 1], p_weights, memory.Y(slot, 1));
      }
      if constexpr (kGivesScores) {
        Shared::template Accumulate<kColumns>(sums[0], u_weights, memory.Y(slot, 0));
      }
      simt::WgmmaCommit();
      simt::WgmmaWait<0>();
      PinSums(sums);
      Release(b->empty + slot);
      ring.Advance();
    }
    static SIMT_FN void PinSums(Sums& sums) {
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) simt::PinRegisters(sums[g]);
    }

    SIMT_FN void Weigh(const Rows& rows, int32_t n, Scores& s, Scores& ds) const {
      const auto row_of = [&](int, int half) { return RowOf(half); };
      const auto of = [](Scores& scores) {
        return [&scores](int, int j, int half, int e) -> float& {
          return scores[4 * j + 2 * half + e];
        };
      };
      rows.Weigh(n, memory.Statistics(ring.Slot()), statistics, row_of, of(s), of(ds));
    }

    // By way of this warp's own rows of X.
    SIMT_FN void Finish(const Rows& rows, Sums& sums) const {
      SyncGroup();  // the last wgmma of every warp has read X
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        const float scale = rows.ScaleOf(g);
        Shared::StoreSum(memory.X(group, g), sums[g], {scale, scale});
      }
      simt::SyncWarp();
      const auto place = rows.Where();
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        Shared::ForEachChunk(memory.X(group, g), [&](int row, int chunk, const T* from) {
          rows.StoreChunk(place, group * kGroupRows + row, chunk, from, rows.GradientOf(g));
        });
      }
    }

    const BackwardArguments<T>& p;
    Memory memory;
    int group;
    Ring<kStages> ring{};
    RowStatistics statistics[1][2]{};  // of the rows of a tile of packed rows
  };
};

}  // namespace varlen::varlen_attention
