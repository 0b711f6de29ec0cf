#pragma once

#include <cstdint>

#include "core/simt/simt.h"
#include "core/tile-chunk-device.h"
#include "ops/varlen-attention/device-params.h"
#include "ops/varlen-attention/device-sequence.h"

// What the backward kernels of every architecture know of a tile, and what they do to its rows: all
// but the matrix products and how the blocks of columns come into shared memory. A tile keeps its
// rows X1, X2 while blocks of columns Y1, Y2 stream through:
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

// What the threads of a block must know of their tile; it is read where it is used, because the
// sums leave few registers. A column is a packed row for tiles of keys, else a key.
struct BackwardTile {
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

// The packed row at which a run of rows begins.
struct PackedRow {
  int32_t token, in_group;
};

// Columns of a block: kColumns of them, or with kWholeTokens no more packed rows than are whole
// tokens, all heads of the group.
template <class T, Gradient kGradient, int kRows, int kColumns, bool kWholeTokens = false>
struct BackwardRows {
  static constexpr float kLog2e = 1.4426950408889634f;
  static constexpr bool kOfKeys = kGradient != Gradient::kQuery;
  static constexpr bool kGivesWeights =
      kGradient == Gradient::kValue || kGradient == Gradient::kKeyAndValue;
  static constexpr bool kGivesScores = kGradient != Gradient::kValue;
  static constexpr int kGradients = kGradient == Gradient::kKeyAndValue ? 2 : 1;

  SIMT_FN BackwardRows(const BackwardArguments<T>& p, const BackwardTile* tile)
      : p(p), tile(tile) {}

  static SIMT_FN int32_t GroupOf(const BackwardArguments<T>& p) {
    return p.num_heads / p.num_kv_heads;
  }
  static SIMT_FN int32_t ColumnsOf(const BackwardArguments<T>& p) {
    if constexpr (kOfKeys && kWholeTokens) return kColumns / GroupOf(p) * GroupOf(p);
    return kColumns;
  }
  static SIMT_FN Tiling TilingOf(const BackwardArguments<T>& p) {
    return {kOfKeys, p.num_kv_heads, GroupOf(p), p.head_dim, kRows, ColumnsOf(p)};
  }

  // All lanes of a warp work it out, lane 0 writes it, each thing as soon as it is known: there are
  // few registers to keep it in.
  static SIMT_FN void Describe(const BackwardArguments<T>& p, int64_t id, BackwardTile* to) {
    const Tile tile = DecodeTile(p.sequences, p.schedule, id, TilingOf(p));
    const DeviceSequence& s = tile.sequence;
    const int64_t first_row = tile.index * kRows;
    if (simt::LaneIndex() == 0) {
      simt::Store(&to->q_begin, s.q_begin);
      simt::Store(&to->k_begin, s.k_begin);
      simt::Store(&to->first_row, first_row);
      simt::Store(&to->q_slot, s.q_slot);
      simt::Store(&to->k_slot, s.k_slot);
      simt::Store(&to->q_length, s.q_length);
      simt::Store(&to->k_length, s.k_length);
      simt::Store(&to->b, tile.b);
      simt::Store(&to->kv_head, tile.kv_head);
    }
    if constexpr (kOfKeys) {
      DescribeKeys(p, s, first_row, to);
    } else {
      DescribeRows(p, s, first_row, to);
    }
  }
  static SIMT_FN void DescribeKeys(const BackwardArguments<T>& p, const DeviceSequence& s,
                                   int64_t first_row, BackwardTile* to) {
    const int32_t group = GroupOf(p);
    if (first_row >= s.k_length) return DescribeColumns(p, 0, 0, to);
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
    if (simt::LaneIndex() == 0) {
      // The columns after the last used row weigh nothing: they do not break a whole block.
      const int64_t past = whole_tokens == s.q_length ? kColumns : 0;
      simt::Store(&to->whole_end, (whole_tokens + past) * group);
      simt::Store(&to->whole_begin, int64_t{s.TokensBegin(last, p.mask)} * group);
    }
    DescribeColumns(p, int64_t{s.TokensBegin(first, p.mask)} * group, int64_t{tokens_end} * group,
                    to);
  }
  static SIMT_FN void DescribeRows(const BackwardArguments<T>& p, const DeviceSequence& s,
                                   int64_t first_row, BackwardTile* to) {
    const int32_t group = GroupOf(p);
    const int64_t last_row = int64_t{s.q_length} * group - 1, end_row = first_row + kRows - 1;
    const auto first = static_cast<int32_t>(first_row / group);
    const auto last = static_cast<int32_t>((end_row < last_row ? end_row : last_row) / group);
    if (simt::LaneIndex() == 0) {
      simt::Store(&to->first_token, first);
      simt::Store(&to->last_token, last);
    }
    if (first >= s.q_length) return DescribeColumns(p, 0, 0, to);
    if (simt::LaneIndex() == 0) {
      simt::Store(&to->whole_begin, s.KeysBegin(last, p.mask));
      simt::Store(&to->whole_end, s.KeysEnd(first, p.mask));
    }
    DescribeColumns(p, s.KeysBegin(first, p.mask), s.KeysEnd(last, p.mask), to);
  }
  static SIMT_FN void DescribeColumns(const BackwardArguments<T>& p, int64_t begin, int64_t end,
                                      BackwardTile* to) {
    if (simt::LaneIndex() != 0) return;
    const int32_t columns = ColumnsOf(p);
    simt::Store(&to->first_block, static_cast<int32_t>(begin / columns));
    simt::Store(&to->end_block, begin < end ? static_cast<int32_t>(CeilDiv(end, columns)) : 0);
  }

  SIMT_FN int32_t Group() const { return GroupOf(p); }
  SIMT_FN int32_t Columns() const { return ColumnsOf(p); }
  SIMT_FN PackedRow PackedAt(int64_t row) const {
    return {static_cast<int32_t>(row / Group()), static_cast<int32_t>(row % Group())};
  }
  template <bool kKeys>
  SIMT_FN PackedRow Start(int64_t row) const {
    if constexpr (kKeys) {
      return {static_cast<int32_t>(row), 0};
    } else {
      return PackedAt(row);
    }
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
    const int64_t begin = int64_t{n} * Columns();
    if (begin < simt::Load(&tile->whole_begin)) return false;
    if (begin + Columns() > simt::Load(&tile->whole_end)) return false;
    if (kOfKeys || p.mask.key_end == nullptr) return true;
    return SmallestKeyEnd(KeyEnds(), n * kColumns, EndOfKeys(n)) > simt::Load(&tile->last_token);
  }
  // Columns from the first of block n on that the sequence has.
  SIMT_FN int32_t ColumnsLeft(int32_t n) const {
    const int64_t all = kOfKeys ? int64_t{simt::Load(&tile->q_length)} * Group()
                                : int64_t{simt::Load(&tile->k_length)};
    const int64_t left = all - int64_t{n} * Columns();
    return static_cast<int32_t>(left < kColumns ? left : kColumns);
  }

  // --- loads ---

  // Rows `first` to first + kCount - 1 of the first kMatrices of a and b, keys or packed rows, to
  // at(matrix, row, chunk). `thread` is one of kLine * kRowStep of Layout.
  template <bool kKeys, int kCount, int kMatrices, class Layout, class At>
  SIMT_FN void LoadRows(int thread, const DeviceMatrix<const T>& a, const DeviceMatrix<const T>& b,
                        int64_t first, const At& at) const {
    const int column = thread % Layout::kLine;
    const PackedRow start = Start<kKeys>(first);
    const int32_t length = simt::Load(kKeys ? &tile->k_length : &tile->q_length);
    const int64_t begin = simt::Load(kKeys ? &tile->k_begin : &tile->q_begin);
    SIMT_NO_UNROLL
    for (int row = thread / Layout::kLine; row < kCount; row += Layout::kRowStep) {
      const int32_t token = kKeys ? start.token + row : TokenOf(start, row);
      const int32_t head = kKeys ? simt::Load(&tile->kv_head) : HeadOf(start, row);
      const bool valid = token < length;
      LoadRow<Layout, 0>(a, valid, begin + token, head, row, column, at);
      if constexpr (kMatrices == 2) {
        LoadRow<Layout, 1>(b, valid, begin + token, head, row, column, at);
      }
    }
  }
  template <class Layout, int kMatrix, class At>
  SIMT_FN void LoadRow(const DeviceMatrix<const T>& matrix, bool valid, int64_t source,
                       int32_t head, int row, int column, const At& at) const {
    const T* from = matrix.data;
    if (valid) from += source * matrix.row + head * matrix.head;
    SIMT_UNROLL
    for (int chunk = column; chunk < Layout::kChunks; chunk += Layout::kLine) {
      const int count = valid ? TileChunk<T>::Columns(p.head_dim, chunk) : 0;
      TileChunk<T>::LoadChunk(at(kMatrix, row, chunk),
                              count > 0 ? from + chunk * TileChunk<T>::kPerChunk : from, count,
                              p.vector_loads);
    }
  }
  // X of rows `row` to row + kCount - 1 of the tile; v is no operand of dv.
  template <int kCount, class Layout, class At>
  SIMT_FN void LoadX(int thread, int row, const At& at) const {
    const int64_t first = simt::Load(&tile->first_row) + row;
    if constexpr (kOfKeys) {
      LoadRows<true, kCount, kGivesScores ? 2 : 1, Layout>(thread, p.k, p.v, first, at);
    } else {
      LoadRows<false, kCount, 2, Layout>(thread, p.q, p.d_out, first, at);
    }
  }
  // Of packed row `row` and those after it.
  SIMT_FN const RowStatistics* StatisticsFrom(int64_t row) const {
    const int64_t first =
        simt::Load(&tile->kv_head) * p.sequences.total_q + simt::Load(&tile->q_begin);
    return p.statistics + first * Group() + row;
  }
  // Of a packed row. Those of a row past the sequence make all its weights 0.
  SIMT_FN RowStatistics StatisticsOf(int64_t row) const {
    if (row >= int64_t{simt::Load(&tile->q_length)} * Group()) return NoStatistics();
    return simt::Load(StatisticsFrom(row));
  }
  static SIMT_FN RowStatistics NoStatistics() { return {simt::Infinity(), 0.0f}; }

  // --- weights of block n: s becomes P and ds, which holds dP, becomes dU. s(slab, j, half, e) is
  //     this lane's at row row_of(slab, half) of the tile and column 8 j + 2 (lane mod 4) + e of
  //     the block, as mma.sync and wgmma leave it ---

  // `of_columns`: the statistics of the block's columns where those are packed rows; `of_rows`, per
  // slab and half, of this lane's rows where the tile's are. Step by step: all at once would need
  // more registers.
  template <int kSlabs, class RowOf, class S, class Ds>
  SIMT_FN void Weigh(int32_t n, const RowStatistics* of_columns,
                     const RowStatistics (&of_rows)[kSlabs][2], const RowOf& row_of, const S& s,
                     const Ds& ds) const {
    const bool whole = SeenWhole(n);
    if (whole && p.softcap == 0 && p.alibi_slopes == nullptr) {
      ForEachWeight<Step::kAll>(n, of_columns, of_rows, row_of, s, ds);
      return;
    }
    ForEachWeight<Step::kScore>(n, of_columns, of_rows, row_of, s, ds);
    if (!whole) {
      ForEachWeight<Step::kMask>(n, of_columns, of_rows, row_of, s, ds);
      if (!kOfKeys && p.mask.key_end != nullptr) {
        ForEachWeight<Step::kTree>(n, of_columns, of_rows, row_of, s, ds);
      }
    }
    ForEachWeight<Step::kExponent>(n, of_columns, of_rows, row_of, s, ds);
  }

  // kScore: s becomes the score in base 2, ds its derivative times dP - delta. kMask: -inf and 0
  // where they are masked; where every column has an end of its own to be read, trees are left to
  // kTree. kExponent: s becomes P, and ds dU. kAll: the same where nothing is masked and the score
  // is the scaled product.
  enum class Step { kAll, kScore, kMask, kTree, kExponent };

  // What a query row needs to know for a step.
  struct Query {
    RowStatistics statistics;
    int32_t token, position, keys_begin, keys_end;
    float slope;
  };

  template <Step kStep, int kSlabs, class RowOf, class S, class Ds>
  SIMT_FN void ForEachWeight(int32_t n, const RowStatistics* of_columns,
                             const RowStatistics (&of_rows)[kSlabs][2], const RowOf& row_of,
                             const S& s, const Ds& ds) const {
    const int first_column = simt::Opaque(simt::LaneIndex()) % 4 * 2;
    constexpr bool kNamesRows = kStep != Step::kAll && kStep != Step::kExponent;
    PackedRow first{};
    if constexpr (kNamesRows) {
      first = PackedAt(kOfKeys ? int64_t{n} * Columns() : simt::Load(&tile->first_row));
    }
    if constexpr (kOfKeys) {
      const auto first_key = static_cast<int32_t>(simt::Load(&tile->first_row));
      SIMT_UNROLL
      for (int j = 0; j < kColumns / 8; ++j) {
        SIMT_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int column = j * 8 + first_column + e;
          Query query{};
          query.statistics = simt::Load(of_columns + column);
          if constexpr (kNamesRows) Describe<kStep>(first, column, query);
          SIMT_UNROLL
          for (int slab = 0; slab < kSlabs; ++slab) {
            SIMT_UNROLL
            for (int half = 0; half < 2; ++half) {
              Advance<kStep>(query, first_key + row_of(slab, half), s(slab, j, half, e),
                             ds(slab, j, half, e));
            }
          }
        }
      }
    } else {
      SIMT_UNROLL
      for (int slab = 0; slab < kSlabs; ++slab) {
        SIMT_UNROLL
        for (int half = 0; half < 2; ++half) {
          Query query{};
          query.statistics = of_rows[slab][half];
          if constexpr (kNamesRows) Describe<kStep>(first, row_of(slab, half), query);
          SIMT_UNROLL
          for (int j = 0; j < kColumns / 8; ++j) {
            SIMT_UNROLL
            for (int e = 0; e < 2; ++e) {
              Advance<kStep>(query, n * kColumns + j * 8 + first_column + e, s(slab, j, half, e),
                             ds(slab, j, half, e));
            }
          }
        }
      }
    }
  }
  template <Step kStep>
  SIMT_FN void Describe(const PackedRow& first, int row, Query& query) const {
    const DeviceSequence lengths = Lengths();
    query.token = TokenOf(first, row);
    if constexpr (kStep == Step::kScore) {
      query.position = lengths.Position(query.token);
      if (p.alibi_slopes != nullptr) {
        const int64_t sequence = int64_t{simt::Load(&tile->b)} * p.alibi_sequence_stride;
        query.slope = simt::Load(p.alibi_slopes + sequence + HeadOf(first, row));
      }
    }
    if constexpr (kStep == Step::kMask) {
      query.keys_begin = lengths.KeysBegin(query.token, p.mask);
      query.keys_end = lengths.KeysEnd(query.token, p.mask);
    }
  }
  template <Step kStep>
  SIMT_FN void Advance(const Query& query, int32_t key, float& s, float& ds) const {
    const RowStatistics& row = query.statistics;
    if constexpr (kStep == Step::kAll) {
      s = simt::Exp2(s * (p.softmax_scale * kLog2e) - row.lse_log2);
      if constexpr (kGivesScores) ds = s * (ds - row.delta);
    }
    if constexpr (kStep == Step::kScore) {
      float u = s * p.softmax_scale, slope_of_cap = 1;
      if (p.softcap > 0) {
        const float squashed = simt::Tanh(u / p.softcap);
        u = p.softcap * squashed;
        slope_of_cap = 1 - squashed * squashed;
      }
      const int32_t distance = query.position > key ? query.position - key : key - query.position;
      s = (u - query.slope * static_cast<float>(distance)) * kLog2e;
      if constexpr (kGivesScores) ds = slope_of_cap * (ds - row.delta);
    }
    if constexpr (kStep == Step::kMask) {
      bool keep = key >= query.keys_begin && key < query.keys_end;
      if constexpr (kOfKeys) {
        if (keep && p.mask.key_end != nullptr) keep = query.token < simt::Load(KeyEnds() + key);
      }
      s = keep ? s : -simt::Infinity();
      if constexpr (kGivesScores) ds = keep ? ds : 0.0f;
    }
    if constexpr (kStep == Step::kTree) {
      if (s != -simt::Infinity() && query.token >= simt::Load(KeyEnds() + key)) {
        s = -simt::Infinity();
        if constexpr (kGivesScores) ds = 0;
      }
    }
    if constexpr (kStep == Step::kExponent) {
      // Not of a NaN lse: what a row does not see, it does not spoil.
      s = s == -simt::Infinity() ? 0.0f : simt::Exp2(s - row.lse_log2);
      if constexpr (kGivesScores) ds *= s;
    }
  }

  // --- results ---

  // Sum g of a tile: whose gradient it is, and what it is still to be multiplied by.
  SIMT_FN const DeviceMatrix<T>& GradientOf(int g) const {
    return !kOfKeys ? p.dq : IsOfValues(g) ? p.dv : p.dk;
  }
  SIMT_FN float ScaleOf(int g) const { return IsOfValues(g) ? 1.0f : p.softmax_scale; }
  static SIMT_FN bool IsOfValues(int g) { return kGivesWeights && g == kGradients - 1; }

  // Where the tile's rows are in its tensors.
  struct Place {
    PackedRow start;
    int32_t slot, length;
    int64_t begin;
  };
  SIMT_FN Place Where() const {
    return {Start<kOfKeys>(simt::Load(&tile->first_row)),
            simt::Load(kOfKeys ? &tile->k_slot : &tile->q_slot),
            simt::Load(kOfKeys ? &tile->k_length : &tile->q_length),
            simt::Load(kOfKeys ? &tile->k_begin : &tile->q_begin)};
  }
  // A chunk of row `row` of the tile, from shared memory; zeros for rows that are not used.
  SIMT_FN void StoreChunk(const Place& place, int row, int chunk, const T* from,
                          const DeviceMatrix<T>& to) const {
    const int count = TileChunk<T>::Columns(p.head_dim, chunk);
    const int32_t token = kOfKeys ? place.start.token + row : TokenOf(place.start, row);
    if (token >= place.slot || count == 0) return;
    const int32_t head = kOfKeys ? simt::Load(&tile->kv_head) : HeadOf(place.start, row);
    TileChunk<T>::StoreChunk(
        to.data + (place.begin + token) * to.row + head * to.head + chunk * TileChunk<T>::kPerChunk,
        token < place.length ? simt::Load(reinterpret_cast<const simt::Vector4*>(from))
                             : simt::Vector4{0, 0, 0, 0},
        count, p.vector_stores);
  }

  const BackwardArguments<T>& p;
  const BackwardTile* tile;
};

}  // namespace varlen::varlen_attention
