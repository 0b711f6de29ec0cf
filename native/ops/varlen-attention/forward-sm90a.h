#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/forward-tile.h"
#include "ops/varlen-attention/tile-queue-sm90a.h"
#include "ops/varlen-attention/tile-sm90a.h"

// The forward pass on TMA and wgmma (sm_90a). A block is a warpgroup with two warps at work, one
// that takes tiles from the schedule and one that loads their keys and values, and two consumer
// warpgroups of 64 query rows each, which multiply (FlashAttention 3, section 3). One instance per
// dtype and padded head dimension; causal, window, softcap, alibi, trees and lengths are run-time
// values.
namespace varlen::varlen_attention {

// Keys of a block. A consumer's output takes kHeadDim / 2 of its 232 registers, the scores kBlockN
// / 2, the weights of the block before half of that; 112 keys spill at headDim 192. Shared memory
// holds Q and two stages of K and V, 227 KiB at most.
constexpr int ForwardBlockSm90a(int head_dim) {
  return head_dim <= 128 ? 128 : head_dim <= 192 ? 96 : 80;
}

template <class T, int kHeadDim>
struct ForwardSm90a {
  static constexpr int kConsumers = 2;
  static constexpr int kBlockN = ForwardBlockSm90a(kHeadDim);
  static constexpr int kThreads = (1 + kConsumers) * simt::kWarpgroupSize;
  static constexpr int kMinBlocks = 1;
  using Shared = TileSm90a<T, kHeadDim>;
  static constexpr int kGroupRows = Shared::kGroupRows;
  static constexpr int kBlockM = kConsumers * kGroupRows;
  static constexpr int kStages = 2;
  // Per thread, of the 65536 of a multiprocessor. With 24, decoding a tile spills.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * simt::kWarpgroupSize <=
                65536);
  static constexpr int kGroupBytes = kGroupRows * Shared::kRowBytes;
  static constexpr int kBlockBytes = kBlockN * Shared::kRowBytes;

  // Full: written, to be read. Empty: read, to be written again. One arrival per writer, one per
  // warp of readers.
  struct Barriers {
    uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    uint64_t v_landed;  // of the producer alone, see LoadV
  };
  using Queue = TileQueue<ForwardTile>;
  struct Control {
    Barriers barriers;
    typename Queue::Memory tiles;
  };
  static constexpr int64_t kSharedBytes =
      kConsumers * kGroupBytes + 2 * kStages * kBlockBytes + sizeof(Control);

  struct Params : ForwardArguments<T> {
    simt::TensorMap k_map, v_map;  // Map() of k and v
  };

  // k or v, [rows, heads, headDim], in boxes of kBlockN rows of one panel of one head.
  static simt::TensorMapShape Map(const T* data, int64_t row_stride, int64_t head_stride,
                                  int64_t rows, int64_t heads, int64_t head_dim) {
    return Shared::Map(data, row_stride, head_stride, rows, heads, head_dim, 1, kBlockN);
  }

  static SIMT_FN Tiling TilingOf(const ForwardArguments<T>& p) {
    return RowTiling(p, kBlockM, kBlockN);
  }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const Memory memory{shared};
    if (simt::ThreadIndex() == 0) InitBarriers(memory);
    simt::SyncThreads();
    // From one lane, so that the compiler sees that it is the whole warp's.
    const int warpgroup = simt::ShuffleIndex(simt::WarpIndex() / kWarps, 0);
    if (warpgroup == 0) {
      simt::DecreaseRegisters<kProducerRegisters>();
      if (simt::WarpIndex() == 0) Producer{p, memory}.Run();
      if (simt::WarpIndex() == 1) {
        memory.queue().Fill(p.schedule, p.sequences.num_seqs, [&](int32_t id, ForwardTile* tile) {
          DescribeTile(p, id, TilingOf(p), tile);
        });
      }
    } else {
      simt::IncreaseRegisters<kConsumerRegisters>();
      Consumer(p, memory, warpgroup - 1).Run();
    }
  }

 private:
  static constexpr int kWarps = Shared::kWarps;

  struct Memory {
    SIMT_FN unsigned char* Q(int group) const { return shared + group * kGroupBytes; }
    SIMT_FN unsigned char* K(int stage) const {
      return shared + kConsumers * kGroupBytes + stage * kBlockBytes;
    }
    SIMT_FN unsigned char* V(int stage) const { return K(kStages + stage); }
    SIMT_FN Control* control() const { return reinterpret_cast<Control*>(K(2 * kStages)); }
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
      simt::MBarrierInit(b->k_full + i, 1);
      simt::MBarrierInit(b->k_empty + i, kReaders);
      simt::MBarrierInit(b->v_full + i, 1);
      simt::MBarrierInit(b->v_empty + i, kReaders);
    }
    simt::MBarrierInit(&b->v_landed, 1);
    simt::FenceMBarrierInit();
  }

  // --- the producer: one warp, of which lane 0 issues the copies ---

  struct Producer {
    SIMT_FN void Run() {
      memory.queue().ForEachTile(
          [&](const ForwardTile* tile) { LoadKeys(ForwardRows<T, kBlockN>(p, tile)); });
    }

    // K one block ahead of V, as the consumers use them.
    SIMT_FN void LoadKeys(const ForwardRows<T, kBlockN>& rows) {
      const KeyBlocks blocks = rows.Blocks();
      int32_t n = blocks.first;
      if (n >= blocks.begin) LoadK(rows.tile, n);
      while (n >= blocks.begin) {
        const int32_t next = rows.NextBlock(n - 1, blocks.begin);
        if (next >= blocks.begin) LoadK(rows.tile, next);
        LoadV(rows.tile, n);
        n = next;
      }
    }

    SIMT_FN void LoadK(const ForwardTile* tile, int32_t n) {
      Barriers* b = memory.barriers();
      simt::MBarrierWait(b->k_empty + k_ring.Slot(), k_ring.Empty());
      LoadBlock(memory.K(k_ring.Slot()), p.k_map, b->k_full + k_ring.Slot(), tile, n);
      k_ring.Advance();
    }

    // A block that reaches past the sequence's keys brings those of others. Scores of such keys are
    // masked, but their values are still multiplied, by zero, and 0 * NaN is NaN: they are cleared
    // before the consumers hear of the block.
    SIMT_FN void LoadV(const ForwardTile* tile, int32_t n) {
      Barriers* b = memory.barriers();
      unsigned char* v = memory.V(v_ring.Slot());
      const int32_t keys = simt::Load(&tile->k_length) - n * kBlockN;
      simt::MBarrierWait(b->v_empty + v_ring.Slot(), v_ring.Empty());
      if (keys >= kBlockN) {
        LoadBlock(v, p.v_map, b->v_full + v_ring.Slot(), tile, n);
      } else {
        LoadBlock(v, p.v_map, &b->v_landed, tile, n);
        simt::MBarrierWait(&b->v_landed, landed_ring.Full());
        landed_ring.Advance();
        Shared::ClearRows(v, kBlockN, keys);
        simt::FenceAsyncProxy();
        simt::SyncWarp();
        if (Leads()) simt::MBarrierArrive(b->v_full + v_ring.Slot());
      }
      v_ring.Advance();
    }

    SIMT_FN void LoadBlock(unsigned char* to, const simt::TensorMap& map, uint64_t* full,
                           const ForwardTile* tile, int32_t n) const {
      if (!Leads()) return;
      const auto row = static_cast<int32_t>(simt::Load(&tile->k_begin) + n * kBlockN);
      const int32_t head = simt::Load(&tile->kv_head);
      simt::MBarrierArriveExpect(full, kBlockBytes);
      Shared::Load(to, kBlockN, map, full, head, row);
    }

    static SIMT_FN bool Leads() { return simt::LaneIndex() == 0; }

    const Params& p;
    Memory memory;
    Ring<kStages> k_ring{}, v_ring{};
    Ring<1> landed_ring{};
  };

  // --- a consumer: 64 query rows of each tile ---

  struct Consumer {
    SIMT_FN Consumer(const ForwardArguments<T>& p, Memory memory, int group)
        : p(p), memory(memory), group(group) {}

    SIMT_FN void Run() {
      if (group == 0) PassTurnTo(0);
      memory.queue().ForEachTile([&](const ForwardTile* tile) { Work(Rows(p, tile)); });
    }

   private:
    using Rows = ForwardRows<T, kBlockN>;
    using Scores = typename Shared::template Scores<kBlockN>;
    using Weights = typename Shared::template Weights<kBlockN>;
    using Sum = typename Shared::Sum;

    // Row of the tile that register half `half` (0, 1) belongs to.
    SIMT_FN int RowOf(int half) const { return group * kGroupRows + Shared::RowOf(half); }
    SIMT_FN void SyncGroup() const { simt::BarrierSync(1 + group, simt::kWarpgroupSize); }

    SIMT_FN void Work(const Rows& rows) {
      Sum out;
      SIMT_UNROLL
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0;
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        maximum[half] = -simt::Infinity();
        sum[half] = 0;
      }
      const KeyBlocks blocks = rows.Blocks();
      if (blocks.first >= blocks.begin) Attend(rows, blocks, out);
      Finish(rows, out);
    }

    // The scores of a block are multiplied while the values of the block before are, and become
    // weights while those still are: matrix and exponential units work at once.
    SIMT_FN void Attend(const Rows& rows, const KeyBlocks& blocks, Sum& out) {
      Barriers* b = memory.barriers();
      LoadQ(rows);
      int32_t n = blocks.first;
      Scores s;
      Weights weights;
      float rescale[2];
      simt::MBarrierWait(b->k_full + k_ring.Slot(), k_ring.Full());
      simt::WgmmaFence();
      MultiplyQK(s);
      simt::WgmmaWait<0>();
      simt::PinRegisters(s);
      ReleaseK();
      Softmax(rows, n, s, rescale);  // `out` is 0 and stays it
      Shared::template Convert<kBlockN>(s, weights);
      for (n = rows.NextBlock(n - 1, blocks.begin); n >= blocks.begin;
           n = rows.NextBlock(n - 1, blocks.begin)) {
        simt::MBarrierWait(b->k_full + k_ring.Slot(), k_ring.Full());
        TakeTurn();
        simt::PinRegisters(out);
        simt::PinRegisters(weights);
        simt::WgmmaFence();
        MultiplyQK(s);
        simt::MBarrierWait(b->v_full + v_ring.Slot(), v_ring.Full());
        simt::WgmmaFence();
        MultiplyPV(weights, out);
        PassTurn();
        simt::WgmmaWait<1>();
        simt::PinRegisters(s);
        ReleaseK();
        Softmax(rows, n, s, rescale);
        simt::WgmmaWait<0>();
        simt::PinRegisters(out);
        simt::PinRegisters(weights);
        ReleaseV();
        Rescale(out, rescale);
        Shared::template Convert<kBlockN>(s, weights);
      }
      simt::MBarrierWait(b->v_full + v_ring.Slot(), v_ring.Full());
      simt::PinRegisters(out);
      simt::PinRegisters(weights);
      simt::WgmmaFence();
      MultiplyPV(weights, out);
      simt::WgmmaWait<0>();
      simt::PinRegisters(out);
      ReleaseV();
    }

    // Ping-pong: the warpgroups issue their products in turn, so that one's run while another is at
    // its softmax. All take and pass as many turns: they walk the same blocks.
    static constexpr int kTurn = 1 + kConsumers;  // the first of their barriers
    SIMT_FN void TakeTurn() const { simt::BarrierSync(kTurn + group, 2 * simt::kWarpgroupSize); }
    SIMT_FN void PassTurn() const { PassTurnTo(group + 1 == kConsumers ? 0 : group + 1); }
    static SIMT_FN void PassTurnTo(int group) {
      simt::BarrierArrive(kTurn + group, 2 * simt::kWarpgroupSize);
    }

    SIMT_FN void ReleaseK() {
      Release(memory.barriers()->k_empty + k_ring.Slot());
      k_ring.Advance();
    }
    SIMT_FN void ReleaseV() {
      Release(memory.barriers()->v_empty + v_ring.Slot());
      v_ring.Advance();
    }

    // Rows of q are (token, head) pairs, no box of a tensor unless the group divides 64: by
    // cp.async, not TMA.
    SIMT_FN void LoadQ(const Rows& rows) const {
      constexpr int kLine = Shared::kLine;
      const int thread = simt::Opaque(simt::ThreadIndex() % simt::kWarpgroupSize);
      SyncGroup();  // the output of the tile before has left this memory
      SIMT_NO_UNROLL
      for (int row = thread / kLine; row < kGroupRows; row += Shared::kRowStep) {
        rows.template LoadRowOfQ<Shared::kChunks, kLine>(
            group * kGroupRows + row, thread % kLine, [&](int chunk) {
              return reinterpret_cast<T*>(memory.Q(group) + Shared::At(kGroupRows, row, chunk));
            });
      }
      simt::CopyAsyncCommit();
      simt::CopyAsyncWait<0>();
      simt::FenceAsyncProxy();
      SyncGroup();
    }

    // --- one key block ---

    // s = Q K^T, unscaled; under way.
    SIMT_FN void MultiplyQK(Scores& s) const {
      Shared::template Multiply<kBlockN>(s, memory.Q(group), memory.K(k_ring.Slot()));
      simt::WgmmaCommit();
    }
    // out += P V, under way.
    SIMT_FN void MultiplyPV(const Weights& weights, Sum& out) const {
      Shared::template Accumulate<kBlockN>(out, weights, memory.V(v_ring.Slot()));
      simt::WgmmaCommit();
    }

    SIMT_FN void Softmax(const Rows& rows, int32_t n, Scores& s, float (&rescale)[2]) {
      const bool whole = rows.SeenWhole(n);
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const auto score = [&](int j, int e) -> float& { return s[4 * j + 2 * half + e]; };
        const float factor = rows.ModifyRow(simt::LaneIndex(), RowOf(half), n, whole, score);
        rescale[half] = Rows::SoftmaxRow(factor, maximum[half], sum[half], score);
      }
    }
    static SIMT_FN void Rescale(Sum& out, const float (&rescale)[2]) {
      SIMT_UNROLL
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= rescale[i / 2 % 2];
    }
    // --- results: out / sum by way of this warp's own rows of Q, and lse ---

    SIMT_FN void Finish(const Rows& rows, Sum& out) const {
      const int lane = simt::Opaque(simt::LaneIndex());
      float inverse[2];
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        inverse[half] = rows.FinishRow(lane, RowOf(half), maximum[half], sum[half]);
      }
      SyncGroup();  // the last wgmma of every warp has read Q
      Shared::StoreSum(memory.Q(group), out, inverse);
      simt::SyncWarp();
      Shared::ForEachChunk(memory.Q(group), [&](int row, int chunk, const T* from) {
        rows.StoreChunk(group * kGroupRows + row, chunk, from);
      });
    }

    const ForwardArguments<T>& p;
    Memory memory;
    int group;
    Ring<kStages> k_ring{}, v_ring{};
    float maximum[2], sum[2];
  };
};

}  // namespace varlen::varlen_attention
