#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/status.h"
#include "ops/sparse-prefill/column-set.h"

// Patterns as index sets (specification: docs/guide/sparse-prefill.md). A plan is a row of int32
// words that holds, per (sequence, head), one pattern whose parameters are all known. Which keys a
// tile of rows keeps is worked out from it when the tile is computed: that costs a few operations
// per key against thousands for the arithmetic, and a plan stays as small as its parameters.
namespace varlen::sparse_prefill {

// A pattern in words: [kind, number of words, fields...]. Children follow their parent; a field
// that names one is its offset from the parent's first word. Fields of a kind, in order:
enum class Kind : int32_t {
  kDense = 0,
  kAShape = 1,         // sink, local
  kTriShape = 2,       // sink, local, last (0 unless this is the final chunk)
  kVerticalSlash = 3,  // slash tile, 1 = slashes in ranks, #verticals, #slashes, the two lists
  kBlocks = 4,     // rows, columns of a block; first row block, row blocks, words per row block;
                   // bits
  kBlockMask = 5,  // #row blocks, #column blocks, 1 = inner masks; row starts, column starts, row
                   // pointers, column indices, then per entry its rows x columns bits
  kGrid = 6,       // begin, end (-1: all), stride, phase, phase of row lines, flags, sink, local
  kCellGrid = 7,   // flags, sink, local, offset of the cells in the plan, #lines, the lines
  kSfFixed = 8,    // period
  kQBoundary = 9,  // #modalities, a child per modality (0: none)
  kPairBoundary = 10,  // #modalities, a child per (query modality, key modality)
  kUnion = 11,         // #children, the children
  // Not yet known: what estimation replaces (estimate.h).
  kSelectVerticalSlash = 16,
  kSelectBlocks = 17,
  kSearchGrid = 18,
};
inline constexpr int32_t kRowLines = 1, kColumnLines = 2, kSlashLines = 4;  // flags of the grids

// Start of a plan: header, then per sequence three words, then per (sequence, head) three words.
inline constexpr int32_t kMagic = 0x31505356;  // "VSP1"
struct Header {
  int32_t magic, num_seqs, num_heads, causal, num_modalities, words;
};
struct SequenceWords {
  int32_t q_length, k_length;  // tokens
  int32_t modality;            // offset of the modality of each key, four to a word; 0: none
};
struct HeadWords {
  int32_t config;    // offset of the pattern as asked for, in the configuration's words
  int32_t plan;      // offset of the pattern as resolved, in the plan's words
  int32_t capacity;  // words reserved for it
};

// Positions of each modality, ascending, and each position's rank among its own.
struct Modalities {
  std::vector<std::vector<int32_t>> positions;
  std::vector<uint8_t> of;    // [kLength]
  std::vector<int32_t> rank;  // [kLength]
};

// What all heads of a sequence share.
struct SequenceInfo {
  int64_t q_length = 0, k_length = 0;
  bool causal = true;
  const Modalities* modalities = nullptr;
  int64_t shift() const { return k_length - q_length; }  // position of row 0
};

// Rows of one tile with their coordinates, and the keys they may choose from. Inside a pair of
// modalities coordinates are ranks: `at` then never falls, but may repeat.
struct Frame {
  const SequenceInfo& sequence;
  const int32_t* row;  // [count], rows of the chunk
  const int32_t* at;   // [count], coordinate of each row
  int count;
  RowBits active;            // rows that take part
  int64_t columns;           // keys to choose from
  const int32_t* positions;  // of those keys; null: key j is position j
  bool lines;                // the pattern as defined; else as computed (rounded to tiles)

  int First() const { return std::countr_zero(active); }
  int Last() const { return 63 - std::countl_zero(active); }
  // Active rows whose coordinate is below x.
  RowBits Below(int64_t x) const {
    const int32_t* end = std::lower_bound(at, at + count, x);
    return active & FirstRows(static_cast<int>(end - at));
  }
  // Columns from here on are of no use to any row.
  int64_t End() const {
    return sequence.causal ? std::min<int64_t>(columns, int64_t{at[Last()]} + 1) : columns;
  }
  void Add(ColumnSet& set, int64_t j, RowBits rows) const {
    set.Add(positions == nullptr ? j : positions[j], rows);
  }
  void AddRange(ColumnSet& set, int64_t begin, int64_t end, RowBits rows) const {
    if (positions == nullptr) return set.AddRange(begin, end, rows);
    for (int64_t j = begin; j < end; ++j) set.Add(positions[j], rows);
  }
};

// Which lines and which cells of a grid a position belongs to, for both kinds of grid.
class Grid {
 public:
  Grid() = default;
  Grid(int64_t begin, int64_t end, int64_t stride, int64_t phase, int64_t row_phase, int32_t flags)
      : flags_(flags),
        begin_(begin),
        end_(end),
        stride_(stride),
        phase_(phase),
        row_phase_(row_phase) {}
  Grid(const int32_t* cells, int64_t count, const int32_t* lines, int64_t num_lines, int32_t flags);

  bool row_lines() const { return (flags_ & kRowLines) != 0; }
  bool column_lines() const { return (flags_ & kColumnLines) != 0; }
  bool slash_lines() const { return (flags_ & kSlashLines) != 0; }
  bool OnRowLine(int64_t x) const {
    if (cells_ != nullptr) return x < end_ && cells_[x] >= 0 && is_line_[x] != 0;
    return x >= begin_ && x < end_ && Mod(x - begin_ - row_phase_) == 0;
  }
  bool OnColumnLine(int64_t x) const {
    if (cells_ != nullptr) return OnRowLine(x);
    return x >= begin_ && x < end_ && Mod(x - begin_ - phase_) == 0;
  }
  // -1: none. Members of a cell are those that slashes join.
  int64_t CellOf(int64_t x) const {
    if (x < begin_ || x >= end_) return -1;
    return cells_ != nullptr ? cells_[x] : Mod(x - begin_ - phase_);
  }
  int64_t NumCells() const {
    return cells_ != nullptr ? static_cast<int64_t>(members_.size()) : stride_;
  }
  // Calls fn(x) for the members of a cell, ascending, until fn returns false.
  template <class Fn>
  void ForMembers(int64_t cell, const Fn& fn) const {
    if (cells_ != nullptr) {
      for (int32_t x : members_[static_cast<size_t>(cell)]) {
        if (!fn(int64_t{x})) return;
      }
      return;
    }
    for (int64_t x = begin_ + (phase_ + cell) % stride_; x < end_; x += stride_) {
      if (!fn(x)) return;
    }
  }
  template <class Fn>
  void ForColumnLines(const Fn& fn) const {
    if (cells_ == nullptr) return ForMembers(0, fn);
    for (int32_t x : line_columns_) {
      if (!fn(int64_t{x})) return;
    }
  }

 private:
  int64_t Mod(int64_t x) const { return ((x % stride_) + stride_) % stride_; }

  int32_t flags_ = 0;
  int64_t begin_ = 0, end_ = 0, stride_ = 1, phase_ = 0, row_phase_ = 0;
  const int32_t* cells_ = nullptr;
  std::vector<uint8_t> is_line_;
  std::vector<int32_t> line_columns_;
  std::vector<std::vector<int32_t>> members_;
};

// A pattern read from words that were checked.
struct Pattern {
  Kind kind = Kind::kDense;
  int64_t sink = 0, local = 0, last = 0, period = 0;
  // vertical-slash
  int64_t slash_tile = 0, num_verticals = 0, num_slashes = 0;
  bool ranks = false;
  const int32_t *verticals = nullptr, *slashes = nullptr;
  // blocks
  int64_t block_rows = 0, block_columns = 0, first_block = 0, num_row_blocks = 0, row_words = 0;
  const int32_t* bits = nullptr;
  // block mask
  int64_t num_column_blocks = 0;
  const int32_t *row_starts = nullptr, *column_starts = nullptr, *pointers = nullptr,
                *indices = nullptr;
  std::vector<int64_t> inner;  // per entry, where its bits start in `bits`; empty without
  Grid grid;
  std::vector<Pattern> children;

  // Do two tiles of rows that follow each other keep nearly the same keys?
  bool NearKeys() const;
  // The largest tile of rows whose keys do not differ by more than the pattern itself says.
  int PreferredRows() const;
};

// Reads the pattern at words[offset]; `limit` is where its region ends. `columns` is the number of
// keys it may name. Refuses what would read or write out of bounds, or name no definite set.
Status ReadPattern(const int32_t* words, int64_t offset, int64_t limit, int64_t total_words,
                   const SequenceInfo& sequence, int64_t columns, int depth, Pattern* pattern);

// Which parts of a grid a tile computes: slashes have row tiles of their own, as have row lines.
enum class Stage : int8_t { kWhole, kNear, kRowLines, kSlashes };

// Adds the keys that the tile's rows keep, before the causal mask.
void AddColumns(const Pattern& pattern, Stage stage, int64_t cell, const Frame& frame,
                ColumnSet& set);

}  // namespace varlen::sparse_prefill
