#pragma once

#include "core/chunks-device.h"

// Sums over the rows of a matrix, column by column, in an order that depends on the number of rows
// alone: groups of rows that follow one another, then the groups in order. No atomics.
namespace varlen {

// How many groups, and of how many rows.
struct RowGroups {
  static constexpr int64_t kMost = 128, kFewestRows = 16;
  int64_t rows, count;

  explicit constexpr RowGroups(int64_t num_rows)
      : rows((num_rows + kMost - 1) / kMost < kFewestRows ? kFewestRows
                                                          : (num_rows + kMost - 1) / kMost),
        count((num_rows + rows - 1) / rows) {}
};

// Term::Load(row, first, count, out) gives eight columns of a row's term.
template <class Term>
struct DeviceColumnSums {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int64_t kColumns = kThreads * internal::kChunk;  // of a block

  struct Params {
    Term term;
    int64_t num_rows, num_columns;
    RowGroups groups;
    float* partials;  // [groups.count, num_columns]
  };
  static constexpr int64_t BlocksFor(const Params& p) {
    return p.groups.count * ((p.num_columns + kColumns - 1) / kColumns);
  }

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t strips = (p.num_columns + kColumns - 1) / kColumns;
    for (int64_t id = simt::BlockIndex(); id < p.groups.count * strips; id += simt::GridSize()) {
      const int64_t group = id / strips;
      const int64_t first = id % strips * kColumns + simt::ThreadIndex() * internal::kChunk;
      if (first >= p.num_columns) continue;
      const int count = internal::ChunkLength(first, p.num_columns);
      const int64_t begin = group * p.groups.rows, end = begin + p.groups.rows;
      float sums[internal::kChunk] = {};
      for (int64_t row = begin; row < end && row < p.num_rows; ++row) {
        float values[internal::kChunk];
        p.term.Load(row, first, count, values);
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) sums[i] += values[i];
      }
      SIMT_UNROLL
      for (int i = 0; i < internal::kChunk; ++i) {
        if (i < count) simt::Store(p.partials + group * p.num_columns + first + i, sums[i]);
      }
    }
  }
};

struct DeviceColumnTotals {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const float* partials;  // [groups, num_columns]
    int64_t num_groups, num_columns;
    float* out;  // [num_columns]
  };
  static constexpr int64_t BlocksFor(int64_t num_columns) {
    return (num_columns + kThreads - 1) / kThreads;
  }

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t column = simt::BlockIndex() * kThreads + simt::ThreadIndex();
         column < p.num_columns; column += simt::GridSize() * kThreads) {
      double sum = 0;
      for (int64_t group = 0; group < p.num_groups; ++group) {
        sum += simt::Load(p.partials + group * p.num_columns + column);
      }
      simt::Store(p.out + column, static_cast<float>(sum));
    }
  }
};

}  // namespace varlen
