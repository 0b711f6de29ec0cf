#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/workspace.h"

namespace varlen::sparse_prefill {

// Rows of a tile: bit r of a mask stands for row r.
inline constexpr int kTileRows = 64;
using RowBits = uint64_t;
constexpr RowBits FirstRows(int n) { return n >= 64 ? ~RowBits{0} : (RowBits{1} << n) - 1; }

// The keys that a tile of rows keeps, each with the rows that keep it. Whatever a pattern adds is a
// union, so no key stands in it twice: parts of a pattern may overlap and need no arithmetic to be
// made disjoint. One bit per key says which are in; reading them is in ascending order.
class ColumnSet {
 public:
  static int64_t BytesFor(int64_t columns) {
    return Workspace::BytesFor<uint64_t>(Words(columns)) + Workspace::BytesFor<RowBits>(columns);
  }
  ColumnSet(Workspace& memory, int64_t columns)
      : size_(columns),
        present_(memory.Take<uint64_t>(Words(columns))),
        rows_(memory.Take<RowBits>(columns)) {
    Clear();
  }

  int64_t size() const { return size_; }
  void Clear() { std::memset(present_, 0, static_cast<size_t>(Words(size_)) * 8); }

  void Add(int64_t j, RowBits rows) {
    uint64_t& word = present_[j >> 6];
    const uint64_t bit = uint64_t{1} << (j & 63);
    rows_[j] = (word & bit) != 0 ? rows_[j] | rows : rows;
    word |= bit;
  }

  void AddRange(int64_t begin, int64_t end, RowBits rows) {
    while (begin < end) {
      const int64_t word_end = std::min(end, (begin | 63) + 1);
      const uint64_t bits = FirstRows(static_cast<int>(word_end - begin)) << (begin & 63);
      uint64_t& word = present_[begin >> 6];
      if ((word & bits) == 0) {
        std::fill(rows_ + begin, rows_ + word_end, rows);
        word |= bits;
        begin = word_end;
      } else {
        for (; begin < word_end; ++begin) Add(begin, rows);
      }
    }
  }

  RowBits At(int64_t j) const { return (present_[j >> 6] >> (j & 63) & 1) != 0 ? rows_[j] : 0; }

  // Calls fn(j, rows of a, rows of b) for every key of either, ascending; both hold as many.
  template <class Fn>
  static void ForEachOfEither(const ColumnSet& a, const ColumnSet& b, const Fn& fn) {
    for (int64_t w = 0; w < Words(a.size_); ++w) {
      for (uint64_t word = a.present_[w] | b.present_[w]; word != 0; word &= word - 1) {
        const uint64_t bit = word & -word;
        const int64_t j = w * 64 + std::countr_zero(word);
        fn(j, (a.present_[w] & bit) != 0 ? a.rows_[j] : 0,
           (b.present_[w] & bit) != 0 ? b.rows_[j] : 0);
      }
    }
  }

  // The same in runs: fn(j, count, rows of a, rows of b) for keys j .. j + count - 1, which the
  // same rows keep; a run may be cut anywhere.
  template <class Fn>
  static void ForRunsOfEither(const ColumnSet& a, const ColumnSet& b, const Fn& fn) {
    for (int64_t w = 0; w < Words(a.size_); ++w) {
      const uint64_t in_a = a.present_[w], in_b = b.present_[w];
      for (uint64_t word = in_a | in_b; word != 0;) {
        const int first = std::countr_zero(word);
        const uint64_t bit = uint64_t{1} << first;
        const int64_t j = w * 64 + first;
        const bool is_a = (in_a & bit) != 0, is_b = (in_b & bit) != 0;
        const RowBits of_a = is_a ? a.rows_[j] : 0, of_b = is_b ? b.rows_[j] : 0;
        // Keys after it that stand in the same sets, and those of them with the same rows.
        const uint64_t same = (is_a ? in_a : ~in_a) & (is_b ? in_b : ~in_b);
        const int most = std::countr_one(same >> first);
        int count = 1;
        while (count < most && (!is_a || a.rows_[j + count] == of_a) &&
               (!is_b || b.rows_[j + count] == of_b)) {
          ++count;
        }
        fn(j, int64_t{count}, of_a, of_b);
        word &= ~(FirstRows(count) << first);
      }
    }
  }

  // Calls fn(j, rows) for every key, ascending.
  template <class Fn>
  void ForEach(const Fn& fn) const {
    for (int64_t w = 0; w < Words(size_); ++w) {
      for (uint64_t word = present_[w]; word != 0; word &= word - 1) {
        const int64_t j = w * 64 + std::countr_zero(word);
        fn(j, rows_[j]);
      }
    }
  }

 private:
  static int64_t Words(int64_t columns) { return (columns + 63) / 64; }

  int64_t size_;
  uint64_t* present_;
  RowBits* rows_;  // set where present
};

}  // namespace varlen::sparse_prefill
