#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/forward-tile.h"

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
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte chunks of a row

  static constexpr int64_t kSharedBytes =
      int64_t{kBlockM + 2 * kBlockN} * kHeadDim * 2 + sizeof(ForwardTile);

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
      if (simt::WarpIndex() == 0) DescribeTile(p, id, kBlockM, work);
      simt::SyncThreads();
      Worker worker(p, work, reinterpret_cast<T*>(shared));
      worker.Work();
    }
  }

 private:
  // Element offset of a 16-byte chunk. Chunks are XORed with the row inside each 128-byte line, so
  // that 8 rows of one chunk (an ldmatrix) touch all 32 banks. Rows of 96 elements are one and a
  // half lines: there two rows share three lines, and 64-byte halves are XORed by row / 2.
  static SIMT_FN int At(int row, int chunk) {
    if constexpr (kChunks % 8 == 0) {
      return (row * kChunks + ((chunk & ~7) | ((chunk ^ row) & 7))) * 8;
    } else {
      static_assert(kChunks % 8 == 4);
      return (row * kChunks + ((chunk & ~3) | ((chunk ^ (row >> 1)) & 3))) * 8;
    }
  }

  // Shared addresses depend on the lane only, and the compiler would compute all of them before the
  // tile loop and spill: simt::Opaque keeps each where it is used.
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
      const KeyBlocks blocks = Rows::Blocks();
      int32_t n = blocks.first;
      if (n < blocks.begin) return;

      LoadQ();
      LoadKeys(KTile(), p.k, p.k_row, p.k_head, n);
      simt::CopyAsyncCommit();
      while (n >= blocks.begin) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // K(n) is here; V of the block before is no longer read
        LoadKeys(VTile(), p.v, p.v_row, p.v_head, n);
        simt::CopyAsyncCommit();

        float s[kSlabs][kBlockN / 8][4];
        Scores(s);

        const int32_t next = Rows::NextBlock(n - 1, blocks.begin);
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // V(n) is here; K(n) is no longer read
        if (next >= blocks.begin) {
          LoadKeys(KTile(), p.k, p.k_row, p.k_head, next);
          simt::CopyAsyncCommit();
        }

        Softmax(s, n);
        Accumulate(s);
        n = next;
      }
    }

    // --- loads: rows and columns outside the sequence become zeros, because a masked key still
    //     multiplies its V row and 0 * NaN is NaN ---

    // Eight threads (four where a row is not whole lines) load a line of a row, so that a thread
    // keeps its column and steps by whole swizzle patterns: one address, then constants.
    static constexpr int kLine = kChunks % 8 == 0 ? 8 : 4;
    static constexpr int kRowStep = kThreads / kLine;

    SIMT_FN void LoadQ() const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int first = thread / kLine, column = thread % kLine;
      SIMT_NO_UNROLL
      for (int row = first; row < kBlockM; row += kRowStep) {
        Rows::template LoadRowOfQ<kChunks, kLine>(
            row, column, [&](int chunk) { return QTile() + At(row, chunk); });
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
          const int count = valid ? Rows::Columns(column + c * kLine) : 0;
          Rows::LoadChunk(tile_row + (i * kRowStep * kChunks + c * kLine) * 8,
                          count > 0 ? from + c * kLine * 8 : rows, count);
        }
        from += kRowStep * row_stride;
      }
    }

    // --- one key block ---

    // s = Q K^T, unscaled.
    SIMT_FN void Scores(float (&s)[kSlabs][kBlockN / 8][4]) const {
      const int lane = simt::Opaque(simt::LaneIndex());
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int j = 0; j < kBlockN / 8; ++j) {
          SIMT_UNROLL
          for (int i = 0; i < 4; ++i) s[slab][j][i] = 0;
        }
      }
      SIMT_UNROLL
      for (int kk = 0; kk < kHeadDim / 16; ++kk) {
        uint32_t a[kSlabs][4];
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          const int row = (simt::WarpIndex() * kSlabs + slab) * 16 + lane % 16;
          simt::LoadMatrix(a[slab], QTile() + At(row, kk * 2 + lane / 16));
        }
        SIMT_UNROLL
        for (int j = 0; j < kBlockN / 16; ++j) {
          uint32_t b[4];
          simt::LoadMatrix(b,
                           KTile() + At(j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            simt::Mma<T>(s[slab][2 * j], a[slab], b[0], b[1]);
            simt::Mma<T>(s[slab][2 * j + 1], a[slab], b[2], b[3]);
          }
        }
      }
    }

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

    // out += P V. The accumulator layout of the scores is the operand layout of P.
    SIMT_FN void Accumulate(const float (&s)[kSlabs][kBlockN / 8][4]) {
      const int lane = simt::Opaque(simt::LaneIndex());
      SIMT_UNROLL
      for (int j = 0; j < kBlockN / 16; ++j) {
        uint32_t a[kSlabs][4];
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int r = 0; r < 4; ++r) {
            const float* pair = &s[slab][2 * j + r / 2][r % 2 * 2];
            a[slab][r] = simt::PackPair<T>(pair[0], pair[1]);
          }
        }
        SIMT_UNROLL
        for (int d = 0; d < kHeadDim / 16; ++d) {
          uint32_t b[4];
          simt::LoadMatrixTransposed(b, VTile() + At(j * 16 + lane % 16, d * 2 + lane / 16));
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            simt::Mma<T>(out[slab][2 * d], a[slab], b[0], b[1]);
            simt::Mma<T>(out[slab][2 * d + 1], a[slab], b[2], b[3]);
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
          const float inverse = Rows::FinishRow(lane, row, maximum[slab][half], sum[slab][half]);
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
        const int row = first + id / kChunks, chunk = id % kChunks;
        Rows::StoreChunk(row, chunk, QTile() + At(row, chunk));
      }
    }

    T* shared;
    float maximum[kSlabs][2], sum[kSlabs][2];
    float out[kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::varlen_attention
