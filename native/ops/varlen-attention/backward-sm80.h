#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "core/tile-sm80-device.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/device-sequence.h"

// The backward pass on mma.sync (sm_80 and everything after it). A tile keeps its rows X1, X2 in
// shared memory while blocks of Y1, Y2 stream through:
//
//   of keys:         X = k, v       Y = q, dout   dk += dU^T q, dv += P^T dout
//   of packed rows:  X = q, dout    Y = k, v      dq += dU k
//
// The scores X1 Y1^T and dP = X2 Y2^T then have the tile's rows as rows, and what becomes of them
// in registers, P and dU, is the left operand of the products with Y. A score is computed once per
// pass (7 products in place of 5), and in return nothing is added up across tiles: no atomics, no
// accumulator in memory, and the same bits in every run.
namespace varlen::varlen_attention {

enum class Gradient { kQuery, kKeyAndValue, kKey, kValue };

// Rows of the tile = 16 * kSlabs * kWarps; columns of a block. Shared memory holds the tile and two
// blocks, of which one is loaded while the other is worked on: at most the 99 KiB of sm_86 and
// sm_120. The sums take kHeadDim / 2 registers per slab and gradient, the scores and dP kColumns
// each: from headDim 192 on dk and dv are passes of their own.
template <int kHeadDim, bool kOfKeys>
struct BackwardTileSm80;
template <>
struct BackwardTileSm80<64, true> {
  static constexpr int kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<96, true> {
  static constexpr int kSlabs = 1, kColumns = 64;
};
template <>
struct BackwardTileSm80<128, true> {
  static constexpr int kSlabs = 1, kColumns = 32;
};
template <>
struct BackwardTileSm80<64, false> {
  static constexpr int kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<96, false> {
  static constexpr int kSlabs = 2, kColumns = 32;
};
template <>
struct BackwardTileSm80<128, false> {
  static constexpr int kSlabs = 2, kColumns = 32;
};
template <bool kOfKeys>
struct BackwardTileSm80<192, kOfKeys> {
  static constexpr int kSlabs = 1, kColumns = 32;
};
template <bool kOfKeys>
struct BackwardTileSm80<256, kOfKeys> {
  static constexpr int kSlabs = 1, kColumns = 16;
};

template <class T, int kHeadDim, Gradient kGradient>
struct BackwardSm80 {
  static constexpr bool kOfKeys = kGradient != Gradient::kQuery;
  static constexpr bool kGivesWeights =
      kGradient == Gradient::kValue || kGradient == Gradient::kKeyAndValue;
  static constexpr bool kGivesScores = kGradient != Gradient::kValue;
  static constexpr int kGradients = kGradient == Gradient::kKeyAndValue ? 2 : 1;

  using Shape = BackwardTileSm80<kHeadDim, kOfKeys>;
  using Params = BackwardArguments<T>;
  static constexpr int kWarps = 4, kSlabs = Shape::kSlabs, kColumns = Shape::kColumns;
  static constexpr int kThreads = kWarps * simt::kWarpSize;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRows = 16 * kSlabs * kWarps;
  using Memory = TileSm80<T, kHeadDim, kThreads>;

  // What the threads of a block must know of their tile; it is read where it is used, because the
  // sums leave few registers. A column is a packed row for tiles of keys, else a key.
  struct TileInfo {
    int64_t q_begin, k_begin;        // first row and key of the sequence
    int64_t first_row;               // of the tile
    int64_t whole_begin, whole_end;  // columns that every row of the tile sees, trees apart
    int32_t q_slot, k_slot, q_length, k_length;
    int32_t b, kv_head;
    int32_t first_token, last_token;  // of a tile of packed rows
    int32_t first_block, end_block;   // blocks of columns that some row sees
    int32_t id;
    int32_t unused;
  };
  static constexpr int64_t kTileBytes = int64_t{2 * kRows + 4 * kColumns} * kHeadDim * 2;
  static constexpr int64_t kStatisticsBytes =
      kOfKeys ? int64_t{2} * kColumns * sizeof(RowStatistics) : 0;
  static constexpr int64_t kSharedBytes = kTileBytes + kStatisticsBytes + sizeof(TileInfo);

  static SIMT_FN Tiling TilingOf(const Params& p) {
    return {kOfKeys, p.num_kv_heads, p.num_heads / p.num_kv_heads, p.head_dim, kRows, kColumns};
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
      Worker worker(p, work, shared);
      worker.Work();
    }
  }

 private:
  static constexpr float kLog2e = 1.4426950408889634f;

  static SIMT_FN void Describe(const Params& p, int64_t id, TileInfo* info) {
    const int32_t group = p.num_heads / p.num_kv_heads;
    const Tile tile = DecodeTile(p.sequences, p.schedule, id, TilingOf(p));
    const DeviceSequence& s = tile.sequence;
    const int64_t first_row = tile.index * kRows;
    int64_t begin = 0, end = 0, whole_begin = 0, whole_end = 0;  // columns
    int32_t first_token = 0, last_token = 0;
    if constexpr (kOfKeys) {
      if (first_row < s.k_length) {
        const auto first = static_cast<int32_t>(first_row);
        const int32_t last = first + kRows < s.k_length ? first + kRows - 1 : s.k_length - 1;
        int32_t tokens_end = s.TokensEnd(last, p.mask), whole_tokens = s.TokensEnd(first, p.mask);
        if (p.mask.key_end != nullptr) {
          const int32_t* key_end = p.mask.key_end + s.k_begin;
          const int32_t largest = LargestKeyEnd(key_end, first, last + 1);
          const int32_t smallest = SmallestKeyEnd(key_end, first, last + 1);
          tokens_end = largest < tokens_end ? largest : tokens_end;
          whole_tokens = smallest < whole_tokens ? smallest : whole_tokens;
        }
        begin = int64_t{s.TokensBegin(first, p.mask)} * group;
        end = int64_t{tokens_end} * group;
        whole_begin = int64_t{s.TokensBegin(last, p.mask)} * group;
        // The columns after the last used row weigh nothing: they do not break a whole block.
        whole_end = (int64_t{whole_tokens} + (whole_tokens == s.q_length ? kColumns : 0)) * group;
      }
    } else {
      const int64_t last_row = int64_t{s.q_length} * group - 1, end_row = first_row + kRows - 1;
      first_token = static_cast<int32_t>(first_row / group);
      last_token = static_cast<int32_t>((end_row < last_row ? end_row : last_row) / group);
      if (first_token < s.q_length) {
        begin = s.KeysBegin(first_token, p.mask);
        end = s.KeysEnd(last_token, p.mask);
        whole_begin = s.KeysBegin(last_token, p.mask);
        whole_end = s.KeysEnd(first_token, p.mask);
      }
    }
    if (simt::LaneIndex() != 0) return;
    simt::Store(&info->q_begin, s.q_begin);
    simt::Store(&info->k_begin, s.k_begin);
    simt::Store(&info->first_row, first_row);
    simt::Store(&info->whole_begin, whole_begin);
    simt::Store(&info->whole_end, whole_end);
    simt::Store(&info->q_slot, s.q_slot);
    simt::Store(&info->k_slot, s.k_slot);
    simt::Store(&info->q_length, s.q_length);
    simt::Store(&info->k_length, s.k_length);
    simt::Store(&info->b, tile.b);
    simt::Store(&info->kv_head, tile.kv_head);
    simt::Store(&info->first_token, first_token);
    simt::Store(&info->last_token, last_token);
    simt::Store(&info->first_block, static_cast<int32_t>(begin / kColumns));
    simt::Store(&info->end_block, begin < end ? static_cast<int32_t>(CeilDiv(end, kColumns)) : 0);
  }

  // The packed row at which a run of rows begins.
  struct PackedRow {
    int32_t token, in_group;
  };
  // What a query row needs to know to weigh a key.
  struct Query {
    RowStatistics statistics;
    int32_t token, position, keys_begin, keys_end;
    float slope;
  };

  // One tile: 16 * kSlabs rows per warp against every block of columns that any of its rows sees.
  struct Worker {
    SIMT_FN Worker(const Params& p, const TileInfo* tile, unsigned char* shared)
        : p(p), tile(tile), shared(shared) {}

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
      const int32_t end = simt::Load(&tile->end_block);
      int32_t n = NextBlock(simt::Load(&tile->first_block), end);
      if (n >= end) return;
      LoadTile();
      LoadBlock(n, 0);
      simt::CopyAsyncCommit();
      for (int stage = 0; n < end; stage ^= 1) {
        simt::CopyAsyncWait<0>();
        simt::SyncThreads();  // block n is here; nobody reads the other one any longer
        const int32_t next = NextBlock(n + 1, end);
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
      if constexpr (kGivesScores) Memory::Multiply(ds, X(1), Y(1, stage));
      if (p.softcap == 0 && p.alibi_slopes == nullptr && SeenWhole(n)) {
        Weigh</*kPlain=*/true>(s, ds, n, stage);
      } else {
        Weigh</*kPlain=*/false>(s, ds, n, stage);
      }
      if constexpr (kGivesScores) Memory::Accumulate(sums[0], ds, Y(0, stage));
      if constexpr (kGivesWeights) Memory::Accumulate(sums[kGradients - 1], s, Y(1, stage));
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

    SIMT_FN int32_t Group() const { return p.num_heads / p.num_kv_heads; }
    SIMT_FN PackedRow PackedAt(int64_t row) const {
      return {static_cast<int32_t>(row / Group()), static_cast<int32_t>(row % Group())};
    }
    SIMT_FN int32_t TokenOf(const PackedRow& first, int row) const {
      return first.token + (first.in_group + row) / Group();
    }
    SIMT_FN int32_t HeadOf(const PackedRow& first, int row) const {
      return simt::Load(&tile->kv_head) * Group() + (first.in_group + row) % Group();
    }
    // Lengths of the tile's sequence; its rows in the tensors stay unread.
    SIMT_FN DeviceSequence Lengths() const {
      DeviceSequence s{};
      s.q_length = simt::Load(&tile->q_length);
      s.k_length = simt::Load(&tile->k_length);
      return s;
    }
    SIMT_FN const int32_t* KeyEnds() const { return p.mask.key_end + simt::Load(&tile->k_begin); }

    // --- which blocks? The answers are the same in every warp ---

    SIMT_FN int32_t EndOfKeys(int32_t n) const {
      const int32_t end = (n + 1) * kColumns, length = simt::Load(&tile->k_length);
      return end < length ? end : length;
    }
    // n, or the next higher block of keys that a tree leaves to some row.
    SIMT_FN int32_t NextBlock(int32_t n, int32_t end) const {
      if constexpr (!kOfKeys) {
        if (p.mask.key_end == nullptr) return n;
        while (n < end && LargestKeyEnd(KeyEnds(), n * kColumns, EndOfKeys(n)) <=
                              simt::Load(&tile->first_token)) {
          ++n;
        }
      }
      return n;
    }
    // Does every row of the tile see every column of block n?
    SIMT_FN bool SeenWhole(int32_t n) const {
      const int64_t begin = int64_t{n} * kColumns;
      if (begin < simt::Load(&tile->whole_begin)) return false;
      if (begin + kColumns > simt::Load(&tile->whole_end)) return false;
      if (kOfKeys || p.mask.key_end == nullptr) return true;
      return SmallestKeyEnd(KeyEnds(), n * kColumns, EndOfKeys(n)) > simt::Load(&tile->last_token);
    }

    // --- loads ---

    // Rows `first` to first + kCount - 1 of two matrices: keys, or packed rows.
    template <bool kKeys, int kCount>
    SIMT_FN void LoadRows(T* to_a, const DeviceMatrix<const T>& a, T* to_b,
                          const DeviceMatrix<const T>& b, int64_t first) const {
      const int thread = simt::Opaque(simt::ThreadIndex());
      const int column = thread % Memory::kLine;
      const PackedRow start = kKeys ? PackedRow{static_cast<int32_t>(first), 0} : PackedAt(first);
      const int32_t length = simt::Load(kKeys ? &tile->k_length : &tile->q_length);
      const int64_t begin = simt::Load(kKeys ? &tile->k_begin : &tile->q_begin);
      SIMT_NO_UNROLL
      for (int row = thread / Memory::kLine; row < kCount; row += Memory::kRowStep) {
        const int32_t token = kKeys ? start.token + row : TokenOf(start, row);
        const int32_t head = kKeys ? simt::Load(&tile->kv_head) : HeadOf(start, row);
        const bool valid = token < length;
        LoadRow(to_a, a, valid, begin + token, head, row, column);
        if constexpr (kGivesScores || !kKeys)
          LoadRow(to_b, b, valid, begin + token, head, row, column);
      }
    }
    SIMT_FN void LoadRow(T* to, const DeviceMatrix<const T>& matrix, bool valid, int64_t source,
                         int32_t head, int row, int column) const {
      const T* from = matrix.data;
      if (valid) from += source * matrix.row + head * matrix.head;
      SIMT_UNROLL
      for (int chunk = column; chunk < Memory::kChunks; chunk += Memory::kLine) {
        const int count = valid ? Memory::Columns(p.head_dim, chunk) : 0;
        Memory::LoadChunk(to + Memory::At(row, chunk), count > 0 ? from + chunk * 8 : from, count,
                          p.vector_loads);
      }
    }

    SIMT_FN void LoadTile() {
      const int64_t first = simt::Load(&tile->first_row);
      if constexpr (kOfKeys) {
        LoadRows<true, kRows>(X(0), p.k, X(1), p.v, first);
      } else {
        LoadRows<false, kRows>(X(0), p.q, X(1), p.d_out, first);
        const int lane = simt::Opaque(simt::LaneIndex());
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            statistics[slab][half] = StatisticsOf(first + RowOf(lane, slab, half));
          }
        }
      }
    }
    SIMT_FN void LoadBlock(int32_t n, int stage) const {
      const int64_t first = int64_t{n} * kColumns;
      if constexpr (kOfKeys) {
        LoadRows<false, kColumns>(Y(0, stage), p.q, Y(1, stage), p.d_out, first);
        const int column = simt::ThreadIndex();
        if (column < kColumns) {
          simt::Store(ColumnStatistics(stage) + column, StatisticsOf(first + column));
        }
      } else {
        LoadRows<true, kColumns>(Y(0, stage), p.k, Y(1, stage), p.v, first);
      }
    }
    // Those of a row past the sequence make all its weights 0.
    SIMT_FN RowStatistics StatisticsOf(int64_t row) const {
      if (row >= int64_t{simt::Load(&tile->q_length)} * Group()) return {simt::Infinity(), 0.0f};
      const int64_t first =
          simt::Load(&tile->kv_head) * p.sequences.total_q + simt::Load(&tile->q_begin);
      return simt::Load(p.statistics + first * Group() + row);
    }

    // --- weights: s becomes P and ds, which holds dP, becomes dU ---

    template <bool kPlain>
    SIMT_FN void Weigh(float (&s)[kSlabs][kColumns / 8][4], float (&ds)[kSlabs][kColumns / 8][4],
                       int32_t n, int stage) const {
      const int lane = simt::Opaque(simt::LaneIndex());
      const int first_column = lane % 4 * 2;
      if constexpr (kOfKeys) {
        PackedRow first{};
        if constexpr (!kPlain) first = PackedAt(int64_t{n} * kColumns);
        const auto first_key = static_cast<int32_t>(simt::Load(&tile->first_row));
        SIMT_UNROLL
        for (int j = 0; j < kColumns / 8; ++j) {
          SIMT_UNROLL
          for (int e = 0; e < 2; ++e) {
            const int column = j * 8 + first_column + e;
            Query query{};
            query.statistics = simt::Load(ColumnStatistics(stage) + column);
            if constexpr (!kPlain) Describe(first, column, query);
            SIMT_UNROLL
            for (int slab = 0; slab < kSlabs; ++slab) {
              SIMT_UNROLL
              for (int half = 0; half < 2; ++half) {
                Weigh<kPlain>(query, first_key + RowOf(lane, slab, half), s[slab][j][2 * half + e],
                              ds[slab][j][2 * half + e]);
              }
            }
          }
        }
      } else {
        PackedRow first{};
        if constexpr (!kPlain) first = PackedAt(simt::Load(&tile->first_row));
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            Query query{};
            query.statistics = statistics[slab][half];
            if constexpr (!kPlain) Describe(first, RowOf(lane, slab, half), query);
            SIMT_UNROLL
            for (int j = 0; j < kColumns / 8; ++j) {
              SIMT_UNROLL
              for (int e = 0; e < 2; ++e) {
                Weigh<kPlain>(query, n * kColumns + j * 8 + first_column + e,
                              s[slab][j][2 * half + e], ds[slab][j][2 * half + e]);
              }
            }
          }
        }
      }
    }
    SIMT_FN void Describe(const PackedRow& first, int row, Query& query) const {
      const DeviceSequence lengths = Lengths();
      query.token = TokenOf(first, row);
      query.position = lengths.Position(query.token);
      query.keys_begin = lengths.KeysBegin(query.token, p.mask);
      query.keys_end = lengths.KeysEnd(query.token, p.mask);
      if (p.alibi_slopes != nullptr) {
        const int64_t sequence = int64_t{simt::Load(&tile->b)} * p.alibi_sequence_stride;
        query.slope = simt::Load(p.alibi_slopes + sequence + HeadOf(first, row));
      }
    }
    template <bool kPlain>
    SIMT_FN void Weigh(const Query& query, int32_t key, float& s, float& ds) const {
      const RowStatistics& row = query.statistics;
      if constexpr (kPlain) {
        s = simt::Exp2(s * (p.softmax_scale * kLog2e) - row.lse_log2);
        if constexpr (kGivesScores) ds = s * (ds - row.delta);
      } else {
        float u = s * p.softmax_scale, slope_of_cap = 1;
        if (p.softcap > 0) {
          const float squashed = simt::Tanh(u / p.softcap);
          u = p.softcap * squashed;
          slope_of_cap = 1 - squashed * squashed;
        }
        const int32_t distance = query.position > key ? query.position - key : key - query.position;
        u -= query.slope * static_cast<float>(distance);
        bool keep = key >= query.keys_begin && key < query.keys_end;
        if (keep && p.mask.key_end != nullptr) keep = query.token < simt::Load(KeyEnds() + key);
        s = keep ? simt::Exp2(u * kLog2e - row.lse_log2) : 0.0f;
        if constexpr (kGivesScores) ds = keep ? s * slope_of_cap * (ds - row.delta) : 0.0f;
      }
    }

    // --- results, by way of this warp's own rows of the tile, which only its ldmatrix read ---

    SIMT_FN void Finish() {
      const int lane = simt::Opaque(simt::LaneIndex());
      SIMT_UNROLL
      for (int g = 0; g < kGradients; ++g) {
        const bool of_values = kGivesWeights && g == kGradients - 1;
        const float scale = of_values ? 1.0f : p.softmax_scale;
        SIMT_UNROLL
        for (int slab = 0; slab < kSlabs; ++slab) {
          SIMT_UNROLL
          for (int half = 0; half < 2; ++half) {
            SIMT_UNROLL
            for (int d = 0; d < kHeadDim / 8; ++d) {
              const float* pair = &sums[g][slab][d][2 * half];
              T* to = X(g) + Memory::At(RowOf(lane, slab, half), d);
              simt::Store(reinterpret_cast<uint32_t*>(to) + lane % 4,
                          simt::PackPair<T>(pair[0] * scale, pair[1] * scale));
            }
          }
        }
      }
      simt::SyncWarp();
      StoreRows(X(0), kGradient == Gradient::kQuery   ? p.dq
                      : kGradient == Gradient::kValue ? p.dv
                                                      : p.dk);
      if constexpr (kGradients == 2) StoreRows(X(1), p.dv);
    }

    SIMT_FN void StoreRows(const T* from, const DeviceMatrix<T>& to) const {
      const int64_t first_row = simt::Load(&tile->first_row);
      const PackedRow start =
          kOfKeys ? PackedRow{static_cast<int32_t>(first_row), 0} : PackedAt(first_row);
      const int32_t slot = simt::Load(kOfKeys ? &tile->k_slot : &tile->q_slot);
      const int32_t length = simt::Load(kOfKeys ? &tile->k_length : &tile->q_length);
      const int64_t begin = simt::Load(kOfKeys ? &tile->k_begin : &tile->q_begin);
      const int lane = simt::Opaque(simt::LaneIndex());
      for (int id = lane; id < kSlabs * 16 * Memory::kChunks; id += simt::kWarpSize) {
        const int row = simt::WarpIndex() * kSlabs * 16 + id / Memory::kChunks;
        const int chunk = id % Memory::kChunks, count = Memory::Columns(p.head_dim, chunk);
        const int32_t token = kOfKeys ? start.token + row : TokenOf(start, row);
        if (token >= slot || count == 0) continue;
        const int32_t head = kOfKeys ? simt::Load(&tile->kv_head) : HeadOf(start, row);
        const auto* chunk_at =
            reinterpret_cast<const simt::Vector4*>(from + Memory::At(row, chunk));
        Memory::StoreChunk(to.data + (begin + token) * to.row + head * to.head + chunk * 8,
                           token < length ? simt::Load(chunk_at) : simt::Vector4{0, 0, 0, 0}, count,
                           p.vector_stores);
      }
    }

    const Params& p;
    const TileInfo* tile;
    unsigned char* shared;
    RowStatistics statistics[kSlabs][2];  // of the rows of a tile of packed rows
    float sums[kGradients][kSlabs][kHeadDim / 8][4];
  };
};

}  // namespace varlen::varlen_attention
