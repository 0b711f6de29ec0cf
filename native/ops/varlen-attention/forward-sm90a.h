#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/forward-tile.h"

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
  static constexpr int kGroupRows = 64;  // of a wgmma
  static constexpr int kBlockM = kConsumers * kGroupRows;
  static constexpr int kStages = 2;
  // Per thread, of the 65536 of a multiprocessor. With 24, decoding a tile spills.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * simt::kWarpgroupSize <=
                65536);

  // A tile of rows lies in panels: kPanelColumns columns of all its rows, one swizzled line of
  // kSpan bytes per row. 96 columns are three panels of 32; all others divide by 64.
  static constexpr int kPanelColumns = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kSpan = kPanelColumns * 2;
  static constexpr simt::Swizzle kSwizzle =
      kPanelColumns == 64 ? simt::Swizzle::k128Bytes : simt::Swizzle::k64Bytes;
  static constexpr int kGroupBytes = kGroupRows * kHeadDim * 2;
  static constexpr int kBlockBytes = kBlockN * kHeadDim * 2;

  // Full: written, to be read. Empty: read, to be written again. One arrival per writer, one per
  // warp of readers.
  struct Barriers {
    uint64_t tile_full[2], tile_empty[2];
    uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    uint64_t v_landed;  // of the producer alone, see LoadV
  };
  struct Control {
    Barriers barriers;
    ForwardTile tiles[2];  // the consumers' and the next one
  };
  static constexpr int64_t kSharedBytes =
      kConsumers * kGroupBytes + 2 * kStages * kBlockBytes + sizeof(Control);

  struct Params : ForwardArguments<T> {
    simt::TensorMap k_map, v_map;  // Map() of k and v
  };

  // k or v, [rows, heads, headDim], in boxes of kBlockN rows of one panel of one head; columns past
  // headDim and rows past the tensor read as zeros.
  static simt::TensorMapShape Map(const T* data, int64_t row_stride, int64_t head_stride,
                                  int64_t rows, int64_t heads, int64_t head_dim) {
    return {.data = const_cast<T*>(data),
            .dtype = DTypeOf<T>::value,
            .rank = 3,
            .size = {head_dim, heads, rows},
            .stride = {1, head_stride, row_stride},
            .box = {kPanelColumns, 1, kBlockN},
            .swizzle = kSwizzle};
  }

  static SIMT_FN Tiling TilingOf(const ForwardArguments<T>& p) {
    return RowTiling(p, kBlockM, kBlockN);
  }

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const Memory memory{shared};
    if (simt::ThreadIndex() == 0) InitBarriers(memory.barriers());
    simt::SyncThreads();
    // From one lane, so that the compiler sees that it is the whole warp's.
    const int warpgroup = simt::ShuffleIndex(simt::WarpIndex() / kWarps, 0);
    if (warpgroup == 0) {
      simt::DecreaseRegisters<kProducerRegisters>();
      if (simt::WarpIndex() == 0) Producer{p, memory}.Run();
      if (simt::WarpIndex() == 1) Schedule(p, memory);
    } else {
      simt::IncreaseRegisters<kConsumerRegisters>();
      Consumer(p, memory, warpgroup - 1).Run();
    }
  }

 private:
  static constexpr int32_t kNoTile = -1;
  static constexpr int kWarps = simt::kWarpgroupSize / simt::kWarpSize;

  struct Memory {
    SIMT_FN unsigned char* Q(int group) const { return shared + group * kGroupBytes; }
    SIMT_FN unsigned char* K(int stage) const {
      return shared + kConsumers * kGroupBytes + stage * kBlockBytes;
    }
    SIMT_FN unsigned char* V(int stage) const { return K(kStages + stage); }
    SIMT_FN Control* control() const { return reinterpret_cast<Control*>(K(2 * kStages)); }
    SIMT_FN Barriers* barriers() const { return &control()->barriers; }
    SIMT_FN ForwardTile* Tile(int i) const { return control()->tiles + i; }

    unsigned char* shared;
  };

  // Byte offset of a 16-byte chunk in a tile of `rows` rows, swizzled as TMA and wgmma do it: the
  // lowest bits of the chunk's number are XORed with those of its 128-byte line's.
  static SIMT_FN int At(int rows, int row, int chunk) {
    constexpr int kInPanel = kPanelColumns / 8;
    const int in_panel = row * kSpan + chunk % kInPanel * 16;
    return chunk / kInPanel * rows * kSpan + (in_panel ^ ((in_panel >> 7 & (kInPanel - 1)) << 4));
  }

  static SIMT_FN void InitBarriers(Barriers* b) {
    constexpr int kReaders = kConsumers * kWarps;
    SIMT_UNROLL
    for (int i = 0; i < 2; ++i) {
      simt::MBarrierInit(b->tile_full + i, 1);
      simt::MBarrierInit(b->tile_empty + i, 1 + kReaders);  // the producer too
    }
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

  // --- the scheduler: one warp, which takes tiles one ahead of those who work on them ---

  static SIMT_FN void Schedule(const ForwardArguments<T>& p, const Memory& memory) {
    Barriers* b = memory.barriers();
    for (Ring<2> ring;; ring.Advance()) {
      int32_t id = 0;
      if (simt::LaneIndex() == 0) id = simt::AtomicAdd(p.schedule.next_tile, 1);
      id = simt::ShuffleIndex(id, 0);
      ForwardTile* tile = memory.Tile(ring.Slot());
      simt::MBarrierWait(b->tile_empty + ring.Slot(), ring.Empty());
      // Read each time: decoding a tile takes all the registers there are.
      if (id >= simt::Load(p.schedule.tile_start + p.sequences.num_seqs + 1)) id = kNoTile;
      if (id != kNoTile) DescribeTile(p, id, TilingOf(p), tile);
      if (simt::LaneIndex() == 0) {
        simt::Store(&tile->id, id);
        simt::MBarrierArrive(b->tile_full + ring.Slot());
      }
      if (id == kNoTile) return;
    }
  }

  // The readers' half: fn(tile) for every tile.
  template <class Fn>
  static SIMT_FN void ForEachTile(const Memory& memory, const Fn& fn) {
    Barriers* b = memory.barriers();
    for (Ring<2> ring;; ring.Advance()) {
      simt::MBarrierWait(b->tile_full + ring.Slot(), ring.Full());
      const ForwardTile* tile = memory.Tile(ring.Slot());
      if (simt::Load(&tile->id) == kNoTile) return;
      fn(tile);
      Release(b->tile_empty + ring.Slot());
    }
  }
  // One arrival per warp, when all of it is here.
  static SIMT_FN void Release(uint64_t* empty) {
    simt::SyncWarp();
    if (simt::LaneIndex() == 0) simt::MBarrierArrive(empty);
  }

  // --- the producer: one warp, of which lane 0 issues the copies ---

  struct Producer {
    SIMT_FN void Run() {
      ForEachTile(memory,
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
        ClearRows(v, keys);
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
      SIMT_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        simt::TmaLoad(to + panel * kBlockN * kSpan, map, full, {panel * kPanelColumns, head, row});
      }
    }

    // Rows first, first + 1, ... of a block. Whole lines: the swizzle does not matter.
    SIMT_FN void ClearRows(unsigned char* block, int first) const {
      SIMT_NO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        unsigned char* end = block + (panel + 1) * kBlockN * kSpan;
        for (unsigned char* at = block + (panel * kBlockN + first) * kSpan + simt::LaneIndex() * 16;
             at < end; at += simt::kWarpSize * 16) {
          simt::Store(reinterpret_cast<simt::Vector4*>(at), simt::Vector4{0, 0, 0, 0});
        }
      }
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
      ForEachTile(memory, [&](const ForwardTile* tile) { Work(Rows(p, tile)); });
    }

   private:
    using Rows = ForwardRows<T, kBlockN>;
    using Scores = float[kBlockN / 2];
    using Weights = uint32_t[kBlockN / 16][4];

    // Row of the tile that register half `half` (0, 1) belongs to.
    SIMT_FN int RowOf(int half) const {
      return group * kGroupRows + simt::WarpIndex() % kWarps * 16 + simt::LaneIndex() / 4 +
             8 * half;
    }
    SIMT_FN void SyncGroup() const { simt::BarrierSync(1 + group, simt::kWarpgroupSize); }

    SIMT_FN void Work(const Rows& rows) {
      float out[kHeadDim / 2];
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
    SIMT_FN void Attend(const Rows& rows, const KeyBlocks& blocks, float (&out)[kHeadDim / 2]) {
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
      Convert(s, weights);
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
        Convert(s, weights);
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
      constexpr int kChunks = kHeadDim / 8, kLine = kPanelColumns / 8;
      const int thread = simt::Opaque(simt::ThreadIndex() % simt::kWarpgroupSize);
      SyncGroup();  // the output of the tile before has left this memory
      SIMT_NO_UNROLL
      for (int row = thread / kLine; row < kGroupRows; row += simt::kWarpgroupSize / kLine) {
        rows.template LoadRowOfQ<kChunks, kLine>(
            group * kGroupRows + row, thread % kLine, [&](int chunk) {
              return reinterpret_cast<T*>(memory.Q(group) + At(kGroupRows, row, chunk));
            });
      }
      simt::CopyAsyncCommit();
      simt::CopyAsyncWait<0>();
      simt::FenceAsyncProxy();
      SyncGroup();
    }

    // --- one key block ---

    // Descriptors of a tile's parts are sums: addresses count in 16 bytes in their lowest bits, and
    // no tile lies past those.
    static SIMT_FN uint64_t Later(uint64_t descriptor, int bytes) {
      return descriptor + static_cast<uint64_t>(bytes / 16);
    }
    // Of an operand with its columns, the sum's, contiguous: groups of 8 rows lie 8 lines apart.
    static SIMT_FN uint64_t RowsDescriptor(const unsigned char* tile) {
      return simt::MatrixDescriptor(tile, 16, 8 * kSpan, kSwizzle);
    }
    // Of its 16 columns from 16 kk on: 32 bytes of a panel.
    static SIMT_FN uint64_t ColumnsOf(uint64_t tile, int rows, int kk) {
      constexpr int kSteps = kPanelColumns / 16;  // of a panel
      return Later(tile, kk / kSteps * rows * kSpan + kk % kSteps * 32);
    }
    // s = Q K^T, unscaled; under way.
    SIMT_FN void MultiplyQK(Scores& s) const {
      const uint64_t q = RowsDescriptor(memory.Q(group));
      const uint64_t k = RowsDescriptor(memory.K(k_ring.Slot()));
      SIMT_UNROLL
      for (int kk = 0; kk < kHeadDim / 16; ++kk) {
        simt::Wgmma<T, kBlockN>(s, ColumnsOf(q, kGroupRows, kk), ColumnsOf(k, kBlockN, kk), kk > 0);
      }
      simt::WgmmaCommit();
    }
    // out += P V, under way. V has its columns contiguous, which are not the sum's but the
    // product's: transposed, panels kBlockN lines apart, 8 keys 8 lines.
    SIMT_FN void MultiplyPV(const Weights& weights, float (&out)[kHeadDim / 2]) const {
      const uint64_t v =
          simt::MatrixDescriptor(memory.V(v_ring.Slot()), kBlockN * kSpan, 8 * kSpan, kSwizzle);
      SIMT_UNROLL
      for (int j = 0; j < kBlockN / 16; ++j) {
        simt::Wgmma<T, kHeadDim, true>(out, weights[j], Later(v, j * 16 * kSpan), true);
      }
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
    static SIMT_FN void Rescale(float (&out)[kHeadDim / 2], const float (&rescale)[2]) {
      SIMT_UNROLL
      for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= rescale[i / 2 % 2];
    }
    // The accumulator layout of the scores is the operand layout of P.
    static SIMT_FN void Convert(const Scores& s, Weights& weights) {
      SIMT_UNROLL
      for (int j = 0; j < kBlockN / 16; ++j) {
        SIMT_UNROLL
        for (int r = 0; r < 4; ++r) {
          weights[j][r] = simt::PackPair<T>(s[8 * j + 2 * r], s[8 * j + 2 * r + 1]);
        }
      }
    }

    // --- results: out / sum by way of this warp's own rows of Q, and lse ---

    SIMT_FN void Finish(const Rows& rows, float (&out)[kHeadDim / 2]) const {
      constexpr int kChunks = kHeadDim / 8;
      const int lane = simt::Opaque(simt::LaneIndex());
      const int first = simt::WarpIndex() % kWarps * 16;  // row of the group
      const auto at = [&](int row, int chunk) {
        return reinterpret_cast<T*>(memory.Q(group) + At(kGroupRows, row, chunk));
      };
      float inverse[2];
      SIMT_UNROLL
      for (int half = 0; half < 2; ++half) {
        inverse[half] = rows.FinishRow(lane, RowOf(half), maximum[half], sum[half]);
      }
      SyncGroup();  // the last wgmma of every warp has read Q
      SIMT_UNROLL
      for (int d = 0; d < kChunks; d += 2) {
        // Matrices of 8 x 8: rows 0-7 and 8-15 of chunk d, then of chunk d + 1.
        uint32_t pairs[4];
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float* pair = &out[4 * d + 2 * i];
          pairs[i] = simt::PackPair<T>(pair[0] * inverse[i % 2], pair[1] * inverse[i % 2]);
        }
        simt::StoreMatrix(at(first + lane % 16, d + lane / 16), pairs);
      }
      simt::SyncWarp();
      // Line by line, as the panels lie: no bank conflicts.
      constexpr int kLine = kPanelColumns / 8;
      for (int id = lane; id < 16 * kChunks; id += simt::kWarpSize) {
        const int row = first + id / kLine % 16, chunk = id / (16 * kLine) * kLine + id % kLine;
        rows.StoreChunk(group * kGroupRows + row, chunk, at(row, chunk));
      }
    }

    const ForwardArguments<T>& p;
    Memory memory;
    int group;
    Ring<kStages> k_ring{}, v_ring{};
    float maximum[2], sum[2];
  };
};

}  // namespace varlen::varlen_attention
