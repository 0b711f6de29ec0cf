#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "ops/sparse-prefill/pattern.h"

// One (sequence, head) of a plan, cut into tiles of rows.
namespace varlen::sparse_prefill {

// Up to 64 rows that are computed together. Rows of a tile ascend; they are consecutive where
// the pattern has no reason to group them otherwise: lines of a grid, and the members of one cell,
// which share their keys, have tiles of their own, as have the modalities of a boundary pattern.
struct Tile {
  int32_t part;  // of the pattern: a modality, else 0
  Stage stage;
  int32_t cell;  // of Stage::kSlashes
  int32_t count;
  int64_t begin;  // first row, or where its rows start in the head's list
  bool listed;
};

// Every modality layout and offset of a plan, read once per call.
class PlanView {
 public:
  // Checks the header and the layouts against the tensor's size. Runs in the stream.
  static Status Open(const Tensor& plan, PlanView* view);

  int64_t num_seqs() const { return header_.num_seqs; }
  int64_t num_heads() const { return header_.num_heads; }
  const SequenceInfo& sequence(int64_t b) const { return sequences_[static_cast<size_t>(b)]; }
  const Header& header() const { return header_; }
  const int32_t* words() const { return words_; }
  const HeadWords& head_words(int64_t b, int64_t head) const {
    return heads_[static_cast<size_t>(b * num_heads() + head)];
  }
  Status Read(int64_t b, int64_t head, Pattern* pattern) const;

 private:
  Header header_{};
  const int32_t* words_ = nullptr;
  std::vector<SequenceInfo> sequences_;
  std::vector<std::unique_ptr<Modalities>> modalities_;
  std::vector<HeadWords> heads_;
};

// Reads header, sequences and head entries of a plan or of a configuration.
Status ReadHeader(const int32_t* words, int64_t size, Header* header,
                  std::vector<SequenceInfo>* sequences,
                  std::vector<std::unique_ptr<Modalities>>* modalities,
                  std::vector<HeadWords>* heads);

class Head {
 public:
  Status Open(const PlanView& plan, int64_t b, int64_t head);
  // The same from a pattern at hand; `sequence` must outlive it.
  void Open(const SequenceInfo& sequence, Pattern pattern);

  const SequenceInfo& sequence() const { return *sequence_; }
  const Pattern& pattern() const { return pattern_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  bool has_slashes() const { return has_slashes_; }

  // Rows of the chunk that a tile holds.
  void RowsOf(const Tile& tile, int32_t* rows) const;
  // The keys of a tile, after the causal mask: calls fn(j, rows of the tile that keep j),
  // ascending.
  template <class Fn>
  void ForColumns(const Tile& tile, bool lines, ColumnSet& set, const Fn& fn) const;
  // Do tiles that follow each other keep nearly the same keys, so that they are better taken
  // together? Slash tiles do not: each is one cell.
  bool ShareKeys(const Tile& a, const Tile& b) const {
    return a.stage == b.stage && a.stage != Stage::kSlashes && a.part == b.part &&
           a.count == kTileRows && pattern_.NearKeys();
  }
  // The keys of two tiles together: fn(j, rows of the first, rows of the second), ascending.
  template <class Fn>
  void ForColumnsOfPair(const Tile& first, const Tile& second, ColumnSet& first_set,
                        ColumnSet& second_set, const Fn& fn) const;
  // The same in runs, fn(j, count, rows of the first, rows of the second) for keys j .. j + count -
  // 1; the second tile may have no rows.
  template <class Fn>
  void ForRunsOfPair(const Tile& first, const Tile& second, ColumnSet& first_set,
                     ColumnSet& second_set, const Fn& fn) const;
  // The same for any ascending rows, all stages at once.
  template <class Fn>
  void ForColumnsOfRows(const int32_t* rows, int count, bool lines, ColumnSet& set,
                        const Fn& fn) const {
    ForColumnsOf(pattern_, Stage::kWhole, -1, rows, count, lines, set, fn);
  }

 private:
  // The rows of a tile that a causal mask leaves, for keys that ascend.
  class CausalRows;
  template <class Fn>
  void ForColumnsOf(const Pattern& pattern, Stage stage, int32_t cell, const int32_t* rows,
                    int count, bool lines, ColumnSet& set, const Fn& fn) const;
  // Fills `set`, and `at` with the rows' positions.
  void FillColumns(const Pattern& pattern, Stage stage, int32_t cell, const int32_t* rows,
                   int count, bool lines, int32_t* at, ColumnSet& set) const;
  const Pattern& PatternOf(const Tile& tile) const {
    return pattern_.kind == Kind::kQBoundary ? pattern_.children[static_cast<size_t>(tile.part)]
                                             : pattern_;
  }
  void CutTiles();
  void CutPart(int32_t part, const Pattern& pattern, std::vector<int32_t> rows);
  void CutList(Tile tile, const std::vector<int32_t>& rows, int per_tile);

  const SequenceInfo* sequence_ = nullptr;
  Pattern pattern_;
  std::vector<Tile> tiles_;
  std::vector<int32_t> lists_;
  bool has_slashes_ = false;
};

class Head::CausalRows {
 public:
  CausalRows(const SequenceInfo& sequence, const int32_t* at, int count)
      : at_(at), count_(sequence.causal ? count : 0) {}
  RowBits operator()(int64_t j, RowBits rows) {
    while (before_ < count_ && at_[before_] < j) ++before_;
    return rows & ~FirstRows(before_);
  }
  // The first key after j that the mask takes from a row which sees j.
  int64_t Next(int64_t j) {
    while (before_ < count_ && at_[before_] < j) ++before_;
    return before_ < count_ ? int64_t{at_[before_]} + 1 : INT64_MAX;
  }

 private:
  const int32_t* at_;
  int count_;
  int before_ = 0;  // rows whose position is below j
};

template <class Fn>
void Head::ForColumns(const Tile& tile, bool lines, ColumnSet& set, const Fn& fn) const {
  int32_t rows[kTileRows];
  RowsOf(tile, rows);
  ForColumnsOf(PatternOf(tile), tile.stage, tile.cell, rows, tile.count, lines, set, fn);
}

template <class Fn>
void Head::ForColumnsOfPair(const Tile& first, const Tile& second, ColumnSet& first_set,
                            ColumnSet& second_set, const Fn& fn) const {
  int32_t rows[kTileRows], first_at[kTileRows], second_at[kTileRows];
  RowsOf(first, rows);
  FillColumns(PatternOf(first), first.stage, first.cell, rows, first.count, false, first_at,
              first_set);
  RowsOf(second, rows);
  FillColumns(PatternOf(second), second.stage, second.cell, rows, second.count, false, second_at,
              second_set);
  CausalRows of_first(*sequence_, first_at, first.count);
  CausalRows of_second(*sequence_, second_at, second.count);
  ColumnSet::ForEachOfEither(first_set, second_set, [&](int64_t j, RowBits a, RowBits b) {
    a = of_first(j, a);
    b = of_second(j, b);
    if ((a | b) != 0) fn(j, a, b);
  });
}

template <class Fn>
void Head::ForRunsOfPair(const Tile& first, const Tile& second, ColumnSet& first_set,
                         ColumnSet& second_set, const Fn& fn) const {
  int32_t rows[kTileRows], first_at[kTileRows], second_at[kTileRows];
  RowsOf(first, rows);
  FillColumns(PatternOf(first), first.stage, first.cell, rows, first.count, false, first_at,
              first_set);
  second_set.Clear();
  if (second.count > 0) {
    RowsOf(second, rows);
    FillColumns(PatternOf(second), second.stage, second.cell, rows, second.count, false, second_at,
                second_set);
  }
  CausalRows of_first(*sequence_, first_at, first.count);
  CausalRows of_second(*sequence_, second_at, second.count);
  ColumnSet::ForRunsOfEither(
      first_set, second_set, [&](int64_t j, int64_t n, RowBits a, RowBits b) {
        for (int64_t end = j + n; j < end;) {
          const int64_t stop =
              std::min(end, std::max(j + 1, std::min(of_first.Next(j), of_second.Next(j))));
          const RowBits kept_a = of_first(j, a), kept_b = of_second(j, b);
          if ((kept_a | kept_b) != 0) fn(j, stop - j, kept_a, kept_b);
          j = stop;
        }
      });
}

template <class Fn>
void Head::ForColumnsOf(const Pattern& pattern, Stage stage, int32_t cell, const int32_t* rows,
                        int count, bool lines, ColumnSet& set, const Fn& fn) const {
  int32_t at[kTileRows];
  FillColumns(pattern, stage, cell, rows, count, lines, at, set);
  CausalRows causal(*sequence_, at, count);
  set.ForEach([&](int64_t j, RowBits kept) {
    kept = causal(j, kept);
    if (kept != 0) fn(j, kept);
  });
}

}  // namespace varlen::sparse_prefill
